"""Converts settings to the price book that calls are charged by."""

from __future__ import annotations

from collections.abc import Iterable

from mcpmeter.config.budgets import FallbackSettings
from mcpmeter.config.settings import Settings
from mcpmeter.pricing import (
    Overlay,
    PriceBook,
    PriceList,
    PriceSource,
    RateBand,
    Rates,
    bundled_price_lists,
    load_price_file,
    usd_to_nanousd,
)
from mcpmeter.pricing.rates import attousd_per_mtok
from mcpmeter.providers import Provider


def price_book(settings: Settings) -> PriceBook:
    """The bundled and the configured lists, with the source of each provider's prices. Raises ConfigInvalid."""
    lists, overlays = price_files(settings)
    fallback = settings.pricing.fallback
    return PriceBook(
        [*bundled_price_lists(), *lists],
        sources=price_sources(upstream.provider for upstream in settings.upstreams()),
        fallback=_fallback(fallback),
        fallback_unit_nanousd=usd_to_nanousd(fallback.per_unit_usd) or 0,
        overlays=overlays,
    )


def price_files(settings: Settings) -> tuple[list[PriceList], list[Overlay]]:
    """The configured price lists and overlays. Raises ConfigInvalid."""
    files = [load_price_file(path) for path in settings.pricing.files]
    lists = [file for file in files if isinstance(file, PriceList)]
    return lists, [file for file in files if isinstance(file, Overlay)]


def _fallback(settings: FallbackSettings) -> Rates:
    prompt, completion = map(attousd_per_mtok, (settings.prompt_usd_per_mtok, settings.completion_usd_per_mtok))
    return Rates(list_name="fallback", bands=(RateBand(prompt=prompt, completion=completion),))


def price_sources(providers: Iterable[Provider]) -> dict[str, PriceSource]:
    """The source of each provider's prices, by its name."""
    return {
        provider.name: PriceSource(list=provider.price_list or None, genai_id=provider.genai_prices_id or None)
        for provider in providers
    }
