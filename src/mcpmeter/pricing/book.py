"""The price book: a provider's rates for a model at an instant, and the charge of a call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from difflib import get_close_matches
from functools import lru_cache
from types import MappingProxyType
from typing import Final, TypeVar

import msgspec
from msgspec.structs import replace

from mcpmeter.errors import ConfigInvalid
from mcpmeter.items import ITEMS
from mcpmeter.money import MAX_NANOUSD
from mcpmeter.pricing import names
from mcpmeter.pricing.bounds import NO_BOUND, Bound, bound_of, max_items_nanousd
from mcpmeter.pricing.calendars import unix_ns
from mcpmeter.pricing.genai import GenaiPrices, genai_providers
from mcpmeter.pricing.lines import MAX_QUANTITY, bill
from mcpmeter.pricing.overlays import Overlay, bundled_overlays
from mcpmeter.pricing.patches import under
from mcpmeter.pricing.price_list import GENERAL_PURPOSE, PriceList
from mcpmeter.pricing.provider_prices import ProviderPrices
from mcpmeter.pricing.rates import Rates, usd_per_mtok
from mcpmeter.pricing.timelines import Timeline
from mcpmeter.records import STANDARD, Charge, ChargeLine, Conditions, LlmTarget, Usage, UsageItem

CACHED_MODELS: Final = 4096

LIKE: Final = MappingProxyType({"azure": "openai"})
"""Providers that sell another one's models at the same prices, by their ids in genai-prices. Azure's global standard
deployments cost what OpenAI's models do: https://azure.microsoft.com/pricing/details/azure-openai/"""

_Value = TypeVar("_Value")
_MAX_CONDITIONS: Final = 64
_FEW_UNITS: Final = 100
_CONDITIONS: Final = tuple(f"{name}:" for name in Conditions.__struct_fields__)
"""How the items begin that name a condition without a price."""


class PriceSource(msgspec.Struct, frozen=True):
    """The sources of one provider's prices; the list has precedence."""

    list: str | None = None
    """The name of one of the book's price lists."""
    genai_id: str | None = None
    """The provider's id in genai-prices."""
    like: str | None = None
    """The id in genai-prices of the provider whose models it resells at the same price; by default of `LIKE`."""


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

    `fallback` is the price at which unpriced calls count against budgets, `fallback_unit_nanousd` that of one unpriced
    unit that is no token; they are never a cost. `overlays` are applied after those that come with mcpmeter.

    Raises ConfigInvalid if a source names an unknown list or genai-prices provider, or if two lists have one name;
    MissingDependency if genai-prices is needed and not installed.
    """

    def __init__(
        self,
        lists: Sequence[PriceList] = (),
        *,
        sources: Mapping[str, PriceSource] | None = None,
        fallback: Rates | None = None,
        fallback_unit_nanousd: int = 0,
        overlays: Sequence[Overlay] = (),
        has_bundled_overlays: bool = True,
    ) -> None:
        self._fallback = fallback
        self._fallback_unit_nanousd = fallback_unit_nanousd
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
            _refuse_unknown("genai-prices provider", provider, source.like, providers)
        likes = {source.like or LIKE.get(source.genai_id or "") for source in self._sources.values()} - {None}
        bundled = bundled_overlays({*ids, *(like for like in likes if like)}) if has_bundled_overlays else ()
        found = (*bundled, *overlays)
        self._alike = {
            like: ProviderPrices(like, GenaiPrices(providers[like]), found) for like in likes if like is not None
        }
        self._genai = {
            source: ProviderPrices(source.genai_id, GenaiPrices(providers[source.genai_id]), found, self._like(source))
            for source in set(self._sources.values())
            if source.genai_id is not None
        }
        # Bounded, least recently used first out: a flood of invented names cannot grow it.
        self._prices = lru_cache(maxsize=CACHED_MODELS)(self._find)
        self._windows = lru_cache(maxsize=CACHED_MODELS)(self._find_window)

    def rates(self, provider: str, model: str, at: datetime, conditions: Conditions = STANDARD) -> Rates | None:
        """The rates at an instant (aware, else ValueError), or None if there is no price under these conditions."""
        rates, missing = self._rates_under(provider, model, unix_ns(at), conditions)
        return None if missing else rates

    def charge_for(
        self,
        target: LlmTarget,
        response_model: str,
        usage: Usage,
        at_ns: int,
        reported_nanousd: int | None = None,
        *,
        reported_is_part: bool = False,
    ) -> Charge:
        """What a call costs by its requested model; if that has no price (a router's name), by the responding model.

        The other way round where a name is the user's own: an Azure deployment `gpt-4o` may serve any model.
        """
        provider, is_part, model, other = target.provider, reported_is_part, target.model, response_model
        if other and other != model and self._has_own_names(provider, model):
            model, other = other, model
        charge = self.charge(provider, model, usage, at_ns, reported_nanousd, reported_is_part=is_part)
        if charge.source != "unpriced" or not other or other == model:
            return charge
        return self.charge(provider, other, usage, at_ns, reported_nanousd, reported_is_part=is_part)

    def _has_own_names(self, provider: str, model: str) -> bool:
        """Whether the provider's models have names of the user's, and its own price list has not this one."""
        source = self._sources.get(provider)
        if source is None or source.genai_id not in LIKE:
            return False
        name = names.normal(model)
        return source.list is None or name is None or self._lists[source.list].timeline(name) is None

    def charge(
        self,
        provider: str,
        model: str,
        usage: Usage,
        at_ns: int,
        reported_nanousd: int | None = None,
        *,
        reported_is_part: bool = False,
    ) -> Charge:
        """A call's charge: as the provider reported it, else by the list valid at `at_ns` (Unix ns), else unpriced.

        Never raises for what a client or provider can send. A reported cost outside 0…MAX_NANOUSD is ignored. One that
        is a part only is a fee beside the listed cost.
        """
        conditions = usage.conditions
        is_standard = conditions is STANDARD or conditions == STANDARD
        if usage.items or usage.unknown or reported_is_part or not is_standard:
            listed = self._itemised(provider, model, usage, at_ns)
        else:
            listed = self._listed(provider, model, usage, at_ns)
        if reported_nanousd is None or not 0 <= reported_nanousd <= MAX_NANOUSD:
            return listed
        if reported_is_part:
            return _with_fee(listed, reported_nanousd)
        is_same = listed.source == "listed" and listed.nanousd == reported_nanousd
        # The reported cost includes what the list has no price for.
        is_same = is_same and not any(line.nanousd is None and line.item in ITEMS for line in listed.lines)
        return Charge(
            nanousd=reported_nanousd,
            source="reported",
            price_list=listed.price_list,
            reported_nanousd=reported_nanousd,
            listed_nanousd=listed.listed_nanousd,
            completion_nanousd=listed.completion_nanousd if is_same else 0,
            lines=listed.lines if is_same else _reported_lines(usage, reported_nanousd),
        )

    def _listed(self, provider: str, model: str, usage: Usage, at_ns: int) -> Charge:
        rates = self._rates(provider, model, at_ns)
        if usage.source == "missing" and not usage.prompt_tokens and not usage.completion_tokens:
            # The tokens are unknown, so zero dollars would be a guess.
            return Charge(unpriced_reason="unknown_model" if rates is None else "usage_missing")
        if rates is None:
            return Charge(unpriced_reason="unknown_model", fallback_nanousd=self._fallback_cost(usage))
        cost = rates.cost_nanousd(usage)
        if cost is None or cost[0] > MAX_NANOUSD:
            return Charge(unpriced_reason="not_determined", fallback_nanousd=self._fallback_cost(usage))
        nanousd, completion = cost
        return Charge(
            nanousd=nanousd,
            source="listed",
            price_list=rates.list_name,
            listed_nanousd=nanousd,
            completion_nanousd=completion,
        )

    def _itemised(self, provider: str, model: str, usage: Usage, at_ns: int) -> Charge:
        def rates_of(item_model: str) -> tuple[Rates | None, tuple[str, ...]]:
            return self._rates_under(provider, item_model or model, at_ns, usage.conditions)

        usage = self._with_own_model(provider, model, usage)
        has_items = any(item.quantity for item in (*usage.items, *usage.unknown))
        if usage.source == "missing" and not usage.prompt_tokens and not usage.completion_tokens and not has_items:
            return Charge(unpriced_reason="unknown_model" if rates_of("")[0] is None else "usage_missing")
        found = bill(usage, rates_of)
        unpriced = [line for line in found.lines if line.nanousd is None]
        if found.nanousd is None:
            beside = sum(self._fallback_of(line.item, line.quantity) for line in unpriced if not _is_counted(line.item))
            return Charge(
                unpriced_reason="unknown_model" if rates_of("")[0] is None else "not_determined",
                fallback_nanousd=min(self._fallback_cost(usage) + beside, MAX_NANOUSD),
                lines=found.lines,
            )
        fallback = sum(self._fallback_of(line.item, line.quantity) for line in unpriced)
        return Charge(
            nanousd=found.nanousd,
            source="listed",
            price_list=found.price_list,
            listed_nanousd=found.nanousd,
            fallback_nanousd=min(fallback, MAX_NANOUSD),
            lines=found.lines,
        )

    def _with_own_model(self, provider: str, model: str, usage: Usage) -> Usage:
        """The usage with the call's own model unnamed where its items name it with a date, as a response does."""
        names = {item.model for item in usage.items if item.model}
        own = self.canonical(provider, model) if names else None
        same = {name for name in names if own is not None and self.canonical(provider, name) == own}
        if not same:
            return usage
        return replace(usage, items=tuple(replace(i, model="") if i.model in same else i for i in usage.items))

    def _fallback_cost(self, usage: Usage) -> int:
        if self._fallback is None:
            return 0
        # By the totals alone, since the details may contradict each other.
        cost = self._fallback.max_cost_nanousd(max(usage.prompt_tokens, 0), max(usage.completion_tokens, 0))
        return min(cost or 0, MAX_NANOUSD)

    def _fallback_of(self, item: str, quantity: int) -> int:
        """What an item without a price counts: as completion tokens, or per unit."""
        quantity = min(max(quantity, 0), MAX_QUANTITY)
        known = ITEMS.get(item)
        # An unknown field has no unit. Its name tells tokens, and so does its size: fees are few per call.
        is_token = known.unit == "token" if known else ("token" in item or quantity > _FEW_UNITS)
        if not is_token and (known is None or known.unit not in {"character", "millisecond"}):
            return quantity * self._fallback_unit_nanousd
        return (self._fallback.max_cost_nanousd(0, quantity) or 0) if self._fallback else 0

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
        """The most that a call of at most so many tokens and items can cost, by its list, else by the fallback price.

        `conditions` are those that it requests. They never lower the bound, since the provider may not serve them.
        """
        prices = self._resolve(provider, model)
        bound = prices.bound(at_ns, conditions) if prices is not None else None
        cost = None if bound is None else _highest(bound, prompt_tokens, completion_tokens)
        if cost is None or bound is None or bound.is_open or _is_hidden(bound, prompt_tokens, completion_tokens):
            fallback = self._fallback.max_cost_nanousd(prompt_tokens, completion_tokens) if self._fallback else None
            cost = max(cost or 0, fallback or 0)
        if max_items:
            cost += max_items_nanousd(bound or NO_BOUND, max_items, self._fallback_of)
        return min(cost, MAX_NANOUSD)

    def context_window(self, provider: str, model: str) -> int | None:
        """The most tokens that a model can read, if genai-prices knows it, of this provider or else of any.

        It rounds powers of two down, 131,072 to 128,000 and 1,048,576 to a million.
        """
        return None if len(model) > names.MAX_MODEL_CHARS else self._windows(provider, model)

    def _find_window(self, provider: str, model: str) -> int | None:
        source, name = self._sources.get(provider), names.normal(model)
        own = self._genai.get(source) if source else None
        for known in ([own] if own else [], self._genai.values()):
            if windows := [window for prices in known if name and (window := prices.context_window(name))]:
                return _unrounded(max(windows))
        return None

    def models(self, provider: str, at: datetime | None = None) -> list[ModelPrice]:
        """The models with a price at an instant (default: now): the list's in its order, then genai-prices'."""
        instant = at or datetime.now(UTC)
        source = self._sources.get(provider, PriceSource())
        listed = self._lists[source.list].model_prices(instant) if source.list else []
        named = set(self._lists[source.list].names) if source.list else set()
        found = _model_prices(self._genai[source], unix_ns(instant)) if source.genai_id else ()
        return [*listed, *(price for price in found if price.id.lower() not in named)]

    def canonical(self, provider: str, model: str) -> str | None:
        """The id under which the provider's list knows a name such as `gpt-4.1-2025-04-14`; None for unknown names."""
        prices = self._resolve(provider, model)
        return prices.timeline.model if prices else None

    def nearest(self, provider: str, model: str, count: int = 3) -> list[str]:
        """Similar names that have a price, for hints."""
        source = self._sources.get(provider, PriceSource())
        known = set(self._lists[source.list].names) if source.list else set()
        known |= set(self._genai[source].printed_names()) if source.genai_id else set()
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

    def _rates_under(
        self, provider: str, model: str, at_ns: int, conditions: Conditions
    ) -> tuple[Rates | None, tuple[str, ...]]:
        """The rates under conditions, and the conditions without a price."""
        rates = self._rates(provider, model, at_ns)
        prices = self._resolve(provider, model)
        if rates is None or prices is None or conditions == STANDARD:
            return rates, ()
        return prices.under(rates, conditions)

    def _find(self, provider: str, model: str) -> _Prices | None:
        timeline = self._timeline(provider, model)
        return None if timeline is None else _Prices(timeline)

    def _timeline(self, provider: str, model: str) -> Timeline | None:
        source, name = self._sources.get(provider), names.normal(model)
        if source is None or name is None:
            return None
        if source.list is not None and (listed := self._lists[source.list].timeline(name)):
            return listed
        return self._genai[source].timeline(name) if source in self._genai else None

    def _like(self, source: PriceSource) -> ProviderPrices | None:
        return self._alike.get(source.like or LIKE.get(source.genai_id or "") or "")


class _Prices:
    """A model's timeline, and the span of the latest lookup: nearly every call is in the same one."""

    __slots__ = ("_bounds", "_conditional", "span", "timeline")

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.span = timeline.span(0)
        self._conditional: dict[Conditions, tuple[Rates, Rates, tuple[str, ...]]] = {}
        self._bounds: dict[Conditions, tuple[Rates, Bound]] = {}

    def under(self, rates: Rates, conditions: Conditions) -> tuple[Rates, tuple[str, ...]]:
        """The rates under conditions, and the conditions without a price."""
        found = self._conditional.get(conditions)
        if found is None or found[0] is not rates:
            found = (rates, *under(rates, conditions))
            _keep(self._conditional, conditions, found)
        return found[1], found[2]

    def bound(self, at_ns: int, conditions: Conditions) -> Bound | None:
        """The rates that a request with these conditions can have at an instant."""
        span = self.span
        if not span.from_ns <= at_ns < span.until_ns:
            span = self.span = self.timeline.span(at_ns)
        if span.rates is None:
            return None
        found = self._bounds.get(conditions)
        if found is None or found[0] is not span.rates:
            found = (span.rates, bound_of(span.rates, conditions))
            _keep(self._bounds, conditions, found)
        return found[1]


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
        return replace(
            _model_price(model, rates),
            blended_usd_per_mtok=Decimal(entry.blended) if entry.blended else None,
            recommended_for=entry.recommended_for,
        )


def _model_prices(prices: ProviderPrices, at_ns: int) -> Iterable[ModelPrice]:
    for model in prices.ids():
        timeline = prices.timeline(model.lower())
        rates = timeline.at(at_ns) if timeline else None
        if rates is not None and (rates.bands[0].prompt is not None or rates.bands[0].completion is not None):
            yield _model_price(model, rates)


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


def _unrounded(window: int) -> int:
    """A window that may be a power of two, or millions of 1,048,576, as that; any other as it is printed."""
    if window % 1_000_000 == 0:
        return window // 1_000_000 * 2**20
    power = 1 << (window - 1).bit_length()
    return power if 20 * power <= 21 * window else window


def _highest(bound: Bound, prompt_tokens: int, completion_tokens: int) -> int | None:
    highest = None
    for rates in bound.rates:
        cost = rates.max_cost_nanousd(prompt_tokens, completion_tokens)
        if cost is None:
            return None
        highest = cost if highest is None else max(highest, cost)
    return highest


def _is_hidden(bound: Bound, prompt_tokens: int, completion_tokens: int) -> bool:
    return bool(bound.hidden) and (
        (bool(prompt_tokens) and "prompt" in bound.hidden) or (bool(completion_tokens) and "completion" in bound.hidden)
    )


def _keep(kept: dict[Conditions, _Value], conditions: Conditions, value: _Value) -> None:
    # A provider may invent conditions; the few true ones fill again at once.
    if len(kept) >= _MAX_CONDITIONS:
        kept.clear()
    kept[conditions] = value


def _is_counted(item: str) -> bool:
    """Whether an item is part of the call's two totals, or a condition of their price."""
    known = ITEMS.get(item)
    return item.startswith(_CONDITIONS) or (known is not None and known.side != "beside")


def _with_fee(listed: Charge, nanousd: int) -> Charge:
    """A listed charge, and a fee that the provider reports beside it."""
    if listed.source == "unpriced":
        fee = ChargeLine("provider_fee", 1, None)
        fallback = min(listed.fallback_nanousd + nanousd, MAX_NANOUSD)
        return replace(listed, fallback_nanousd=fallback, lines=(*listed.lines, fee))
    fee = ChargeLine("provider_fee", 1, nanousd, source="reported")
    total = min(listed.nanousd + nanousd, MAX_NANOUSD)
    return replace(listed, nanousd=total, lines=(*listed.lines, fee), completion_nanousd=0)


def _reported_lines(usage: Usage, nanousd: int) -> tuple[ChargeLine, ...]:
    """The line of a reported cost that no list explains. What no table knows stays visible beside it."""
    unknown = (ChargeLine(item.item, item.quantity, None, model=item.model) for item in usage.unknown)
    return (ChargeLine("reported_cost", 1, nanousd, source="reported"), *unknown)
