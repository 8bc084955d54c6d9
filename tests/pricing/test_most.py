"""The most that a call can cost, from which it reserves; and what an unpriced one counts."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.pricing import PriceBook, PriceSource, RateBand, Rates, bundled_price_lists
from mcpmeter.pricing.rates import attousd_per_mtok
from mcpmeter.records import Usage

NOW = datetime(2026, 11, 22, tzinfo=UTC)
NOW_NS = int(NOW.timestamp()) * 10**9


def usd(amount: str) -> int:
    return attousd_per_mtok(Decimal(amount))


FALLBACK = Rates(list_name="fallback", bands=(RateBand(prompt=usd("3"), completion=usd("15")),))
BOOK = PriceBook(
    bundled_price_lists(),
    sources={
        "holysheep": PriceSource("holysheep"),
        "anthropic": PriceSource(genai_id="anthropic"),
        "openai": PriceSource(genai_id="openai"),
        "google": PriceSource(genai_id="google"),
    },
    fallback=FALLBACK,
)
MODELS = [(provider, price.id) for provider in ("holysheep", "anthropic", "openai", "google")
          for price in BOOK.models(provider, NOW)]  # fmt: skip


@pytest.mark.parametrize("how", ["prompt", "cached_read", "cache_write", "reasoning"])
@given(data=st.data(), prompt=st.integers(0, 400_000), completion=st.integers(0, 100_000))
def test_no_call_costs_more_than_its_most_however_its_tokens_are_counted(how, data, prompt, completion):
    provider, model = data.draw(st.sampled_from(MODELS))
    used_prompt, used = data.draw(st.integers(0, prompt)), data.draw(st.integers(0, completion))
    details = {
        "prompt": {},
        "cached_read": {"cached_read_tokens": data.draw(st.integers(0, used_prompt))},
        "cache_write": {"cache_write_tokens": data.draw(st.integers(0, used_prompt))},
        "reasoning": {"reasoning_tokens": data.draw(st.integers(0, used))},
    }[how]
    usage = Usage(prompt_tokens=used_prompt, completion_tokens=used, source="reported", **details)
    charge = BOOK.charge(provider, model, usage, NOW_NS)
    most = BOOK.max_cost_nanousd(provider, model, NOW_NS, prompt_tokens=prompt, completion_tokens=completion)
    assert charge.nanousd <= most


def test_the_most_of_a_listed_model_is_by_its_own_price():
    assert BOOK.max_cost_nanousd("holysheep", "gpt-4.1", NOW_NS, prompt_tokens=1_000, completion_tokens=100) == (
        2_500_000 + 1_000_000
    )


def test_a_fraction_of_a_nano_dollar_is_rounded_up():
    rates = Rates(list_name="t", bands=(RateBand(prompt=usd("0.0001")),))
    assert rates.max_cost_nanousd(1, 0) == 1


def test_an_unknown_model_reserves_and_counts_by_the_fallback_price_and_stays_unpriced():
    most = BOOK.max_cost_nanousd("holysheep", "no-such", NOW_NS, prompt_tokens=1_000_000, completion_tokens=1_000_000)
    assert most == 18 * 10**9
    usage = Usage(prompt_tokens=1_000, completion_tokens=100, source="reported")
    charge = BOOK.charge("holysheep", "no-such", usage, NOW_NS)
    assert (charge.nanousd, charge.source, charge.unpriced_reason) == (0, "unpriced", "unknown_model")
    assert charge.fallback_nanousd == 3_000_000 + 1_500_000


def test_counts_that_contradict_each_other_count_by_their_totals_at_the_fallback_price():
    usage = Usage(prompt_tokens=10, completion_tokens=5, reasoning_tokens=99, source="reported")
    charge = BOOK.charge("holysheep", "gpt-4.1", usage, NOW_NS)
    assert (charge.source, charge.unpriced_reason) == ("unpriced", "not_determined")
    assert charge.fallback_nanousd == 30_000 + 75_000


def test_a_cost_that_the_provider_reports_needs_no_fallback():
    usage = Usage(prompt_tokens=10, completion_tokens=5, source="reported")
    charge = BOOK.charge("holysheep", "no-such", usage, NOW_NS, reported_nanousd=7)
    assert (charge.nanousd, charge.source, charge.fallback_nanousd) == (7, "reported", 0)


def test_without_a_fallback_price_an_unknown_model_reserves_nothing():
    book = PriceBook(bundled_price_lists(), sources={"holysheep": PriceSource("holysheep")})
    assert book.max_cost_nanousd("holysheep", "no-such", NOW_NS, prompt_tokens=10, completion_tokens=10) == 0
    assert book.charge("holysheep", "no-such", Usage(prompt_tokens=1, source="reported"), NOW_NS).fallback_nanousd == 0
