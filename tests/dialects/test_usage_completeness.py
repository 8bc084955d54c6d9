"""Generated usage objects: every number in one is billed, part of something billed, free, or an unknown item."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcpmeter.dialects.openai_chat import OpenAiChat
from mcpmeter.dialects.openai_embeddings import OpenAiEmbeddings
from mcpmeter.dialects.openai_responses import OpenAiResponses
from mcpmeter.dialects.openai_usage import COMPLETION_DETAILS, PROMPT_DETAILS, TABLE
from mcpmeter.dialects.usage_fields import MAX_PATH_LENGTH, MORE
from mcpmeter.items import ITEMS
from mcpmeter.records import Usage

EXAMPLES = 20_000 if os.environ.get("MCPMETER_TRIALS") == "full" else 200
ENVELOPES: dict[str, tuple[Any, str]] = {
    "chat": (OpenAiChat(), '{"choices":[{"message":{"content":"ok"},"finish_reason":"stop"}],"usage":%s}'),
    "responses": (OpenAiResponses(), '{"status":"completed","output":[],"usage":%s}'),
    "embeddings": (OpenAiEmbeddings(), '{"data":[{}],"usage":%s}'),
}
TOTALS = ("prompt_tokens", "input_tokens", "completion_tokens", "output_tokens", "total_tokens")
PUBLISHED = sorted(path for path in TABLE if "[" not in path and path not in TOTALS)
INVENTED = ("smell_tokens", "surcharge", "prompt_tokens_details.smell", "completion_tokens_details.touch")
INVENTED += ("input_tokens_details.a.b", "output_tokens_details.c", "server_tool_use.dreams", "x.y.z.w", "fees")

counts = st.integers(0, 3000) | st.sampled_from([0, 1, 250, 500, 1000]) | st.integers(0, 900).map(float)
odd = st.none() | st.booleans() | st.floats() | st.text(max_size=4) | st.integers(-9, 10**13) | st.just([1, {"n": 2}])
"""Values that no count has; most published fields get one of `counts`."""


def put(usage: dict[str, Any], path: str, value: Any) -> None:
    *places, name = path.split(".")
    for place in places:
        if not isinstance(usage.get(place), dict):
            usage[place] = {}
        usage = usage[place]
    usage[name] = value


@st.composite
def usages(draw: st.DrawFn, names: tuple[str, str]) -> dict[str, Any]:
    """A usage object with totals that agree, leave out something that stands beside them, or contradict."""
    prompt, completion = draw(counts), draw(counts)
    usage: dict[str, Any] = {names[0]: prompt, names[1]: completion}
    for path in draw(st.lists(st.sampled_from(PUBLISHED), max_size=8, unique=True)):
        put(usage, path, draw(counts if draw(st.integers(0, 5)) else odd))
    for path in draw(st.lists(st.sampled_from(INVENTED), max_size=3, unique=True)):
        put(usage, path, draw(counts | odd))
    beside = [value for _path, value in leaves(usage) if type(value) is int and 0 < value < 10**6]
    more = draw(st.just(0) | st.sampled_from(beside or [0]) | counts)
    if draw(st.booleans()):
        usage["total_tokens"] = prompt + completion + more
    return usage


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What stands in a usage object and is not nothing, below fields that are not known as a whole."""
    if path and path in TABLE and TABLE[path].role == "known":
        return
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, f"{path}[]")
    elif value not in (None, 0, False, ""):
        yield path, value


def whole(value: Any) -> bool:
    return type(value) in (int, float) and value >= 0 and value == value and value <= 10**12 and value == int(value)


FAMILIES = {"cached": ("cached_read", "anthropic_read"), "written": ("cache_write", "anthropic_write")}
FAMILIES |= {"reasoning": ("reasoning", "other_reasoning")}


def family(name: str) -> str:
    return next((key for key, starts in FAMILIES.items() if name.startswith(starts)), name)


KINDS = {path[:MAX_PATH_LENGTH]: family(field.name) for path, field in TABLE.items()}
"""By the names that unknown items have."""


def assert_accounted(path: str, value: Any, usage: Usage, unknown: dict[str, int]) -> None:
    """A leaf is unknown, or its quantity is in the tokens and items of its kind, and in what exceeds them."""
    field = TABLE.get(path)
    if field is None or (field.role == "count" and field.scale == 1 and not whole(value)):
        assert unknown[path[:MAX_PATH_LENGTH]] >= (value if whole(value) else 1)
        return
    if field.role != "count" or field.scale != 1:
        return
    items = {item.item: item.quantity for item in usage.items}
    kind = family(field.name)
    # Cached sound that exceeds the prompt exceeds it as sound too, and is unknown once.
    modality = field.name.rpartition("_")[2]
    kinds = {kind, f"prompt_{modality}", *(("cached",) if field.name == f"prompt_{modality}" else ())}
    exceeding = sum(number for other, number in unknown.items() if KINDS.get(other) in kinds)
    known = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens
        + usage.completion_tokens
        + items.get("citation", 0)
        + sum(unknown.values()),
        "cached": usage.cached_read_tokens,
        "written": usage.cache_write_tokens,
        "reasoning": usage.reasoning_tokens,
    }
    if field.name in ITEMS and kind not in known:
        cached = items.get(field.name.replace("prompt_", "cached_read_"), 0)
        written = usage.cache_write_tokens  # a picture that is written to the cache is a cache write
        assert items.get(field.name, 0) + cached + written + exceeding >= value
    elif kind != "total_tokens" or "prompt_audio_ms" not in items:
        assert known[kind] + exceeding >= value


def assert_adds_up(usage: Usage, body: dict[str, Any]) -> None:
    """Items are disjoint parts of the totals; only tokens of an unknown kind are in no item."""
    assert all(0 <= item.quantity <= 10**12 for item in (*usage.items, *usage.unknown))
    if not usage.items:
        assert usage.cached_read_tokens + usage.cache_write_tokens <= usage.prompt_tokens
        assert usage.reasoning_tokens <= usage.completion_tokens
        return
    for side, total, places in (
        ("prompt", usage.prompt_tokens, PROMPT_DETAILS),
        ("completion", usage.completion_tokens, COMPLETION_DETAILS),
    ):
        in_items = sum(item.quantity for item in usage.items if ITEMS[item.item].side == side)
        odd_kind = sum(
            int(value) for path, value in leaves(body) if path not in TABLE and path.startswith(places) and whole(value)
        )
        assert total - odd_kind <= in_items <= total
    assert usage.cached_read_tokens == sum(i.quantity for i in usage.items if i.item.startswith("cached_read"))
    assert usage.cache_write_tokens == sum(i.quantity for i in usage.items if i.item.startswith("cache_write"))


@pytest.mark.trial
@pytest.mark.parametrize("name", ENVELOPES)
def test_every_number_of_a_usage_object_is_accounted_for(name, trials):
    dialect, envelope = ENVELOPES[name]
    names = ("input_tokens", "output_tokens") if name == "responses" else ("prompt_tokens", "completion_tokens")
    tried = {"usage objects": 0, "values in them": 0, "of them not accounted for": 0}

    @settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
    @given(usages(names))
    def check(body: dict[str, Any]) -> None:
        usage = dialect.read_response((envelope % json.dumps(body)).encode()).usage
        assert usage is not None
        unknown = {item.item: item.quantity for item in usage.unknown}
        values = list(leaves(body))
        tried["usage objects"] += 1
        tried["values in them"] += len(values)
        tried["of them not accounted for"] += len(values)
        assert_adds_up(usage, body)
        for path, value in values:
            if MORE not in unknown:
                assert_accounted(path, value, usage, unknown)
            tried["of them not accounted for"] -= 1

    try:
        check()
    finally:
        trials.record(
            f"Completeness of usage: {name}", "Generated usage objects, with fields that no one publishes.", tried
        )
