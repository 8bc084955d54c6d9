"""Price lists as files, which have precedence over genai-prices: a relay's or a contract's. See `lists/README.md`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal

import msgspec

from mcpmeter.errors import ConfigInvalid
from mcpmeter.pricing import list_files, names
from mcpmeter.pricing.calendars import Validity, midnight_ns
from mcpmeter.pricing.list_files import FORMAT_HINT
from mcpmeter.pricing.rates import RateBand, Rates, attousd_per_mtok
from mcpmeter.pricing.timelines import Dated, Timeline

GENERAL_PURPOSE: Final = "General purpose"
"""The recommendation for models whose list has none."""

Price = Annotated[str, msgspec.Meta(pattern=list_files.PRICE_PATTERN)]
ModelName = Annotated[str, msgspec.Meta(pattern=r"^[!-~]+$", max_length=names.MAX_MODEL_CHARS)]


class PriceEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `[[price]]` of a file: a model's prices from a day on, in US dollars per million tokens."""

    model: ModelName
    valid_from: date = msgspec.field(name="from")
    prompt: Price
    completion: Price | None = None
    """None for models without completions (embeddings); completion tokens then make a call unpriced."""
    cached_read: Price | None = None
    cache_write: Price | None = None
    blended: Price | None = None
    """One figure for prompt and completion together; only for comparisons, never for charges."""
    recommended_for: str = GENERAL_PURPOSE
    aliases: tuple[ModelName, ...] = ()


class PriceList(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file of prices. Several entries of one model differ in their dates."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    currency: Literal["USD"]
    price: tuple[PriceEntry, ...]
    note: str = ""
    source: str = ""

    def known_names(self) -> Mapping[str, str]:
        """Every name the list prints, in lower case, with its model."""
        return MappingProxyType(
            {name.lower(): entry.model for entry in self.price for name in (entry.model, *entry.aliases)}
        )

    def timelines(self) -> Mapping[str, Timeline]:
        """The dated rates per model."""
        entries: dict[str, list[PriceEntry]] = {}
        for entry in sorted(self.price, key=lambda e: e.valid_from):
            entries.setdefault(entry.model, []).append(entry)
        return MappingProxyType({model: self._timeline(model, dated) for model, dated in entries.items()})

    def entry(self, model: str, on: date) -> PriceEntry | None:
        """The entry of a model that is valid on a day (UTC)."""
        valid = [entry for entry in self.price if entry.model == model and entry.valid_from <= on]
        return max(valid, key=lambda entry: entry.valid_from, default=None)

    def _timeline(self, model: str, dated: Iterable[PriceEntry]) -> Timeline:
        return Timeline(model=model, entries=tuple(self._dated(entry) for entry in dated))

    def _dated(self, entry: PriceEntry) -> Dated:
        band = RateBand(
            prompt=attousd_per_mtok(Decimal(entry.prompt)),
            completion=_rate(entry.completion),
            cached_read=_rate(entry.cached_read),
            cache_write=_rate(entry.cache_write),
        )
        rates = Rates(list_name=f"{self.name} {entry.valid_from.isoformat()}", bands=(band,))
        return Dated(rates=rates, valid=Validity(from_ns=midnight_ns(entry.valid_from)))


_FORMAT: Final = list_files.Format(
    file_keys=PriceList.__struct_encode_fields__,
    entry_keys=PriceEntry.__struct_encode_fields__,
    price_keys=frozenset({"prompt", "completion", "cached_read", "cache_write", "blended"}),
)


def bundled_price_lists() -> tuple[PriceList, ...]:
    """The lists that come with mcpmeter."""
    found = [file for file in files(__package__).joinpath("lists").iterdir() if file.name.endswith(".toml")]
    return tuple(load_price_list(file) for file in sorted(found, key=lambda file: file.name))


def load_price_list(file: Traversable | Path) -> PriceList:
    """Load a list from its file. Raises ConfigInvalid with the file, the line and what to write instead."""
    return parse_price_list(list_files.read_text(file), str(file))


def parse_price_list(text: str, origin: str) -> PriceList:
    """Parse a list; `origin` is its name in errors. Raises ConfigInvalid."""
    raw = list_files.parse_toml(text, origin)
    try:
        prices = msgspec.convert(raw, PriceList)
    except msgspec.ValidationError as fault:
        raise _FORMAT.refusal(str(fault), text, origin) from None
    _refuse_ambiguity(prices, text, origin)
    return prices


def _refuse_ambiguity(prices: PriceList, text: str, origin: str) -> None:
    if not prices.price:
        raise ConfigInvalid(f"{origin}: no [[price]] entry.", hint=FORMAT_HINT)
    owners: dict[str, str] = {}
    dates: set[tuple[str, date]] = set()
    for index, entry in enumerate(prices.price):
        where = f"{origin}, line {list_files.line_of(text, index, None)}"
        for name in (entry.model, *entry.aliases):
            owner = owners.setdefault(name.lower(), entry.model)
            if owner != entry.model:
                raise ConfigInvalid(
                    f"{where}: '{name}' is a name of both '{owner}' and '{entry.model}'.",
                    hint="Give each name to one model, spelled alike in all its entries.",
                )
        if (entry.model, entry.valid_from) in dates:
            raise ConfigInvalid(
                f"{where}: '{entry.model}' has two entries from {entry.valid_from}.",
                hint="Keep one, or change its date.",
            )
        dates.add((entry.model, entry.valid_from))


def _rate(price: str | None) -> int | None:
    return None if price is None else attousd_per_mtok(Decimal(price))
