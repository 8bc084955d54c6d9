"""Anthropic's dialect as the official SDK reads it, and event by event."""

import json
from random import Random

import pytest
from anthropic import AsyncAnthropic, AuthenticationError, BadRequestError, InternalServerError, RateLimitError
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.errors import InvalidRequest
from mcpmeter.simulator import Fault, Plan, Quota, Simulator
from mcpmeter.simulator.dialects.anthropic_messages import AnthropicMessages
from mcpmeter.simulator.dialects.anthropic_prompt import AnthropicCountTokens
from mcpmeter.simulator.request_parsing import text_tokens

ASK = {"model": "claude-sonnet-4.5", "max_tokens": 4096, "messages": [{"role": "user", "content": "Hello"}]}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOL = {"name": "get_weather", "description": "d", "input_schema": SCHEMA}
THINKING = {"type": "enabled", "budget_tokens": 1024}
READ = AnthropicMessages().read


@pytest.fixture
async def client(sim):
    async with AsyncAnthropic(base_url=sim.url, api_key="none", max_retries=0) as sdk:
        yield sdk


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def draw(fault=Fault(), plan=Plan(), nth=0, **more):  # noqa: B008 (frozen)
    return READ(json.dumps(ASK | more).encode()).draw(fault, plan, Random(1), nth)


def events(reply):
    return [json.loads(event.data.partition(b"data: ")[2]) for event in reply.events(None)]


async def test_the_sdk_reads_a_message_and_the_books_agree(sim, client):
    message = await client.messages.create(**ASK)
    (call,) = sim.billing_log.calls()
    assert (message.role, message.stop_reason, message.stop_sequence) == ("assistant", "end_turn", None)
    assert (message.usage.input_tokens, message.usage.output_tokens) == (call.prompt_tokens, call.completion_tokens)
    assert len(message.content[0].text.split()) == call.completion_tokens
    assert message._request_id == call.request_id


async def test_the_sdk_puts_a_stream_together(sim, client):
    async with client.messages.stream(**ASK, thinking=THINKING) as stream:
        message = await stream.get_final_message()
    thinking, text = message.content
    (call,) = sim.billing_log.calls()
    assert (
        text_tokens(thinking.thinking) == call.reasoning_tokens == message.usage.output_tokens_details.thinking_tokens
    )
    assert text_tokens(text.text) + call.reasoning_tokens == call.completion_tokens == message.usage.output_tokens
    assert thinking.signature
    assert call.delivered_tokens == call.completion_tokens


async def test_the_sdk_calls_a_tool_in_both_shapes(sim, client):
    tools = {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "get_weather"}}
    whole = await client.messages.create(**ASK, **tools)
    async with client.messages.stream(**ASK, **tools) as stream:
        streamed = await stream.get_final_message()
    for message, call in zip((whole, streamed), sim.billing_log.calls(), strict=True):
        (block,) = message.content
        assert message.stop_reason == "tool_use"
        assert isinstance(block.input["city"], str)
        assert call.completion_tokens == text_tokens(block.name) + text_tokens(compact(block.input))
    answered = [
        *ASK["messages"],
        {"role": "assistant", "content": [whole.content[0].to_dict()]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": whole.content[0].id, "content": "sunny"}]},
    ]
    last = await client.messages.create(**(ASK | {"messages": answered}), tools=[TOOL], tool_choice={"type": "any"})
    assert last.stop_reason == "end_turn"


async def test_the_sdk_counts_what_a_message_is_billed(sim, client):
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


async def test_a_marked_prompt_is_written_to_the_cache_once_and_then_read(sim, client):
    system = [{"type": "text", "text": "x" * 4 * 2000, "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    first, second = [(await client.messages.create(**ASK, system=system)).usage for _ in range(2)]
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
def test_only_what_stands_before_the_last_mark_is_cached_and_only_if_it_is_long(more, marked):
    long = {"messages": [{"role": "user", "content": "x" * 4 * 1502}]} if "system" not in more else {}
    if marked is None:
        marked = text_tokens(compact(more["tools"][:1]))
    assert draw(**more, **long).tally.cache_write == marked
    assert draw(**more, **long, nth=1).tally.cached == marked


async def test_the_sdk_raises_its_own_errors(client):
    async def ask(simulate):
        await client.messages.create(**ASK, metadata={"user_id": f"simulate:{simulate}"})

    with pytest.raises(RateLimitError) as limited:
        await ask("status=429,retry_after=2")
    assert limited.value.response.headers["retry-after"] == "2"
    assert limited.value.body["error"]["type"] == "rate_limit_error"
    assert limited.value.body["request_id"] == limited.value.response.headers["request-id"]
    with pytest.raises(InternalServerError) as overloaded:
        await ask("status=529")
    assert overloaded.value.body["error"]["type"] == "overloaded_error"
    with pytest.raises(BadRequestError, match="messages"):
        await client.messages.create(**(ASK | {"messages": []}))
    with pytest.raises(BadRequestError, match="budget_tokens"):
        await client.messages.create(**ASK, thinking={"type": "enabled", "budget_tokens": 4096})
    with pytest.raises(BadRequestError, match=r"metadata\.user_id"):
        await ask("status=9")


async def test_the_sdk_raises_the_error_inside_a_stream(sim, client):
    wish = {"user_id": "simulate:body=error,after_tokens=2"}
    with pytest.raises(Exception, match="overloaded_error"):
        async with client.messages.stream(**ASK, metadata=wish) as stream:
            await stream.get_final_message()
    assert sim.billing_log.totals.completion_tokens == 2


async def test_a_key_is_taken_from_either_header(raw):
    async with Simulator(key="sk-secret") as sim:
        for given in ({"api_key": "sk-secret"}, {"auth_token": "sk-secret"}):
            async with AsyncAnthropic(base_url=sim.url, max_retries=0, **given) as sdk:
                await sdk.messages.create(**ASK)
        async with AsyncAnthropic(base_url=sim.url, api_key="other", max_retries=0) as sdk:
            with pytest.raises(AuthenticationError) as refused:
                await sdk.messages.create(**ASK)
        assert refused.value.body["error"]["type"] == "authentication_error"
        assert (await raw(sim, ASK, "/v1/messages")).status == 401
    assert sim.billing_log.totals.calls == 2


async def test_limits_are_told_for_each_kind_of_token(raw):
    async with Simulator(quota=Quota(input_tokens=10, output_tokens=900, enforce=True)) as sim:
        first, second, third = [await raw(sim, ASK, "/v1/messages") for _ in range(3)]
    made = first.json["usage"]["output_tokens"]
    assert first.headers["anthropic-ratelimit-input-tokens-limit"] == "10"
    assert first.headers["anthropic-ratelimit-input-tokens-remaining"] == "4"
    assert first.headers["anthropic-ratelimit-output-tokens-remaining"] == str(900 - made)
    assert first.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
    assert (second.status, third.status) == (200, 429)
    assert int(third.headers["retry-after"]) >= 1


def test_events_come_in_the_published_order():
    reply = draw(Fault(completion_tokens=34, reasoning_tokens=32), stream=True, thinking=THINKING)
    kinds = [
        event["delta"]["type"] if "delta" in event and "type" in event["delta"] else event["type"]
        for event in events(reply)
    ]
    assert kinds == [
        "message_start", "content_block_start", "ping", *["thinking_delta"] * 32, "signature_delta",
        "content_block_stop", "content_block_start", "text_delta", "text_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    names = [event.data.partition(b"\n")[0].decode() for event in reply.events(None)]
    assert names == [f"event: {event['type']}" for event in events(reply)]
    start, delta = events(reply)[0]["message"], events(reply)[-2]
    assert (start["usage"]["output_tokens"], start["content"], start["stop_reason"]) == (1, [], None)
    assert delta["usage"]["output_tokens"] == 34


def test_thinking_that_is_not_displayed_is_hidden_and_billed():
    reply = draw(stream=True, thinking=THINKING | {"display": "omitted"})
    assert reply.hidden_tokens == reply.tally.reasoning > 0
    assert b"thinking_delta" not in b"".join(event.data for event in reply.events(None))
    thinking = json.loads(reply.body())["content"][0]
    assert (thinking["type"], thinking["thinking"]) == ("thinking", "")


def test_structured_output_fits_its_schema():
    reply = draw(output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
    (block,) = json.loads(reply.body())["content"]
    assert set(json.loads(block["text"])) == {"city", "days"}


@given(
    limit=st.integers(1, 80),
    reasoning=st.integers(0, 60),
    wanted=st.integers(0, 100),
    step=st.integers(1, 9),
    cached=st.integers(0, 20),
    written=st.integers(0, 20),
    calls_tool=st.booleans(),
)
def test_usage_equals_what_is_written_in_both_shapes(limit, reasoning, wanted, step, cached, written, calls_tool):
    fault = Fault(
        reasoning_tokens=reasoning, completion_tokens=wanted, tokens_per_chunk=step, cached_tokens=cached,
        cache_write_tokens=written, tool_calls=calls_tool,
    )  # fmt: skip
    reply = draw(fault, max_tokens=limit, tools=[TOOL])
    body = json.loads(reply.body())
    usage = body["usage"]
    prompt = usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]
    assert prompt == reply.tally.prompt == 6 + text_tokens(compact([TOOL]))
    seen = sum(block_tokens(block) for block in body["content"])
    assert usage["output_tokens"] == reply.tally.completion == seen
    assert calls_tool or seen <= limit
    assert rebuilt(events(reply)) == (body["content"], usage["output_tokens"], body["stop_reason"])
    made = list(reply.events(None))
    assert sum(event.tokens + event.thoughts for event in made) == seen
    assert sum(event.thoughts for event in made) == reply.tally.reasoning
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
def test_what_is_no_request_is_refused(more):
    with pytest.raises(InvalidRequest) as refused:
        draw(**more)
    assert len(refused.value.message) < 300


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body):
    for read in (READ, AnthropicCountTokens().read):
        with pytest.raises(InvalidRequest):
            read(body)
