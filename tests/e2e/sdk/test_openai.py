"""OpenAI's SDK: chat completions, responses and embeddings, with both clients."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from pydantic import BaseModel

MODEL = "gpt-4.1"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 2}},
            "required": ["city", "days"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
FIXED = {
    "type": "json_schema",
    "json_schema": {
        "name": "fixed",
        "schema": {"type": "object", "properties": {"answer": {"const": "always the same words"}}},
    },
}
"""A response without random text: the relay adds `include_usage` to the body, on which the simulator's text depends."""


class City(BaseModel):
    """The model of a parsed response."""

    city: str
    days: int


def messages(text):
    return [{"role": "user", "content": text}]


def test_chat(relay):
    response = relay.run(
        lambda target: target.openai.chat.completions.create(model=MODEL, messages=messages("Say hello"))
    )
    assert response.choices[0].message.content
    assert response.usage.total_tokens == response.usage.prompt_tokens + response.usage.completion_tokens > 0


def test_turns_with_every_role_and_option(relay):
    turns = [
        {"role": "system", "content": "You are brief."},
        {"role": "developer", "content": "Speak in short words."},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]},
        {"role": "assistant", "content": "Three"},
        {"role": "user", "content": "Four", "name": "ann"},
    ]
    options = {"temperature": 0.2, "top_p": 0.9, "seed": 4, "stop": ["!"], "user": "ann", "max_completion_tokens": 9}
    response = relay.run(
        lambda target: target.openai.chat.completions.create(model=MODEL, messages=turns, n=2, **options)
    )
    assert [choice.index for choice in response.choices] == [0, 1]


def test_a_truncated_response(relay):
    response = relay.run(
        lambda target: target.openai.chat.completions.create(model=MODEL, messages=messages("Cut"), max_tokens=2)
    )
    assert (response.choices[0].finish_reason, response.usage.completion_tokens) == ("length", 2)


def test_a_tool_and_its_result(relay):
    def converse(target):
        turns = messages("What is the weather in Oslo?")
        chat = target.openai.chat.completions
        first = chat.create(model=MODEL, messages=turns, tools=[WEATHER], tool_choice="required")
        (call,) = first.choices[0].message.tool_calls
        result = {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "clear"}'}
        reply = first.choices[0].message.to_dict()
        return first, chat.create(model=MODEL, messages=[*turns, reply, result], tools=[WEATHER])

    first, second = relay.run(converse)
    (call,) = first.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)["days"]) == ("get_weather", 2)
    assert second.choices[0].message.content


def test_parallel_tools(relay):
    def converse(target):
        calls = [
            {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": "{}"}}
            for name in ("get_weather", "get_time")
        ]
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "fine"} for call in calls]
        turns = [*messages("Both, please"), {"role": "assistant", "tool_calls": calls}, *results]
        options = {"model": MODEL, "tools": [WEATHER, CLOCK], "parallel_tool_calls": True}
        chat = target.openai.chat.completions
        forced = chat.create(messages=messages("Now"), n=3, tool_choice="required", **options)
        return chat.create(messages=turns, **options), forced

    answered, forced = relay.run(converse)
    assert answered.choices[0].finish_reason == "stop"
    assert len({choice.message.tool_calls[0].id for choice in forced.choices}) == 3


def test_a_tool_call_in_a_stream(relay):
    def converse(target):
        options = {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}
        options["stream_options"] = {"include_usage": True}
        chat = target.openai.chat.completions
        return list(chat.create(model=MODEL, messages=messages("Call while streaming"), stream=True, **options))

    chunks = relay.run(converse)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    arguments = "".join(call.function.arguments or "" for delta in deltas for call in delta.tool_calls or ())
    assert json.loads(arguments)["days"] == 2


def test_json_mode(relay):
    response = relay.run(
        lambda target: target.openai.chat.completions.create(
            model=MODEL, messages=messages("As JSON"), response_format={"type": "json_object"}
        )
    )
    assert json.loads(response.choices[0].message.content)["answer"]


def test_a_response_parsed_into_a_model(relay):
    response = relay.run(
        lambda target: target.openai.chat.completions.parse(
            model=MODEL, messages=messages("A city and days"), response_format=City
        )
    )
    assert response.choices[0].message.parsed.days == 1


def test_a_stream_with_its_usage(relay):
    chunks = relay.run(
        lambda target: list(
            target.openai.chat.completions.create(
                model=MODEL, messages=messages("Stream"), stream=True, stream_options={"include_usage": True}
            )
        )
    )
    assert [chunk.usage is not None for chunk in chunks[-2:]] == [False, True]
    assert chunks[-1].choices == []
    assert len(chunks) > 5


def test_a_stream_without_usage(relay):
    def converse(target):
        options = {"stream": True, "response_format": FIXED}
        chunks = [
            chunk.to_dict()
            for chunk in target.openai.chat.completions.create(model=MODEL, messages=messages("Stream bare"), **options)
        ]
        # The id depends on the body.
        return [{**chunk, "id": chunk["id"][:9]} for chunk in chunks]

    chunks = relay.run(converse)
    assert [chunk for chunk in chunks if "usage" in chunk] == []
    assert all(chunk["choices"] for chunk in chunks)
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert json.loads(text) == {"answer": "always the same words"}


def test_the_stream_helper(relay):
    def converse(target):
        options = {"stream_options": {"include_usage": True}, "response_format": City}
        with target.openai.chat.completions.stream(model=MODEL, messages=messages("Help me"), **options) as stream:
            events = list(stream)
            return events, stream.get_final_completion()

    events, final = relay.run(converse)
    assert {"chunk", "content.delta", "content.done"} <= {event.type for event in events}
    assert final.choices[0].message.parsed.days == 1
    assert final.usage.completion_tokens > 0


def test_reasoning_and_cached_tokens(relay):
    text = "[[simulate reasoning_tokens=40,cached_tokens=8]] Think about this for some time, please."
    response = relay.run(lambda target: target.openai.chat.completions.create(model=MODEL, messages=messages(text)))
    assert response.usage.completion_tokens_details.reasoning_tokens == 40
    assert response.usage.prompt_tokens_details.cached_tokens == 8


def test_a_refusal(relay):
    response = relay.run(
        lambda target: target.openai.chat.completions.create(
            model=MODEL, messages=messages("[[simulate refusal=true]] No?")
        )
    )
    assert response.choices[0].message.refusal


@pytest.mark.parametrize(
    "text",
    [
        "Grüße 👩‍👩‍👧‍👦🏳️‍🌈 𝔘",
        "日本語の文章、中文和한국어",
        "مرحبا \u202eשלום\u202c",
        'quotes " \\ \u2028 \x7f "data: [DONE]"',
    ],
    ids=["emoji", "cjk", "rtl", "quotes"],
)
def test_unicode_is_unchanged(relay, text):
    fixed = {"type": "json_schema", "json_schema": {"name": "echo", "schema": {"const": {"echo": text}}}}

    def converse(target):
        chat = target.openai.chat.completions
        whole = chat.create(model=MODEL, messages=messages(text), response_format=fixed)
        options = {"stream": True, "stream_options": {"include_usage": True}}
        return whole, list(chat.create(model=MODEL, messages=messages(text), response_format=fixed, **options))

    whole, chunks = relay.run(converse)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert json.loads(whole.choices[0].message.content) == json.loads(streamed) == {"echo": text}


def test_a_large_prompt(relay):
    text = "many words " * 60_000
    response = relay.run(lambda target: target.openai.chat.completions.create(model=MODEL, messages=messages(text)))
    assert response.usage.prompt_tokens > 160_000


def test_a_raw_response_has_the_providers_headers(relay):
    def converse(target):
        raw = target.openai.chat.completions.with_raw_response.create(model=MODEL, messages=messages("Raw"))
        return {
            "body": raw.text,
            "status": raw.status_code,
            "type": raw.headers["content-type"],
            "limit": raw.headers["x-ratelimit-limit-requests"],
        }

    assert relay.run(converse)["status"] == 200


def test_the_bytes_of_a_stream(relay):
    def converse(target):
        options = {"stream": True, "stream_options": {"include_usage": True}}
        raw = target.openai.chat.completions.with_streaming_response
        with raw.create(model=MODEL, messages=messages("Bytes"), **options) as response:
            return response.headers["content-type"], b"".join(response.iter_bytes())

    kind, body = relay.run(converse)
    assert kind.startswith("text/event-stream")
    assert body.endswith(b"data: [DONE]\n\n")


def test_responses(relay):
    response = relay.run(
        lambda target: target.openai.responses.create(model=MODEL, input="Respond", instructions="Be brief")
    )
    assert response.output_text
    assert response.usage.output_tokens > 0


def test_responses_with_a_function_and_its_result(relay):
    tool = {"type": "function", "strict": False, **WEATHER["function"]}

    def converse(target):
        responses, question = target.openai.responses, {"role": "user", "content": "Weather in Rome?"}
        first = responses.create(model=MODEL, input=[question], tools=[tool], tool_choice="required")
        (call,) = [item for item in first.output if item.type == "function_call"]
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        return first, responses.create(model=MODEL, input=[question, call.to_dict(), result], tools=[tool])

    first, second = relay.run(converse)
    assert first.output[-1].name == "get_weather"
    assert second.output_text


def test_a_responses_stream(relay):
    events = relay.run(lambda target: list(target.openai.responses.create(model=MODEL, input="Stream it", stream=True)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage.output_tokens > 0


def test_the_responses_stream_helper(relay):
    def converse(target):
        with target.openai.responses.stream(model=MODEL, input="Help with it", text_format=City) as stream:
            return list(stream), stream.get_final_response()

    events, final = relay.run(converse)
    assert "response.output_text.delta" in {event.type for event in events}
    assert final.output_parsed.days == 1


@pytest.mark.parametrize("encoding", ["float", "base64", None])
@pytest.mark.parametrize("given", ["One text", ["One", "Two", "Drei"], [[1, 2, 3], [4]]], ids=["text", "list", "ids"])
def test_embeddings(relay, encoding, given):
    options = {} if encoding is None else {"encoding_format": encoding}
    response = relay.run(
        lambda target: target.openai.embeddings.create(
            model="text-embedding-3-small", input=given, dimensions=16, extra_body={"user": f"{encoding}"}, **options
        )
    )
    assert len(response.data) == (1 if isinstance(given, str) else len(given))
    assert isinstance(response.data[0].embedding, str if encoding == "base64" else list)
    assert response.usage.total_tokens > 0


def test_models_are_listed(relay):
    """The lists differ: the provider's models, and the models that the relay is configured for."""
    models = list(relay.target.openai.models.list())
    assert {model.object for model in models} == {"model"}
    assert MODEL in {model.id for model in models}


async def test_the_async_client(relay):
    async def converse(target):
        async with target.async_openai() as client:
            chat = client.chat.completions
            whole = await chat.create(model=MODEL, messages=messages("Async"))
            options = {"stream": True, "stream_options": {"include_usage": True}}
            stream = await chat.create(model=MODEL, messages=messages("Async stream"), **options)
            return whole, [chunk async for chunk in stream], await client.responses.create(model=MODEL, input="Async")

    whole, chunks, response = await relay.run_async(converse)
    assert whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens > 0
    assert response.output_text


async def test_twenty_concurrent_calls(relay):
    async def converse(target):
        async with target.async_openai() as client:
            chat = client.chat.completions

            async def one(number):
                if number % 2:
                    return await chat.create(model=MODEL, messages=messages(f"Number {number}"))
                options = {"stream": True, "stream_options": {"include_usage": True}}
                stream = await chat.create(model=MODEL, messages=messages(f"Number {number}"), **options)
                return [chunk async for chunk in stream]

            return await asyncio.gather(*map(one, range(20)))

    responses = await relay.run_async(converse)
    assert len(responses) == 20
    assert not any(isinstance(response, openai.OpenAIError) for response in responses)
