"""The price book: a provider's rates for a model at an instant, and the charge of a call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from difflib import get_close_matches
from functools import lru_cache
from typing import Final

import msgspec

from mcpmeter.errors import ConfigInvalid
from mcpmeter.money import MAX_NANOUSD
from mcpmeter.pricing import names
from mcpmeter.pricing.genai import GenaiPrices, genai_providers
from mcpmeter.pricing.price_list import GENERAL_PURPOSE, PriceList
from mcpmeter.pricing.rates import Rates, Timeline, unix_ns, usd_per_mtok
from mcpmeter.records import STANDARD, Charge, Conditions, LlmTarget, Usage, UsageItem

CACHED_MODELS: Final = 4096


class PriceSource(msgspec.Struct, frozen=True):
    """The sources of one provider's prices; the list has precedence."""

    list: str | None = None
    """The name of one of the book's price lists."""
    genai_id: str | None = None
    """The provider's id in genai-prices."""


class ModelPrice(msgspec.Struct, frozen=True, kw_only=True):
    """A model's prices for display, in US dollars per million tokens. None: the list has no such price."""

    id: str
    prompt_usd_per_mtok: Decimal | None
    completion_usd_per_mtok: Decimal | None
    blended_usd_per_mtok: Decimal | None = None
    recommended_for: str = GENERAL_PURPOSE
    tiered: bool = False
    """Longer prompts have higher prices than these."""
    list_name: str = ""


class PriceBook:
    """All prices of a service. Pure after construction, except for bounded caches; safe to share between threads.

    `fallback` is the price at which unpriced calls count against budgets; it is never a cost.

    Raises ConfigInvalid if a source names an unknown list or genai-prices provider, or if two lists have one name;
    MissingDependency if genai-prices is needed and not installed.
    """

    def __init__(
        self,
        lists: Sequence[PriceList] = (),
        *,
        sources: Mapping[str, PriceSource] | None = None,
        fallback: Rates | None = None,
    ) -> None:
        self._fallback = fallback
        self._lists = {price_list.name: _ListedPrices(price_list) for price_list in lists}
        self._sources = dict(sources or {})
        if len(self._lists) != len(lists):
            raise ConfigInvalid(
                "Two price lists have the same name.", hint='Rename one: name = "…" at the top of its file.'
            )
        ids = {source.genai_id for source in self._sources.values() if source.genai_id is not None}
        providers = genai_providers() if ids else {}
        for provider, source in self._sources.items():
            _refuse_unknown("price list", provider, source.list, self._lists)
            _refuse_unknown("genai-prices provider", provider, source.genai_id, providers)
        self._genai = {genai_id: GenaiPrices(providers[genai_id]) for genai_id in ids}
        # Bounded, least recently used first out: a flood of invented names cannot grow it.
        self._prices = lru_cache(maxsize=CACHED_MODELS)(self._find)
        self._windows = lru_cache(maxsize=CACHED_MODELS)(self._find_window)

    def rates(self, provider: str, model: str, at: datetime) -> Rates | None:
        """The rates at an instant (aware, else ValueError), or None if there is no price."""
        return self._rates(provider, model, unix_ns(at))

    def charge_for(
        self, target: LlmTarget, response_model: str, usage: Usage, at_ns: int, reported_nanousd: int | None = None
    ) -> Charge:
        """What a call costs by its requested model; if that has no price (a router's name), by the responding model."""
        charge = self.charge(target.provider, target.model, usage, at_ns, reported_nanousd)
        if charge.source != "unpriced" or not response_model or response_model == target.model:
            return charge
        return self.charge(target.provider, response_model, usage, at_ns, reported_nanousd)

    def charge(
        self, provider: str, model: str, usage: Usage, at_ns: int, reported_nanousd: int | None = None
    ) -> Charge:
        """A call's charge: as the provider reported it, else by the list valid at `at_ns` (Unix ns), else unpriced.

        Never raises for what a client or provider can send. A reported cost outside 0…MAX_NANOUSD is ignored.
        """
        listed = self._listed(provider, model, usage, at_ns)
        if reported_nanousd is None or not 0 <= reported_nanousd <= MAX_NANOUSD:
            return listed
        return Charge(
            nanousd=reported_nanousd,
            source="reported",
            price_list=listed.price_list,
            reported_nanousd=reported_nanousd,
            listed_nanousd=listed.listed_nanousd,
        )

    def _listed(self, provider: str, model: str, usage: Usage, at_ns: int) -> Charge:
        rates = self._rates(provider, model, at_ns)
        if usage.source == "missing" and not usage.prompt_tokens and not usage.completion_tokens:
            # The tokens are unknown, so zero dollars would be a guess.
            return Charge(unpriced_reason="unknown_model" if rates is None else "usage_missing")
        if rates is None:
            return Charge(unpriced_reason="unknown_model", fallback_nanousd=self._fallback_cost(usage))
        nanousd = rates.cost_nanousd(usage)
        if nanousd is None or nanousd > MAX_NANOUSD:
            return Charge(unpriced_reason="not_determined", fallback_nanousd=self._fallback_cost(usage))
        return Charge(nanousd=nanousd, source="listed", price_list=rates.list_name, listed_nanousd=nanousd)

    def _fallback_cost(self, usage: Usage) -> int:
        if self._fallback is None:
            return 0
        # By the totals alone, since the details may contradict each other.
        cost = self._fallback.max_cost_nanousd(max(usage.prompt_tokens, 0), max(usage.completion_tokens, 0))
        return min(cost or 0, MAX_NANOUSD)

    def max_cost_nanousd(
        self,
        provider: str,
        model: str,
        at_ns: int,
        *,
        prompt_tokens: int,
        completion_tokens: int,
        conditions: Conditions = STANDARD,
        max_items: Sequence[UsageItem] = (),
    ) -> int:
        """The most that a call of at most so many tokens can cost, by its list, else by the fallback price."""
        rates = self._rates(provider, model, at_ns)
        for priced in (rates, self._fallback):
            cost = priced.max_cost_nanousd(prompt_tokens, completion_tokens) if priced else None
            if cost is not None:
                return min(cost, MAX_NANOUSD)
        return 0

    def context_window(self, provider: str, model: str) -> int | None:
        """The most tokens that a model can read, if genai-prices knows it, of this provider or else of any.

        It rounds 1,048,576 down to a million, so 5 % are added.
        """
        return None if len(model) > names.MAX_MODEL_CHARS else self._windows(provider, model)

    def _find_window(self, provider: str, model: str) -> int | None:
        source, name = self._sources.get(provider), names.normal(model)
        own = self._genai.get(source.genai_id or "") if source else None
        for known in ([own] if own else [], self._genai.values()):
            if windows := [window for prices in known if name and (window := prices.context_window(name))]:
                return max(windows) + max(windows) // 20
        return None

    def models(self, provider: str, at: datetime | None = None) -> list[ModelPrice]:
        """The models with a price at an instant (default: now): the list's in its order, then genai-prices'."""
        instant = at or datetime.now(UTC)
        source = self._sources.get(provider, PriceSource())
        listed = self._lists[source.list].model_prices(instant) if source.list else []
        named = set(self._lists[source.list].names) if source.list else set()
        found = _model_prices(self._genai[source.genai_id], unix_ns(instant)) if source.genai_id else ()
        return [*listed, *(price for price in found if price.id.lower() not in named)]

    def canonical(self, provider: str, model: str) -> str | None:
        """The id under which the provider's list knows a name such as `gpt-4.1-2025-04-14`; None for unknown names."""
        prices = self._resolve(provider, model)
        return prices.timeline.model if prices else None

    def nearest(self, provider: str, model: str, count: int = 3) -> list[str]:
        """Similar names that have a price, for hints."""
        source = self._sources.get(provider, PriceSource())
        known = set(self._lists[source.list].names) if source.list else set()
        known |= set(self._genai[source.genai_id].printed_names()) if source.genai_id else set()
        return get_close_matches(model[: names.MAX_MODEL_CHARS].lower(), sorted(known), n=count)

    def _resolve(self, provider: str, model: str) -> _Prices | None:
        # Checked before the cache, which would keep even an absurdly long name.
        return None if len(model) > names.MAX_MODEL_CHARS else self._prices(provider, model)

    def _rates(self, provider: str, model: str, at_ns: int) -> Rates | None:
        prices = self._resolve(provider, model)
        if prices is None:
            return None
        span = prices.span  # read once, since threads share it
        if not span.from_ns <= at_ns < span.until_ns:
            span = prices.span = prices.timeline.span(at_ns)
        return span.rates

    def _find(self, provider: str, model: str) -> _Prices | None:
        timeline = self._timeline(provider, model)
        return None if timeline is None else _Prices(timeline)

    def _timeline(self, provider: str, model: str) -> Timeline | None:
        source, name = self._sources.get(provider), names.normal(model)
        if source is None or name is None:
            return None
        if source.list is not None and (listed := self._lists[source.list].timeline(name)):
            return listed
        if source.genai_id is None:
            return None
        prices = self._genai[source.genai_id]
        found = prices.model(name)
        return prices.timeline(found) if found else None


class _Prices:
    """A model's timeline, and the span of the latest lookup: nearly every call is in the same one."""

    __slots__ = ("span", "timeline")

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.span = timeline.span(0)


class _ListedPrices:
    """A price list, indexed for lookups."""

    def __init__(self, price_list: PriceList) -> None:
        self.names = price_list.known_names()
        self._price_list = price_list
        self._timelines = price_list.timelines()

    def timeline(self, name: str) -> Timeline | None:
        model = self.names.get(name) or self.names.get(names.dated_base(name) or "")
        return self._timelines[model] if model else None

    def model_prices(self, at: datetime) -> list[ModelPrice]:
        on, at_ns = at.astimezone(UTC).date(), unix_ns(at)
        found = (self._model_price(model, timeline.at(at_ns), on) for model, timeline in self._timelines.items())
        return [price for price in found if price]

    def _model_price(self, model: str, rates: Rates | None, on: date) -> ModelPrice | None:
        entry = self._price_list.entry(model, on)
        if rates is None or entry is None:
            return None
        return msgspec.structs.replace(
            _model_price(model, rates),
            blended_usd_per_mtok=Decimal(entry.blended) if entry.blended else None,
            recommended_for=entry.recommended_for,
        )


def _model_prices(prices: GenaiPrices, at_ns: int) -> Iterable[ModelPrice]:
    for model in prices.models():
        rates = prices.timeline(model).at(at_ns)
        if rates is not None and (rates.bands[0].prompt is not None or rates.bands[0].completion is not None):
            yield _model_price(model.id, rates)


def _model_price(model: str, rates: Rates) -> ModelPrice:
    base = rates.bands[0]
    return ModelPrice(
        id=model,
        prompt_usd_per_mtok=None if base.prompt is None else usd_per_mtok(base.prompt),
        completion_usd_per_mtok=None if base.completion is None else usd_per_mtok(base.completion),
        tiered=len(rates.bands) > 1,
        list_name=rates.list_name,
    )


def _refuse_unknown(kind: str, provider: str, wanted: str | None, known: Iterable[str]) -> None:
    if wanted is None or wanted in (names_known := list(known)):
        return
    near = get_close_matches(wanted, names_known, n=1) or sorted(names_known)
    hint = f"There is: {', '.join(near)}." if near else "Give none, or add it."
    raise ConfigInvalid(f"Provider '{provider}' names the {kind} '{wanted}', which does not exist.", hint=hint)
