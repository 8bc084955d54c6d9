"""The prices of genai-prices, converted once to our integers. Only its bundled data: nothing here uses the network.

Token counts that its data cannot price stay unpriced; they are never taken as free or as ordinary:
- models billed by seconds, characters, pages or messages, and models without any price;
- prompt or completion tokens of models with another price for pictures, video or citations, since usage counts those
  together with text;
- fine-tunes, whose names no list can print, and other providers' models at those providers' prices.
A detail without a price of its own (cached, reasoning, audio) costs as much as the other tokens of its side. Cache
writes cost the list's price for the default time to live. Batch and priority tiers, web searches and other tools are
not part of a call's tokens and are not priced here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from mcpmeter.errors import MissingDependency
from mcpmeter.pricing import names
from mcpmeter.pricing.rates import DAY_NS, Dated, RateBand, Rates, Timeline, attousd_per_mtok, unix_ns

if TYPE_CHECKING:
    from genai_prices.types import MatchLogic, ModelInfo, ModelPrice, Provider, TieredPrices
    from genai_prices.units import UnitDef

# Field of RateBand: key of genai-prices.
_RATE_KEYS: Final = {
    "prompt": "input_mtok",
    "completion": "output_mtok",
    "cached_read": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "reasoning": "output_reasoning_mtok",
    "audio_prompt": "input_audio_mtok",
    "audio_completion": "output_audio_mtok",
    "audio_cached_read": "cache_audio_read_mtok",
}
_OPTIONAL_FAMILIES: Final = frozenset({"tool_calls", "rerank"})
# Resource names that the provider's own API accepts beside the bare id.
_RESOURCE_PREFIX: Final = {"google": "models/"}


class GenaiPrices:
    """The price list of one genai-prices provider. Lookups are not cached here."""

    def __init__(self, provider: Provider) -> None:
        from genai_prices import __version__  # noqa: PLC0415 (see genai_providers)

        self._provider = provider
        self._list_name = f"genai-prices {__version__}"
        self._prefix = _RESOURCE_PREFIX.get(provider.id, "")
        self._printed: dict[str, list[ModelInfo]] = {}
        for model in provider.models:
            for name in {model.id.lower(), *_printed_names(model.match)}:
                if name[-1:].isalnum():
                    self._printed.setdefault(name, []).append(model)

    def model(self, name: str) -> ModelInfo | None:
        """The model of a lower-case name that is printed for the model which genai-prices matches (see `names`)."""
        name = name.removeprefix(self._prefix)
        candidates = self._candidates(name)
        if not candidates:
            return None
        # Not its fallback to other providers: their prices are not this provider's.
        matched = self._provider.find_model(name)
        return matched if any(matched is candidate for candidate in candidates) else None

    def timeline(self, model: ModelInfo) -> Timeline:
        """The dated rates of a model. As in the library, the last valid entry applies, else the first."""
        if not isinstance(model.prices, list):
            return Timeline(model=model.id, entries=(Dated(rates=self._rates(model.prices)),))
        entries = [_dated(self._rates(price.prices), price.constraint) for price in model.prices]
        return Timeline(model=model.id, entries=tuple(entries), otherwise=entries[0].rates if entries else None)

    def context_window(self, name: str) -> int | None:
        """The most tokens that the model of a lower-case name can read, if that is known."""
        found = self.model(name)
        return found.context_window if found else None

    def models(self) -> Iterator[ModelInfo]:
        """The models that `model` finds by their id, in the library's order."""
        return (model for model in self._provider.models if self.model(model.id.lower()) is model)

    def printed_names(self) -> Iterator[str]:
        """Every printed name that `model` finds."""
        return (name for name in self._printed if self.model(name) is not None)

    def _candidates(self, name: str) -> Sequence[ModelInfo]:
        found = list(self._printed.get(name, ()))
        for base in (names.dated_base(name), names.release_base(name)):
            found += self._printed.get(base, ()) if base else ()
        return found

    def _rates(self, prices: ModelPrice) -> Rates | None:
        priced = {key: price for key, price in vars(prices).items() if price is not None}
        units = {key: _unit(key) for key in priced}
        families = {unit.dimensions["family"] for unit in units.values()}
        if "tokens" not in families or families - _OPTIONAL_FAMILIES - {"tokens", "requests"}:
            return None
        starts = sorted({start for price in priced.values() for start in _starts(price)})
        bands = tuple(_band(priced, start) for start in (None, *starts))
        # The library has dollars per thousand requests.
        request = attousd_per_mtok(_price_above(priced.get("requests_kcount"), None) or Decimal(0)) * 1000
        return Rates(list_name=self._list_name, bands=bands, request=request)


def genai_providers() -> dict[str, Provider]:
    """All providers of genai-prices by id. Raises MissingDependency.

    Imported here, as the library's own imports take a quarter of a second.
    """
    try:
        from genai_prices.data import providers  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise MissingDependency(
            f"Prices need the package '{missing.name}', which is not installed.",
            hint="Run: pip install 'mcpmeter[server]'",
        ) from None
    return {provider.id: provider for provider in providers}


def _printed_names(match: MatchLogic) -> Iterator[str]:
    """Every name that a match rule spells out, in lower case. Regular expressions spell out none."""
    for clause in (*getattr(match, "or_", ()), *getattr(match, "and_", ())):
        yield from _printed_names(clause)
    if isinstance(equals := getattr(match, "equals", None), str):
        yield equals.lower()
    for kind in ("starts_with", "contains", "ends_with"):
        if isinstance(part := getattr(match, kind, None), str) and _is_whole_name(part):
            yield part.lower()


def _is_whole_name(part: str) -> bool:
    """Whether a part is a whole name, unlike the prefixes `claude-sonnet-4-2025` and `gemini-2.0-flash-0`."""
    last = part.rsplit("-", 1)[-1]
    return last != "0" and not (last.startswith("20") and len(last) == 4)


def _unit(price_key: str) -> UnitDef:
    from genai_prices.units import _get_registry  # noqa: PLC0415

    return _get_registry().unit_for_price_key(price_key)


def _starts(price: Decimal | TieredPrices) -> list[int]:
    return [] if isinstance(price, Decimal) else [tier.start for tier in price.tiers]


def _price_above(price: Decimal | TieredPrices | None, start: int | None) -> Decimal | None:
    """The price of prompts of more than `start` tokens (None: the base price)."""
    if price is None or isinstance(price, Decimal):
        return price
    passed = [tier.price for tier in price.tiers if start is not None and tier.start <= start]
    return passed[-1] if passed else price.base


def _band(priced: dict[str, Decimal | TieredPrices], start: int | None) -> RateBand:
    at = {key: attousd_per_mtok(price) for key in priced if (price := _price_above(priced[key], start)) is not None}
    rates = {field: at.get(key) for field, key in _RATE_KEYS.items()}
    for side, direction in (("prompt", "input"), ("completion", "output")):
        if any(_hidden(key, direction) and rate != _ordinary(at, key) for key, rate in at.items()):
            rates[side] = None
    return RateBand(above_prompt_tokens=start or 0, **rates)


def _hidden(key: str, direction: str) -> bool:
    """Whether usage does not distinguish this key's tokens from others of the direction (cache lifetimes aside)."""
    dimensions = _unit(key).dimensions
    return (
        key not in _RATE_KEYS.values()
        and dimensions["family"] == "tokens"
        and dimensions.get("direction") == direction
        and "cache_ttl" not in dimensions
    )


def _ordinary(at: dict[str, int], key: str) -> int | None:
    """The rate a hidden key's tokens would be billed by: cached ones as cached, others as the rest of their side."""
    dimensions = _unit(key).dimensions
    if dimensions.get("token_type") == "cache_read":
        return at.get("cache_read_mtok")
    return at.get("input_mtok" if dimensions.get("direction") == "input" else "output_mtok")


def _dated(rates: Rates | None, constraint: object) -> Dated:
    start_date = getattr(constraint, "start_date", None)
    if isinstance(start_date, date):
        midnight = datetime(start_date.year, start_date.month, start_date.day, tzinfo=UTC)
        return Dated(rates=rates, from_ns=unix_ns(midnight))
    start, end = getattr(constraint, "start_time", None), getattr(constraint, "end_time", None)
    if isinstance(start, time) and isinstance(end, time):
        return Dated(rates=rates, daily_from_ns=_of_day_ns(start), daily_to_ns=_of_day_ns(end))
    return Dated(rates=rates)


def _of_day_ns(clock: time) -> int:
    aware = clock if clock.tzinfo else clock.replace(tzinfo=UTC)
    return unix_ns(datetime.combine(date(1970, 1, 2), aware)) % DAY_NS
