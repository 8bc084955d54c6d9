"""Worst cases: no call costs more than what its request reserves, whatever the answer says."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmeter.items import ITEMS
from mcpmeter.pricing import PriceBook, PriceSource, RateBand, Rates
from mcpmeter.pricing.calendars import unix_ns
from mcpmeter.records import STANDARD, Conditions, Usage, UsageItem

U = UsageItem
IDS = ("openai", "anthropic", "google", "deepseek", "mistral", "perplexity", "azure")
BOOK = PriceBook(
    sources={genai_id: PriceSource(genai_id=genai_id) for genai_id in IDS},
    fallback=Rates(list_name="fallback", bands=(RateBand(prompt=3 * 10**18, completion=15 * 10**18),)),
    fallback_unit_nanousd=50_000_000,
)
MODELS = [(genai_id, price.id) for genai_id in IDS for price in BOOK.models(genai_id)]
NOW = unix_ns(datetime(2026, 11, 30, 2, tzinfo=UTC))
PROMPT_ITEMS = [item for item, known in ITEMS.items() if known.side == "prompt"]
COMPLETION_ITEMS = [item for item, known in ITEMS.items() if known.side == "completion"]
FEES = ["web_search", "file_search", "code_session", "grounded_prompt", "page"]
REQUESTED = st.builds(
    Conditions,
    tier=st.sampled_from(["", "flex", "priority", "turbo"]),
    speed=st.sampled_from(["", "fast"]),
    batch=st.booleans(),
)


def worst(provider: str, model: str, conditions: Conditions = STANDARD, *fees: UsageItem) -> int:
    return BOOK.max_cost_nanousd(
        provider, model, NOW, prompt_tokens=10**6, completion_tokens=10**5, conditions=conditions, max_items=fees
    )


@st.composite
def parts(draw: st.DrawFn, items: list[str], total: int) -> list[UsageItem]:
    left, found = draw(st.integers(0, total)), []
    for item in draw(st.lists(st.sampled_from(items), unique=True, max_size=4)):
        quantity = draw(st.integers(0, left))
        left -= quantity
        found.append(UsageItem(item, quantity))
    return found


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(MODELS), REQUESTED, st.data())
def test_no_call_is_charged_more_than_its_worst_case(
    which: tuple[str, str], requested: Conditions, data: st.DataObject
) -> None:
    fees = [U(fee, data.draw(st.integers(0, 5))) for fee in data.draw(st.lists(st.sampled_from(FEES), unique=True))]
    prompt = data.draw(parts(PROMPT_ITEMS, 10**6))
    completion = data.draw(parts(COMPLETION_ITEMS, 10**5))
    served = data.draw(st.sampled_from([STANDARD, requested, Conditions(tier=requested.tier)]))
    usage = Usage(
        prompt_tokens=sum(item.quantity for item in prompt),
        completion_tokens=sum(item.quantity for item in completion),
        source="reported",
        items=(*prompt, *completion, *fees),
        conditions=served,
    )
    charge = BOOK.charge(*which, usage, NOW)
    assert charge.nanousd <= worst(*which, requested, *fees)
    if charge.source == "unpriced":
        assert charge.fallback_nanousd <= worst(*which, requested, *fees)


def test_a_requested_discount_does_not_lower_the_bound() -> None:
    assert worst("openai", "gpt-5", Conditions(tier="flex")) == worst("openai", "gpt-5")
    assert worst("openai", "gpt-5", Conditions(batch=True)) == worst("openai", "gpt-5")


def test_a_requested_tier_raises_the_bound() -> None:
    standard, priority = worst("openai", "gpt-5"), worst("openai", "gpt-5", Conditions(tier="priority"))
    assert priority == 2 * standard
    assert worst("openai", "gpt-5", Conditions(tier="unheard")) >= priority
    # Prepaid capacity that is used up is served at the standard price.
    assert worst("openai", "gpt-5", Conditions(tier="scale")) == standard


@pytest.mark.parametrize(("fee", "nanousd"), [("web_search", 5 * 10_000_000), ("code_session", 5 * 50_000_000)])
def test_fees_are_bounded_by_the_list_or_the_fallback(fee: str, nanousd: int) -> None:
    model = "claude-sonnet-4-5" if fee == "web_search" else "claude-2"
    assert worst("anthropic", model, STANDARD, U(fee, 5)) - worst("anthropic", model) == nanousd


def test_cache_writes_are_bounded_at_the_longest_time_to_live() -> None:
    bound = BOOK.max_cost_nanousd("anthropic", "claude-haiku-4-5", NOW, prompt_tokens=1_000, completion_tokens=0)
    assert bound == 1_000 * 2_000
