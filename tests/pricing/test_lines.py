"""Charges line by line: exact sums, items without a price, several models, reported costs."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmeter.items import ITEMS
from mcpmeter.pricing import MAX_NANOUSD, PriceBook, PriceSource, RateBand, Rates
from mcpmeter.pricing.calendars import unix_ns
from mcpmeter.pricing.rates import attousd_per_mtok
from mcpmeter.records import STANDARD, Charge, Conditions, Usage, UsageItem, unpriced_items

NOW = unix_ns(datetime(2026, 11, 30, 2, tzinfo=UTC))
FALLBACK = Rates(
    list_name="fallback",
    bands=(RateBand(prompt=attousd_per_mtok(Decimal(3)), completion=attousd_per_mtok(Decimal(15))),),
)
IDS = ("openai", "anthropic", "google", "deepseek", "mistral", "groq", "perplexity", "azure")
BOOK = PriceBook(
    sources={genai_id: PriceSource(genai_id=genai_id) for genai_id in IDS},
    fallback=FALLBACK,
    fallback_unit_nanousd=50_000_000,
)
MODELS = [(genai_id, price.id) for genai_id in IDS for price in BOOK.models(genai_id)]
U = UsageItem


def usage_of(*items: UsageItem, unknown: tuple[UsageItem, ...] = (), conditions: Conditions = STANDARD) -> Usage:
    totals = {"prompt": 0, "completion": 0, "beside": 0}
    for item in items:
        totals[ITEMS[item.item].side if item.item in ITEMS else "beside"] += item.quantity
    return Usage(
        prompt_tokens=totals["prompt"],
        completion_tokens=totals["completion"],
        source="reported",
        items=items,
        unknown=unknown,
        conditions=conditions,
    )


def charge(model: str, usage: Usage, reported: int | None = None, **more: bool) -> Charge:
    provider = "anthropic" if model.startswith("claude") else "google" if model.startswith("gemini") else "openai"
    return BOOK.charge(provider, model, usage, NOW, reported, **more)


def test_audio_in_and_out_has_its_own_prices() -> None:
    usage = usage_of(U("prompt", 200), U("prompt_audio", 800), U("completion", 100), U("completion_audio", 400))
    found = charge("gpt-audio", usage)
    assert found.nanousd == 52_700_000
    assert [(line.item, line.unit_price) for line in found.lines] == [
        ("prompt", "2.50/Mtok"),
        ("prompt_audio", "32.00/Mtok"),
        ("completion", "10.00/Mtok"),
        ("completion_audio", "64.00/Mtok"),
    ]


def test_cache_writes_cost_by_their_time_to_live() -> None:
    usage = usage_of(U("cache_write", 40_000), U("cache_write_1h", 60_000), U("web_search", 3))
    found = charge("claude-sonnet-4-5", usage)
    assert [line.nanousd for line in found.lines] == [150_000_000, 360_000_000, 30_000_000]


def test_an_item_without_a_price_is_a_line_and_the_others_count() -> None:
    # Neither map nor overlay has a price of pages for this model.
    found = charge("claude-sonnet-4-5", usage_of(U("prompt", 1_000), U("page", 2)))
    assert (found.source, found.nanousd, found.fallback_nanousd) == ("listed", 3_000_000, 100_000_000)
    assert [(line.item, line.nanousd, line.source) for line in found.lines] == [
        ("prompt", 3_000_000, "listed"),
        ("page", None, "unpriced"),
    ]


def test_tokens_that_are_not_billed_cost_nothing() -> None:
    found = charge("claude-opus-5-5", usage_of(U("prompt_unbilled", 1200), U("completion_unbilled", 1)))
    assert (found.nanousd, found.source) == (0, "listed")
    assert [(line.item, line.quantity, line.nanousd) for line in found.lines] == [
        ("prompt_unbilled", 1200, 0),
        ("completion_unbilled", 1, 0),
    ]


@pytest.mark.parametrize(
    ("name", "quantity", "fallback"),
    [
        ("details.smell_tokens", 1_000, 15_000_000),
        ("tool_use.smells", 3, 150_000_000),
        ("details.duration_ms", 7_000, 105_000_000),
    ],
)
def test_an_unknown_field_is_a_line_that_budgets_count(name: str, quantity: int, fallback: int) -> None:
    usage = Usage(prompt_tokens=1_000, source="reported", unknown=(U(name, quantity),))
    found = charge("gpt-4.1", usage)
    assert (found.nanousd, found.fallback_nanousd) == (2_000_000, fallback)
    assert [(line.item, line.nanousd) for line in found.lines] == [("prompt", 2_000_000), (name, None)]


def test_each_entry_of_a_bill_has_its_own_model_and_band() -> None:
    small = (U("prompt", 150_000, "claude-sonnet-4-5"), U("completion", 10, "claude-sonnet-4-5"))
    large = (U("prompt", 250_000, "claude-sonnet-4-5"), U("completion", 10, "claude-sonnet-4-5"))
    other = (U("prompt", 1_000, "claude-haiku-4-5"), U("completion", 10, "claude-haiku-4-5"))
    found = charge("claude-sonnet-4-5", usage_of(*small, *other, *large))
    assert [line.nanousd for line in found.lines] == [
        150_000 * 3_000, 10 * 15_000, 1_000 * 1_000, 10 * 5_000, 250_000 * 6_000, 10 * 22_500
    ]  # fmt: skip
    # The same prompts in one entry are one prompt.
    together = (U("prompt", 150_000), U("cached_read", 250_000), U("completion", 10))
    assert charge("claude-sonnet-4-5", usage_of(*together)).lines[0].nanousd == 150_000 * 6_000


def test_another_models_tokens_without_a_price_leave_the_rest_priced() -> None:
    found = charge("claude-sonnet-4-5", usage_of(U("prompt", 1_000), U("prompt", 10, "claude-unheard")))
    assert (found.source, found.nanousd, found.fallback_nanousd) == ("listed", 3_000_000, 150_000)
    assert charge("claude-unheard", usage_of(U("prompt", 1_000))).source == "unpriced"


def test_a_model_billed_by_units_alone_is_priced_by_them() -> None:
    usage = Usage(source="reported", items=(U("prompt_audio_ms", 90_000),))
    found = BOOK.charge("groq", "whisper-large-v3", usage, NOW)
    assert (found.nanousd, found.lines[0].unit_price) == (2_775_000, "0.111/hour")
    assert BOOK.charge("groq", "whisper-large-v3", Usage(source="reported"), NOW).source == "unpriced"


def test_a_reported_cost_includes_what_the_list_has_no_price_for() -> None:
    usage = usage_of(U("prompt", 1_000), U("maps_search", 2))
    assert unpriced_items(usage, charge("gpt-4.1", usage)) == ["maps_search"]
    found = charge("gpt-4.1", usage, 2_000_000)
    assert (found.source, unpriced_items(usage, found)) == ("reported", [])


def test_a_fee_that_is_reported_stands_beside_the_list() -> None:
    usage = Usage(prompt_tokens=1_000, completion_tokens=10, source="reported")
    found = charge("gpt-4.1", usage, 500, reported_is_part=True)
    assert (found.source, found.nanousd, found.reported_nanousd) == ("listed", 2_080_500, None)
    assert [(line.item, line.nanousd) for line in found.lines] == [
        ("prompt", 2_000_000), ("completion", 80_000), ("provider_fee", 500)
    ]  # fmt: skip
    unknown = charge("no-such-model", usage, 500, reported_is_part=True)
    assert (unknown.source, unknown.nanousd, unknown.fallback_nanousd) == ("unpriced", 0, 3_150_500)


def test_a_reported_cost_keeps_the_lines_that_explain_it() -> None:
    usage = usage_of(U("prompt", 1_000), U("web_search", 1), unknown=(U("smell", 1),))
    listed = charge("gpt-4.1", usage)
    same = charge("gpt-4.1", usage, listed.nanousd)
    assert (same.source, same.lines) == ("reported", listed.lines)
    other = charge("gpt-4.1", usage, 77)
    assert [(line.item, line.nanousd) for line in other.lines] == [("reported_cost", 77), ("smell", None)]
    assert other.fallback_nanousd == 0


def test_a_plain_cost_tells_its_completions_part_without_lines() -> None:
    found = charge("gpt-4.1", Usage(prompt_tokens=1_000, completion_tokens=10, source="reported"))
    assert (found.nanousd, found.completion_nanousd, found.lines) == (2_080_000, 80_000, ())
    equal = Usage(prompt_tokens=1_000, completion_tokens=10, source="reported", conditions=Conditions())
    assert charge("gpt-4.1", equal) == found


ITEM_NAMES = st.sampled_from([*ITEMS]) | st.text(max_size=8)
QUANTITIES = st.integers(0, 2_000) | st.integers(0, 10**6) | st.integers(-1, 10**13)
CONDITIONS = st.builds(
    Conditions,
    tier=st.sampled_from(["", "", "flex", "priority", "scale", "turbo"]),
    speed=st.sampled_from(["", "", "fast"]),
    region=st.sampled_from(["", "", "us", "eu"]),
    completion_window=st.sampled_from(["", "", "2h"]),
    batch=st.booleans(),
)
USAGE_ITEMS = st.lists(
    st.builds(U, ITEM_NAMES, QUANTITIES, st.sampled_from(["", "", "gpt-4.1", "claude-haiku-4-5", "x"])), max_size=8
).map(tuple)
USAGES = st.builds(
    Usage,
    prompt_tokens=QUANTITIES,
    completion_tokens=QUANTITIES,
    cached_read_tokens=st.integers(-1, 100),
    audio_tokens=st.integers(0, 3),
    source=st.sampled_from(["reported", "missing"]),
    items=USAGE_ITEMS,
    unknown=USAGE_ITEMS,
    conditions=CONDITIONS,
)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(MODELS), USAGES, st.none() | st.integers(-1, 10**10), st.booleans())
def test_the_lines_of_any_usage_add_up_and_nothing_raises(
    which: tuple[str, str], usage: Usage, reported: int | None, is_part: bool
) -> None:
    found = BOOK.charge(*which, usage, NOW, reported, reported_is_part=is_part)
    assert 0 <= found.nanousd <= MAX_NANOUSD
    assert 0 <= found.fallback_nanousd <= MAX_NANOUSD
    assert all(type(line.nanousd) in {int, type(None)} for line in found.lines)
    if found.lines:
        assert sum(line.nanousd or 0 for line in found.lines) == found.nanousd
        assert all(line.nanousd is None or line.nanousd >= 0 for line in found.lines)
    if found.source == "unpriced":
        assert found.nanousd == 0
    if found.lines and reported is None:
        unknown = Counter((item.item, item.quantity) for item in usage.unknown)
        assert not unknown - Counter((line.item, line.quantity) for line in found.lines)
