import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.simulator import Fault, Plan, Spread
from mcpmeter.simulator.dialects.base import BodyDialect
from mcpmeter.simulator.dialects.openai_chat import DONE, ChatRequest, json_body, stream_events
from mcpmeter.simulator.generation import generate, words
from mcpmeter.simulator.request_parsing import text_tokens
from mcpmeter.simulator.schemas import instance_of

read_chat = BodyDialect("openai_chat", ChatRequest).read
FIFTY = Plan(completion_tokens=Spread.fixed(50))
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}


def chat(fault=Fault(), plan=FIFTY, seed=1, repetition=0, **more):  # noqa: B008 (frozen)
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hi"}], **more}
    return generate(read_chat(json.dumps(body).encode()).params(), fault, plan, Random(seed), repetition)


@given(tokens=st.integers(0, 20_000), offset=st.integers(0, 10_000))
def test_words_have_exactly_the_given_tokens(tokens, offset):
    text = words(tokens, offset)
    assert text_tokens(text) == tokens
    assert len(text.split()) == tokens


@given(
    limit=st.none() | st.integers(1, 80),
    n=st.integers(1, 4),
    json_mode=st.booleans(),
    reasoning=st.integers(0, 60),
    tokens=st.integers(0, 100),
    step=st.integers(1, 9),
)
def test_usage_equals_the_text_of_body_and_stream(limit, n, json_mode, reasoning, tokens, step):
    more = {"max_completion_tokens": limit, "n": n}
    if json_mode:
        more["response_format"] = {"type": "json_object"}
    fault = Fault(reasoning_tokens=reasoning, completion_tokens=tokens, tokens_per_chunk=step)
    generation = chat(fault, **more)
    body = json.loads(json_body(generation, fault))
    texts = [choice["message"]["content"] for choice in body["choices"]]
    usage = body["usage"]
    assert usage["completion_tokens"] == usage["completion_tokens_details"]["reasoning_tokens"] + sum(
        map(text_tokens, texts)
    )
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    if limit:
        assert usage["completion_tokens"] <= limit * n
    streamed = [""] * n
    for event in stream_events(generation, fault, True):
        if event.data == DONE:
            break
        for choice in json.loads(event.data[6:])["choices"]:
            streamed[choice["index"]] += choice["delta"].get("content") or ""
    assert streamed == texts


def test_finish_reason_is_length_only_at_max_tokens():
    assert chat(max_tokens=10).choices[0].finish_reason == "length"
    assert chat(max_tokens=10).billed.completion == 10
    assert chat(max_tokens=50).choices[0].finish_reason == "stop"


def test_json_mode_and_schemas_give_valid_json():
    plain = chat(response_format={"type": "json_object"}).choices[0].text
    assert isinstance(json.loads(plain), dict)
    assert text_tokens(plain) == 50
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "kind": {"enum": ["a", "b"]},
            "inner": {"$ref": "#/$defs/inner"},
            "many": {"type": "array", "items": {"type": ["number", "null"], "minimum": 3}},
        },
        "$defs": {"inner": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}},
    }
    structured = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    value = json.loads(chat(response_format=structured).choices[0].text)
    assert value["kind"] == "a"
    assert value["inner"] is True
    assert value["many"] == [3]
    assert isinstance(value["name"], str)


keywords = st.sampled_from(["type", "properties", "items", "enum", "$ref", "anyOf", "const", "minimum", "x"])
plain_values = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
json_values = st.recursive(plain_values, lambda v: st.lists(v) | st.dictionaries(keywords, v), max_leaves=8)


@given(json_values)
def test_any_schema_has_an_instance(schema):
    json.dumps(instance_of(schema, lambda: "word"))


def test_a_recursive_schema_ends():
    assert instance_of({"$ref": "#"}, lambda: "word") is None


@pytest.mark.parametrize(
    ("more", "plan", "called"),
    [
        ({"tools": [TOOL]}, Plan(), False),
        ({"tools": [TOOL]}, Plan(tool_calls=True), True),
        ({"tools": [TOOL], "tool_choice": "required"}, Plan(), True),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}, Plan(), True),
        ({"tools": [TOOL], "tool_choice": "none"}, Plan(tool_calls=True), False),
        ({"tools": [TOOL], "messages": [{"role": "tool", "content": "7"}]}, Plan(tool_calls=True), False),
        ({}, Plan(tool_calls=True), False),
    ],
)
def test_tools_are_called_if_required_or_planned(more, plan, called):
    (choice,) = chat(plan=plan, **more).choices
    assert (choice.finish_reason == "tool_calls") == called
    if called:
        arguments = json.loads(choice.calls[0].arguments)
        assert isinstance(arguments["city"], str)
        assert isinstance(arguments["days"], int)


def test_reasoning_is_part_of_the_completion():
    tally = chat(reasoning_effort="high").billed
    assert tally.reasoning > 0
    assert tally.completion == 50 + tally.reasoning
    assert chat(reasoning_effort="none").billed.reasoning == 0


def test_a_repeated_long_prompt_is_cached_in_steps_of_128():
    long = {"messages": [{"role": "user", "content": "x" * 4 * 1200}]}
    assert chat(repetition=0, **long).billed.cached == 0
    assert chat(repetition=1, **long).billed.cached == 1152
    assert chat(repetition=1).billed.cached == 0
