import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.simulator import Fault, Plan, Spread
from mcpmeter.simulator.answers import draw_answer, words
from mcpmeter.simulator.dialects.openai_chat import DONE, OpenAiChat, json_body, stream_events
from mcpmeter.simulator.request_parsing import text_tokens
from mcpmeter.simulator.schemas import instance_of

FIFTY = Plan(completion_tokens=Spread.fixed(50))
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}


def ask(**more):
    return OpenAiChat().read(
        json.dumps({"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hi"}], **more}).encode()
    )


def draw(request, fault=Fault(), plan=FIFTY, seed=1, nth=0):  # noqa: B008 (frozen)
    return draw_answer(request.wanted(), fault, plan, Random(seed), nth)


@given(tokens=st.integers(0, 20_000), offset=st.integers(0, 10_000))
def test_words_have_exactly_the_wanted_tokens(tokens, offset):
    text = words(tokens, offset)
    assert text_tokens(text) == tokens
    assert len(text.split()) == tokens


@given(
    limit=st.none() | st.integers(1, 80),
    n=st.integers(1, 4),
    json_mode=st.booleans(),
    reasoning=st.integers(0, 60),
    wanted=st.integers(0, 100),
    step=st.integers(1, 9),
)
def test_usage_equals_what_is_written_in_both_shapes(limit, n, json_mode, reasoning, wanted, step):
    more = {"max_completion_tokens": limit, "n": n}
    if json_mode:
        more["response_format"] = {"type": "json_object"}
    fault = Fault(reasoning_tokens=reasoning, completion_tokens=wanted, tokens_per_chunk=step)
    answer = draw(ask(**more), fault)
    body = json.loads(json_body(answer, fault=fault))
    texts = [choice["message"]["content"] for choice in body["choices"]]
    usage = body["usage"]
    assert usage["completion_tokens"] == usage["completion_tokens_details"]["reasoning_tokens"] + sum(
        map(text_tokens, texts)
    )
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    if limit:
        assert usage["completion_tokens"] <= limit * n
    streamed = [""] * n
    for event in stream_events(answer, fault, True):
        if event.data == DONE:
            break
        for choice in json.loads(event.data[6:])["choices"]:
            streamed[choice["index"]] += choice["delta"].get("content") or ""
    assert streamed == texts


def test_max_tokens_ends_with_length_and_only_then():
    assert draw(ask(max_tokens=10)).choices[0].finish_reason == "length"
    assert draw(ask(max_tokens=10)).tally.completion == 10
    assert draw(ask(max_tokens=50)).choices[0].finish_reason == "stop"


def test_json_mode_and_schemas_give_valid_json():
    plain = draw(ask(response_format={"type": "json_object"})).choices[0].text
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
    value = json.loads(draw(ask(response_format=structured)).choices[0].text)
    assert value["kind"] == "a"
    assert value["inner"] is True
    assert value["many"] == [3]
    assert isinstance(value["name"], str)


keywords = st.sampled_from(["type", "properties", "items", "enum", "$ref", "anyOf", "const", "minimum", "x"])
plain_values = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
json_values = st.recursive(plain_values, lambda v: st.lists(v) | st.dictionaries(keywords, v), max_leaves=12)


@given(json_values)
def test_any_schema_ends_in_some_value(schema):
    json.dumps(instance_of(schema, lambda: "word"))


def test_a_schema_that_refers_to_itself_ends():
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
def test_tools_are_called_where_asked_for(more, plan, called):
    (choice,) = draw(ask(**more), plan=plan).choices
    assert (choice.finish_reason == "tool_calls") == called
    if called:
        arguments = json.loads(choice.calls[0].arguments)
        assert isinstance(arguments["city"], str)
        assert isinstance(arguments["days"], int)


def test_reasoning_is_part_of_the_completion():
    tally = draw(ask(reasoning_effort="high")).tally
    assert tally.reasoning > 0
    assert tally.completion == 50 + tally.reasoning
    assert draw(ask(reasoning_effort="none")).tally.reasoning == 0


def test_a_long_prompt_is_cached_the_second_time_in_steps_of_128():
    long = ask(messages=[{"role": "user", "content": "x" * 4 * 1200}])
    assert draw(long, nth=0).tally.cached == 0
    assert draw(long, nth=1).tally.cached == 1152
    assert draw(ask(), nth=1).tally.cached == 0


@given(st.integers(0, 2**32), st.integers(0, 3))
def test_the_same_draws_give_the_same_bytes(seed, nth):
    one, two = (json_body(draw(ask(), seed=seed, nth=nth), fault=Fault()) for _ in range(2))
    assert one == two
