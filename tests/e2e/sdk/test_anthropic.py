"""Anthropic's SDK: messages, their streams, tools, thinking, cached prompts and the counting of tokens."""

from __future__ import annotations

import json

import anthropic
import pytest

MODEL = "claude-sonnet-4.5"
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 2}},
        "required": ["city", "days"],
    },
}
CLOCK = {"name": "get_time", "input_schema": {"type": "object", "properties": {}}}


def asked(text, **more):
    return {"model": MODEL, "max_tokens": 4096, "messages": [{"role": "user", "content": text}], **more}


def test_a_message(arm):
    message = arm.run(lambda to: to.anthropic.messages.create(**asked("Say hello")))
    assert message.content[0].text
    assert (message.stop_reason, message.usage.input_tokens) == ("end_turn", 7)


def test_many_turns_with_a_system_prompt_and_options(arm):
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]},
        {"role": "assistant", "content": "Three"},
        {"role": "user", "content": "Four"},
    ]
    options = {"system": "You are brief.", "stop_sequences": ["!"], "metadata": {"user_id": "ann"}}
    message = arm.run(lambda to: to.anthropic.messages.create(model=MODEL, max_tokens=4, messages=turns, **options))
    assert message.usage.output_tokens <= 4


def test_a_message_cut_by_its_limit(arm):
    message = arm.run(lambda to: to.anthropic.messages.create(**asked("Cut", max_tokens=2)))
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 2)


def test_a_tool_is_used_and_its_result_answered(arm):
    def converse(to):
        options = asked("Weather in Oslo?", tools=[WEATHER])
        first = to.anthropic.messages.create(**options, tool_choice={"type": "any"})
        used = first.content[-1]
        result = {"type": "tool_result", "tool_use_id": used.id, "content": "clear"}
        said = [{"role": "assistant", "content": first.to_dict()["content"]}, {"role": "user", "content": [result]}]
        return first, to.anthropic.messages.create(**options | {"messages": [*options["messages"], *said]})

    first, second = arm.run(converse)
    assert (first.stop_reason, first.content[-1].input["days"]) == ("tool_use", 2)
    assert second.content[0].text


def test_results_of_parallel_tools(arm):
    used = [
        {"type": "tool_use", "id": f"toolu_{name}", "name": name, "input": {}} for name in ("get_weather", "get_time")
    ]
    results = [
        {"type": "tool_result", "tool_use_id": use["id"], "content": [{"type": "text", "text": "fine"}]} for use in used
    ]
    turns = [
        {"role": "user", "content": "Both, please"},
        {"role": "assistant", "content": used},
        {"role": "user", "content": results},
    ]
    message = arm.run(
        lambda to: to.anthropic.messages.create(model=MODEL, max_tokens=99, messages=turns, tools=[WEATHER, CLOCK])
    )
    assert message.content[0].text


def test_a_tool_used_in_a_stream(arm):
    def converse(to):
        options = asked("Use it now", tools=[WEATHER], tool_choice={"type": "tool", "name": "get_weather"})
        return list(to.anthropic.messages.create(**options, stream=True))

    events = arm.run(converse)
    written = [event.delta.partial_json for event in events if event.type == "content_block_delta"]
    assert json.loads("".join(written))["days"] == 2


def test_a_stream(arm):
    events = arm.run(lambda to: list(to.anthropic.messages.create(**asked("Stream"), stream=True)))
    assert (events[0].type, events[-1].type) == ("message_start", "message_stop")
    (delta,) = [event for event in events if event.type == "message_delta"]
    assert delta.usage.output_tokens == sum(event.type == "content_block_delta" for event in events)


def test_the_stream_helper(arm):
    def converse(to):
        with to.anthropic.messages.stream(**asked("Help me")) as stream:
            return list(stream), stream.get_final_message()

    events, final = arm.run(converse)
    assert "".join(event.text for event in events if event.type == "text") == final.content[0].text


def test_the_text_of_the_stream_helper(arm):
    def converse(to):
        with to.anthropic.messages.stream(**asked("Only text")) as stream:
            return list(stream.text_stream)

    assert len(arm.run(converse)) > 3


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_thinking(arm, stream):
    def converse(to):
        options = asked(f"Think, stream is {stream}", thinking={"type": "adaptive"})
        if not stream:
            return to.anthropic.messages.create(**options)
        with to.anthropic.messages.stream(**options) as helper:
            events = list(helper)
            return helper.get_final_message(), events

    told = arm.run(converse)
    message = told[0] if stream else told
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].signature
    assert message.usage.output_tokens > 32


def test_a_cached_prompt_is_written_then_read(arm):
    long = [{"type": "text", "text": "a long text " * 800, "cache_control": {"type": "ephemeral"}}]

    def converse(to):
        return [to.anthropic.messages.create(**asked("From the cache", system=long)).usage for _ in range(2)]

    written, read = arm.run(converse)
    assert written.cache_creation_input_tokens == read.cache_read_input_tokens > 1024


def test_structured_output(arm):
    schema = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "additionalProperties": False}
    output = {"format": {"type": "json_schema", "schema": schema}}
    message = arm.run(lambda to: to.anthropic.messages.create(**asked("A city"), output_config=output))
    assert json.loads(message.content[0].text) == {"city": "Oslo"}


def test_a_refusal(arm):
    message = arm.run(lambda to: to.anthropic.messages.create(**asked("[[simulate refusal=true]] No?")))
    assert message.stop_reason == "refusal"


def test_tokens_are_counted(arm):
    prompt = {"model": MODEL, "messages": [{"role": "user", "content": "Count me"}], "tools": [WEATHER]}

    def converse(to):
        bare = {"model": MODEL, "messages": prompt["messages"]}
        return [to.anthropic.messages.count_tokens(**given).input_tokens for given in (bare, prompt)]

    bare, with_tools = arm.run(converse)
    assert bare == 6
    assert with_tools > 20


@pytest.mark.parametrize(
    "text", ["Grüße 👩‍👩‍👧‍👦", "日本語、中文和한국어", "مرحبا \u202eשלום\u202c"], ids=["emoji", "cjk", "rtl"]
)
def test_unicode_comes_back_as_it_was(arm, text):
    output = {"format": {"type": "json_schema", "schema": {"const": {"echo": text}}}}

    def converse(to):
        whole = to.anthropic.messages.create(**asked(text), output_config=output)
        with to.anthropic.messages.stream(**asked(text), output_config=output) as stream:
            return whole, stream.get_final_message()

    for message in arm.run(converse):
        assert json.loads(message.content[0].text) == {"echo": text}


def test_a_large_prompt(arm):
    message = arm.run(lambda to: to.anthropic.messages.create(**asked("many words " * 60_000)))
    assert message.usage.input_tokens > 160_000


def test_a_beta_header_is_no_hindrance(arm):
    message = arm.run(lambda to: to.anthropic.beta.messages.create(**asked("Beta"), betas=["context-1m-2025-08-07"]))
    assert message.content[0].text


async def test_the_async_client(arm):
    async def converse(to):
        async with to.async_anthropic() as client:
            whole = await client.messages.create(**asked("Async"))
            async with client.messages.stream(**asked("Async stream")) as stream:
                return whole, [event async for event in stream]

    whole, events = await arm.run_async(converse)
    assert isinstance(whole, anthropic.types.Message)
    assert events[-1].type == "message_stop"
