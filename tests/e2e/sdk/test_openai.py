"""OpenAI's SDK: chat completions, responses, embeddings, in both of its clients."""

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
        "schema": {"type": "object", "properties": {"answer": {"const": "always the same words, whatever is drawn"}}},
    },
}
"""An answer that leaves nothing to chance. The relay asks for usage where a caller does not, and another body is
another draw of the simulator's."""


class Answer(BaseModel):
    """What a parsed answer is made into."""

    city: str
    days: int


def asked(text):
    return [{"role": "user", "content": text}]


def test_chat(arm):
    answer = arm.run(lambda to: to.openai.chat.completions.create(model=MODEL, messages=asked("Say hello")))
    assert answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


def test_many_turns_with_every_role_and_option(arm):
    turns = [
        {"role": "system", "content": "You are brief."},
        {"role": "developer", "content": "Speak in short words."},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]},
        {"role": "assistant", "content": "Three"},
        {"role": "user", "content": "Four", "name": "ann"},
    ]
    options = {"temperature": 0.2, "top_p": 0.9, "seed": 4, "stop": ["!"], "user": "ann", "max_completion_tokens": 9}
    answer = arm.run(lambda to: to.openai.chat.completions.create(model=MODEL, messages=turns, n=2, **options))
    assert [choice.index for choice in answer.choices] == [0, 1]


def test_an_answer_cut_by_its_limit(arm):
    answer = arm.run(lambda to: to.openai.chat.completions.create(model=MODEL, messages=asked("Cut"), max_tokens=2))
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 2)


def test_a_tool_is_called_and_its_result_answered(arm):
    def converse(to):
        messages = asked("What is the weather in Oslo?")
        chat = to.openai.chat.completions
        first = chat.create(model=MODEL, messages=messages, tools=[WEATHER], tool_choice="required")
        (call,) = first.choices[0].message.tool_calls
        result = {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "clear"}'}
        said = first.choices[0].message.to_dict()
        return first, chat.create(model=MODEL, messages=[*messages, said, result], tools=[WEATHER])

    first, second = arm.run(converse)
    (call,) = first.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)["days"]) == ("get_weather", 2)
    assert second.choices[0].message.content


def test_parallel_tools(arm):
    def converse(to):
        calls = [
            {"id": f"call_{name}", "type": "function", "function": {"name": name, "arguments": "{}"}}
            for name in ("get_weather", "get_time")
        ]
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "fine"} for call in calls]
        messages = [*asked("Both, please"), {"role": "assistant", "tool_calls": calls}, *results]
        options = {"model": MODEL, "tools": [WEATHER, CLOCK], "parallel_tool_calls": True}
        chat = to.openai.chat.completions
        forced = chat.create(messages=asked("Now"), n=3, tool_choice="required", **options)
        return chat.create(messages=messages, **options), forced

    answered, forced = arm.run(converse)
    assert answered.choices[0].finish_reason == "stop"
    assert len({choice.message.tool_calls[0].id for choice in forced.choices}) == 3


def test_a_tool_call_in_a_stream(arm):
    def converse(to):
        options = {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}
        options["stream_options"] = {"include_usage": True}
        chat = to.openai.chat.completions
        return list(chat.create(model=MODEL, messages=asked("Call while streaming"), stream=True, **options))

    chunks = arm.run(converse)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    arguments = "".join(call.function.arguments or "" for delta in deltas for call in delta.tool_calls or ())
    assert json.loads(arguments)["days"] == 2


def test_json_mode(arm):
    answer = arm.run(
        lambda to: to.openai.chat.completions.create(
            model=MODEL, messages=asked("As JSON"), response_format={"type": "json_object"}
        )
    )
    assert json.loads(answer.choices[0].message.content)["answer"]


def test_an_answer_parsed_into_a_model(arm):
    answer = arm.run(
        lambda to: to.openai.chat.completions.parse(
            model=MODEL, messages=asked("A city and days"), response_format=Answer
        )
    )
    assert answer.choices[0].message.parsed.days == 1


def test_a_stream_with_its_usage(arm):
    chunks = arm.run(
        lambda to: list(
            to.openai.chat.completions.create(
                model=MODEL, messages=asked("Stream"), stream=True, stream_options={"include_usage": True}
            )
        )
    )
    assert [chunk.usage is not None for chunk in chunks[-2:]] == [False, True]
    assert chunks[-1].choices == []
    assert len(chunks) > 5


def test_a_stream_without_usage_gets_none_though_the_relay_reads_it(arm):
    def converse(to):
        options = {"stream": True, "response_format": FIXED}
        chunks = [
            chunk.to_dict()
            for chunk in to.openai.chat.completions.create(model=MODEL, messages=asked("Stream bare"), **options)
        ]
        # Drawn from the body, which the relay's asking for usage makes another one.
        return [{**chunk, "id": chunk["id"][:9]} for chunk in chunks]

    chunks = arm.run(converse)
    assert [chunk for chunk in chunks if "usage" in chunk] == []
    assert all(chunk["choices"] for chunk in chunks)
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert json.loads(text) == {"answer": "always the same words, whatever is drawn"}


def test_the_stream_helper(arm):
    def converse(to):
        options = {"stream_options": {"include_usage": True}, "response_format": Answer}
        with to.openai.chat.completions.stream(model=MODEL, messages=asked("Help me"), **options) as stream:
            events = list(stream)
            return events, stream.get_final_completion()

    events, final = arm.run(converse)
    assert {"chunk", "content.delta", "content.done"} <= {event.type for event in events}
    assert final.choices[0].message.parsed.days == 1
    assert final.usage.completion_tokens > 0


def test_reasoning_and_cached_tokens_are_told(arm):
    text = "[[simulate reasoning_tokens=40,cached_tokens=8]] Think about this for some time, please."
    answer = arm.run(lambda to: to.openai.chat.completions.create(model=MODEL, messages=asked(text)))
    assert answer.usage.completion_tokens_details.reasoning_tokens == 40
    assert answer.usage.prompt_tokens_details.cached_tokens == 8


def test_a_refusal(arm):
    answer = arm.run(
        lambda to: to.openai.chat.completions.create(model=MODEL, messages=asked("[[simulate refusal=true]] No?"))
    )
    assert answer.choices[0].message.refusal


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
def test_unicode_is_counted_and_comes_back_as_it_was(arm, text):
    fixed = {"type": "json_schema", "json_schema": {"name": "echo", "schema": {"const": {"echo": text}}}}

    def converse(to):
        chat = to.openai.chat.completions
        whole = chat.create(model=MODEL, messages=asked(text), response_format=fixed)
        options = {"stream": True, "stream_options": {"include_usage": True}}
        return whole, list(chat.create(model=MODEL, messages=asked(text), response_format=fixed, **options))

    whole, chunks = arm.run(converse)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert json.loads(whole.choices[0].message.content) == json.loads(streamed) == {"echo": text}


def test_a_large_prompt(arm):
    text = "many words " * 60_000
    answer = arm.run(lambda to: to.openai.chat.completions.create(model=MODEL, messages=asked(text)))
    assert answer.usage.prompt_tokens > 160_000


def test_a_raw_answer_has_the_providers_headers(arm):
    def converse(to):
        raw = to.openai.chat.completions.with_raw_response.create(model=MODEL, messages=asked("Raw"))
        return {
            "body": raw.text,
            "status": raw.status_code,
            "type": raw.headers["content-type"],
            "limit": raw.headers["x-ratelimit-limit-requests"],
        }

    assert arm.run(converse)["status"] == 200


def test_a_streams_very_bytes(arm):
    def converse(to):
        options = {"stream": True, "stream_options": {"include_usage": True}}
        raw = to.openai.chat.completions.with_streaming_response
        with raw.create(model=MODEL, messages=asked("Bytes"), **options) as answer:
            return answer.headers["content-type"], b"".join(answer.iter_bytes())

    kind, body = arm.run(converse)
    assert kind.startswith("text/event-stream")
    assert body.endswith(b"data: [DONE]\n\n")


def test_responses(arm):
    answer = arm.run(lambda to: to.openai.responses.create(model=MODEL, input="Respond", instructions="Be brief"))
    assert answer.output_text
    assert answer.usage.output_tokens > 0


def test_responses_with_a_function_called_and_answered(arm):
    tool = {"type": "function", "strict": False, **WEATHER["function"]}

    def converse(to):
        responses, question = to.openai.responses, {"role": "user", "content": "Weather in Rome?"}
        first = responses.create(model=MODEL, input=[question], tools=[tool], tool_choice="required")
        (call,) = [item for item in first.output if item.type == "function_call"]
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
        return first, responses.create(model=MODEL, input=[question, call.to_dict(), result], tools=[tool])

    first, second = arm.run(converse)
    assert first.output[-1].name == "get_weather"
    assert second.output_text


def test_responses_as_a_stream(arm):
    events = arm.run(lambda to: list(to.openai.responses.create(model=MODEL, input="Stream it", stream=True)))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage.output_tokens > 0


def test_the_stream_helper_of_responses(arm):
    def converse(to):
        with to.openai.responses.stream(model=MODEL, input="Help with it", text_format=Answer) as stream:
            return list(stream), stream.get_final_response()

    events, final = arm.run(converse)
    assert "response.output_text.delta" in {event.type for event in events}
    assert final.output_parsed.days == 1


@pytest.mark.parametrize("encoding", ["float", "base64", None])
@pytest.mark.parametrize("given", ["One text", ["One", "Two", "Drei"], [[1, 2, 3], [4]]], ids=["text", "list", "ids"])
def test_embeddings(arm, encoding, given):
    options = {} if encoding is None else {"encoding_format": encoding}
    answer = arm.run(
        lambda to: to.openai.embeddings.create(
            model="text-embedding-3-small", input=given, dimensions=16, extra_body={"user": f"{encoding}"}, **options
        )
    )
    assert len(answer.data) == (1 if isinstance(given, str) else len(given))
    assert isinstance(answer.data[0].embedding, str if encoding == "base64" else list)
    assert answer.usage.total_tokens > 0


def test_models_are_listed(arm):
    """The lists themselves differ: a provider names what it has, the relay what it was configured to serve."""
    models = list(arm.place.openai.models.list())
    assert {model.object for model in models} == {"model"}
    assert MODEL in {model.id for model in models}


async def test_the_async_client(arm):
    async def converse(to):
        async with to.async_openai() as client:
            chat = client.chat.completions
            whole = await chat.create(model=MODEL, messages=asked("Async"))
            options = {"stream": True, "stream_options": {"include_usage": True}}
            stream = await chat.create(model=MODEL, messages=asked("Async stream"), **options)
            return whole, [chunk async for chunk in stream], await client.responses.create(model=MODEL, input="Async")

    whole, chunks, response = await arm.run_async(converse)
    assert whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens > 0
    assert response.output_text


async def test_twenty_at_once(arm):
    async def converse(to):
        async with to.async_openai() as client:
            chat = client.chat.completions

            async def one(number):
                if number % 2:
                    return await chat.create(model=MODEL, messages=asked(f"Number {number}"))
                options = {"stream": True, "stream_options": {"include_usage": True}}
                stream = await chat.create(model=MODEL, messages=asked(f"Number {number}"), **options)
                return [chunk async for chunk in stream]

            return await asyncio.gather(*map(one, range(20)))

    answers = await arm.run_async(converse)
    assert len(answers) == 20
    assert not any(isinstance(answer, openai.OpenAIError) for answer in answers)
