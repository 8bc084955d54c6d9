"""Gemini's dialect as Google's SDK reads it, and chunk by chunk."""

import json
import math
from random import Random

import pytest
from google import genai
from google.genai import types
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.errors import InvalidRequest
from mcpmeter.simulator import Fault, Plan, Quota, Simulator
from mcpmeter.simulator.dialects.base import UrlParams
from mcpmeter.simulator.dialects.gemini_embeddings import GeminiEmbeddingsDialect
from mcpmeter.simulator.dialects.gemini_generate import ARRAY, SSE, CountTokensDialect, GenerateContentDialect
from mcpmeter.simulator.request_parsing import text_tokens
from mcpmeter.simulator.vectors import Vectors

MODEL = "gemini-2.5-flash"
URL_PARAMS = UrlParams(MODEL)
REQUEST = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"functionDeclarations": [{"name": "get_weather", "parameters": SCHEMA}]}]
SINGLE_EMBED, BATCH_EMBED = (GeminiEmbeddingsDialect(Vectors(0), is_batch=batch) for batch in (False, True))
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


def respond(fault=Fault(), plan=Plan(), repetition=0, framing=SSE, **more):  # noqa: B008 (frozen)
    request = GenerateContentDialect(framing).read(json.dumps(REQUEST | more).encode(), URL_PARAMS)
    return request.respond(fault, plan, Random(1), repetition)


def chunks(response):
    return [json.loads(event.data.removeprefix(b"data: ")) for event in response.events(None)]


async def test_the_sdk_counts_and_embeds(sim, models):
    assert (await models.count_tokens(model=MODEL, contents="Hello")).total_tokens == 6
    config = types.EmbedContentConfig(output_dimensionality=64)
    response = await models.embed_content(
        model="gemini-embedding-001", contents=["a cat", "a dog", "a cat"], config=config
    )
    cat, dog, again = (item.values for item in response.embeddings)
    assert len(cat) == 64
    assert math.fsum(x * x for x in cat) == pytest.approx(1)
    assert cat == again != dog
    assert response.usage_metadata.prompt_token_count == 6
    assert [(call.dialect, call.prompt_tokens) for call in sim.billing_log.calls()] == [
        ("gemini_count_tokens", 0), ("gemini_embeddings", 6),
    ]  # fmt: skip


async def test_one_content_is_embedded(sim, raw):
    body = {"content": {"parts": [{"text": "12345"}]}, "output_dimensionality": 8}
    response = await raw(sim, body, "/v1beta/models/gemini-embedding-001:embedContent")
    assert len(response.json["embedding"]["values"]) == 8
    assert response.json["usageMetadata"] == {"promptTokenCount": 2, "totalTokenCount": 2}
    refused = await raw(
        sim, {"content": {"parts": [{"text": "[[simulate status=503]]"}]}}, "/v1beta/models/e:embedContent"
    )
    assert refused.status == 503


async def test_the_key_may_be_in_a_header_or_the_url(raw):
    async with Simulator(key="AIza-secret") as sim:
        assert (await raw(sim, REQUEST, URL, headers="x-goog-api-key: AIza-secret\r\n")).status == 200
        assert (await raw(sim, REQUEST, f"{URL}?key=AIza-secret")).status == 200
        for url, headers in [(URL, ""), (f"{URL}?key=other", ""), (URL, "Authorization: Bearer AIza-secret\r\n")]:
            refused = await raw(sim, REQUEST, url, headers=headers)
            assert (refused.status, refused.json["error"]["status"]) == (400, "INVALID_ARGUMENT")
            assert refused.json["error"]["details"][0]["reason"] == "API_KEY_INVALID"
    assert (sim.billing_log.totals.calls, sim.billing_log.refused) == (2, 3)


async def test_an_exhausted_quota_has_a_retry_delay(raw):
    async with Simulator(quota=Quota(requests=1, enforce=True)) as sim:
        first, second = [await raw(sim, REQUEST, URL) for _ in range(2)]
    assert not [name for name in first.headers if "ratelimit" in name]
    failure, retry = second.json["error"]["details"]
    assert failure["@type"].endswith("QuotaFailure")
    assert retry["retryDelay"] == f"{second.headers['retry-after']}s"


async def test_a_stream_without_sse_is_a_json_array(sim, raw):
    url = f"/v1beta/models/{MODEL}:streamGenerateContent"
    response = await raw(sim, REQUEST, url)
    assert response.headers["content-type"] == "application/json; charset=UTF-8"
    assert len(response.json) > 2
    refused = await raw(sim, REQUEST | {"labels": {"simulate": "status=503"}}, url)
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
async def test_unknown_urls_and_methods_get_googles_error_format(sim, raw, path, method, status):
    response = await raw(sim, REQUEST, path, method=method)
    assert response.status == status
    assert response.json["error"]["code"] == status
    assert (await raw(sim, REQUEST, URL)).status == 200


async def test_equal_bodies_for_two_models_differ(sim, raw):
    bodies = [(await raw(sim, REQUEST, f"/v1beta/models/{model}:generateContent")).json for model in ("a", "b")]
    assert bodies[0]["responseId"] != bodies[1]["responseId"]


def test_prompt_tokens_include_all_parts():
    contents = [
        {"role": "user", "parts": [{"text": "12345"}, {"inlineData": {"mimeType": "image/png", "data": ""}}]},
        {"role": "model", "parts": [{"functionCall": {"name": "get_weather", "args": {"a": 1}}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "get_weather", "response": {"b": "ü"}}}]},
    ]
    prompt = (4 + 2 + 85) + (4 + 3 + text_tokens('{"a":1}')) + (4 + 3 + text_tokens('{"b":"ü"}'))
    response = respond(
        Fault(tool_calls=True), contents=contents, systemInstruction={"parts": [{"text": "1234"}]}, tools=TOOLS
    )
    assert response.billed.prompt == prompt + (4 + 1) + text_tokens(compact(TOOLS))
    assert "functionCall" not in response.body().decode()  # the last content brings a result: text is due


def test_field_names_may_be_camel_or_snake_case():
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
    assert respond(**camel).billed == respond(**snake).billed
    assert respond(**snake).billed.completion == 7
    with pytest.raises(InvalidRequest, match="max"):
        respond(generation_config={"max_output_tokens": 0})


def test_reasoning_up_to_the_limit_leaves_no_parts():
    config = {"maxOutputTokens": 10, "thinkingConfig": {"thinkingBudget": -1}}
    response = respond(generationConfig=config)
    body = json.loads(response.body())
    assert body["candidates"] == [{"content": {"role": "model"}, "finishReason": "MAX_TOKENS", "index": 0}]
    assert body["usageMetadata"]["thoughtsTokenCount"] == response.hidden_tokens == response.billed.completion == 10
    assert "candidatesTokenCount" not in body["usageMetadata"]


def test_the_thinking_budget_limits_reasoning():
    assert respond(generationConfig={"thinkingConfig": {"thinkingBudget": 0}}).billed.reasoning == 0
    assert respond(generationConfig={"thinkingConfig": {"thinkingBudget": 9}}).billed.reasoning == 9


@given(
    limit=st.none() | st.integers(1, 80),
    n=st.integers(1, 3),
    reasoning=st.integers(0, 60),
    tokens=st.integers(0, 100),
    step=st.integers(1, 9),
    calls_tool=st.booleans(),
    shown=st.booleans(),
    framing=st.sampled_from([SSE, ARRAY]),
)
def test_usage_equals_the_content_of_body_and_stream(limit, n, reasoning, tokens, step, calls_tool, shown, framing):
    fault = Fault(reasoning_tokens=reasoning, completion_tokens=tokens, tokens_per_chunk=step, tool_calls=calls_tool)
    config = {"maxOutputTokens": limit, "candidateCount": n, "thinkingConfig": {"includeThoughts": shown}}
    response = respond(fault, framing=framing, generationConfig=config, tools=TOOLS)
    body = json.loads(response.body())
    usage, made = body["usageMetadata"], list(response.events(None))
    seen = sum(part_tokens(part) for candidate in body["candidates"] for part in candidate["content"].get("parts", []))
    assert usage.get("candidatesTokenCount", 0) + usage.get("thoughtsTokenCount", 0) == response.billed.completion
    assert response.billed.completion == seen + response.hidden_tokens
    assert usage["totalTokenCount"] == usage["promptTokenCount"] + response.billed.completion
    if limit and not calls_tool:
        assert response.billed.completion <= limit * n
    whole = b"".join(event.data for event in made)
    stream = json.loads(whole) if framing is ARRAY else chunks(response)
    assert stream[-1]["usageMetadata"] == usage
    totals = [chunk["usageMetadata"]["totalTokenCount"] for chunk in stream]
    assert totals == sorted(totals)
    assert parts_of(stream) == parts_of([body])
    assert sum(event.tokens + event.reasoning_tokens for event in made) == seen
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
def test_invalid_requests_are_refused(more):
    with pytest.raises(InvalidRequest) as refused:
        respond(**more)
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"tool_config":' * 100_000, b'{"contents":[],"tool_config":\xff}'])
@pytest.mark.parametrize("dialect", [GenerateContentDialect(), CountTokensDialect(), SINGLE_EMBED])
def test_hostile_bodies_are_refused(dialect, body):
    with pytest.raises(InvalidRequest):
        dialect.read(body, URL_PARAMS)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(body):
    for dialect in (GenerateContentDialect(), SINGLE_EMBED, BATCH_EMBED):
        with pytest.raises(InvalidRequest):
            dialect.read(body, URL_PARAMS)
