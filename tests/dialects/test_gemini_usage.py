"""Gemini's usage beyond plain counts: modalities, tool results, tiers, grounding, and what no table knows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dialects.completeness import DEPTHS, counts_of_json, invented, planted, sum_of

from mcpmeter.dialects.base import ResponseInfo, with_aliases
from mcpmeter.dialects.gemini_embeddings import GeminiEmbed
from mcpmeter.dialects.gemini_generate import GeminiGenerate
from mcpmeter.items import ITEMS
from mcpmeter.records import STANDARD, Conditions, Usage, UsageItem
from mcpmeter.relay.stream import StreamTee

GENERATE = GeminiGenerate()
PLAIN = {"promptTokenCount": 100, "candidatesTokenCount": 20}


def info(usage: dict[str, Any], candidate: dict[str, Any] | None = None, **fields: Any) -> ResponseInfo:
    found = {"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP", **(candidate or {})}
    body = {"modelVersion": "gemini-3.5-flash", "candidates": [found], "usageMetadata": usage} | fields
    return GENERATE.read_response(json.dumps(body).encode())


def read(usage: dict[str, Any], candidate: dict[str, Any] | None = None, **fields: Any) -> Usage:
    found = info(usage, candidate, **fields).usage
    assert found is not None
    return found


def tee_of(*events: dict[str, Any]) -> StreamTee:
    tee = StreamTee(GENERATE, withhold_usage=False)
    for event in events:
        tee.feed(f"data: {json.dumps(event)}\r\n\r\n".encode())
    return tee


def event(usage: dict[str, Any] | None, reason: str | None = None, **candidate: Any) -> dict[str, Any]:
    found = {"content": {"parts": [{"text": "a"}]}, **candidate}
    metadata = {"usageMetadata": usage} if usage else {}
    return {"candidates": [found | {"finishReason": reason}], "modelVersion": "gemini-3.5-flash", **metadata}


def items(usage: Usage) -> dict[str, int]:
    return {item.item: item.quantity for item in usage.items}


def unknown(usage: Usage) -> dict[str, int]:
    return {item.item: item.quantity for item in usage.unknown}


def details(**counts: int) -> list[dict[str, Any]]:
    return [{"modality": modality, "tokenCount": number} for modality, number in counts.items()]


# Modalities ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"promptTokensDetails": details(TEXT=20, AUDIO=80), "cachedContentTokenCount": 10}
            | {"cacheTokensDetails": details(TEXT=10)},
            {"prompt": 10, "prompt_audio": 80, "cached_read": 10, "completion": 20},
        ),
        (
            {"promptTokensDetails": details(TEXT=20, AUDIO=80), "cachedContentTokenCount": 70}
            | {"cacheTokensDetails": details(AUDIO=70)},
            {"prompt": 20, "prompt_audio": 10, "cached_read_audio": 70, "completion": 20},
        ),
        (
            {"promptTokensDetails": details(TEXT=20, AUDIO=80), "cachedContentTokenCount": 50},
            {"prompt_audio": 50, "cached_read": 20, "cached_read_audio": 30, "completion": 20},
        ),
        (
            {"promptTokensDetails": details(IMAGE=40, VIDEO=30, DOCUMENT=5)},
            {"prompt": 25, "prompt_image": 45, "prompt_video": 30, "completion": 20},
        ),
        (
            {"promptTokensDetails": details(audio=30, MODALITY_UNSPECIFIED=70)},
            {"prompt": 70, "prompt_audio": 30, "completion": 20},
        ),
        ({"promptTokensDetails": details(AUDIO=900)}, {"prompt_audio": 100, "completion": 20}),
        ({"promptTokensDetails": details(TEXT=100), "candidatesTokensDetails": details(TEXT=20)}, {}),
        (
            {"candidatesTokensDetails": details(TEXT=5, IMAGE=15), "thoughtsTokenCount": 7},
            {"prompt": 100, "completion": 5, "completion_image": 15, "reasoning": 7},
        ),
        (
            {"toolUsePromptTokenCount": 30, "toolUsePromptTokensDetails": details(TEXT=20, IMAGE=10)},
            {"prompt": 100, "prompt_tool": 20, "prompt_image": 10, "completion": 20},
        ),
    ],
)
def test_tokens_are_separated_by_modality(fields, expected):
    usage = read(PLAIN | fields)
    assert (items(usage), usage.unknown) == (expected, ())
    assert usage.prompt_tokens == 100 + fields.get("toolUsePromptTokenCount", 0)
    assert usage.audio_tokens == sum(number for name, number in expected.items() if name.endswith("_audio"))


def test_a_modality_of_tomorrow_is_in_no_ordinary_item():
    usage = read(PLAIN | {"promptTokensDetails": details(TEXT=60, SMELL=40)})
    assert (items(usage), usage.prompt_tokens) == ({"prompt": 60, "completion": 20}, 100)
    assert unknown(usage) == {"promptTokensDetails[SMELL].tokenCount": 40}


@pytest.mark.parametrize(
    ("fields", "counts", "rest"),
    [
        ({"totalTokenCount": 120}, (100, 20), {}),
        ({"totalTokenCount": 150}, (100, 20), {"totalTokenCount": 30}),
        ({"totalTokenCount": 150, "toolUsePromptTokenCount": 30}, (130, 20), {}),
        ({"totalTokenCount": 150, "thoughtsTokenCount": 30}, (100, 50), {}),
        ({"totalTokenCount": 120, "thoughtsTokenCount": 15}, (100, 20), {}),
        ({"totalTokenCount": 120, "toolUsePromptTokenCount": 15}, (100, 20), {}),
        ({"totalTokenCount": 119}, (100, 20), {}),
        ({"candidatesTokenCount": None, "responseTokenCount": 20, "totalTokenCount": 120}, (100, 20), {}),
        ({"promptTokenCount": 100.0, "smell": {"tokenCount": 3}}, (100, 20), {"smell.tokenCount": 3}),
    ],
)
def test_what_a_total_leaves_unexplained_is_unknown(fields, counts, rest):
    usage = read(PLAIN | fields)
    assert ((usage.prompt_tokens, usage.completion_tokens), unknown(usage)) == (counts, rest)


# Conditions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "tier"),
    [
        ("ON_DEMAND", ""),
        ("TRAFFIC_TYPE_UNSPECIFIED", ""),
        ("ON_DEMAND_PRIORITY", "priority"),
        ("ON_DEMAND_FLEX", "flex"),
        ("ON_DEMAND_OFFPEAK", "offpeak"),
        ("PROVISIONED_THROUGHPUT", "provisioned"),
        ("TOMORROW", "tomorrow"),
    ],
)
def test_the_type_of_traffic_is_the_tier(written, tier):
    assert read(PLAIN | {"trafficType": written}).conditions == Conditions(tier=tier)


@pytest.mark.parametrize(
    ("written", "tier"), [("standard", ""), ("flex", "flex"), ("PRIORITY", "priority"), ("SERVICE_TIER_FLEX", "flex")]
)
def test_the_tier_is_read_wherever_it_stands(written, tier):
    expected = Conditions(tier=tier)
    assert read(PLAIN | {"serviceTier": written}).conditions == expected
    assert read(PLAIN | {"service_tier": written}).conditions == expected
    assert info(PLAIN, serviceTier=written).conditions == expected
    assert info(PLAIN, service_tier=written).conditions == expected
    assert GENERATE.response_conditions({"x-gemini-service-tier": written}) == expected


def test_no_header_means_no_tier():
    assert GENERATE.response_conditions({}) is STANDARD


# Grounding -----------------------------------------------------------------------------------------------------------

QUERIES = {"groundingMetadata": {"webSearchQueries": ["a", "b", "", " ", "a"]}}
PLACE = {"groundingMetadata": {"groundingChunks": [{"web": {}}, {"maps": {"placeId": "p"}}, 7]}}


@pytest.mark.parametrize(
    ("model", "candidate", "expected"),
    [
        ("gemini-3.5-flash", QUERIES, {"web_search": 2}),
        ("gemini-2.5-flash", QUERIES, {"grounded_prompt": 1}),
        ("models/gemini-2.0-flash", QUERIES, {"grounded_prompt": 1}),
        ("gemini-12-pro", QUERIES, {"web_search": 2}),
        ("gemini-3.5-flash", {"groundingMetadata": {"webSearchQueries": ["", None]}}, {}),
        (
            "gemini-3.5-flash",
            {"groundingMetadata": {"imageSearchQueries": ["a"], "webSearchQueries": ["a"]}},
            {"web_search": 2},
        ),
        ("gemini-3.5-flash", PLACE, {"maps_search": 1}),
        ("gemini-2.5-flash", PLACE, {"maps_search": 1}),
        ("gemini-2.5-flash", {"urlContextMetadata": {"urlMetadata": [{}]}}, {}),
        ("gemini-3.5-flash", {"groundingMetadata": 7}, {}),
    ],
)
def test_grounding_is_billed_by_the_models_generation(model, candidate, expected):
    read_info = info(PLAIN, candidate, modelVersion=model)
    assert ({item.item: item.quantity for item in read_info.items}, read_info.unknown) == (expected, ())


def test_the_queries_of_several_candidates_count_once():
    candidates = [QUERIES, {"groundingMetadata": {"webSearchQueries": ["b", "c"]}}]
    assert info(PLAIN, candidates=candidates).items == (UsageItem("web_search", 3),)


def test_googles_own_count_of_billed_calls_holds():
    calls = [{"tool": "GOOGLE_SEARCH_RETRIEVAL", "successfulToolCallCount": 3}]
    assert info(PLAIN | {"billedToolCalls": calls}, QUERIES).items == (UsageItem("web_search", 3),)
    calls.append({"tool": "teleport", "successfulToolCallCount": 2, "miles": 4})
    found = info(PLAIN | {"billedToolCalls": calls})
    assert unknown(found.usage) == {"billedToolCalls[].miles": 4}
    assert (found.items, found.unknown) == (
        (UsageItem("web_search", 3),),
        (UsageItem("billedToolCalls[TELEPORT]", 2),),
    )


def test_queries_to_own_data_have_no_price():
    found = info(PLAIN, {"groundingMetadata": {"retrievalQueries": ["a", "b"]}})
    assert found.unknown == (UsageItem("groundingMetadata.retrievalQueries", 2),)


@pytest.mark.parametrize(
    ("candidate", "item"),
    [
        ({}, "prompt_tool"),
        (QUERIES, "prompt_unbilled"),
        (QUERIES | {"urlContextMetadata": {"urlMetadata": [{}]}}, "prompt_tool"),
        (QUERIES | {"content": {"parts": [{"executableCode": {"code": "1"}}]}}, "prompt_tool"),
        (PLACE, "prompt_tool"),
    ],
)
def test_text_that_a_search_retrieves_is_not_billed_as_input(candidate, item):
    usage = read(PLAIN | {"toolUsePromptTokenCount": 30, "totalTokenCount": 150}, candidate)
    assert (items(usage)[item], usage.prompt_tokens) == (30, 130)


def test_an_alias_names_a_count_of_a_provider():
    dialect = with_aliases(GENERATE, {"usageMetadata.mine": "cached_read", "usage.joules": "free", "usage.x": "image"})
    response = event(PLAIN | {"mine": 30, "joules": 7.5, "x": 2}, "STOP")
    body = json.dumps(response).encode()
    for found in (dialect.read_response(body).usage, dialect.read_events(b"data: %s\n\n" % body).usage):
        assert (found.cached_read_tokens, found.prompt_tokens, unknown(found)) == (30, 100, {"x": 2})


# Streams -------------------------------------------------------------------------------------------------------------


def test_no_count_falls():
    tee = tee_of(
        event({"promptTokenCount": 100, "candidatesTokenCount": 9, "cachedContentTokenCount": 40}),
        event({"promptTokenCount": 0, "candidatesTokenCount": 20, "promptTokensDetails": details(AUDIO=30)}),
        event({"promptTokenCount": 100, "candidatesTokenCount": 3}, "STOP"),
    )
    usage = tee.read.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_read_tokens) == (100, 20, 40)
    assert (items(usage)["prompt_audio"], usage.source) == (30, "reported")


def test_grounding_in_parts_is_counted_once():
    more = {"groundingMetadata": {"webSearchQueries": ["b", "c"], "groundingChunks": [{"maps": {"placeId": "p"}}]}}
    tool = PLAIN | {"toolUsePromptTokenCount": 30}
    tee = tee_of(event(None, **QUERIES), event(tool, "STOP", **more), event(None, **QUERIES))
    assert tee.read.items == (UsageItem("web_search", 3), UsageItem("maps_search", 1))
    assert (items(tee.read.usage)["prompt_unbilled"], tee.read.usage.source) == (30, "reported")


@pytest.mark.parametrize(
    "tool",
    [{"content": {"parts": [{"executableCode": {"code": "1"}}]}}, {"urlContextMetadata": {"urlMetadata": [{}]}}],
)
@pytest.mark.parametrize("counts", [PLAIN, None])
def test_a_tool_in_an_earlier_event_makes_its_results_input(tool, counts):
    tee = tee_of(event(counts, **tool), event(PLAIN | {"toolUsePromptTokenCount": 30}, "STOP", **QUERIES))
    assert items(tee.read.usage)["prompt_tool"] == 30


# Types ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "candidate", "reason", "model"),
    [
        ({}, {"finishReason": {"name": "STOP"}}, "STOP", "gemini-3.5-flash"),
        ({}, {"finishReason": 1}, "1", "gemini-3.5-flash"),
        ({"modelVersion": 3}, {}, "STOP", "3"),
        ({"serviceTier": {}, "promptFeedback": "none"}, {}, "STOP", "gemini-3.5-flash"),
        ({}, {"content": None}, "STOP", "gemini-3.5-flash"),
        ({}, {"content": {"parts": [7, None, {"text": 7}]}}, "STOP", "gemini-3.5-flash"),
    ],
)
def test_a_field_of_another_type_hides_no_usage(fields, candidate, reason, model):
    found = info(PLAIN, candidate, **fields)
    assert (found.usage, found.finish_reason, found.model) == (read(PLAIN), reason, model)
    odd = event(PLAIN, "STOP") | fields
    odd["candidates"][0] |= candidate
    assert tee_of(odd).read.usage == read(PLAIN)


def test_an_embeddings_usage_holds_no_completion():
    usage = {"promptTokenCount": 9, "promptTokensDetails": details(TEXT=4, IMAGE=5), "candidatesTokenCount": 3}
    found = GeminiEmbed().read_response(json.dumps({"embedding": {"values": []}, "usageMetadata": usage}).encode())
    assert (items(found.usage), found.usage.completion_tokens) == ({"prompt": 4, "prompt_image": 5}, 0)


# Completeness --------------------------------------------------------------------------------------------------------

number = counts_of_json()
modalities = st.sampled_from(["TEXT", "AUDIO", "IMAGE", "VIDEO", "DOCUMENT", "MODALITY_UNSPECIFIED"])
listed = st.none() | st.lists(
    st.fixed_dictionaries({"modality": modalities}, optional={"tokenCount": st.integers(0, 300)}), max_size=3
)
usages = st.fixed_dictionaries(
    {"promptTokenCount": st.integers(0, 500)},
    optional={
        **dict.fromkeys(("candidatesTokenCount", "thoughtsTokenCount", "toolUsePromptTokenCount"), number),
        **dict.fromkeys(("cachedContentTokenCount", "totalTokenCount"), number),
        **dict.fromkeys(("promptTokensDetails", "cacheTokensDetails"), listed),
        **dict.fromkeys(("candidatesTokensDetails", "toolUsePromptTokensDetails"), listed),
        "trafficType": st.sampled_from([None, "ON_DEMAND", "ON_DEMAND_FLEX"]),
        "serviceTier": st.sampled_from([None, "standard", "priority"]),
    },
)
COUNTED = ("promptTokenCount", "toolUsePromptTokenCount", "candidatesTokenCount", "thoughtsTokenCount")


@pytest.mark.trial
def test_every_number_of_a_usage_object_is_accounted_for(trials):
    @settings(max_examples=DEPTHS[trials.full], deadline=None)
    @given(usages, st.lists(invented(), max_size=4), st.sampled_from([{}, QUERIES]))
    def check(usage, additions, candidate):
        planted_sum = planted(usage, additions)
        found = read(usage, candidate)
        counted, total = sum_of(usage, *COUNTED), sum_of(usage, "totalTokenCount")
        rest = next((item.quantity for item in found.unknown if item.item == "totalTokenCount"), 0)
        billed = found.prompt_tokens + found.completion_tokens
        assert rest == max(0, total - billed)
        if usage.get("candidatesTokenCount") is None:
            assert billed == max(counted, total)
        else:
            # Some models count thoughts or tool results twice, which the total shows.
            assert billed == counted or (billed == total < counted)
        assert found.reasoning_tokens == sum_of(usage, "thoughtsTokenCount")
        assert found.cached_read_tokens <= sum_of(usage, "promptTokenCount")
        for side, tokens in (("prompt", found.prompt_tokens), ("completion", found.completion_tokens)):
            parts = [item.quantity for item in found.items if ITEMS[item.item].side == side]
            assert not found.items or sum(parts) == tokens
        assert sum(item.quantity for item in found.unknown) == planted_sum + rest
        assert all(item.quantity > 0 for item in (*found.items, *found.unknown))

    check()
