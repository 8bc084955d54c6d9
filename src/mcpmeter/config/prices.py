"""From the settings to the prices that calls are charged by."""

from __future__ import annotations

from collections.abc import Iterable

from mcpmeter.config.settings import Settings
from mcpmeter.pricing import PriceBook, PriceSource, bundled_price_lists, load_price_list
from mcpmeter.relay.providers import Provider


def price_book(settings: Settings) -> PriceBook:
    """The bundled lists and the configured ones, with the source of each provider's prices. Raises ConfigInvalid."""
    lists = [*bundled_price_lists(), *(load_price_list(path) for path in settings.pricing.files)]
    return PriceBook(lists, sources=_sources(upstream.provider for upstream in settings.upstreams()))


def _sources(providers: Iterable[Provider]) -> dict[str, PriceSource]:
    return {
        provider.name: PriceSource(list=provider.price_list or None, genai_id=provider.genai_prices_id or None)
        for provider in providers
    }
