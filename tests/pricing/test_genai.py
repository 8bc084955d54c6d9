"""Prices from genai-prices: equal to the library's own, and found by exact names only."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction
from importlib.metadata import version

import genai_prices
import pytest
from genai_prices.data import providers
from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mcpmeter.errors import ConfigInvalid
from mcpmeter.items import ITEMS
from mcpmeter.pricing import PriceBook, PriceSource
from mcpmeter.pricing.calendars import unix_ns
from mcpmeter.records import Conditions, Usage, UsageItem

IDS = [provider.id for provider in providers]
BOOK = PriceBook(
    sources={provider_id: PriceSource(genai_id=provider_id) for provider_id in IDS}, has_bundled_overlays=False
)
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
# Units whose tokens usage counts, or that are not part of a call's tokens.
SEEN = {
    "input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok", "cache_write_1h_mtok", "output_reasoning_mtok",
    "input_audio_mtok", "output_audio_mtok", "cache_audio_read_mtok", "requests_kcount", "web_searches_kcount",
    "storage_searches_kcount", "social_searches_kcount", "rerank_searches_kcount",
}  # fmt: skip


def found_by_id() -> Iterator[tuple[Provider, ModelInfo]]:
    for provider in providers:
        for model in provider.models:
            if BOOK.canonical(provider.id, model.id) == model.id:
                yield provider, model


MODELS = list(found_by_id())
TIERED = [
    (provider, model)
    for provider, model in MODELS
    if isinstance(model.prices, ModelPrice) and any(isinstance(p, TieredPrices) for p in vars(model.prices).values())
]


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    size = st.one_of(
        st.integers(0, 2000), st.integers(0, 3_000_000), st.sampled_from([0, 199_999, 200_000, 200_001, 10**12])
    )
    prompt, completion = draw(size), draw(size)
    read = draw(st.integers(0, prompt))
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_read_tokens=read,
        cache_write_tokens=draw(st.integers(0, prompt - read)),
        reasoning_tokens=draw(st.integers(0, completion)),
        source="reported",
    )


def prices_at(model: ModelInfo, at: datetime) -> dict[str, Decimal | TieredPrices]:
    return {key: price for key, price in vars(model.get_prices(at)).items() if price is not None}


def library_nanousd(provider: Provider, model: str, usage: Usage, at: datetime, **audio: int) -> int:
    counts = genai_prices.Usage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cache_read_tokens=usage.cached_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_reasoning_tokens=usage.reasoning_tokens,
        **audio,
    )
    with localcontext(prec=80):
        total = genai_prices.calc_price(counts, model, provider_id=provider.id, genai_request_timestamp=at).total_price
        return int((total * 10**9).quantize(Decimal(1), rounding=ROUND_HALF_EVEN))


def assert_equal_or_rightly_unpriced(provider: Provider, model: ModelInfo, usage: Usage, at: datetime) -> None:
    charge = BOOK.charge(provider.id, model.id, usage, unix_ns(at))
    prices = prices_at(model, at)
    if charge.source == "listed":
        assert charge.nanousd == library_nanousd(provider, model.id, usage, at)
        assert charge.price_list == f"genai-prices {version('genai-prices')}"
        return
    unpriced_side = (usage.prompt_tokens and "input_mtok" not in prices) or (
        usage.completion_tokens and "output_mtok" not in prices
    )
    assert charge.nanousd == 0
    assert unpriced_side or not prices or prices.keys() - SEEN


@pytest.mark.parametrize("at", [NOW, datetime(2024, 1, 1, 3, tzinfo=UTC)], ids=["now", "night of an earlier year"])
def test_every_model_costs_the_same_as_in_the_library(at: datetime) -> None:
    plain = Usage(prompt_tokens=1_234, completion_tokens=567, source="reported")
    detailed = Usage(
        prompt_tokens=300_001,
        completion_tokens=10_007,
        cached_read_tokens=100_003,
        cache_write_tokens=50_021,
        reasoning_tokens=3_001,
        source="reported",
    )
    assert len(MODELS) > 1_500
    for provider, model in MODELS:
        for usage in (plain, detailed):
            assert_equal_or_rightly_unpriced(provider, model, usage, at)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(MODELS) | st.sampled_from(TIERED),
    usages(),
    st.datetimes(datetime(2023, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC)),
)
def test_any_usage_at_any_time_costs_the_same_as_in_the_library(
    which: tuple[Provider, ModelInfo], usage: Usage, at: datetime
) -> None:
    assert_equal_or_rightly_unpriced(*which, usage, at)


# Our items: the library's counts of them, each inside the totals of its side.
TOKEN_ITEMS = {
    "prompt": (),
    "prompt_audio": ("input_audio_tokens",),
    "prompt_image": ("input_image_tokens",),
    "prompt_video": ("input_video_tokens",),
    "cached_read": ("cache_read_tokens",),
    "cached_read_audio": ("cache_read_tokens", "input_audio_tokens", "cache_audio_read_tokens"),
    "cached_read_image": ("cache_read_tokens", "input_image_tokens", "cache_image_read_tokens"),
    "cache_write": ("cache_write_tokens",),
    "cache_write_1h": ("cache_write_tokens", "cache_write_1h_tokens"),
    "completion": (),
    "completion_audio": ("output_audio_tokens",),
    "completion_image": ("output_image_tokens",),
    "completion_video": ("output_video_tokens",),
    "reasoning": ("output_reasoning_tokens",),
}
UNIT_ITEMS = {
    "web_search": "web_searches",
    "file_search": "storage_searches",
    "social_search": "social_searches",
    "code_execution": "code_executions",
    "rerank_search": "rerank_searches",
    "page": "input_document_pages",
    "character": "input_characters",
}
VARIED = [(provider, model) for provider, model in MODELS if model.price_variants]
CONTEXTS = {
    "batch": ({"processing": "batch"}, Conditions(batch=True)),
    "flex": ({"service_tier": "flex"}, Conditions(tier="flex")),
    "priority": ({"service_tier": "priority"}, Conditions(tier="priority")),
    "fast": ({"speed": "fast"}, Conditions(speed="fast")),
}
QUANTITIES = st.integers(0, 3_000) | st.integers(0, 400_000)


def library_cost(
    provider: Provider, model: ModelInfo, items: dict[str, int], context: dict[str, str] | None = None
) -> Fraction:
    """By the library's own sum over its units; its `calc_price` rounds in a context of 28 digits."""
    sides = {"prompt": "input_tokens", "completion": "output_tokens"}
    counts = Counter({"input_tokens": 0, "output_tokens": 0})
    for item, quantity in items.items():
        if item in UNIT_ITEMS:
            counts[UNIT_ITEMS[item]] += quantity
            continue
        for key in (sides[ITEMS[item].side], *TOKEN_ITEMS[item]):
            counts[key] += quantity
    with localcontext(prec=80):
        price = genai_prices.calc_price(
            genai_prices.Usage(**counts),
            model.id,
            provider_id=provider.id,
            genai_request_timestamp=NOW,
            price_context=context,
        )
        return Fraction(price.total_price * 10**9)


def has_price(provider: Provider, model: ModelInfo, item: str) -> bool:
    rates = BOOK.rates(provider.id, model.id, NOW)
    return rates is not None and rates.bands[0].price(item) is not None


def usage_of_items(items: dict[str, int]) -> Usage:
    sides = Counter[str]()
    for item, quantity in items.items():
        sides[ITEMS[item].side] += quantity
    return Usage(
        prompt_tokens=sides["prompt"],
        completion_tokens=sides["completion"],
        source="reported",
        items=tuple(UsageItem(item, quantity) for item, quantity in items.items()),
    )


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(MODELS) | st.sampled_from(TIERED) | st.sampled_from(VARIED),
    st.dictionaries(st.sampled_from([*TOKEN_ITEMS, *UNIT_ITEMS]), QUANTITIES, min_size=1, max_size=7),
)
def test_items_cost_the_same_as_in_the_library(which: tuple[Provider, ModelInfo], items: dict[str, int]) -> None:
    provider, model = which
    priced = {item: quantity for item, quantity in items.items() if has_price(provider, model, item)}
    usage = usage_of_items(priced)
    charge = BOOK.charge(provider.id, model.id, usage, unix_ns(NOW))
    assume(charge.source == "listed")
    try:
        in_library = library_cost(provider, model, priced)
    except ValueError:  # it has no sum for some sets of items, such as a picture beside a cached read
        assume(condition=False)
    assert charge.nanousd == round(in_library)
    assert sum(line.nanousd or 0 for line in charge.lines) == charge.nanousd


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(VARIED), st.sampled_from([*CONTEXTS]), st.integers(0, 400_000), st.integers(0, 10**5))
def test_variants_cost_the_same_as_in_the_library(
    which: tuple[Provider, ModelInfo], name: str, prompt: int, completion: int
) -> None:
    provider, model = which
    context, conditions = CONTEXTS[name]
    usage = Usage(prompt_tokens=prompt, completion_tokens=completion, source="reported", conditions=conditions)
    charge = BOOK.charge(provider.id, model.id, usage, unix_ns(NOW))
    has_variant = any(variant.when == context and vars(variant.prices) for variant in model.price_variants or ())
    assert charge.source == "unpriced" or has_variant or not (prompt or completion)
    if charge.source == "listed" and has_variant:
        items = {"prompt": prompt, "completion": completion}
        assert charge.nanousd == round(library_cost(provider, model, items, context))


def test_audio_that_stands_on_no_side_is_unpriced() -> None:
    def source(model: str, **counts: int) -> str:
        provider = "google" if model.startswith("gemini") else "openai"
        return BOOK.charge(provider, model, Usage(source="reported", **counts), unix_ns(NOW)).source

    assert source("gpt-audio", prompt_tokens=9, completion_tokens=9, audio_tokens=1) == "unpriced"
    assert source("gpt-audio", prompt_tokens=9, completion_tokens=9) == "listed"
    assert source("gemini-2.5-flash", prompt_tokens=9, audio_tokens=4) == "unpriced"
    assert source("gpt-4.1", prompt_tokens=9, completion_tokens=9, audio_tokens=10) == "listed"


def test_a_long_prompt_moves_all_tokens_to_the_higher_tier() -> None:
    def cost(prompt: int) -> int:
        usage = Usage(prompt_tokens=prompt, completion_tokens=1_000, source="reported")
        return BOOK.charge("anthropic", "claude-sonnet-4-5", usage, unix_ns(NOW)).nanousd

    assert cost(200_000) == 200_000 * 3_000 + 1_000 * 15_000
    assert cost(200_001) == 200_001 * 6_000 + 1_000 * 22_500


def test_prices_that_depend_on_the_hour_follow_the_clock() -> None:
    usage = Usage(prompt_tokens=10**6, source="reported")
    midnight = datetime(2025, 3, 1, tzinfo=UTC)
    by_minute = {
        minute: BOOK.charge("deepseek", "deepseek-chat", usage, unix_ns(midnight + timedelta(minutes=minute))).nanousd
        for minute in (0, 29, 30, 16 * 60 + 29, 16 * 60 + 30, 24 * 60 - 1)
    }
    assert list(by_minute.values()) == [135_000_000, 135_000_000, 270_000_000, 270_000_000, 135_000_000, 135_000_000]


@pytest.mark.parametrize(
    ("provider", "name", "model"),
    [
        ("openai", "gpt-4.1-2025-04-14", "gpt-4.1"),
        ("openai", "gpt-4.1-20250414", "gpt-4.1"),
        ("openai", "gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),
        ("openai", "gpt-4-0613", "gpt-4"),
        ("anthropic", "claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("anthropic", "claude-sonnet-4-20250514", "claude-sonnet-4-0"),
        ("anthropic", "claude-3-5-haiku-20241022", "claude-3-5-haiku-latest"),
        ("google", "gemini-2.5-pro-preview-05-06", "gemini-2.5-pro"),
        ("google", "gemini-2.0-flash-001", "gemini-2.0-flash"),
        ("google", "models/gemini-2.5-flash", "gemini-2.5-flash"),
    ],
)
def test_snapshot_names_of_providers_are_known(provider: str, name: str, model: str) -> None:
    assert BOOK.canonical(provider, name) == model


@pytest.mark.parametrize(
    ("provider", "name"),
    [
        ("openai", "gpt-4.1-but-not-really"),
        ("openai", "my-finetune-gpt-4o"),
        ("openai", "gpt-4o-2031-01-01"),
        ("openai", "gpt-5-nano-turbo"),
        ("openai", "my-moderation-model"),
        ("openai", "ft:gpt-4o-2024-08-06:acme::abc123"),
        ("openai", "ft:gpt-4o-2024-"),
        ("anthropic", "claude-sonnet-4-5-cheaper"),
        ("anthropic", "claude-sonnet-4-2025"),
        ("anthropic", "claude-sonnet-4-5-20259999"),
        ("google", "gemini-1.5-flash-8b"),
        ("google", "my-gemini-1.5-flash"),
        ("google", "gemini-2.0-flash-0"),
        ("google", "gemini-2.5-pro-nonsense"),
        ("deepseek", "deepseek-chat-distilled-at-home"),
        ("azure", "claude-opus-4-1"),
        ("openai", "models/gpt-4.1"),
        ("openai", "gpt-4.1\x00"),
        ("openai", "gpt-4.1\n"),
        ("openai", "\ud800"),
        ("openai", ""),
        ("unknown", "gpt-4.1"),
    ],
)
def test_names_similar_to_a_model_are_unpriced(provider: str, name: str) -> None:
    usage = Usage(prompt_tokens=1_000, source="reported")
    assert BOOK.canonical(provider, name) is None
    assert BOOK.rates(provider, name, NOW) is None
    assert BOOK.charge(provider, name, usage, unix_ns(NOW)).source == "unpriced"


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(MODELS),
    st.sampled_from(
        ["-turbo", "-mini", "-8b", "-v2", ":free", "x", "-1", "-20250101", "@2025-01-01", "-latest", "-001"]
    )
    | st.text(min_size=1, max_size=12),
    st.booleans(),
)
def test_an_extended_name_is_known_only_if_printed_or_a_snapshot(
    which: tuple[Provider, ModelInfo], added: str, before: bool
) -> None:
    provider, model = which
    name = added + model.id if before else model.id + added
    known = BOOK.canonical(provider.id, name)
    if known is not None:
        matched = provider.find_model(name.lower())
        assert matched is not None
        assert matched.id == known
        printed = f"'{name.lower()}'" in repr(matched.match) or name.lower() == matched.id.lower()
        assert printed or (not before and added in {"-20250101", "@2025-01-01", "-latest", "-001"})


@pytest.mark.parametrize(
    ("provider", "model", "counts"),
    [
        ("openai", "whisper-1", {"prompt_tokens": 5}),
        ("openai", "whisper-1", {}),
        ("google", "gemini-2.5-flash-image", {"prompt_tokens": 5, "completion_tokens": 1_290}),
        ("openai", "gpt-image-1", {"prompt_tokens": 5, "completion_tokens": 5}),
        ("perplexity", "sonar-deep-research", {"prompt_tokens": 5, "completion_tokens": 5}),
        ("openai", "text-embedding-3-small", {"prompt_tokens": 5, "completion_tokens": 5}),
        ("github-copilot", "gpt-4.1", {"prompt_tokens": 5, "completion_tokens": 5}),
    ],
)
def test_a_cost_that_tokens_do_not_determine_is_unpriced(provider: str, model: str, counts: dict[str, int]) -> None:
    charge = BOOK.charge(provider, model, Usage(source="reported", **counts), unix_ns(NOW))
    assert (charge.source, charge.nanousd, charge.price_list) == ("unpriced", 0, "")


def test_a_fee_per_request_is_charged_once() -> None:
    perplexity = next(provider for provider in providers if provider.id == "perplexity")
    usage = Usage(prompt_tokens=10, completion_tokens=10, source="reported")
    assert BOOK.charge("perplexity", "sonar", usage, unix_ns(NOW)).nanousd == library_nanousd(
        perplexity, "sonar", usage, NOW
    )
    assert BOOK.charge("perplexity", "sonar", usage, unix_ns(NOW)).nanousd > 12_000_000 - 1


def test_unknown_sources_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigInvalid, match=r"'opena'.*There is: openai"):
        PriceBook(sources={"x": PriceSource(genai_id="opena")})
    with pytest.raises(ConfigInvalid, match="price list 'nope'"):
        PriceBook(sources={"x": PriceSource("nope")})


def test_lists_alone_do_not_import_genai_prices() -> None:
    code = (
        "import sys, mcpmeter.pricing as p; p.PriceBook(p.bundled_price_lists()); print('genai_prices' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_price_lookups_open_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a price lookup went to the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    book = PriceBook(sources={"openai": PriceSource(genai_id="openai")})
    assert book.charge("openai", "gpt-4.1", Usage(prompt_tokens=1, source="reported"), unix_ns(NOW)).nanousd == 2_000
