"""OpenAI's responses: through the official SDK, and event by event."""

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI

from mcpmeter.errors import InvalidRequest
from mcpmeter.simulator import Fault, Plan
from mcpmeter.simulator.dialects.base import BodyDialect
from mcpmeter.simulator.dialects.openai_responses import ResponsesRequest
from mcpmeter.simulator.request_parsing import text_tokens

REQUEST = {"model": "gpt-4.1", "input": "Hello"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}
READ = BodyDialect("openai_responses", ResponsesRequest).read


@pytest.fixture
async def client(sim):
    async with AsyncOpenAI(base_url=sim.base_url, api_key="none", max_retries=0) as sdk:
        yield sdk


def respond(fault=Fault(), plan=Plan(), repetition=0, **more):  # noqa: B008 (frozen)
    return READ(json.dumps(REQUEST | more).encode()).respond(fault, plan, Random(1), repetition)


def events(response):
    return [json.loads(event.data.partition(b"data: ")[2]) for event in response.events(None)]


async def test_the_sdk_reads_a_stream(sim, client):
    async with client.responses.stream(**REQUEST, reasoning={"effort": "low", "summary": "auto"}) as stream:
        numbers = [event.sequence_number async for event in stream if hasattr(event, "sequence_number")]
        response = await stream.get_final_response()
    (call,) = sim.billing_log.calls()
    summary = response.output[0].summary[0].text
    assert text_tokens(summary) == call.reasoning_tokens == response.usage.output_tokens_details.reasoning_tokens
    assert text_tokens(response.output_text) == call.completion_tokens - call.reasoning_tokens
    assert numbers == sorted(set(numbers))
    assert call.delivered_tokens == call.completion_tokens


async def test_the_sdk_calls_a_tool_and_sends_its_result(sim, client):
    response = await client.responses.create(**REQUEST, tools=[TOOL], tool_choice="required")
    (call,) = response.output
    assert (call.type, call.name) == ("function_call", "get_weather")
    assert isinstance(json.loads(call.arguments)["city"], str)
    billed = next(sim.billing_log.calls())
    assert billed.completion_tokens == text_tokens(call.name) + text_tokens(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    followed = [{"role": "user", "content": "Hello"}, call.to_dict(), result]
    last = await client.responses.create(model="gpt-4.1", input=followed, tools=[TOOL], tool_choice="required")
    assert last.output[0].type == "message"
    tools = text_tokens(json.dumps([TOOL], separators=(",", ":")))
    arguments = text_tokens(call.name) + text_tokens(call.arguments)
    assert last.usage.input_tokens == (4 + 2) + (4 + arguments) + (4 + 2) + tools


async def test_a_truncated_response_is_incomplete(client):
    response = await client.responses.create(**REQUEST, max_output_tokens=3)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (response.output[0].status, response.usage.output_tokens) == ("incomplete", 3)
    stream = await client.responses.create(**REQUEST, max_output_tokens=3, stream=True)
    assert [event.type async for event in stream][-1] == "response.incomplete"


async def test_an_error_event_continues_the_numbering(client):
    fault = {"simulate": "body=error,after_tokens=2"}
    stream = await client.responses.create(**REQUEST, stream=True, metadata=fault)
    seen = [event async for event in stream]
    assert (seen[-1].type, seen[-1].code) == ("error", "server_error")
    assert seen[-1].sequence_number == seen[-2].sequence_number + 1


def test_prompt_tokens_include_instructions_and_items():
    items = [
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "12345"}, {"type": "input_image", "image_url": ""}],
        },
        {"type": "reasoning", "id": "rs_1", "summary": []},
    ]
    assert respond(input=items, instructions="1234").billed.prompt == (4 + 1) + (4 + 2 + 85) + 4


def test_events_have_the_documented_order():
    fault = Fault(completion_tokens=5, reasoning_tokens=3)
    seen = events(respond(fault, stream=True, reasoning={"effort": "low", "summary": "auto"}))
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


def test_hidden_reasoning_is_billed():
    response = respond(reasoning={"effort": "high"})
    assert response.hidden_tokens == response.billed.reasoning > 0
    reasoning, message = json.loads(response.body())["output"]
    assert reasoning["summary"] == []
    assert text_tokens(message["content"][0]["text"]) == response.billed.completion - response.billed.reasoning


@pytest.mark.parametrize(
    "format_", [{"type": "json_object"}, {"type": "json_schema", "name": "place", "schema": SCHEMA}]
)
def test_json_is_valid_and_the_format_is_echoed(format_):
    body = json.loads(respond(text={"format": format_}).body())
    value = json.loads(body["output"][0]["content"][0]["text"])
    assert set(value) == ({"city"} if "schema" in format_ else {"answer"})
    assert body["text"]["format"] == format_ | ({"strict": True} if "schema" in format_ else {})


def test_a_repeated_long_prompt_is_cached():
    assert respond(input="x" * 4 * 1200, repetition=1).billed.cached == 1152
    usage = json.loads(respond(Fault(cache_write_tokens=5)).body())["usage"]
    assert usage["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 5}


@given(
    limit=st.none() | st.integers(1, 80),
    reasoning=st.integers(0, 60),
    tokens=st.integers(0, 100),
    step=st.integers(1, 9),
    calls_tool=st.booleans(),
    summary=st.sampled_from([None, "auto"]),
)
def test_usage_equals_the_content_of_body_and_stream(limit, reasoning, tokens, step, calls_tool, summary):
    fault = Fault(reasoning_tokens=reasoning, completion_tokens=tokens, tokens_per_chunk=step, tool_calls=calls_tool)
    response = respond(fault, max_output_tokens=limit, tools=[TOOL], reasoning={"summary": summary})
    body = json.loads(response.body())
    seen = sum(item_tokens(item) for item in body["output"])
    assert body["usage"]["output_tokens"] == response.billed.completion == seen + response.hidden_tokens
    assert body["usage"]["total_tokens"] == body["usage"]["input_tokens"] + body["usage"]["output_tokens"]
    if limit and not calls_tool:
        assert response.billed.completion <= limit
    stream = events(response)
    assert stream[-1]["response"] == body
    done = [event["item"] for event in stream if event["type"] == "response.output_item.done"]
    assert done == body["output"]
    deltas = "".join(event["delta"] for event in stream if event["type"].endswith(".delta"))
    assert deltas == "".join(item_text(item) for item in body["output"])
    assert sum(event.tokens + event.reasoning_tokens for event in response.events(None)) == seen


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
def test_invalid_requests_are_refused(more):
    with pytest.raises(InvalidRequest) as refused:
        respond(**more)
    assert len(refused.value.message) < 300


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(body):
    with pytest.raises(InvalidRequest):
        READ(body)
