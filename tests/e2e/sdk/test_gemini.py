"""Google's SDK: content, streams, functions, JSON, system instructions, thoughts, chats, counts, embeddings."""

from __future__ import annotations

import asyncio
import json

import pytest
from google.genai import errors, types
from pydantic import BaseModel

MODEL = "gemini-2.5-flash"
WEATHER = types.FunctionDeclaration(
    name="get_weather",
    description="The weather of a city",
    parameters_json_schema={
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 2}},
        "required": ["city", "days"],
    },
)
CLOCK = types.FunctionDeclaration(name="get_time", parameters_json_schema={"type": "object", "properties": {}})
BY_HAND = types.AutomaticFunctionCallingConfig(disable=True)


class City(BaseModel):
    """The model of a parsed response."""

    city: str
    days: int


def config(**options):
    return types.GenerateContentConfig(automatic_function_calling=BY_HAND, **options)


def forced(*declarations):
    calling = types.FunctionCallingConfig(mode=types.FunctionCallingConfigMode.ANY)
    return config(
        tools=[types.Tool(function_declarations=list(declarations))],
        tool_config=types.ToolConfig(function_calling_config=calling),
    )


def test_content(relay):
    response = relay.run(lambda target: target.gemini.models.generate_content(model=MODEL, contents="Say hello"))
    assert response.text
    assert response.usage_metadata.prompt_token_count == 7


def test_turns_with_a_system_instruction_and_options(relay):
    turns = [
        types.Content(role="user", parts=[types.Part(text="One"), types.Part(text="Two")]),
        types.Content(role="model", parts=[types.Part(text="Three")]),
        types.Content(role="user", parts=[types.Part(text="Four")]),
    ]
    options = config(
        system_instruction="You are brief.", temperature=0.2, top_p=0.9, candidate_count=2, max_output_tokens=3
    )
    response = relay.run(
        lambda target: target.gemini.models.generate_content(model=MODEL, contents=turns, config=options)
    )
    assert len(response.candidates) == 2
    assert response.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS


def test_a_function_and_its_result(relay):
    def converse(target):
        question = types.Content(role="user", parts=[types.Part(text="Weather in Oslo?")])
        generate = target.gemini.models.generate_content
        first = generate(model=MODEL, contents=[question], config=forced(WEATHER))
        result = types.Part.from_function_response(name="get_weather", response={"sky": "clear"})
        turns = [question, first.candidates[0].content, types.Content(role="user", parts=[result])]
        return first, generate(model=MODEL, contents=turns, config=forced(WEATHER))

    first, second = relay.run(converse)
    assert first.function_calls[0].args["days"] == 2
    assert second.text


def test_results_of_parallel_functions(relay):
    names = ("get_weather", "get_time")
    turns = [
        types.Content(role="user", parts=[types.Part(text="Both, please")]),
        types.Content(role="model", parts=[types.Part.from_function_call(name=name, args={}) for name in names]),
        types.Content(
            role="user", parts=[types.Part.from_function_response(name=name, response={"ok": 1}) for name in names]
        ),
    ]
    options = config(tools=[types.Tool(function_declarations=[WEATHER, CLOCK])])
    response = relay.run(
        lambda target: target.gemini.models.generate_content(model=MODEL, contents=turns, config=options)
    )
    assert response.text


def test_a_function_called_in_a_stream(relay):
    def converse(target):
        stream = target.gemini.models.generate_content_stream
        return list(stream(model=MODEL, contents="Call while streaming", config=forced(WEATHER)))

    chunks = relay.run(converse)
    (call,) = [call for chunk in chunks for call in chunk.function_calls or ()]
    assert call.args["days"] == 2


def test_a_function_called_by_the_sdk_itself(relay):
    def in_python(city: str) -> str:
        """The weather of a city."""
        return f"rain in {city}"

    options = types.GenerateContentConfig(
        tools=[in_python],
        tool_config=types.ToolConfig(
            function_calling_config=types.FunctionCallingConfig(mode=types.FunctionCallingConfigMode.ANY)
        ),
    )
    response = relay.run(
        lambda target: target.gemini.models.generate_content(model=MODEL, contents="Rain?", config=options)
    )
    assert response.text
    assert len(response.automatic_function_calling_history) >= 3


def test_json_mode(relay):
    options = config(response_mime_type="application/json")
    response = relay.run(
        lambda target: target.gemini.models.generate_content(model=MODEL, contents="As JSON", config=options)
    )
    assert json.loads(response.text)["answer"]


def test_a_response_parsed_into_a_model(relay):
    options = config(response_mime_type="application/json", response_schema=City)
    response = relay.run(
        lambda target: target.gemini.models.generate_content(model=MODEL, contents="A city", config=options)
    )
    assert response.parsed.days == 1


def test_an_enum(relay):
    options = config(response_mime_type="text/x.enum", response_schema={"type": "STRING", "enum": ["red", "blue"]})
    response = relay.run(
        lambda target: target.gemini.models.generate_content(model=MODEL, contents="A colour", config=options)
    )
    assert response.text == "red"


def test_a_stream(relay):
    chunks = relay.run(
        lambda target: list(target.gemini.models.generate_content_stream(model=MODEL, contents="Stream"))
    )
    assert len(chunks) > 3
    assert chunks[-1].usage_metadata.candidates_token_count == len([chunk for chunk in chunks if chunk.text])


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_thoughts(relay, stream):
    options = config(thinking_config=types.ThinkingConfig(include_thoughts=True, thinking_budget=64))

    def converse(target):
        given = {"model": MODEL, "contents": f"Think, stream is {stream}", "config": options}
        models = target.gemini.models
        return list(models.generate_content_stream(**given)) if stream else [models.generate_content(**given)]

    responses = relay.run(converse)
    parts = [part for response in responses for part in response.candidates[0].content.parts or ()]
    assert any(part.thought for part in parts)
    assert responses[-1].usage_metadata.thoughts_token_count > 0


def test_a_chat_with_memory(relay):
    def converse(target):
        chat = target.gemini.chats.create(model=MODEL)
        return [chat.send_message("First"), chat.send_message("Second"), *chat.send_message_stream("Third")]

    first, second, *_ = relay.run(converse)
    assert second.usage_metadata.prompt_token_count > first.usage_metadata.prompt_token_count


def test_a_refusal(relay):
    response = relay.run(
        lambda target: target.gemini.models.generate_content(model=MODEL, contents="[[simulate refusal=true]] No?")
    )
    assert response.candidates[0].finish_reason == types.FinishReason.SAFETY


@pytest.mark.parametrize("given", ["Count this", ["One", "Two"]], ids=["a text", "contents"])
def test_token_counts_cost_nothing(relay, given):
    model = f"gemini-counts-{len(given)}"
    counted = relay.run(lambda target: target.gemini.models.count_tokens(model=model, contents=given))
    assert counted.total_tokens > 0
    row = relay.row_of(model)
    assert (row.operation, row.outcome, row.token_source) == ("count_tokens", "ok", "reported")
    assert (row.prompt_tokens, row.completion_tokens, row.cost_nanousd) == (0, 0, 0)


@pytest.mark.parametrize("given", ["Embed this", ["One", "Two", "Three"]], ids=["a text", "a batch"])
def test_embeddings(relay, given):
    options = types.EmbedContentConfig(output_dimensionality=8, task_type="RETRIEVAL_QUERY")
    model = f"gemini-embedding-001-{len(given)}"  # the SDK batches contents only for this family
    response = relay.run(lambda target: target.gemini.models.embed_content(model=model, contents=given, config=options))
    assert [len(embedding.values) for embedding in response.embeddings] == [8] * (1 if isinstance(given, str) else 3)
    row = relay.row_of(model)
    tokens = response.usage_metadata.prompt_token_count
    assert (row.operation, row.token_source, row.prompt_tokens) == ("embeddings", "reported", tokens)
    assert row.completion_tokens == 0


def test_an_embedding_is_charged(relay):
    embed = {"model": "gemini-embedding-001", "contents": "word " * 4000}
    response = relay.run(lambda target: target.gemini.models.embed_content(**embed))
    row = relay.row_of("gemini-embedding-001")
    assert row.cost_source == "listed"
    # $0.15 per million tokens
    assert row.cost_nanousd == response.usage_metadata.prompt_token_count * 150


def test_an_embedding_error(relay):
    text = "[[simulate status=404]] No"
    error = relay.run(lambda target: target.gemini.models.embed_content(model="gemini-embeds-no", contents=text))
    assert (type(error), error.code) == (errors.ClientError, 404)


def test_the_older_api_version(relay):
    def converse(target):
        with target.gemini_as(api_version="v1beta") as client:
            given = {"model": f"models/{MODEL}", "contents": "Beta"}
            models = client.models
            return models.generate_content(**given), list(models.generate_content_stream(**given))

    whole, chunks = relay.run(converse)
    assert whole.text
    assert chunks[-1].usage_metadata.total_token_count > 0


@pytest.mark.parametrize(
    "text", ["Grüße 👩‍👩‍👧‍👦", "日本語、中文和한국어", "مرحبا \u202eשלום\u202c"], ids=["emoji", "cjk", "rtl"]
)
def test_unicode_is_unchanged(relay, text):
    options = config(response_mime_type="application/json", response_json_schema={"const": {"echo": text}})

    def converse(target):
        given = {"model": MODEL, "contents": text, "config": options}
        whole = target.gemini.models.generate_content(**given)
        return whole.text, "".join(chunk.text or "" for chunk in target.gemini.models.generate_content_stream(**given))

    for text_ in relay.run(converse):
        assert json.loads(text_) == {"echo": text}


def test_a_large_prompt(relay):
    response = relay.run(
        lambda target: target.gemini.models.generate_content(model=MODEL, contents="many words " * 60_000)
    )
    assert response.usage_metadata.prompt_token_count > 160_000


@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")  # the SDK's own
async def test_the_async_client(relay):
    async def converse(target):
        client = target.gemini_as()
        async with client.aio as aio:
            whole = await aio.models.generate_content(model=MODEL, contents="Async")
            stream = await aio.models.generate_content_stream(model=MODEL, contents="Async stream")
            chunks = [chunk async for chunk in stream]
            several = [aio.models.generate_content(model=MODEL, contents=f"Number {n}") for n in range(8)]
            responses = await asyncio.gather(*several)
        client.close()
        return whole, chunks, responses

    whole, chunks, responses = await relay.run_async(converse)
    assert whole.text
    assert chunks[-1].usage_metadata.total_token_count > 0
    assert len(responses) == 8
