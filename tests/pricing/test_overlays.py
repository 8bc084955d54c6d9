"""Overlays: corrections, fees, bands, hours and conditions on top of genai-prices; faults are refused."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from mcpmeter.errors import ConfigInvalid
from mcpmeter.pricing import PriceBook, PriceSource, parse_price_list
from mcpmeter.pricing.calendars import unix_ns
from mcpmeter.pricing.overlays import load_overlay, parse_overlay
from mcpmeter.records import STANDARD, Charge, Conditions, LlmTarget, Usage, UsageItem

FAULTS = sorted((Path(__file__).parent / "overlay_faults").glob("*.toml"))
NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
MILLION = 10**6


def entry(models: str = '["new"]', since: str = "2026-01-01", **keys: str) -> str:
    lines = [f"{key} = {value}" for key, value in keys.items()]
    head = ["[[price]]", f"models = {models}", f"from = {since}", 'source = "https://example.com"', "read = 2026-11-30"]
    return "\n".join((*head, *lines, ""))


def book(*entries: str, provider: str = "openai", head: str = "") -> PriceBook:
    overlay = parse_overlay(f'provider = "{provider}"\n{head}\n' + "".join(entries), "test.toml")
    return PriceBook(
        sources={"p": PriceSource(genai_id=provider)}, overlays=[overlay], has_bundled_overlays=False
    )  # fmt: skip


def charge(
    prices: PriceBook,
    prompt: int = MILLION,
    completion: int = 0,
    *,
    model: str = "new",
    conditions: Conditions = STANDARD,
    at: datetime = NOON,
    items: tuple[UsageItem, ...] = (),
) -> Charge:
    usage = Usage(
        prompt_tokens=prompt, completion_tokens=completion, source="reported", conditions=conditions, items=items
    )
    return prices.charge("p", model, usage, unix_ns(at))


def usd(amount: str) -> int:
    return int(Decimal(amount) * 10**9)


@pytest.mark.parametrize("file", FAULTS, ids=lambda file: file.stem)
def test_a_faulty_overlay_is_refused_with_a_hint(file: Path) -> None:
    expected = file.read_text().splitlines()[0].removeprefix("# ")
    with pytest.raises(ConfigInvalid) as refused:
        load_overlay(file)
    assert expected in str(refused.value)
    assert file.name in refused.value.message
    assert refused.value.hint


def test_a_model_that_only_an_overlay_has_is_priced() -> None:
    prices = book(entry(prompt='"2"', completion='"8"'), head='[aliases]\n"newest" = "new"')
    for name in ("new", "NEW", "new-2026-05-01", "newest"):
        found = charge(prices, MILLION, MILLION, model=name)
        assert (found.nanousd, found.price_list, found.completion_nanousd) == (
            usd("10"), "openai 2026-11-30", usd("8")
        )  # fmt: skip
    assert charge(prices, at=datetime(2025, 12, 31, tzinfo=UTC)).source == "unpriced"
    assert "new" in [price.id for price in prices.models("p", NOON)]
    assert charge(prices, model="new-mini").source == "unpriced"


def test_a_replaced_model_keeps_its_fees_and_loses_its_bands() -> None:
    plain = PriceBook(sources={"p": PriceSource(genai_id="anthropic")}, has_bundled_overlays=False)
    prices = book(entry('["claude-sonnet-4-5"]', replaces="true", reason='"test"', prompt='"1"'), provider="anthropic")
    before = plain.rates("p", "claude-sonnet-4-5", NOON)
    after = prices.rates("p", "claude-sonnet-4-5", NOON)
    assert before is not None
    assert after is not None
    assert (len(before.bands), len(after.bands)) == (2, 1)
    assert after.bands[0].price("web_search") == before.bands[0].price("web_search")
    assert charge(prices, model="claude-sonnet-4-5").nanousd == usd("1")
    assert charge(prices, 1, 1, model="claude-sonnet-4-5").source == "unpriced"


def test_a_price_is_set_in_all_bands_that_have_no_other() -> None:
    prices = book(
        entry(prompt='"2"', completion='"8"'),
        entry(above_prompt_tokens="1000", times='{prompt = "2", completion = "1.5"}'),
        entry(web_search='"10"', cache_write_12h='"4"'),
    )
    search = (UsageItem("prompt", 2_000), UsageItem("web_search", 3))
    assert charge(prices, 1_000).nanousd == 1_000 * 2_000
    assert charge(prices, 1_001, 10).nanousd == 1_001 * 4_000 + 10 * 12_000
    assert charge(prices, 2_000, items=search).nanousd == 2_000 * 4_000 + usd("0.03")
    # A longer cache write has the factor of prompts.
    assert charge(prices, 2_000, items=(UsageItem("cache_write_12h", 2_000),)).nanousd == 2_000 * 8_000


def test_the_later_of_two_entries_counts() -> None:
    prices = book(
        entry(prompt='"2"', until="2026-09-01"),
        entry(since="2026-06-01", prompt='"3"'),
        entry(when='{tier = "flex"}', times='"0.5"'),
        entry(since="2026-06-01", when='{tier = "flex"}', times='"0.25"'),
    )
    flex = Conditions(tier="flex")
    days = [datetime(2026, month, 1, tzinfo=UTC) for month in (5, 6, 9)]
    assert [charge(prices, at=day).nanousd for day in days] == [usd("2"), usd("3"), usd("3")]
    assert [charge(prices, at=day, conditions=flex).nanousd for day in days] == [usd("1"), usd("0.75"), usd("0.75")]


COMBINED = (
    entry(prompt='"2"', cached_read='"0.2"', completion='"8"', web_search='"10"'),
    entry(when='{tier = "flex"}', times='"0.5"'),
    entry(when='{tier = "priority"}', prompt='"5"', completion='"20"'),
    entry(when='{tier = "ultrafast"}', prompt='"9"', completion='"90"'),
    entry(when='{region = "us"}', times='"1.1"'),
    entry(when="{batch = true}", times='"0.5"'),
    entry(when='{batch = true, tier = "flex"}', times='"0.4"'),
    entry(when='{speed = "fast"}', prompt='"12"', completion='"60"'),
)


@pytest.mark.parametrize(
    ("conditions", "cost"),
    [
        (Conditions(tier="flex"), "1"),
        (Conditions(tier="priority"), "5"),
        (Conditions(region="us"), "2.2"),
        (Conditions(tier="flex", region="us"), "1.1"),
        (Conditions(tier="priority", region="us"), "5.5"),
        (Conditions(batch=True, region="us"), "1.1"),
        (Conditions(batch=True, tier="flex"), "0.8"),
        (Conditions(batch=True, tier="flex", region="us"), "0.88"),
        (Conditions(tier="scale"), "0"),
    ],
)
def test_conditions_multiply_if_each_has_an_entry(conditions: Conditions, cost: str) -> None:
    found = charge(book(*COMBINED), conditions=conditions)
    assert (found.source, found.nanousd) == ("listed", usd(cost))


@pytest.mark.parametrize(
    ("conditions", "item"),
    [
        (Conditions(tier="turbo"), "tier:turbo"),
        (Conditions(tier="flex", region="eu"), "region:eu"),
        (Conditions(speed="fast", tier="priority"), "tier:priority"),
        (Conditions(completion_window="2h"), "completion_window:2h"),
    ],
)
def test_a_condition_without_an_entry_leaves_the_call_unpriced(conditions: Conditions, item: str) -> None:
    found = charge(book(*COMBINED), conditions=conditions)
    assert (found.source, found.nanousd, found.unpriced_reason) == ("unpriced", 0, "not_determined")
    assert [(line.item, line.nanousd) for line in found.lines] == [("prompt", None), (item, None)]


def test_a_tiers_own_prices_are_all_token_prices() -> None:
    items = (UsageItem("cached_read", 1_000), UsageItem("web_search", 1))
    found = charge(book(*COMBINED), 1_000, conditions=Conditions(tier="priority"), items=items)
    assert [line.nanousd for line in found.lines] == [1_000 * 5_000, usd("0.01")]
    assert found.lines[0].unit_price == "5.00/Mtok (tier priority)"


def test_a_line_tells_its_factors_and_both_lists() -> None:
    found = charge(book(*COMBINED), conditions=Conditions(tier="flex", region="us"))
    (line,) = found.lines
    assert line.unit_price == "2.00/Mtok x 1.1 (region us) x 0.5 (tier flex)"
    assert line.price_list == "openai 2026-11-30"


@pytest.mark.parametrize(
    ("at", "completion"),
    [
        ("2026-11-28T02:00", "1.98"),  # Saturday
        ("2026-11-29T02:00", "1.98"),  # Sunday
        ("2026-11-30T00:59", "1.98"),
        ("2026-11-30T01:00", "3.96"),
        ("2026-11-30T03:59", "3.96"),
        ("2026-11-30T04:00", "1.98"),
        ("2026-11-30T06:00", "3.96"),
        ("2026-11-30T10:00", "1.98"),
        ("2026-10-02T02:00", "1.98"),  # National Day, a Friday
        ("2026-09-25T07:00", "1.98"),  # Mid-Autumn Festival, a Friday
        ("2026-10-09T02:00", "3.96"),  # the Friday after
        ("2026-10-10T02:00", "1.98"),  # a Saturday that is worked on
    ],
)
def test_deepseeks_peak_hours_are_those_of_working_days(at: str, completion: str) -> None:
    prices = PriceBook(sources={"deepseek": PriceSource(genai_id="deepseek")})
    usage = Usage(completion_tokens=MILLION, source="reported")
    at_ns = unix_ns(datetime.fromisoformat(at).replace(tzinfo=UTC))
    assert prices.charge("deepseek", "deepseek-v4-pro", usage, at_ns).nanousd == usd(completion)


@pytest.mark.parametrize(
    ("requested", "responded"), [("prod-chat", "gpt-4o-2024-11-20"), ("azure/gpt-4o", ""), ("gpt-4o", "")]
)
def test_azure_costs_what_openai_does_and_says_so(requested: str, responded: str) -> None:
    prices = PriceBook(sources={"azure-openai": PriceSource(genai_id="azure"), "other": PriceSource(genai_id="openai")})
    usage = Usage(prompt_tokens=1_000, completion_tokens=10, source="reported")
    target = LlmTarget(provider="azure-openai", model=requested)
    found = prices.charge_for(target, responded, usage, unix_ns(NOON))
    assert (found.source, found.nanousd) == ("listed", 2_600_000)
    assert "openai's prices for azure" in found.price_list
    assert prices.charge("other", "azure/gpt-4o", usage, unix_ns(NOON)).source == "unpriced"


def test_an_azure_deployment_costs_what_its_model_does_whatever_its_name() -> None:
    prices_of_gpt5 = 'model = "gpt-5"\nfrom = 2026-01-01\nprompt = "7"\ncompletion = "7"\n'
    own = parse_price_list(f'name = "own"\ncurrency = "USD"\n[[price]]\n{prices_of_gpt5}', "own.toml")
    sources = {"azure": PriceSource(genai_id="azure"), "listed": PriceSource("own", "azure")}
    prices = PriceBook([own], sources=sources)
    usage = Usage(prompt_tokens=MILLION, source="reported")

    def cost(provider: str, requested: str, responded: str) -> int:
        return prices.charge_for(LlmTarget(provider=provider, model=requested), responded, usage, unix_ns(NOON)).nanousd

    assert cost("azure", "gpt-4o", "gpt-4o-mini-2024-07-18") == usd("0.15")
    assert cost("azure", "gpt-4o", "unknown") == usd("2.50")
    assert cost("listed", "gpt-5", "gpt-4o-mini-2024-07-18") == usd("7")
