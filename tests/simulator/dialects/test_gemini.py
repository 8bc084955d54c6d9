"""Gemini's dialect as Google's SDK reads it, and chunk by chunk."""

import json
import math
from random import Random

import pytest
from google import genai
from google.genai import errors, types
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.errors import InvalidRequest
from mcpmeter.simulator import Fault, Plan, Quota, Simulator
from mcpmeter.simulator.dialects.base import Target
from mcpmeter.simulator.dialects.gemini_embeddings import GeminiBatchEmbed, GeminiEmbed
from mcpmeter.simulator.dialects.gemini_generate import ARRAY, SSE, GeminiCountTokens, GeminiGenerate
from mcpmeter.simulator.request_parsing import text_tokens
from mcpmeter.simulator.vectors import Vectors

MODEL = "gemini-2.5-flash"
TARGET = Target(MODEL)
ASK = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"functionDeclarations": [{"name": "get_weather", "parameters": SCHEMA}]}]
VECTORS = Vectors(0)
URL = f"/v1beta/models/{MODEL}:generateContent"


@pytest.fixture(params=["v1", "v1beta"])
async def models(sim, request):
    options = types.HttpOptions(
        base_url=sim.url, api_version=request.param, retry_options=types.HttpRetryOptions(attempts=1)
    )
    async with genai.Client(api_key="none", http_options=options).aio as client:
        yield client.models


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def draw(fault=Fault(), plan=Plan(), nth=0, framing=SSE, **more):  # noqa: B008 (frozen)
    ask = GeminiGenerate(framing).read(json.dumps(ASK | more).encode(), TARGET)
    return ask.draw(fault, plan, Random(1), nth)


def chunks(reply):
    return [json.loads(event.data.removeprefix(b"data: ")) for event in reply.events(None)]


async def test_the_sdk_reads_an_answer_and_the_books_agree(sim, models):
    answer = await models.generate_content(model=MODEL, contents="Hello")
    (call,) = sim.billing_log.calls()
    assert answer.candidates[0].finish_reason == types.FinishReason.STOP
    usage = answer.usage_metadata
    assert (usage.prompt_token_count, usage.candidates_token_count) == (call.prompt_tokens, call.completion_tokens)
    assert usage.total_token_count == call.prompt_tokens + call.completion_tokens
    assert len(answer.text.split()) == call.completion_tokens
    assert (answer.model_version, call.model, call.dialect) == (MODEL, MODEL, "gemini_generate")


async def test_the_sdk_reads_a_stream_with_thoughts(sim, models):
    config = types.GenerateContentConfig(thinking_config=types.ThinkingConfig(include_thoughts=True))
    stream = await models.generate_content_stream(model=MODEL, contents="Hello", config=config)
    seen = [chunk async for chunk in stream]
    (call,) = sim.billing_log.calls()
    parts = [part for chunk in seen for part in chunk.candidates[0].content.parts]
    assert text_tokens("".join(part.text for part in parts if part.thought)) == call.reasoning_tokens > 0
    usage = seen[-1].usage_metadata
    assert usage.thoughts_token_count == call.reasoning_tokens
    assert usage.candidates_token_count == call.completion_tokens - call.reasoning_tokens
    assert call.delivered_tokens == call.completion_tokens


async def test_the_sdk_calls_a_function(sim, models):
    declared = types.FunctionDeclaration(name="get_weather", parameters_json_schema=SCHEMA)
    calling = types.FunctionCallingConfig(mode="ANY", allowed_function_names=["get_weather"])
    config = types.GenerateContentConfig(
        tools=[types.Tool(function_declarations=[declared])],
        tool_config=types.ToolConfig(function_calling_config=calling),
    )
    answer = await models.generate_content(model=MODEL, contents="Hello", config=config)
    (call,) = answer.function_calls
    assert call.name == "get_weather"
    assert isinstance(call.args["city"], str)
    (booked,) = sim.billing_log.calls()
    assert booked.completion_tokens == text_tokens(call.name) + text_tokens(compact(call.args))


async def test_the_sdk_gets_json_by_its_schema(models):
    config = types.GenerateContentConfig(response_mime_type="application/json", response_schema=SCHEMA)
    answer = await models.generate_content(model=MODEL, contents="Hello", config=config)
    assert isinstance(answer.parsed["city"], str)
    plain = types.GenerateContentConfig(response_mime_type="application/json")
    assert json.loads((await models.generate_content(model=MODEL, contents="Hello", config=plain)).text)["answer"]
    colours = {"type": "STRING", "enum": ["red", "blue"]}
    choice = types.GenerateContentConfig(response_mime_type="text/x.enum", response_schema=colours)
    assert (await models.generate_content(model=MODEL, contents="Hello", config=choice)).text == "red"


async def test_the_sdk_counts_and_embeds(sim, models):
    assert (await models.count_tokens(model=MODEL, contents="Hello")).total_tokens == 6
    config = types.EmbedContentConfig(output_dimensionality=64)
    answer = await models.embed_content(
        model="gemini-embedding-001", contents=["a cat", "a dog", "a cat"], config=config
    )
    cat, dog, again = (item.values for item in answer.embeddings)
    assert len(cat) == 64
    assert math.fsum(x * x for x in cat) == pytest.approx(1)
    assert cat == again != dog
    assert answer.usage_metadata.prompt_token_count == 6
    assert [(call.dialect, call.prompt_tokens) for call in sim.billing_log.calls()] == [
        ("gemini_count_tokens", 0), ("gemini_embeddings", 6),
    ]  # fmt: skip


async def test_the_sdk_raises_its_own_errors(models):
    async def ask(simulate):
        config = types.GenerateContentConfig(labels={"simulate": simulate})
        await models.generate_content(model=MODEL, contents="Hello", config=config)

    with pytest.raises(errors.ClientError) as limited:
        await ask("status=429,retry_after=2")
    assert (limited.value.code, limited.value.status) == (429, "RESOURCE_EXHAUSTED")
    assert limited.value.details["error"]["details"][1]["retryDelay"] == "2s"
    with pytest.raises(errors.ServerError) as overloaded:
        await ask("status=503")
    assert overloaded.value.status == "UNAVAILABLE"
    with pytest.raises(errors.ClientError, match=r"labels\.simulate"):
        await ask("status=9")


async def test_one_content_is_embedded(sim, raw):
    body = {"content": {"parts": [{"text": "12345"}]}, "output_dimensionality": 8}
    answer = await raw(sim, body, "/v1beta/models/gemini-embedding-001:embedContent")
    assert len(answer.json["embedding"]["values"]) == 8
    assert answer.json["usageMetadata"] == {"promptTokenCount": 2, "totalTokenCount": 2}
    refused = await raw(
        sim, {"content": {"parts": [{"text": "[[simulate status=503]]"}]}}, "/v1beta/models/e:embedContent"
    )
    assert refused.status == 503


async def test_a_key_is_taken_from_the_header_or_the_url(raw):
    async with Simulator(key="AIza-secret") as sim:
        assert (await raw(sim, ASK, URL, headers="x-goog-api-key: AIza-secret\r\n")).status == 200
        assert (await raw(sim, ASK, f"{URL}?key=AIza-secret")).status == 200
        for url, headers in [(URL, ""), (f"{URL}?key=other", ""), (URL, "Authorization: Bearer AIza-secret\r\n")]:
            refused = await raw(sim, ASK, url, headers=headers)
            assert (refused.status, refused.json["error"]["status"]) == (400, "INVALID_ARGUMENT")
            assert refused.json["error"]["details"][0]["reason"] == "API_KEY_INVALID"
    assert (sim.billing_log.totals.calls, sim.billing_log.refused) == (2, 3)


async def test_an_exhausted_quota_says_when_to_come_again(raw):
    async with Simulator(quota=Quota(requests=1, enforce=True)) as sim:
        first, second = [await raw(sim, ASK, URL) for _ in range(2)]
    assert not [name for name in first.headers if "ratelimit" in name]
    failure, retry = second.json["error"]["details"]
    assert failure["@type"].endswith("QuotaFailure")
    assert retry["retryDelay"] == f"{second.headers['retry-after']}s"


async def test_a_stream_without_sse_is_one_array_with_errors_in_an_array(sim, raw):
    url = f"/v1beta/models/{MODEL}:streamGenerateContent"
    answer = await raw(sim, ASK, url)
    assert answer.headers["content-type"] == "application/json; charset=UTF-8"
    assert len(answer.json) > 2
    refused = await raw(sim, ASK | {"labels": {"simulate": "status=503"}}, url)
    assert [item["error"]["status"] for item in refused.json] == ["UNAVAILABLE"]
    assert list((await raw(sim, {}, url)).json[0]) == ["error"]


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        (URL, "GET", 405),
        (f"/v1beta/models/{MODEL}:dream", "POST", 404),
        (f"/v1beta/models/{MODEL}", "POST", 404),
        ("/v1beta/models/:generateContent", "POST", 400),
        (f"/v1beta/models/{'m' * 257}:generateContent", "POST", 400),
        ("/v1beta/models/%00:generateContent", "POST", 400),
    ],
)
async def test_wrong_urls_and_verbs_are_told_in_googles_shape(sim, raw, path, method, status):
    answer = await raw(sim, ASK, path, method=method)
    assert answer.status == status
    assert answer.json["error"]["code"] == status
    assert (await raw(sim, ASK, URL)).status == 200


async def test_calls_of_two_models_with_one_body_have_chances_of_their_own(sim, raw):
    bodies = [(await raw(sim, ASK, f"/v1beta/models/{model}:generateContent")).json for model in ("a", "b")]
    assert bodies[0]["responseId"] != bodies[1]["responseId"]


def test_the_prompts_parts_are_counted():
    contents = [
        {"role": "user", "parts": [{"text": "12345"}, {"inlineData": {"mimeType": "image/png", "data": ""}}]},
        {"role": "model", "parts": [{"functionCall": {"name": "get_weather", "args": {"a": 1}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "get_weather", "response": {"b": "ü"}}}]},
    ]
    prompt = (4 + 2 + 85) + (4 + 3 + text_tokens('{"a":1}')) + (4 + 3 + text_tokens('{"b":"ü"}'))
    reply = draw(
        Fault(tool_calls=True), contents=contents, systemInstruction={"parts": [{"text": "1234"}]}, tools=TOOLS
    )
    assert reply.tally.prompt == prompt + (4 + 1) + text_tokens(compact(TOOLS))
    assert "functionCall" not in reply.body().decode()  # the last content brings a result: text is due


def test_names_of_fields_may_be_written_either_way():
    camel = {
        "systemInstruction": {"parts": [{"text": "x"}]},
        "generationConfig": {"maxOutputTokens": 7},
        "tools": TOOLS,
    }
    snake = {
        "system_instruction": {"parts": [{"text": "x"}]},
        "generation_config": {"max_output_tokens": 7},
        "tools": [{"function_declarations": TOOLS[0]["functionDeclarations"]}],
    }
    assert draw(**camel).tally == draw(**snake).tally
    assert draw(**snake).tally.completion == 7
    with pytest.raises(InvalidRequest, match="max"):
        draw(generation_config={"max_output_tokens": 0})


def test_thoughts_that_use_up_the_limit_leave_a_content_without_parts():
    config = {"maxOutputTokens": 10, "thinkingConfig": {"thinkingBudget": -1}}
    reply = draw(generationConfig=config)
    body = json.loads(reply.body())
    assert body["candidates"] == [{"content": {"role": "model"}, "finishReason": "MAX_TOKENS", "index": 0}]
    assert body["usageMetadata"]["thoughtsTokenCount"] == reply.hidden_tokens == reply.tally.completion == 10
    assert "candidatesTokenCount" not in body["usageMetadata"]


def test_a_budget_of_0_thinks_not_at_all_and_any_other_bounds_it():
    assert draw(generationConfig={"thinkingConfig": {"thinkingBudget": 0}}).tally.reasoning == 0
    assert draw(generationConfig={"thinkingConfig": {"thinkingBudget": 9}}).tally.reasoning == 9


@given(
    limit=st.none() | st.integers(1, 80),
    n=st.integers(1, 3),
    reasoning=st.integers(0, 60),
    wanted=st.integers(0, 100),
    step=st.integers(1, 9),
    calls_tool=st.booleans(),
    shown=st.booleans(),
    framing=st.sampled_from([SSE, ARRAY]),
)
def test_usage_equals_what_is_written_in_both_shapes(limit, n, reasoning, wanted, step, calls_tool, shown, framing):
    fault = Fault(reasoning_tokens=reasoning, completion_tokens=wanted, tokens_per_chunk=step, tool_calls=calls_tool)
    config = {"maxOutputTokens": limit, "candidateCount": n, "thinkingConfig": {"includeThoughts": shown}}
    reply = draw(fault, framing=framing, generationConfig=config, tools=TOOLS)
    body = json.loads(reply.body())
    usage, made = body["usageMetadata"], list(reply.events(None))
    seen = sum(part_tokens(part) for candidate in body["candidates"] for part in candidate["content"].get("parts", []))
    assert usage.get("candidatesTokenCount", 0) + usage.get("thoughtsTokenCount", 0) == reply.tally.completion
    assert reply.tally.completion == seen + reply.hidden_tokens
    assert usage["totalTokenCount"] == usage["promptTokenCount"] + reply.tally.completion
    if limit and not calls_tool:
        assert reply.tally.completion <= limit * n
    whole = b"".join(event.data for event in made)
    stream = json.loads(whole) if framing is ARRAY else chunks(reply)
    assert stream[-1]["usageMetadata"] == usage
    told = [chunk["usageMetadata"]["totalTokenCount"] for chunk in stream]
    assert told == sorted(told)
    assert parts_of(stream) == parts_of([body])
    assert sum(event.tokens + event.thoughts for event in made) == seen
    assert [event.is_last for event in made] == [False] * (len(made) - 1) + [True]


def part_tokens(part):
    if "functionCall" in part:
        return text_tokens(part["functionCall"]["name"]) + text_tokens(compact(part["functionCall"]["args"]))
    return text_tokens(part["text"])


def parts_of(stream):
    """Texts, thoughts and calls of each candidate, put together."""
    found = {}
    for candidate in (candidate for chunk in stream for candidate in chunk["candidates"]):
        texts, calls = found.setdefault(candidate["index"], ({True: "", False: ""}, []))
        for part in candidate["content"].get("parts", []):
            if "functionCall" in part:
                calls.append(part["functionCall"])
            else:
                texts[part.get("thought", False)] += part["text"]
    return found


@pytest.mark.parametrize(
    "more",
    [{"contents": []}, {"contents": "x"}, {"contents": [{"parts": [5]}]}, {"tools": [5]}, {"labels": 5},
     {"tools": [{"functionDeclarations": [{}]}]}, {"generationConfig": {"maxOutputTokens": 0}},
     {"generationConfig": {"candidateCount": 9}}, {"system_instruction": 5}],
    ids=str,
)  # fmt: skip
def test_what_is_no_request_is_refused(more):
    with pytest.raises(InvalidRequest) as refused:
        draw(**more)
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"tool_config":' * 100_000, b'{"contents":[],"tool_config":\xff}'])
@pytest.mark.parametrize("dialect", [GeminiGenerate(), GeminiCountTokens(), GeminiEmbed(VECTORS)])
def test_hostile_bodies_are_refused(dialect, body):
    with pytest.raises(InvalidRequest):
        dialect.read(body, TARGET)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body):
    for dialect in (GeminiGenerate(), GeminiEmbed(VECTORS), GeminiBatchEmbed(VECTORS)):
        with pytest.raises(InvalidRequest):
            dialect.read(body, TARGET)
