"""Anthropic's SDK: messages, streams, tools, thinking, cached prompts and token counts."""

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


def request(text, **more):
    return {"model": MODEL, "max_tokens": 4096, "messages": [{"role": "user", "content": text}], **more}


def test_a_message(relay):
    message = relay.run(lambda target: target.anthropic.messages.create(**request("Say hello")))
    assert message.content[0].text
    assert (message.stop_reason, message.usage.input_tokens) == ("end_turn", 7)


def test_turns_with_a_system_prompt_and_options(relay):
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]},
        {"role": "assistant", "content": "Three"},
        {"role": "user", "content": "Four"},
    ]
    options = {"system": "You are brief.", "stop_sequences": ["!"], "metadata": {"user_id": "ann"}}
    message = relay.run(
        lambda target: target.anthropic.messages.create(model=MODEL, max_tokens=4, messages=turns, **options)
    )
    assert message.usage.output_tokens <= 4


def test_a_truncated_message(relay):
    message = relay.run(lambda target: target.anthropic.messages.create(**request("Cut", max_tokens=2)))
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 2)


def test_a_tool_and_its_result(relay):
    def converse(target):
        options = request("Weather in Oslo?", tools=[WEATHER])
        first = target.anthropic.messages.create(**options, tool_choice={"type": "any"})
        used = first.content[-1]
        result = {"type": "tool_result", "tool_use_id": used.id, "content": "clear"}
        reply = [{"role": "assistant", "content": first.to_dict()["content"]}, {"role": "user", "content": [result]}]
        return first, target.anthropic.messages.create(**options | {"messages": [*options["messages"], *reply]})

    first, second = relay.run(converse)
    assert (first.stop_reason, first.content[-1].input["days"]) == ("tool_use", 2)
    assert second.content[0].text


def test_results_of_parallel_tools(relay):
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
    message = relay.run(
        lambda target: target.anthropic.messages.create(
            model=MODEL, max_tokens=99, messages=turns, tools=[WEATHER, CLOCK]
        )
    )
    assert message.content[0].text


def test_a_tool_used_in_a_stream(relay):
    def converse(target):
        options = request("Use it now", tools=[WEATHER], tool_choice={"type": "tool", "name": "get_weather"})
        return list(target.anthropic.messages.create(**options, stream=True))

    events = relay.run(converse)
    written = [event.delta.partial_json for event in events if event.type == "content_block_delta"]
    assert json.loads("".join(written))["days"] == 2


def test_a_stream(relay):
    events = relay.run(lambda target: list(target.anthropic.messages.create(**request("Stream"), stream=True)))
    assert (events[0].type, events[-1].type) == ("message_start", "message_stop")
    (delta,) = [event for event in events if event.type == "message_delta"]
    assert delta.usage.output_tokens == sum(event.type == "content_block_delta" for event in events)


def test_the_stream_helper(relay):
    def converse(target):
        with target.anthropic.messages.stream(**request("Help me")) as stream:
            return list(stream), stream.get_final_message()

    events, final = relay.run(converse)
    assert "".join(event.text for event in events if event.type == "text") == final.content[0].text


def test_the_text_of_the_stream_helper(relay):
    def converse(target):
        with target.anthropic.messages.stream(**request("Only text")) as stream:
            return list(stream.text_stream)

    assert len(relay.run(converse)) > 3


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_thinking(relay, stream):
    def converse(target):
        options = request(f"Think, stream is {stream}", thinking={"type": "adaptive"})
        if not stream:
            return target.anthropic.messages.create(**options)
        with target.anthropic.messages.stream(**options) as helper:
            events = list(helper)
            return helper.get_final_message(), events

    result = relay.run(converse)
    message = result[0] if stream else result
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].signature
    assert message.usage.output_tokens > 32


def test_a_cached_prompt_is_written_then_read(relay):
    long = [{"type": "text", "text": "a long text " * 800, "cache_control": {"type": "ephemeral"}}]

    def converse(target):
        return [target.anthropic.messages.create(**request("From the cache", system=long)).usage for _ in range(2)]

    written, read = relay.run(converse)
    assert written.cache_creation_input_tokens == read.cache_read_input_tokens > 1024


def test_structured_output(relay):
    schema = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "additionalProperties": False}
    output = {"format": {"type": "json_schema", "schema": schema}}
    message = relay.run(lambda target: target.anthropic.messages.create(**request("A city"), output_config=output))
    assert json.loads(message.content[0].text) == {"city": "Oslo"}


def test_a_refusal(relay):
    message = relay.run(lambda target: target.anthropic.messages.create(**request("[[simulate refusal=true]] No?")))
    assert message.stop_reason == "refusal"


def test_token_counts(relay):
    prompt = {"model": MODEL, "messages": [{"role": "user", "content": "Count me"}], "tools": [WEATHER]}

    def converse(target):
        bare = {"model": MODEL, "messages": prompt["messages"]}
        return [target.anthropic.messages.count_tokens(**given).input_tokens for given in (bare, prompt)]

    bare, with_tools = relay.run(converse)
    assert bare == 6
    assert with_tools > 20


@pytest.mark.parametrize(
    "text", ["Grüße 👩‍👩‍👧‍👦", "日本語、中文和한국어", "مرحبا \u202eשלום\u202c"], ids=["emoji", "cjk", "rtl"]
)
def test_unicode_is_unchanged(relay, text):
    output = {"format": {"type": "json_schema", "schema": {"const": {"echo": text}}}}

    def converse(target):
        whole = target.anthropic.messages.create(**request(text), output_config=output)
        with target.anthropic.messages.stream(**request(text), output_config=output) as stream:
            return whole, stream.get_final_message()

    for message in relay.run(converse):
        assert json.loads(message.content[0].text) == {"echo": text}


def test_a_large_prompt(relay):
    message = relay.run(lambda target: target.anthropic.messages.create(**request("many words " * 60_000)))
    assert message.usage.input_tokens > 160_000


def test_a_beta_header(relay):
    message = relay.run(
        lambda target: target.anthropic.beta.messages.create(**request("Beta"), betas=["context-1m-2025-08-07"])
    )
    assert message.content[0].text


async def test_the_async_client(relay):
    async def converse(target):
        async with target.async_anthropic() as client:
            whole = await client.messages.create(**request("Async"))
            async with client.messages.stream(**request("Async stream")) as stream:
                return whole, [event async for event in stream]

    whole, events = await relay.run_async(converse)
    assert isinstance(whole, anthropic.types.Message)
    assert events[-1].type == "message_stop"
