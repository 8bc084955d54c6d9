"""OpenAI's responses as the official SDK reads them, and event by event."""

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI, BadRequestError, RateLimitError

from mcpmeter.errors import InvalidRequest
from mcpmeter.simulator import Fault, Plan
from mcpmeter.simulator.dialects.openai_responses import OpenAiResponses
from mcpmeter.simulator.request_parsing import text_tokens

ASK = {"model": "gpt-4.1", "input": "Hello"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}
READ = OpenAiResponses().read


@pytest.fixture
async def client(sim):
    async with AsyncOpenAI(base_url=sim.base_url, api_key="none", max_retries=0) as sdk:
        yield sdk


def draw(fault=Fault(), plan=Plan(), nth=0, **more):  # noqa: B008 (frozen)
    return READ(json.dumps(ASK | more).encode()).draw(fault, plan, Random(1), nth)


def events(reply):
    return [json.loads(event.data.partition(b"data: ")[2]) for event in reply.events(None)]


async def test_the_sdk_reads_a_response_and_the_books_agree(sim, client):
    response = await client.responses.create(**ASK)
    (call,) = sim.billing_log.calls()
    assert (response.status, response.error, response.incomplete_details) == ("completed", None, None)
    assert (response.usage.input_tokens, response.usage.output_tokens) == (call.prompt_tokens, call.completion_tokens)
    assert len(response.output_text.split()) == call.completion_tokens
    assert response._request_id == call.request_id


async def test_the_sdk_puts_a_stream_together(sim, client):
    async with client.responses.stream(**ASK, reasoning={"effort": "low", "summary": "auto"}) as stream:
        numbers = [event.sequence_number async for event in stream if hasattr(event, "sequence_number")]
        response = await stream.get_final_response()
    (call,) = sim.billing_log.calls()
    summary = response.output[0].summary[0].text
    assert text_tokens(summary) == call.reasoning_tokens == response.usage.output_tokens_details.reasoning_tokens
    assert text_tokens(response.output_text) == call.completion_tokens - call.reasoning_tokens
    assert numbers == sorted(set(numbers))
    assert call.delivered_tokens == call.completion_tokens


async def test_the_sdk_calls_a_tool_and_brings_its_result(sim, client):
    response = await client.responses.create(**ASK, tools=[TOOL], tool_choice="required")
    (call,) = response.output
    assert (call.type, call.name) == ("function_call", "get_weather")
    assert isinstance(json.loads(call.arguments)["city"], str)
    booked = next(sim.billing_log.calls())
    assert booked.completion_tokens == text_tokens(call.name) + text_tokens(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    followed = [{"role": "user", "content": "Hello"}, call.to_dict(), result]
    last = await client.responses.create(model="gpt-4.1", input=followed, tools=[TOOL], tool_choice="required")
    assert last.output[0].type == "message"
    tools = text_tokens(json.dumps([TOOL], separators=(",", ":")))
    arguments = text_tokens(call.name) + text_tokens(call.arguments)
    assert last.usage.input_tokens == (4 + 2) + (4 + arguments) + (4 + 2) + tools


async def test_a_response_cut_off_is_incomplete(client):
    response = await client.responses.create(**ASK, max_output_tokens=3)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (response.output[0].status, response.usage.output_tokens) == ("incomplete", 3)
    stream = await client.responses.create(**ASK, max_output_tokens=3, stream=True)
    assert [event.type async for event in stream][-1] == "response.incomplete"


async def test_the_sdk_raises_its_own_errors(client):
    with pytest.raises(RateLimitError) as limited:
        await client.responses.create(**ASK, metadata={"simulate": "status=429,retry_after=2"})
    assert limited.value.code == "rate_limit_exceeded"
    with pytest.raises(BadRequestError, match="input"):
        await client.responses.create(model="gpt-4.1", input=[])


async def test_an_error_in_a_stream_is_numbered_on(client):
    wish = {"simulate": "body=error,after_tokens=2"}
    stream = await client.responses.create(**ASK, stream=True, metadata=wish)
    seen = [event async for event in stream]
    assert (seen[-1].type, seen[-1].code) == ("error", "server_error")
    assert seen[-1].sequence_number == seen[-2].sequence_number + 1


def test_instructions_parts_and_other_items_are_counted():
    asked = [
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "12345"}, {"type": "input_image", "image_url": ""}],
        },
        {"type": "reasoning", "id": "rs_1", "summary": []},
    ]
    assert draw(input=asked, instructions="1234").tally.prompt == (4 + 1) + (4 + 2 + 85) + 4


def test_events_come_in_the_published_order():
    fault = Fault(completion_tokens=5, reasoning_tokens=3)
    seen = events(draw(fault, stream=True, reasoning={"effort": "low", "summary": "auto"}))
    assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
    part, text = "response.reasoning_summary_part", "response.reasoning_summary_text"
    assert [event["type"] for event in seen] == [
        "response.created", "response.in_progress", "response.output_item.added", f"{part}.added",
        *[f"{text}.delta"] * 3, f"{text}.done", f"{part}.done", "response.output_item.done",
        "response.output_item.added", "response.content_part.added", *["response.output_text.delta"] * 2,
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert seen[0]["response"]["usage"] is None
    assert [event["output_index"] for event in seen if "output_index" in event] == [0] * 8 + [1] * 7


def test_reasoning_without_a_summary_is_hidden_and_billed():
    reply = draw(reasoning={"effort": "high"})
    assert reply.hidden_tokens == reply.tally.reasoning > 0
    reasoning, message = json.loads(reply.body())["output"]
    assert reasoning["summary"] == []
    assert text_tokens(message["content"][0]["text"]) == reply.tally.completion - reply.tally.reasoning


@pytest.mark.parametrize(
    "wished", [{"type": "json_object"}, {"type": "json_schema", "name": "place", "schema": SCHEMA}]
)
def test_json_is_valid_and_its_format_repeated(wished):
    body = json.loads(draw(text={"format": wished}).body())
    value = json.loads(body["output"][0]["content"][0]["text"])
    assert set(value) == ({"city"} if "schema" in wished else {"answer"})
    assert body["text"]["format"] == wished | ({"strict": True} if "schema" in wished else {})


def test_a_long_prompt_is_cached_the_second_time():
    assert draw(input="x" * 4 * 1200, nth=1).tally.cached == 1152
    usage = json.loads(draw(Fault(cache_write_tokens=5)).body())["usage"]
    assert usage["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 5}


@given(
    limit=st.none() | st.integers(1, 80),
    reasoning=st.integers(0, 60),
    wanted=st.integers(0, 100),
    step=st.integers(1, 9),
    calls_tool=st.booleans(),
    summary=st.sampled_from([None, "auto"]),
)
def test_usage_equals_what_is_written_in_both_shapes(limit, reasoning, wanted, step, calls_tool, summary):
    fault = Fault(reasoning_tokens=reasoning, completion_tokens=wanted, tokens_per_chunk=step, tool_calls=calls_tool)
    reply = draw(fault, max_output_tokens=limit, tools=[TOOL], reasoning={"summary": summary})
    body = json.loads(reply.body())
    seen = sum(item_tokens(item) for item in body["output"])
    assert body["usage"]["output_tokens"] == reply.tally.completion == seen + reply.hidden_tokens
    assert body["usage"]["total_tokens"] == body["usage"]["input_tokens"] + body["usage"]["output_tokens"]
    if limit and not calls_tool:
        assert reply.tally.completion <= limit
    stream = events(reply)
    assert stream[-1]["response"] == body
    done = [event["item"] for event in stream if event["type"] == "response.output_item.done"]
    assert done == body["output"]
    deltas = "".join(event["delta"] for event in stream if event["type"].endswith(".delta"))
    assert deltas == "".join(item_text(item) for item in body["output"])
    assert sum(event.tokens + event.thoughts for event in reply.events(None)) == seen


def item_text(item):
    match item["type"]:
        case "reasoning":
            return "".join(part["text"] for part in item["summary"])
        case "function_call":
            return item["arguments"]
        case _:
            return item["content"][0]["text"]


def item_tokens(item):
    return text_tokens(item_text(item)) + (text_tokens(item["name"]) if item["type"] == "function_call" else 0)


@pytest.mark.parametrize(
    "more",
    [{"input": None}, {"input": []}, {"input": [5]}, {"model": ""}, {"max_output_tokens": 0}, {"stream": "yes"},
     {"tools": [{"type": "function"}]}, {"tools": [5]}, {"metadata": 5}, {"text": {"format": 5}}],
    ids=str,
)  # fmt: skip
def test_what_is_no_request_is_refused(more):
    with pytest.raises(InvalidRequest) as refused:
        draw(**more)
    assert len(refused.value.message) < 300


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body):
    with pytest.raises(InvalidRequest):
        READ(body)
