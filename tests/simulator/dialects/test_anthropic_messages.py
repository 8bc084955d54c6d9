"""Anthropic's dialect as the official SDK reads it, and event by event."""

import json
from random import Random

import pytest
from anthropic import (
    AsyncAnthropic,
    AuthenticationError,
    BadRequestError,
    InternalServerError,
    RateLimitError,
)
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.errors import InvalidRequest
from mcpmeter.simulator import Fault, Plan, Quota, Simulator
from mcpmeter.simulator.dialects.anthropic_messages import MessagesRequest
from mcpmeter.simulator.dialects.anthropic_prompt import CountTokensRequest
from mcpmeter.simulator.dialects.base import BodyDialect
from mcpmeter.simulator.request_parsing import text_tokens

REQUEST = {"model": "claude-sonnet-4.5", "max_tokens": 4096, "messages": [{"role": "user", "content": "Hello"}]}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOL = {"name": "get_weather", "description": "d", "input_schema": SCHEMA}
THINKING = {"type": "enabled", "budget_tokens": 1024}
READ = BodyDialect("anthropic_messages", MessagesRequest).read


@pytest.fixture
async def client(sim):
    async with AsyncAnthropic(base_url=sim.url, api_key="none", max_retries=0) as sdk:
        yield sdk


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def respond(fault=Fault(), plan=Plan(), repetition=0, **more):  # noqa: B008 (frozen)
    return READ(json.dumps(REQUEST | more).encode()).respond(fault, plan, Random(1), repetition)


def events(response):
    return [json.loads(event.data.partition(b"data: ")[2]) for event in response.events(None)]


async def test_count_tokens_equals_the_billed_prompt(sim, client):
    prompt = {
        "model": "claude-sonnet-4.5",
        "system": "12345678",
        "tools": [TOOL],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "12345"}, {"type": "image", "source": {}}]}],
    }
    counted = await client.messages.count_tokens(**prompt)
    message = await client.messages.create(**prompt, max_tokens=10)
    expected = text_tokens(compact([TOOL])) + (4 + 2) + (4 + 2 + 85)
    assert counted.input_tokens == message.usage.input_tokens == expected
    count, call = sim.billing_log.calls()
    assert (count.dialect, count.prompt_tokens, call.prompt_tokens) == ("anthropic_count_tokens", 0, expected)


async def test_a_marked_prompt_is_written_to_the_cache_and_then_read(sim, client):
    system = [{"type": "text", "text": "x" * 4 * 2000, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    first, second = [(await client.messages.create(**REQUEST, system=system)).usage for _ in range(2)]
    assert (first.input_tokens, first.cache_creation_input_tokens, first.cache_read_input_tokens) == (6, 2004, 0)
    assert (second.input_tokens, second.cache_creation_input_tokens, second.cache_read_input_tokens) == (6, 0, 2004)
    assert (first.cache_creation.ephemeral_1h_input_tokens, first.cache_creation.ephemeral_5m_input_tokens) == (2004, 0)
    calls = list(sim.billing_log.calls())
    assert [call.prompt_tokens for call in calls] == [2010, 2010]
    assert [(call.cache_write_tokens, call.cached_tokens) for call in calls] == [(2004, 0), (0, 2004)]


@pytest.mark.parametrize(
    ("more", "marked"),
    [
        ({"cache_control": {"type": "ephemeral"}}, 1506),
        ({"system": [{"type": "text", "text": "x" * 5000, "cache_control": {"type": "ephemeral"}}]}, 1254),
        ({"system": [{"type": "text", "text": "x" * 4000, "cache_control": {"type": "ephemeral"}}]}, 0),
        ({"tools": [{**TOOL, "description": "x" * 6000, "cache_control": {"type": "ephemeral"}}, TOOL]}, None),
    ],
)
def test_a_long_prompt_is_cached_up_to_the_last_mark(more, marked):
    long = {"messages": [{"role": "user", "content": "x" * 4 * 1502}]} if "system" not in more else {}
    if marked is None:
        marked = text_tokens(compact(more["tools"][:1]))
    assert respond(**more, **long).billed.cache_write == marked
    assert respond(**more, **long, repetition=1).billed.cached == marked


async def test_the_sdk_raises_its_own_errors(client):
    async def ask(simulate):
        await client.messages.create(**REQUEST, metadata={"user_id": f"simulate:{simulate}"})

    with pytest.raises(RateLimitError) as limited:
        await ask("status=429,retry_after=2")
    assert limited.value.response.headers["retry-after"] == "2"
    assert limited.value.body["error"]["type"] == "rate_limit_error"
    assert limited.value.body["request_id"] == limited.value.response.headers["request-id"]
    with pytest.raises(InternalServerError) as overloaded:
        await ask("status=529")
    assert overloaded.value.body["error"]["type"] == "overloaded_error"
    with pytest.raises(BadRequestError, match="messages"):
        await client.messages.create(**(REQUEST | {"messages": []}))
    with pytest.raises(BadRequestError, match="budget_tokens"):
        await client.messages.create(**REQUEST, thinking={"type": "enabled", "budget_tokens": 4096})
    with pytest.raises(BadRequestError, match=r"metadata\.user_id"):
        await ask("status=9")


async def test_a_key_is_taken_from_either_header(raw):
    async with Simulator(key="sk-secret") as sim:
        for given in ({"api_key": "sk-secret"}, {"auth_token": "sk-secret"}):
            async with AsyncAnthropic(base_url=sim.url, max_retries=0, **given) as sdk:
                await sdk.messages.create(**REQUEST)
        async with AsyncAnthropic(base_url=sim.url, api_key="other", max_retries=0) as sdk:
            with pytest.raises(AuthenticationError) as refused:
                await sdk.messages.create(**REQUEST)
        assert refused.value.body["error"]["type"] == "authentication_error"
        assert (await raw(sim, REQUEST, "/v1/messages")).status == 401
    assert sim.billing_log.totals.calls == 2


async def test_headers_have_limits_for_each_kind_of_token(raw):
    async with Simulator(quota=Quota(input_tokens=10, output_tokens=900, enforce=True)) as sim:
        first, second, third = [await raw(sim, REQUEST, "/v1/messages") for _ in range(3)]
    made = first.json["usage"]["output_tokens"]
    assert first.headers["anthropic-ratelimit-input-tokens-limit"] == "10"
    assert first.headers["anthropic-ratelimit-input-tokens-remaining"] == "4"
    assert first.headers["anthropic-ratelimit-output-tokens-remaining"] == str(900 - made)
    assert first.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
    assert (second.status, third.status) == (200, 429)
    assert int(third.headers["retry-after"]) >= 1


def test_events_have_the_documented_order():
    response = respond(Fault(completion_tokens=34, reasoning_tokens=32), stream=True, thinking=THINKING)
    kinds = [
        event["delta"]["type"] if "delta" in event and "type" in event["delta"] else event["type"]
        for event in events(response)
    ]
    assert kinds == [
        "message_start", "content_block_start", "ping", *["thinking_delta"] * 32, "signature_delta",
        "content_block_stop", "content_block_start", "text_delta", "text_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    names = [event.data.partition(b"\n")[0].decode() for event in response.events(None)]
    assert names == [f"event: {event['type']}" for event in events(response)]
    start, delta = events(response)[0]["message"], events(response)[-2]
    assert (start["usage"]["output_tokens"], start["content"], start["stop_reason"]) == (1, [], None)
    assert delta["usage"]["output_tokens"] == 34


def test_omitted_thinking_is_billed():
    response = respond(stream=True, thinking=THINKING | {"display": "omitted"})
    assert response.hidden_tokens == response.billed.reasoning > 0
    assert b"thinking_delta" not in b"".join(event.data for event in response.events(None))
    thinking = json.loads(response.body())["content"][0]
    assert (thinking["type"], thinking["thinking"]) == ("thinking", "")


def test_structured_output_fits_its_schema():
    response = respond(output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
    (block,) = json.loads(response.body())["content"]
    assert set(json.loads(block["text"])) == {"city", "days"}


@given(
    limit=st.integers(1, 80),
    reasoning=st.integers(0, 60),
    tokens=st.integers(0, 100),
    step=st.integers(1, 9),
    cached=st.integers(0, 20),
    written=st.integers(0, 20),
    calls_tool=st.booleans(),
)
def test_usage_equals_the_content_of_body_and_stream(limit, reasoning, tokens, step, cached, written, calls_tool):
    fault = Fault(
        reasoning_tokens=reasoning, completion_tokens=tokens, tokens_per_chunk=step, cached_tokens=cached,
        cache_write_tokens=written, tool_calls=calls_tool,
    )  # fmt: skip
    response = respond(fault, max_tokens=limit, tools=[TOOL])
    body = json.loads(response.body())
    usage = body["usage"]
    prompt = usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]
    assert prompt == response.billed.prompt == 6 + text_tokens(compact([TOOL]))
    seen = sum(block_tokens(block) for block in body["content"])
    assert usage["output_tokens"] == response.billed.completion == seen
    assert calls_tool or seen <= limit
    assert rebuilt(events(response)) == (body["content"], usage["output_tokens"], body["stop_reason"])
    made = list(response.events(None))
    assert sum(event.tokens + event.reasoning_tokens for event in made) == seen
    assert sum(event.reasoning_tokens for event in made) == response.billed.reasoning
    assert [event.is_last for event in made] == [False] * (len(made) - 1) + [True]


def block_tokens(block):
    match block["type"]:
        case "tool_use":
            return text_tokens(block["name"]) + text_tokens(compact(block["input"]))
        case kind:
            return text_tokens(block[kind])


def rebuilt(stream):
    content, partial = [], {}
    for event in stream:
        match event["type"], event.get("delta", {}).get("type"):
            case "content_block_start", _:
                content.append(event["content_block"])
            case _, "input_json_delta":
                partial[event["index"]] = partial.get(event["index"], "") + event["delta"]["partial_json"]
            case "content_block_delta", kind:
                field = kind.removesuffix("_delta")
                content[event["index"]][field] += event["delta"][field]
    for index, text in partial.items():
        content[index]["input"] = json.loads(text)
    (end,) = [event for event in stream if event["type"] == "message_delta"]
    return content, end["usage"]["output_tokens"], end["delta"]["stop_reason"]


@pytest.mark.parametrize(
    "more",
    [
        {"messages": []}, {"messages": "x"}, {"messages": [{"role": "tool", "content": "x"}]}, {"max_tokens": 0},
        {"max_tokens": None}, {"model": ""}, {"model": 5}, {"tools": [{}]}, {"tools": "x"}, {"stream": "yes"},
        {"tools": [{"name": ""}]}, {"thinking": {"type": "enabled"}}, {"tool_choice": {"type": "maybe"}},
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [5]}]}]},
        {"tools": [{"name": "x", "cache_control": 5}]},
    ],
    ids=str,
)  # fmt: skip
def test_invalid_requests_are_refused(more):
    with pytest.raises(InvalidRequest) as refused:
        respond(**more)
    assert len(refused.value.message) < 300


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(body):
    for read in (READ, BodyDialect("anthropic_count_tokens", CountTokensRequest).read):
        with pytest.raises(InvalidRequest):
            read(body)
