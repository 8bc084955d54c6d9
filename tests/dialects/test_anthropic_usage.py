"""Anthropic's usage beyond plain counts: what is billed, at which model, and what no table knows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dialects.completeness import DEPTHS, counts_of_json, invented, planted, sum_of, unpublished

from mcpmeter.dialects.anthropic_messages import AnthropicMessages
from mcpmeter.dialects.base import with_aliases
from mcpmeter.items import ITEMS
from mcpmeter.records import Conditions, Usage
from mcpmeter.relay.stream import StreamTee

MESSAGES = AnthropicMessages()
MODEL = "claude-sonnet-5-5"


def read(usage: dict[str, Any], **fields: Any) -> Usage:
    message = {"model": MODEL, "content": [{"type": "text", "text": "a"}], "stop_reason": "end_turn", "usage": usage}
    found = MESSAGES.read_response(json.dumps(message | fields).encode()).usage
    assert found is not None
    return found


def streamed(start: dict[str, Any], *deltas: dict[str, Any], reason: str = "end_turn") -> Usage:
    tee = StreamTee(MESSAGES, withhold_usage=False)
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {"model": MODEL, "usage": start}}]
    events += [{"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage} for usage in deltas]
    for event in events:
        tee.feed(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
    assert tee.read.usage is not None
    return tee.read.usage


def items(usage: Usage) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for item in usage.items:
        found[item.item, item.model] = found.get((item.item, item.model), 0) + item.quantity
    return found


def own(usage: Usage) -> dict[str, int]:
    assert not any(item.model for item in usage.items)
    return {item.item: item.quantity for item in usage.items}


def unknown(usage: Usage) -> dict[str, int]:
    return {item.item: item.quantity for item in usage.unknown}


def test_a_mirror_of_the_cache_reads_counts_once():
    # DashScope's form: https://github.com/jeremychone/rust-genai/pull/258
    last = {"cache_read_input_tokens": 3604, "prompt_tokens_details": {"cached_tokens": 3604}, "output_tokens": 878}
    usage = streamed({"input_tokens": 3602, "output_tokens": 0}, last)
    assert (usage.prompt_tokens, usage.cached_read_tokens, usage.completion_tokens) == (7206, 3604, 878)
    assert unknown(usage) == {}


PLAIN = {"input_tokens": 10, "output_tokens": 5}


# Times to live -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "ttls", "expected"),
    [
        (100, {"5m": 40, "1h": 60}, {"prompt": 10, "cache_write_5m": 40, "cache_write_1h": 60, "completion": 5}),
        (100, {"5m": 0, "1h": 60}, {"prompt": 10, "cache_write": 40, "cache_write_1h": 60, "completion": 5}),
        (50, {"5m": 40, "1h": 60}, {"prompt": 10, "cache_write_5m": 40, "cache_write_1h": 60, "completion": 5}),
        (None, {"1h": 60}, {"prompt": 10, "cache_write_1h": 60, "completion": 5}),
        (100, {"5m": 100, "1h": 0}, {}),
        (100, {}, {}),
    ],
)
def test_cache_writes_are_separated_by_time_to_live(total, ttls, expected):
    written = {f"ephemeral_{ttl}_input_tokens": number for ttl, number in ttls.items()}
    usage = read({**PLAIN, "cache_creation_input_tokens": total, "cache_creation": written})
    assert own(usage) == expected
    assert usage.cache_write_tokens == max(total or 0, sum(ttls.values()))
    assert usage.prompt_tokens == 10 + usage.cache_write_tokens


def test_a_time_to_live_of_tomorrow_has_no_price():
    written = {"ephemeral_1h_input_tokens": 20, "ephemeral_2w_input_tokens": 30}
    usage = read({**PLAIN, "cache_creation_input_tokens": 100, "cache_creation": written})
    assert own(usage) == {"prompt": 10, "cache_write": 50, "cache_write_1h": 20, "completion": 5}
    assert unknown(usage) == {"cache_creation.ephemeral_2w_input_tokens": 30}
    assert usage.prompt_tokens == 110


# Iterations ----------------------------------------------------------------------------------------------------------

COMPACTION = {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3_500}
MESSAGE = {"type": "message", "input_tokens": 23_000, "output_tokens": 1_000}
ADVISOR = {"type": "advisor_message", "model": "claude-opus-5-5", "input_tokens": 823, "output_tokens": 1_612}


def test_each_iteration_is_billed_and_the_top_level_is_not():
    usage = read({"input_tokens": 23_000, "output_tokens": 1_000, "iterations": [COMPACTION, MESSAGE]})
    assert (usage.prompt_tokens, usage.completion_tokens) == (203_000, 4_500)
    assert [(item.item, item.quantity) for item in usage.items] == [
        ("prompt", 180_000),
        ("completion", 3_500),
        ("prompt", 23_000),
        ("completion", 1_000),
    ]
    assert not usage.unknown


def test_a_compaction_on_demand_is_billed_though_the_top_level_is_zero():
    usage = read({"input_tokens": 0, "output_tokens": 0, "iterations": [COMPACTION]})
    assert (usage.prompt_tokens, usage.completion_tokens) == (180_000, 3_500)


def test_an_advisor_is_billed_at_its_own_model():
    first = {**MESSAGE, "cache_creation_input_tokens": 60, "cache_creation": {"ephemeral_1h_input_tokens": 60}}
    second = {**MESSAGE, "model": MODEL}
    usage = read({"input_tokens": 46_000, "output_tokens": 2_000, "iterations": [first, ADVISOR, second]})
    assert items(usage) == {
        ("prompt", ""): 46_000,
        ("cache_write_1h", ""): 60,
        ("completion", ""): 2_000,
        ("prompt", "claude-opus-5-5"): 823,
        ("completion", "claude-opus-5-5"): 1_612,
    }
    assert (usage.prompt_tokens, usage.completion_tokens) == (46_883, 3_612)


def test_the_top_level_is_billed_beside_an_advisor_alone():
    usage = read({"input_tokens": 412, "output_tokens": 531, "iterations": [ADVISOR]})
    assert (usage.prompt_tokens, usage.completion_tokens) == (412 + 823, 531 + 1_612)
    assert items(usage)["prompt", ""] == 412


def test_one_plain_iteration_needs_no_items():
    assert read({**PLAIN, "iterations": [{"type": "message", "model": MODEL, **PLAIN}]}) == read(PLAIN)
    assert read({**PLAIN, "iterations": []}) == read({**PLAIN, "iterations": None}) == read(PLAIN)


def test_what_the_top_level_counts_beyond_its_iterations_is_unknown():
    usage = read({"input_tokens": 45_000, "output_tokens": 1_234, "iterations": [COMPACTION, MESSAGE]})
    assert (usage.prompt_tokens, usage.completion_tokens) == (203_000, 4_500)
    assert unknown(usage) == {"input_tokens": 22_000, "output_tokens": 234}


def test_an_iteration_of_an_unknown_type_has_no_price():
    dream = {"type": "dream", "model": "m", "input_tokens": 700, "output_tokens": 0, "depth": {"levels": 3}}
    usage = read({**PLAIN, "iterations": [dream, dream, {"type": "message", **PLAIN}, 7]})
    assert (usage.prompt_tokens, usage.completion_tokens) == (10, 5)
    assert unknown(usage) == {
        "iterations[dream].model": 2,
        "iterations[dream].input_tokens": 1_400,
        "iterations[dream].depth.levels": 6,
        "iterations[]": 7,
    }


@pytest.mark.parametrize("listed", [{"a": {"b": 5}}, 5, [5], [[5]]])
def test_iterations_of_another_type_are_unknown(listed):
    usage = read({**PLAIN, "iterations": listed})
    assert (usage.prompt_tokens, usage.completion_tokens, [*unknown(usage).values()]) == (10, 5, [5])


def test_iterations_beyond_the_bound_are_unknown():
    usage = read({"input_tokens": 0, "output_tokens": 0, "iterations": [MESSAGE] * 128 + [ADVISOR] * 100_000})
    assert (usage.completion_tokens, len(usage.items)) == (128_000, 256)
    assert unknown(usage) == {"iterations": 100_000 * (823 + 1_612)}


# Refusals ------------------------------------------------------------------------------------------------------------


def attempt(kind: str, output: int, model: str = MODEL) -> dict[str, Any]:
    return {"type": kind, "model": model, "input_tokens": 400, "cache_read_input_tokens": 20, "output_tokens": output}


def test_a_refusal_before_any_output_is_counted_and_not_billed():
    usage = {"input_tokens": 412, "cache_read_input_tokens": 88, "output_tokens": 0}
    refused = read(usage, content=[], stop_reason="refusal")
    assert own(refused) == {"prompt_unbilled": 500}
    assert (refused.prompt_tokens, refused.cached_read_tokens) == (500, 88)
    assert streamed({**usage, "output_tokens": 1}, {"output_tokens": 0}, reason="refusal") == refused
    counted = streamed(usage, {"output_tokens": 1}, reason="refusal")
    assert own(counted) == {"prompt_unbilled": 500, "completion_unbilled": 1}


def test_a_refusal_after_some_output_is_billed():
    usage = {"input_tokens": 412, "output_tokens": 33}
    assert own(read(usage, stop_reason="refusal")) == {}
    assert own(streamed(usage, {"output_tokens": 33}, reason="refusal")) == {}


@pytest.mark.parametrize(
    ("attempts", "reason", "expected"),
    [
        (
            [attempt("message", 0), attempt("fallback_message", 50, "claude-opus-5")],
            "end_turn",
            {("prompt_unbilled", MODEL): 420, ("prompt", "claude-opus-5"): 400, ("cached_read", "claude-opus-5"): 20}
            | {("completion", "claude-opus-5"): 50},
        ),
        (
            [attempt("message", 30), attempt("fallback_message", 50, "claude-opus-5")],
            "end_turn",
            {("prompt", MODEL): 400, ("cached_read", MODEL): 20, ("completion", MODEL): 30}
            | {("prompt", "claude-opus-5"): 400, ("cached_read", "claude-opus-5"): 20}
            | {("completion", "claude-opus-5"): 50},
        ),
        (
            [attempt("message", 0), attempt("message", 1, "claude-opus-5")],
            "refusal",
            {("prompt_unbilled", MODEL): 420, ("prompt_unbilled", "claude-opus-5"): 420}
            | {("completion_unbilled", "claude-opus-5"): 1},
        ),
    ],
)
def test_an_attempt_that_declined_before_any_output_is_not_billed(attempts, reason, expected):
    usage = read({"input_tokens": 400, "output_tokens": 1, "iterations": attempts}, stop_reason=reason)
    assert items(usage) == expected


# Tools, conditions, types --------------------------------------------------------------------------------------------


def test_searches_are_billed_and_fetches_are_free():
    tools = {"web_search_requests": 3, "web_fetch_requests": 2, "tool_search_requests": 1}
    usage = read({**PLAIN, "server_tool_use": tools})
    assert own(usage) == {"prompt": 10, "completion": 5, "web_search": 3}
    assert read({**PLAIN, "server_tool_use": {"web_fetch_requests": 2}}) == read(PLAIN)
    assert own(read({**PLAIN, "server_tool_use": {"code_execution_requests": 2}}))["code_execution"] == 2


@pytest.mark.parametrize(
    ("fields", "conditions"),
    [
        ({"service_tier": "standard", "speed": "standard", "inference_geo": "global"}, Conditions()),
        ({"service_tier": None, "speed": None, "inference_geo": "not_available"}, Conditions()),
        ({"service_tier": "priority"}, Conditions(tier="priority")),
        ({"service_tier": "batch"}, Conditions(batch=True)),
        ({"speed": "fast"}, Conditions(speed="fast")),
        ({"inference_geo": "us"}, Conditions(region="us")),
        ({"service_tier": "tomorrow", "inference_geo": "EU"}, Conditions(tier="tomorrow", region="eu")),
    ],
)
def test_the_response_reports_the_conditions_of_its_price(fields, conditions):
    usage = read({**PLAIN, **fields})
    assert (usage.conditions, usage.items, usage.unknown) == (conditions, (), ())


def test_a_redeemed_fallback_credit_is_in_the_counts_already():
    assert read({**PLAIN, "fallback_credit": {"status": {"type": "redeemed"}}}) == read(PLAIN)


@pytest.mark.parametrize(
    ("fields", "model", "reason"),
    [
        ({"stop_reason": {"type": "end_turn"}}, MODEL, "end_turn"),
        ({"stop_reason": 7}, MODEL, "7"),
        ({"model": 5.5}, "5.5", "end_turn"),
        ({"model": {}, "stop_reason": []}, "", ""),
        ({"content": None}, MODEL, "end_turn"),
        ({"content": [None, 7, {"type": {}}]}, MODEL, "end_turn"),
        ({"content": "text"}, MODEL, "end_turn"),
    ],
)
def test_a_field_of_another_type_hides_no_usage(fields, model, reason):
    message = {"model": MODEL, "content": [], "stop_reason": "end_turn", "usage": {**PLAIN, "input_tokens": 10.0}}
    found = MESSAGES.read_response(json.dumps(message | fields).encode())
    assert found.usage == read(PLAIN)
    assert (found.model, found.finish_reason) == (model, reason)


def test_a_streams_field_of_another_type_hides_no_usage():
    tee = StreamTee(MESSAGES, withhold_usage=False)
    for event in (
        {"type": "message_start", "message": {"model": 7, "content": 7, "usage": {"input_tokens": 10}}},
        {"type": "message_delta", "delta": {"stop_reason": {"type": "end_turn"}}, "usage": {"output_tokens": 5.0}},
    ):
        tee.feed(b"data: %s\n\n" % json.dumps(event).encode())
    assert (tee.read.usage, tee.read.model, tee.read.finish_reason) == (read(PLAIN), "7", "end_turn")


def test_an_alias_names_a_count_of_a_provider():
    names = {
        "usage.mine.reads": "cached_read",
        "usage.hour": "cache_write_1h",
        "usage.joules": "free",
        "usage.x": "image",
    }
    dialect = with_aliases(AnthropicMessages(), names)
    usage = {"input_tokens": 5, "output_tokens": 7, "mine": {"reads": 30}, "hour": 4, "joules": 7.5, "x": 2}
    body = json.dumps({"content": [], "usage": usage}).encode()
    start = {"type": "message_start", "message": {"usage": usage}}
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}
    block = b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in (start, delta))
    for found in (dialect.read_response(body).usage, dialect.read_events(block).usage):
        assert own(found) == {"prompt": 5, "cached_read": 30, "cache_write_1h": 4, "completion": 7}
        assert unknown(found) == {"x": 2}


# Streams -------------------------------------------------------------------------------------------------------------


def test_no_count_falls():
    start = {"input_tokens": 1200, "cache_read_input_tokens": 50, "output_tokens": 9}
    usage = streamed(
        start, {"input_tokens": 0, "output_tokens": 30}, {"cache_read_input_tokens": 0, "output_tokens": 7}
    )
    assert (usage.prompt_tokens, usage.cached_read_tokens, usage.completion_tokens) == (1250, 50, 30)


def test_no_part_of_a_count_falls():
    start = {**PLAIN, "cache_creation_input_tokens": 90, "cache_creation": {"ephemeral_1h_input_tokens": 90}}
    searched = {"output_tokens": 7, "server_tool_use": {"web_search_requests": 2}, "speed": "fast", "smell": 4}
    usage = streamed(start, searched, {"output_tokens": 30, "server_tool_use": {"web_search_requests": 0}, "smell": 1})
    assert own(usage) == {"prompt": 10, "cache_write_1h": 90, "completion": 30, "web_search": 2}
    assert (unknown(usage), usage.conditions) == ({"smell": 4}, Conditions(speed="fast"))


def test_the_last_iterations_of_a_stream_are_the_bill():
    final = {"input_tokens": 23_000, "output_tokens": 1_000, "iterations": [COMPACTION, MESSAGE]}
    usage = streamed({"input_tokens": 23_000, "output_tokens": 1}, {"output_tokens": 5, "iterations": [MESSAGE]}, final)
    assert usage == read(final)
    assert (
        streamed({"input_tokens": 23_000, "output_tokens": 1}, final, {"output_tokens": 5, "iterations": []}) == usage
    )


# Completeness --------------------------------------------------------------------------------------------------------

number = counts_of_json()
ttls = st.fixed_dictionaries(
    {},
    optional={f"ephemeral_{ttl}_input_tokens": number for ttl in ("5m", "30m", "1h", "12h")},
)
tokens = {
    "input_tokens": number,
    "output_tokens": number,
    "cache_creation_input_tokens": number,
    "cache_read_input_tokens": number,
    "cache_creation": st.none() | ttls,
    "output_tokens_details": st.none() | st.fixed_dictionaries({}, optional={"thinking_tokens": number}),
}
kinds = st.sampled_from(["message", "compaction", "advisor_message", "fallback_message"])
entries = st.fixed_dictionaries({"type": kinds}, optional=tokens | {"model": st.sampled_from([MODEL, "claude-b"])})
counted = {"input_tokens": st.integers(0, 500), "output_tokens": st.integers(0, 500).map(float)}
usages = st.fixed_dictionaries(
    counted,
    optional={name: values for name, values in tokens.items() if name not in counted}
    | {
        "iterations": st.none() | st.lists(entries, max_size=4),
        "server_tool_use": st.fixed_dictionaries(
            {},
            optional={"web_search_requests": number, "web_fetch_requests": number, "code_execution_requests": number},
        ),
        "service_tier": st.sampled_from([None, "standard", "priority", "batch"]),
        "speed": st.sampled_from([None, "standard", "fast"]),
        "inference_geo": st.sampled_from([None, "global", "us"]),
    },
)


def written(usage: dict[str, Any]) -> int:
    return max(sum_of(usage, "cache_creation_input_tokens"), explained(usage))


def explained(usage: dict[str, Any]) -> int:
    found = usage.get("cache_creation") or {}
    return sum_of(found, *(name for name in found if name.startswith("ephemeral_")))


def unexplained(usage: dict[str, Any]) -> int:
    """Cache writes of a time to live that no table knows."""
    found = usage.get("cache_creation") or {}
    return min(written(usage) - explained(usage), sum(unpublished(found[name]) for name in found if name[:3] == "zz_"))


def prompt(usage: dict[str, Any]) -> int:
    return sum_of(usage, "input_tokens", "cache_read_input_tokens") + written(usage)


@pytest.mark.trial
def test_every_number_of_a_usage_object_is_accounted_for(trials):
    @settings(max_examples=DEPTHS[trials.full], deadline=None)
    @given(usages, st.lists(invented(), max_size=4), st.sampled_from(["end_turn", "refusal"]))
    def check(usage, additions, reason):
        planted_sum = planted(usage, additions)
        found = read({**usage, "fallback_credit": {"status": {"type": "redeemed"}}}, stop_reason=reason)
        listed = usage.get("iterations") or []
        answered = [entry for entry in listed if entry["type"] in ("message", "fallback_message")]
        billed = listed if answered else [*listed, usage]
        assert found.prompt_tokens == sum(map(prompt, billed))
        assert found.completion_tokens == sum(sum_of(part, "output_tokens") for part in billed)
        priced = found.prompt_tokens - sum(map(unexplained, billed))
        for side, total in (("prompt", priced), ("completion", found.completion_tokens)):
            parts = sum(item.quantity for item in found.items if ITEMS[item.item].side == side)
            assert parts == total or (not found.items and priced == found.prompt_tokens)
        excess = {
            name: sum_of(usage, name) - sum(sum_of(entry, name) for entry in answered)
            for name in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
        }
        shown = {name: number for name, number in excess.items() if number > 0 and answered}
        assert {item.item: item.quantity for item in found.unknown if item.item in excess} == shown
        assert sum(item.quantity for item in found.unknown if item.item not in excess) == planted_sum
        assert all(item.quantity > 0 for item in (*found.items, *found.unknown))
        tools = usage.get("server_tool_use", {})
        for name, field in (("web_search", "web_search_requests"), ("code_execution", "code_execution_requests")):
            assert sum(item.quantity for item in found.items if item.item == name) == sum_of(tools, field)

    check()
