"""The prices of genai-prices, converted once to our integers. Only its bundled data: nothing here uses the network.

Token counts that its data cannot price stay unpriced; they are never taken as free or as ordinary:
- plain counts of models that bill seconds, characters or pages too, or that have another price for pictures, video or
  citations: such a call is priced only if its usage tells its items;
- fine-tunes, whose names no list can print, and other providers' models at those providers' prices;
- an item that the list has no price for and that is like no other (see `items.py`).
Variants for batch, tier and speed are prices under those conditions; its other variants are no conditions of ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Final

from mcpmeter.errors import MissingDependency
from mcpmeter.pricing import names
from mcpmeter.pricing.calendars import ALWAYS, DAY_NS, Validity, midnight_ns, unix_ns
from mcpmeter.pricing.patches import Patch
from mcpmeter.pricing.rates import PLAIN_ITEMS, Price, RateBand, Rates, Variant, rate_of
from mcpmeter.pricing.timelines import Dated, Timeline

if TYPE_CHECKING:
    from genai_prices.types import MatchLogic, ModelInfo, ModelPrice, PriceVariant, Provider, TieredPrices
    from genai_prices.units import UnitDef

    Priced = dict[str, Decimal | TieredPrices]

# Our item: keys of genai-prices, the first that a model has.
_PRICE_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "prompt": ("input_mtok",),
    "prompt_audio": ("input_audio_mtok",),
    "prompt_image": ("input_image_mtok",),
    "prompt_video": ("input_video_mtok",),
    "prompt_tool": ("input_tool_mtok",),
    "cached_read": ("cache_read_mtok",),
    "cached_read_audio": ("cache_audio_read_mtok",),
    "cached_read_image": ("cache_image_read_mtok",),
    "cached_read_video": ("cache_video_read_mtok",),
    "cache_write": ("cache_write_mtok",),
    "cache_write_5m": ("cache_write_5m_mtok",),
    "cache_write_1h": ("cache_write_1h_mtok",),
    "completion": ("output_mtok",),
    "completion_audio": ("output_audio_mtok",),
    "completion_image": ("output_image_mtok",),
    "completion_video": ("output_video_mtok",),
    "reasoning": ("output_reasoning_mtok",),
    "citation": ("output_citation_mtok",),
    "request": ("requests_kcount",),
    "web_search": ("web_searches_kcount",),
    "social_search": ("social_searches_kcount",),
    "file_search": ("storage_searches_kcount",),
    "code_execution": ("code_executions_kcount",),
    "rerank_search": ("rerank_searches_kcount",),
    "page": ("input_document_kpages",),
    "character": ("input_mchars",),
    "prompt_audio_ms": ("input_audio_hours", "audio_hours"),
    "completion_audio_ms": ("output_audio_hours", "audio_hours"),
}
_CONDITIONS: Final = {("processing", "batch"): ("batch", "true")}
_CONDITION_KEYS: Final = {"service_tier": "tier", "speed": "speed"}
_COUNTED_FAMILIES: Final = frozenset({"tokens", "tool_calls", "rerank", "requests"})
# Resource names that the provider's own API accepts beside the bare id.
_RESOURCE_PREFIX: Final = {"google": "models/", "azure": "azure/"}


LACKING: Final = ("dashscope",)
"""Providers that genai-prices does not have; an overlay has all their prices."""


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

    def bare(self, name: str) -> str:
        """A name without the prefix by which the provider's API, or a proxy, writes it as a resource."""
        return name.removeprefix(self._prefix)

    def model(self, name: str) -> ModelInfo | None:
        """The model of a lower-case name that is printed for the model which genai-prices matches (see `names`)."""
        name = self.bare(name)
        candidates = self._candidates(name)
        if not candidates:
            return None
        # Not its fallback to other providers: their prices are not this provider's.
        matched = self._provider.find_model(name)
        return matched if any(matched is candidate for candidate in candidates) else None

    def timeline(self, model: ModelInfo) -> Timeline:
        """The dated rates of a model. As in the library, the last valid entry applies, else the first."""
        prices = model.prices
        if not isinstance(prices, list):
            entries = [Dated(rates=self._rates(prices))]
        else:
            entries = [Dated(rates=self._rates(price.prices), valid=_valid(price.constraint)) for price in prices]
        # In the library the first variant goes before the later ones, here the last patch.
        patches = tuple(patch for variant in reversed(model.price_variants or ()) for patch in self._patches(variant))
        otherwise = entries[0].rates if entries else None
        return Timeline(model=model.id, entries=tuple(entries), otherwise=otherwise, patches=patches)

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
        priced = _priced(prices)
        bands = tuple(_band(priced, start) for start in _starts(priced))
        if not any(band.table() for band in bands):
            return None
        request = bands[0].items.get("request")
        return Rates(list_name=self._list_name, bands=bands, request=request.rate if request else 0)

    def _patches(self, variant: PriceVariant) -> Iterator[Patch]:
        priced, when = _priced(variant.prices), _when(variant.when)
        if not when:
            return
        for start in _starts(priced):
            if prices := _table(priced, start, is_whole=False):
                found = Variant(when=when, above_prompt_tokens=start, prices=prices)
                yield Patch(valid=_valid(variant.constraint), variant=found, origin=self._list_name)


def genai_providers() -> dict[str, Provider]:
    """All providers of genai-prices by id, and those that only an overlay has. Raises MissingDependency.

    Imported here, as the library's own imports take a quarter of a second.
    """
    try:
        from genai_prices import types  # noqa: PLC0415
        from genai_prices.data import providers  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise MissingDependency(
            f"Prices need the package '{missing.name}', which is not installed.",
            hint="Run: pip install 'mcpmeter[server]'",
        ) from None
    lacking = {name: types.Provider(id=name, name=name, api_pattern="") for name in LACKING}
    return {**lacking, **{provider.id: provider for provider in providers}}


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


def _priced(prices: ModelPrice) -> Priced:
    return {key: price for key, price in vars(prices).items() if price is not None}


def _when(context: dict[str, str]) -> frozenset[tuple[str, str]]:
    """The library's request context as conditions; empty for one that no call of ours has."""
    pairs = [_CONDITIONS.get(pair) or (_CONDITION_KEYS.get(pair[0], ""), pair[1].lower()) for pair in context.items()]
    return frozenset(pairs) if all(key for key, _ in pairs) else frozenset()


def _starts(priced: Priced) -> list[int]:
    """The thresholds of the bands, 0 first."""
    tiers = [tier.start for price in priced.values() if not isinstance(price, Decimal) for tier in price.tiers]
    return sorted({0, *tiers})


def _price_above(price: Decimal | TieredPrices, start: int) -> Decimal:
    """The price of prompts of more than `start` tokens (0: the base price)."""
    if isinstance(price, Decimal):
        return price
    passed = [tier.price for tier in price.tiers if start and tier.start <= start]
    return passed[-1] if passed else price.base


def _table(priced: Priced, start: int, *, is_whole: bool = True) -> dict[str, Price]:
    """The prices by item. A part of a model's prices leaves what it does not name as it is."""
    found = {item: next((priced[key] for key in keys if key in priced), None) for item, keys in _PRICE_KEYS.items()}
    table = {
        item: Price(rate_of(item, _price_above(price, start))) for item, price in found.items() if price is not None
    }
    for modality in ("audio", "image", "video") if is_whole else ():
        # Without any price of cached tokens, the library bills those of a modality like the others of it.
        if f"prompt_{modality}" in table and "cached_read" not in table:
            table.setdefault(f"cached_read_{modality}", table[f"prompt_{modality}"])
    return table


def _band(priced: Priced, start: int) -> RateBand:
    table, hidden = _table(priced, start), _hidden_sides(priced, start)
    direct = {item: table[item].rate for item in PLAIN_ITEMS if item in table and item not in hidden}
    items = {item: price for item, price in table.items() if item not in direct}
    return RateBand(above_prompt_tokens=start, items=items, **direct)


def _hidden_sides(priced: Priced, start: int) -> set[str]:
    """The sides of which a plain call's tokens have no certain price.

    Its counts hold pictures, video and citations together with text; and where seconds, pages or characters are billed,
    tokens are not the whole.
    """
    units = {key: _unit(key).dimensions for key in priced}
    if {dimensions["family"] for dimensions in units.values()} - _COUNTED_FAMILIES:
        return {"prompt", "completion"}
    sides = (("prompt", "input"), ("completion", "output"))
    return {side for side, way in sides if any(_is_hidden(priced, key, way, start) for key in priced)}


def _is_hidden(priced: Priced, key: str, direction: str, start: int) -> bool:
    dimensions = _unit(key).dimensions
    if dimensions["family"] != "tokens" or dimensions.get("direction") != direction:
        return False
    if dimensions.get("modality") not in {"image", "video"} and dimensions.get("token_type") not in {
        "citation",
        "tool",
    }:
        return False
    is_cached = dimensions.get("token_type") == "cache_read"
    ordinary = priced.get("cache_read_mtok" if is_cached else f"{direction}_mtok")
    return ordinary is None or _price_above(priced[key], start) != _price_above(ordinary, start)


def _valid(constraint: object) -> Validity:
    start_date = getattr(constraint, "start_date", None)
    if isinstance(start_date, date):
        return Validity(from_ns=midnight_ns(start_date))
    start, end = getattr(constraint, "start_time", None), getattr(constraint, "end_time", None)
    if isinstance(start, time) and isinstance(end, time):
        return Validity(daily=((_of_day_ns(start), _of_day_ns(end)),))
    return ALWAYS


def _of_day_ns(clock: time) -> int:
    aware = clock if clock.tzinfo else clock.replace(tzinfo=UTC)
    return unix_ns(datetime.combine(date(1970, 1, 2), aware)) % DAY_NS
