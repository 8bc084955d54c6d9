"""Clients get the provider's bytes relayed the relay, each chunk as soon as it is sent."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from mcpmeter.simulator import Simulator

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = "/v1/chat/completions"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
KEY = "sk-upstream-credential-0123456789"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def relay(start_module_relay) -> Any:
    return await start_module_relay()


async def direct(relay: Any, body: dict[str, Any]) -> tuple[bytes, str]:
    """The same request to a second provider with the same seed, as its first request too."""
    async with Simulator(seed=1, key=KEY) as simulator:
        headers = {"authorization": f"Bearer {KEY}"}
        answer = await relay.http.post(simulator.url + CHAT, content=json.dumps(body).encode(), headers=headers)
        return answer.content, answer.headers["content-type"]


REQUESTS = {
    "plain": {},
    "several choices": {"n": 3},
    "tools": {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
    "a schema": {"response_format": {"type": "json_object"}},
    "reasoning": {"reasoning_effort": "low"},
    "not ASCII": {"user": "Zürich \u4f60\u597d \U0001f600"},
}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_has_the_same_bytes_as_without_the_relay(relay, name, stream):
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": name}], **REQUESTS[name]}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    relayed = await relay.ask(body)
    assert (relayed.body, relayed.headers["content-type"]) == await direct(relay, body)
    assert relayed.status == 200


async def test_a_stream_lacks_only_what_requesting_usage_added(relay):
    # The simulator seeds its response by the body, so the comparison uses the body that goes upstream.
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "quiet"}], "stream": True}
    relayed = await relay.ask(body)
    forwarded = {"stream_options": {"include_usage": True}, **body}
    async with Simulator(seed=1, key=KEY) as simulator:
        # As the relay inserts it: in front, without spaces.
        text = b'{"stream_options":{"include_usage":true},' + json.dumps(body).encode()[1:]
        assert json.loads(text) == forwarded
        headers = {"authorization": f"Bearer {KEY}"}
        whole = (await relay.http.post(simulator.url + CHAT, content=text, headers=headers)).content
    events = [event + b"\n\n" for event in whole.split(b"\n\n") if event]
    added = b',"usage":null}'
    assert events[0].endswith(added + b"\n\n")
    assert relayed.body == b"".join(event.replace(added, b"}") for event in events if b'"choices":[],' not in event)
    assert relay.rows()[-1].token_source == "reported"


async def test_each_chunk_passes_before_the_next_is_sent(start_module_relay, raw_upstream):
    relay = await start_module_relay(upstream=raw_upstream.url)
    next_chunk = asyncio.Event()

    async def send_one_by_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(5):
            event = b'data: {"choices":[{"delta":{"content":"%d"},"finish_reason":null}]}\n\n' % number
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await next_chunk.wait()
            next_chunk.clear()
        end = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
        writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(end), end))

    raw_upstream.play(send_one_by_one)
    body = json.dumps({"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}], "stream": True})
    async with relay.http.stream("POST", relay.url + CHAT, content=body.encode()) as answer:
        lines = answer.aiter_lines()
        for number in range(5):
            # The provider waits until the client has this event, so a relay that held it back would time out.
            event = await asyncio.wait_for(anext(lines), 5)
            assert f'"content":"{number}"' in event
            assert await anext(lines) == ""
            next_chunk.set()
        assert [line async for line in lines][-2:] == ["data: [DONE]", ""]
    await relay.until_idle()
    assert relay.rows()[0].chunks == 6


async def test_a_stream_is_settled_before_its_last_event_is_sent(relay):
    body = json.dumps({"model": "gpt-4.1", "messages": [{"role": "user", "content": "last"}], "stream": True})
    async with relay.http.stream("POST", relay.url + CHAT, content=body.encode()) as answer:
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                break
        row = relay.rows()[-1]
        assert (row.state, row.id) == ("settled", answer.headers["x-mcpmeter-call-id"])


async def test_a_json_response_is_settled_first_and_carries_its_cost(relay):
    reply = await relay.chat()
    row = relay.rows()[-1]
    assert (row.state, row.id) == ("settled", reply.headers["x-mcpmeter-call-id"])
    assert reply.headers["x-mcpmeter-cost-usd"] == f"{row.cost_nanousd / 1e9:.9f}"
    assert reply.headers["x-mcpmeter-cost-source"] == "listed"


async def test_the_official_sdk_works_with_only_its_base_url_changed(relay):
    async with AsyncOpenAI(base_url=f"{relay.url}/v1", api_key="unused", max_retries=0) as client:
        answer = await client.chat.completions.create(model="gpt-4.1", messages=[{"role": "user", "content": "sdk"}])
        assert answer.usage.completion_tokens == relay.rows()[-1].completion_tokens
        stream = await client.chat.completions.create(
            model="gpt-4.1", messages=[{"role": "user", "content": "sdk"}], stream=True
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert all(chunk.choices for chunk in chunks)
        assert any(model.id == "gpt-4.1" for model in (await client.models.list()).data)


async def test_a_trace_id_becomes_an_exemplar_in_openmetrics(relay):
    headers = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "trace"}], "stream": True}
    await relay.ask(body, headers=headers)
    assert relay.rows()[-1].trace_id == TRACE_ID
    openmetrics = await relay.scrape_openmetrics()
    for family in ("mcp_request_duration_seconds", "gen_ai_client_time_to_first_chunk_seconds"):
        assert re.search(rf'^{family}_bucket\{{.*\}} .* # \{{trace_id="{TRACE_ID}"\}} ', openmetrics, re.MULTILINE)
    assert TRACE_ID.encode() not in (await relay.ask(path="/metrics", method="GET")).body


async def test_a_provider_prefix_is_removed_from_the_model(relay):
    reply = await relay.ask({"model": "holysheep/gpt-4.1", "messages": [{"role": "user", "content": "prefix"}]})
    assert reply.json["model"] == "gpt-4.1"
    assert relay.rows()[-1].model == "gpt-4.1"


async def test_an_unknown_model_is_relayed_unpriced_without_a_series(relay):
    before = relay.counts()
    reply = await relay.ask({"model": "made-up-9", "messages": [{"role": "user", "content": "Hello"}]})
    after = await relay.scrape()
    assert (reply.status, reply.headers["x-mcpmeter-cost-source"]) == (200, "unpriced")
    assert after.since(before, "mcp_unpriced_requests_total") == {("holysheep", "unknown_model"): 1}
    assert {labels[0] for labels in after.since(before, "mcp_tokens_total")} == {"other"}
    assert after.since(before, "mcp_label_overflow_total")["model",] >= 1
    assert relay.rows()[-1].model == "made-up-9"


async def test_both_model_lists_name_the_same_models(relay):
    openai = (await relay.ask(path="/v1/models", method="GET")).json
    guide = (await relay.ask(path="/mcp/models", method="GET")).json["models"]
    assert {model["id"] for model in openai["data"]} == {model["id"] for model in guide}
    (gpt,) = [model for model in guide if model["id"] == "gpt-4.1"]
    assert gpt["pricing_per_1m_tokens"] == {"prompt": 2.5, "completion": 10, "blended": 8}
    assert gpt["recommended_for"] == "Complex reasoning, code generation"
