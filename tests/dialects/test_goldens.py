"""Every recorded body: the dialects report the same however its bytes arrive, and the OpenAI SDK agrees."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.cases import CASES

from mcpmeter.dialects.base import Dialect, ResponseInfo, UnreadableResponse
from mcpmeter.dialects.openai_responses import OpenAiResponses
from mcpmeter.errors import UpstreamDisconnected
from mcpmeter.relay.stream import StreamTee

GOLDEN = Path(__file__).parents[1] / "golden"
DIALECTS: dict[str, Dialect] = {
    "openai_chat": CASES["chat"].dialect,
    "openai_responses": CASES["responses"].dialect,
    "openai_embeddings": CASES["embeddings"].dialect,
    "anthropic_messages": CASES["messages"].dialect,
    "anthropic_count_tokens": CASES["count_tokens"].dialect,
    "gemini_generate": CASES["generate"].dialect,
    "gemini_count_tokens": CASES["count_contents"].dialect,
    "gemini_embeddings": CASES["embed_content"].dialect,
}
EXPECTED: dict[str, dict[str, Any]] = {
    f"{folder}/{name}": expected
    for folder in DIALECTS
    for name, expected in json.loads((GOLDEN / folder / "expected.json").read_text()).items()
}
WHOLE = [name for name in EXPECTED if name.endswith(".json")]
STREAMS = [name for name in EXPECTED if name.endswith(".sse")]
RESPONSES = [name for name in STREAMS if name.startswith("openai_responses/")]
LAST_EVENTS = {"completed": b"response.completed", "max_output_tokens": b"response.incomplete"}
LAST_EVENTS |= {"failed": b"response.failed"}


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def dialect_of(name: str) -> Any:
    return DIALECTS[name.partition("/")[0]]


def assert_expected(name: str, info: ResponseInfo) -> None:
    expected = dict(EXPECTED[name])
    usage = expected.pop("usage")
    assert (usage and {field: getattr(info.usage, field) for field in usage}) == usage
    assert (info.usage is None, info.bad_usage) == (usage is None, False)
    expected.pop("is_whole", None)
    if name.endswith(".sse") and expected["model"] is None:
        del expected["model"]
    assert {field: getattr(info, field) for field in expected} == expected


def streamed(name: str, pieces: list[bytes]) -> tuple[bytes, StreamTee]:
    tee = StreamTee(dialect_of(name), withhold_usage=False)
    out = b""
    for piece in pieces:
        out += tee.feed(piece)
        if tee.end:
            break
    return out + tee.finish() + tee.end, tee


def check(name: str, pieces: list[bytes]) -> None:
    out, tee = streamed(name, pieces)
    assert out == b"".join(pieces)
    assert_expected(name, tee.read)
    assert tee.is_whole == EXPECTED[name].get("is_whole", True)


@pytest.mark.parametrize("folder", DIALECTS)
def test_every_golden_body_has_its_expectation(folder):
    files = {f"{folder}/{file.name}" for file in (GOLDEN / folder).iterdir() if file.name != "expected.json"}
    assert files == {name for name in EXPECTED if name.startswith(f"{folder}/")}


@pytest.mark.parametrize("name", WHOLE)
def test_a_response_reports_what_is_expected(name):
    assert_expected(name, dialect_of(name).read_response(golden(name)))


@pytest.mark.parametrize("name", [name for name in WHOLE if "image" not in name])
def test_a_response_cut_at_any_byte_is_unreadable(name):
    body = golden(name).rstrip()
    for place in range(len(body)):
        with pytest.raises(UnreadableResponse):
            dialect_of(name).read_response(body[:place])


# tests/relay/test_stream.py cuts the streams of chat, with usage withheld too.
@pytest.mark.parametrize("name", [name for name in STREAMS if not name.startswith("openai_chat/")])
def test_a_stream_cut_in_two_at_any_byte_reports_the_same(name):
    data = golden(name)
    for place in range(len(data)):
        check(name, [data[:place], data[place:]])


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_arrives_byte_by_byte_reports_the_same(name):
    check(name, [bytes((byte,)) for byte in golden(name)])


@given(st.sampled_from(STREAMS), st.sets(st.integers(1, 3200), max_size=30))
def test_a_stream_cut_anywhere_reports_the_same(name, places):
    data = golden(name)
    edges = [0, *sorted(place for place in places if place < len(data)), len(data)]
    check(name, [data[a:b] for a, b in itertools.pairwise(edges)])


@pytest.mark.parametrize("name", RESPONSES)
def test_the_last_event_of_responses_waits_for_the_settlement(name):
    _out, tee = streamed(name, [golden(name)])
    mark = LAST_EVENTS.get(EXPECTED[name]["finish_reason"])
    assert golden(name).endswith(tee.end)
    assert (mark is not None and mark in tee.end) or (mark is None and not tee.end)


@pytest.mark.parametrize("name", ["stream.sse", "stream_crlf.sse", "stream_pretty.sse", "stream_refusal.sse"])
def test_the_last_event_of_messages_waits_for_the_settlement(name):
    name = f"anthropic_messages/{name}"
    _out, tee = streamed(name, [golden(name)])
    assert golden(name).endswith(tee.end)
    assert tee.end.startswith(b"event: message_stop")


ESTIMATED = {
    "openai_chat": ("answer", "answer_tool_calls", "answer_refusal", "answer_n2"),
    "openai_responses": ("answer", "answer_tool_call", "answer_refusal", "answer_truncated"),
    "anthropic_messages": ("answer", "answer_tool_use", "answer_thinking", "answer_cached"),
    "gemini_generate": ("answer", "answer_function_call", "answer_two_candidates"),
}


@pytest.mark.parametrize("name", [f"{folder}/{name}.json" for folder, names in ESTIMATED.items() for name in names])
def test_an_estimate_is_near_the_billed_tokens(name):
    usage = EXPECTED[name]["usage"]
    billed = usage["completion_tokens"] - (usage["reasoning_tokens"] if name.startswith("gemini") else 0)
    least = 4 if name.startswith("anthropic") else 2
    assert billed / least <= dialect_of(name).completion_tokens(golden(name)) <= billed * 2


# The official SDK accepts the goldens --------------------------------------------------------------------------------


def sdk(body: bytes, content_type: str) -> openai.OpenAI:
    response = httpx.MockTransport(lambda _: httpx.Response(200, content=body, headers={"content-type": content_type}))
    return openai.OpenAI(api_key="none", base_url="http://test", http_client=httpx.Client(transport=response))


@pytest.mark.parametrize("name", [name for name in RESPONSES if not EXPECTED[name]["is_error"]])
def test_the_sdk_reads_the_same_usage_from_the_same_stream(name):
    with sdk(golden(name), "text/event-stream") as client:
        *_, last = client.responses.create(model="m", input="Hello", stream=True)
    usage = EXPECTED[name]["usage"]
    assert last.type in ("response.completed", "response.incomplete")
    assert last.response.usage.input_tokens == usage["prompt_tokens"]
    assert last.response.usage.output_tokens == usage["completion_tokens"]


def test_the_sdk_raises_on_our_error_in_a_begun_response():
    begun = golden("openai_responses/stream_truncated.sse").partition(b"event: response.incomplete")[0]
    event = OpenAiResponses().error_event(UpstreamDisconnected("It ended.", hint="Retry."), "call_1")
    with sdk(begun + event, "text/event-stream") as client:
        events = client.responses.create(model="m", input="Hello", stream=True)
        with pytest.raises(openai.APIError, match=r"It ended\. Retry\.") as raised:
            list(events)
    assert raised.value.code == "upstream_broke"


@pytest.mark.parametrize("name", ["answer.json", "answer_base64.json"])
def test_the_sdk_reads_the_same_vectors_from_either_encoding(name):
    with sdk(golden(f"openai_embeddings/{name}"), "application/json") as client:
        response = client.embeddings.create(model="m", input="Hello")
    assert response.data[0].embedding == pytest.approx([0.0123 * (n - 4) for n in range(8)], rel=1e-6)
