"""The price book: precedence of sources, charges, worst cases, and bounds."""

import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.errors import ConfigInvalid
from mcpmeter.pricing import MAX_NANOUSD, PriceBook, PriceSource, RateBand, Rates, bundled_price_lists, parse_price_list
from mcpmeter.pricing.book import CACHED_MODELS
from mcpmeter.pricing.rates import attousd_per_mtok
from mcpmeter.records import Charge, ChargeLine, LlmTarget, Usage, UsageItem

NOW = datetime(2026, 11, 22, tzinfo=UTC)
NOW_NS = int(NOW.timestamp()) * 10**9
USAGE = Usage(prompt_tokens=1_000, completion_tokens=100, source="reported")
CONTRACT = {
    "gpt-4.1": ("2.50", "10.00", "8.00", "Complex reasoning, code generation"),
    "claude-sonnet-4.5": ("3.00", "15.00", "15.00", "Long context analysis, creative writing"),
    "gemini-2.5-flash": ("0.10", "0.40", "2.50", "High-volume, latency-sensitive tasks"),
    "deepseek-v3.2": ("0.27", "1.10", "0.42", "Cost optimization, standard tasks"),
}
TINY = """
name = "tiny"
currency = "USD"
[[price]]
model = "m"
from = 2026-01-01
prompt = "0.0005"
completion = "0.0005"
"""


def built() -> PriceBook:
    sources = {
        "holysheep": PriceSource("holysheep"),
        "mixed": PriceSource("holysheep", "openai"),
        "openai": PriceSource(genai_id="openai"),
        "unpriced": PriceSource(),
    }
    return PriceBook(bundled_price_lists(), sources=sources)


BOOK = built()


def test_the_holysheep_list_has_the_contracts_prices() -> None:
    listed = {
        price.id: (
            str(price.prompt_usd_per_mtok),
            str(price.completion_usd_per_mtok),
            str(price.blended_usd_per_mtok),
            price.recommended_for,
        )
        for price in BOOK.models("holysheep", NOW)
    }
    assert listed == CONTRACT


@pytest.mark.parametrize("model", CONTRACT)
def test_a_call_is_never_charged_the_blended_price(model: str) -> None:
    usage = Usage(prompt_tokens=10**6, completion_tokens=10**6, source="reported")
    prompt, completion = (int(price.replace(".", "")) for price in CONTRACT[model][:2])
    charge = BOOK.charge("holysheep", model, usage, NOW_NS)
    nanousd = (prompt + completion) * 10**7
    assert charge == Charge(
        nanousd=nanousd,
        source="listed",
        price_list="holysheep 2026-11-01",
        listed_nanousd=nanousd,
        completion_nanousd=completion * 10**7,
    )


def test_a_list_has_precedence_over_genai_prices() -> None:
    assert BOOK.charge("mixed", "gpt-4.1", USAGE, NOW_NS).price_list == "holysheep 2026-11-01"
    assert BOOK.charge("mixed", "gpt-4.1-2025-04-14", USAGE, NOW_NS).price_list == "holysheep 2026-11-01"
    assert BOOK.charge("mixed", "gpt-4o", USAGE, NOW_NS).price_list.startswith("genai-prices ")
    ids = [price.id for price in BOOK.models("mixed", NOW)]
    assert ids[:4] == list(CONTRACT)
    assert ids.count("gpt-4.1") == 1
    assert "gpt-4o" in ids


def test_a_listed_model_is_unpriced_before_its_first_day() -> None:
    october = int(datetime(2026, 10, 31, tzinfo=UTC).timestamp()) * 10**9
    assert BOOK.charge("mixed", "gpt-4.1", USAGE, october).source == "unpriced"
    assert "gpt-4.1" not in [price.id for price in BOOK.models("mixed", datetime(2026, 10, 31, tzinfo=UTC))]


def test_a_cost_is_rounded_once_half_to_even() -> None:
    book = PriceBook([parse_price_list(TINY, "tiny.toml")], sources={"p": PriceSource("tiny")})
    costs = [
        book.charge("p", "m", Usage(prompt_tokens=prompt, completion_tokens=1, source="reported"), NOW_NS).nanousd
        for prompt in range(6)
    ]
    assert costs == [0, 1, 2, 2, 2, 3]


def test_a_reported_cost_is_charged_and_the_listed_one_kept() -> None:
    listed = BOOK.charge("holysheep", "gpt-4.1", USAGE, NOW_NS)
    assert BOOK.charge("holysheep", "gpt-4.1", USAGE, NOW_NS, 123) == Charge(
        nanousd=123,
        source="reported",
        price_list=listed.price_list,
        reported_nanousd=123,
        listed_nanousd=listed.nanousd,
        lines=(ChargeLine("reported_cost", 1, 123, source="reported"),),
    )
    assert BOOK.charge("unknown", "nothing", Usage(), NOW_NS, 0).source == "reported"


@pytest.mark.parametrize(
    ("requested", "responded", "priced"),
    [
        ("gpt-4.1", "deepseek-v3.2", "gpt-4.1"),
        ("a-router", "gpt-4.1", "gpt-4.1"),
        ("a-router", "a-router", None),
        ("a-router", "", None),
    ],
)
def test_a_model_without_a_price_is_charged_as_the_responding_one(
    requested: str, responded: str, priced: str | None
) -> None:
    target = LlmTarget(provider="holysheep", model=requested)
    charge = BOOK.charge_for(target, responded, USAGE, NOW_NS)
    expected = BOOK.charge("holysheep", priced, USAGE, NOW_NS) if priced else Charge(unpriced_reason="unknown_model")
    assert charge == expected


@pytest.mark.parametrize("reported", [-1, MAX_NANOUSD + 1])
def test_a_reported_cost_out_of_range_is_ignored(reported: int) -> None:
    assert BOOK.charge("holysheep", "gpt-4.1", USAGE, NOW_NS, reported) == BOOK.charge(
        "holysheep", "gpt-4.1", USAGE, NOW_NS
    )


def test_missing_usage_is_unpriced_not_free() -> None:
    charge = BOOK.charge("holysheep", "gpt-4.1", Usage(source="missing"), NOW_NS)
    assert charge == Charge(unpriced_reason="usage_missing")
    assert BOOK.charge("holysheep", "gpt-4.1", Usage(source="reported"), NOW_NS) == Charge(
        nanousd=0, source="listed", price_list="holysheep 2026-11-01", listed_nanousd=0
    )


@pytest.mark.parametrize(
    "counts",
    [
        {"prompt_tokens": -1},
        {"completion_tokens": -1},
        {"prompt_tokens": 5, "cached_read_tokens": -1},
        {"prompt_tokens": 5, "cached_read_tokens": 6},
        {"prompt_tokens": 5, "cached_read_tokens": 3, "cache_write_tokens": 3},
        {"completion_tokens": 5, "reasoning_tokens": 6},
        {"prompt_tokens": 5, "audio_tokens": 6},
        {"prompt_tokens": 10**40},
    ],
)
def test_contradictory_counts_are_unpriced(counts: dict[str, int]) -> None:
    assert BOOK.charge("holysheep", "gpt-4.1", Usage(source="reported", **counts), NOW_NS) == Charge(
        unpriced_reason="not_determined"
    )


COUNTS = st.integers() | st.integers(-(10**60), 10**60)


@given(st.lists(COUNTS, min_size=6, max_size=6), st.integers(), st.none() | st.integers(), st.text())
def test_no_input_makes_a_charge_raise_or_leave_its_range(
    counts: list[int], at_ns: int, reported: int | None, name: str
) -> None:
    fields = ("prompt", "completion", "cached_read", "cache_write", "reasoning", "audio")
    usage = Usage(source="reported", **{f"{field}_tokens": count for field, count in zip(fields, counts, strict=True)})
    for provider, model in (("holysheep", "gpt-4.1"), ("openai", "gpt-audio"), ("openai", name), (name, name)):
        charge = BOOK.charge(provider, model, usage, at_ns, reported)
        assert 0 <= charge.nanousd <= MAX_NANOUSD
        assert charge.source != "unpriced" or charge.nanousd == 0


def test_a_naive_instant_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        BOOK.rates("holysheep", "gpt-4.1", datetime(2026, 11, 22))


def test_an_instant_may_be_in_any_time_zone() -> None:
    first_day_in_china = datetime(2026, 11, 1, 7, 59, tzinfo=timezone(timedelta(hours=8)))
    assert BOOK.rates("holysheep", "gpt-4.1", first_day_in_china) is None
    assert BOOK.rates("holysheep", "gpt-4.1", first_day_in_china + timedelta(minutes=1)) is not None


def test_a_flood_of_names_does_not_grow_the_cache() -> None:
    book = built()
    for number in range(CACHED_MODELS + 500):
        book.charge("holysheep", f"gpt-4.1-{20250101 + number}", USAGE, NOW_NS)
        book.canonical("openai", f"invented-{number}")
    assert book._prices.cache_info().currsize == CACHED_MODELS
    book = built()
    assert book.canonical("holysheep", "g" * 10_000) is None
    assert book._prices.cache_info().currsize == 0
    assert book.charge("holysheep", "gpt-4.1", USAGE, NOW_NS).nanousd == 3_500_000


def test_threads_share_a_book() -> None:
    book = built()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            names = [f"gpt-4.1-2025{month:02d}{day:02d}" for month in range(1, 13) for day in range(1, 29)] * 4
            costs = set(pool.map(lambda name: book.charge("holysheep", name, USAGE, NOW_NS).nanousd, names))
    finally:
        sys.setswitchinterval(interval)
    assert costs == {3_500_000}


def test_similar_names_are_suggested() -> None:
    assert BOOK.nearest("holysheep", "gpt4.1")[0] == "gpt-4.1"
    assert "gpt-4.1-mini" in BOOK.nearest("openai", "gpt-4.1-minni")
    assert BOOK.nearest("unknown", "gpt-4.1") == []
    assert BOOK.nearest("holysheep", "x" * 10_000) == []


def test_providers_without_a_source_have_no_models() -> None:
    assert BOOK.models("unpriced") == []
    assert BOOK.models("unknown") == []


def test_two_lists_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match="same name"):
        PriceBook([*bundled_price_lists(), *bundled_price_lists()])


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_calls_in_any_order_are_priced_at_their_own_time(days: list[int]) -> None:
    later = TINY[TINY.index("[[price]]") :].replace("2026-01-01", "2026-06-01").replace("0.0005", "500")
    book = PriceBook([parse_price_list(TINY + later, "tiny.toml")], sources={"p": PriceSource("tiny")})
    change_ns = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp()) * 10**9
    for day in days:
        charge = book.charge("p", "m", USAGE, change_ns + day * 86_400 * 10**9)
        assert charge.nanousd == (550_000_000 if day >= 0 else 550)
    assert book.charge("p", "m", USAGE, change_ns - 1).price_list == "tiny 2026-01-01"
    assert book.charge("p", "m", USAGE, change_ns).price_list == "tiny 2026-06-01"


# Worst cases and the fallback price ---------------------------------------------------------------------------------


def usd(amount: str) -> int:
    return attousd_per_mtok(Decimal(amount))


FALLBACK = Rates(list_name="fallback", bands=(RateBand(prompt=usd("3"), completion=usd("15")),))
FALLBACK_BOOK = PriceBook(
    bundled_price_lists(),
    sources={
        "holysheep": PriceSource("holysheep"),
        "anthropic": PriceSource(genai_id="anthropic"),
        "openai": PriceSource(genai_id="openai"),
        "google": PriceSource(genai_id="google"),
    },
    fallback=FALLBACK,
)
PRICED_MODELS = [(provider, price.id) for provider in ("holysheep", "anthropic", "openai", "google")
          for price in FALLBACK_BOOK.models(provider, NOW)]  # fmt: skip


@pytest.mark.parametrize("how", ["prompt", "cached_read", "cache_write", "reasoning"])
@given(data=st.data(), prompt=st.integers(0, 400_000), completion=st.integers(0, 100_000))
def test_no_call_costs_more_than_its_worst_case(how, data, prompt, completion):
    provider, model = data.draw(st.sampled_from(PRICED_MODELS))
    used_prompt, used = data.draw(st.integers(0, prompt)), data.draw(st.integers(0, completion))
    details = {
        "prompt": {},
        "cached_read": {"cached_read_tokens": data.draw(st.integers(0, used_prompt))},
        "cache_write": {"cache_write_tokens": data.draw(st.integers(0, used_prompt))},
        "reasoning": {"reasoning_tokens": data.draw(st.integers(0, used))},
    }[how]
    usage = Usage(prompt_tokens=used_prompt, completion_tokens=used, source="reported", **details)
    charge = FALLBACK_BOOK.charge(provider, model, usage, NOW_NS)
    worst = FALLBACK_BOOK.max_cost_nanousd(provider, model, NOW_NS, prompt_tokens=prompt, completion_tokens=completion)
    assert charge.nanousd <= worst


def test_the_worst_case_of_a_listed_model_is_at_its_own_price():
    assert FALLBACK_BOOK.max_cost_nanousd(
        "holysheep", "gpt-4.1", NOW_NS, prompt_tokens=1_000, completion_tokens=100
    ) == (2_500_000 + 1_000_000)


def test_an_unknown_model_counts_at_the_fallback_price():
    worst = FALLBACK_BOOK.max_cost_nanousd(
        "holysheep", "no-such", NOW_NS, prompt_tokens=1_000_000, completion_tokens=1_000_000
    )
    assert worst == 18 * 10**9
    usage = Usage(prompt_tokens=1_000, completion_tokens=100, source="reported")
    charge = FALLBACK_BOOK.charge("holysheep", "no-such", usage, NOW_NS)
    assert (charge.nanousd, charge.source, charge.unpriced_reason) == (0, "unpriced", "unknown_model")
    assert charge.fallback_nanousd == 3_000_000 + 1_500_000


def test_contradictory_counts_fall_back_to_their_totals():
    usage = Usage(prompt_tokens=10, completion_tokens=5, reasoning_tokens=99, source="reported")
    charge = FALLBACK_BOOK.charge("holysheep", "gpt-4.1", usage, NOW_NS)
    assert (charge.source, charge.unpriced_reason) == ("unpriced", "not_determined")
    assert charge.fallback_nanousd == 30_000 + 75_000


def test_a_reported_cost_needs_no_fallback():
    usage = Usage(prompt_tokens=10, completion_tokens=5, source="reported")
    charge = FALLBACK_BOOK.charge("holysheep", "no-such", usage, NOW_NS, reported_nanousd=7)
    assert (charge.nanousd, charge.source, charge.fallback_nanousd) == (7, "reported", 0)


def test_without_a_fallback_an_unknown_model_reserves_nothing():
    book = PriceBook(bundled_price_lists(), sources={"holysheep": PriceSource("holysheep")})
    assert book.max_cost_nanousd("holysheep", "no-such", NOW_NS, prompt_tokens=10, completion_tokens=10) == 0
    assert book.charge("holysheep", "no-such", Usage(prompt_tokens=1, source="reported"), NOW_NS).fallback_nanousd == 0


def test_the_dated_name_of_the_calls_own_model_is_no_other_model() -> None:
    book = PriceBook(sources={"anthropic": PriceSource(genai_id="anthropic")})
    items = (
        UsageItem("prompt", 60, "claude-sonnet-4-5-20250929"),
        UsageItem("completion", 16, "claude-sonnet-4-5-20250929"),
        UsageItem("prompt", 60, "claude-opus-4-1-20250805"),
        UsageItem("completion", 16, "claude-opus-4-1-20250805"),
    )
    usage = Usage(prompt_tokens=120, completion_tokens=32, items=items, source="reported")
    charge = book.charge("anthropic", "claude-sonnet-4-5", usage, NOW_NS)
    assert [(line.model, line.nanousd) for line in charge.lines] == [
        ("", 180_000),
        ("", 240_000),
        ("claude-opus-4-1-20250805", 900_000),
        ("claude-opus-4-1-20250805", 1_200_000),
    ]
