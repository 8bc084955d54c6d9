"""Price lists as files, which have precedence over genai-prices: a relay's or a contract's. See `lists/README.md`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal

import msgspec

from mcpmeter.errors import ConfigInvalid
from mcpmeter.pricing import names
from mcpmeter.pricing.rates import Dated, RateBand, Rates, Timeline, attousd_per_mtok, unix_ns

GENERAL_PURPOSE: Final = "General purpose"
"""The recommendation for models whose list has none."""

_PRICE: Final = r"^[0-9]{1,9}(\.[0-9]{1,18})?$"
_ENTRY_HEADER: Final = re.compile(r"\s*\[\[\s*price\s*\]\]")
_PLACE: Final = re.compile(r" - at `\$\.(?:price\[(?P<index>[0-9]+)\]\.?)?(?P<key>[a-z_]+)?")
_UNKNOWN_KEY: Final = re.compile(r"unknown field `(?P<key>[^`]*)`")
_PRICE_HINT: Final = 'Write prices in quotes, in US dollars per million tokens: prompt = "2.50".'
_FORMAT_HINT: Final = "The format is described in the README.md beside the built-in lists."

Price = Annotated[str, msgspec.Meta(pattern=_PRICE)]
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
        midnight = datetime(entry.valid_from.year, entry.valid_from.month, entry.valid_from.day, tzinfo=UTC)
        rates = Rates(list_name=f"{self.name} {entry.valid_from.isoformat()}", bands=(band,))
        return Dated(rates=rates, from_ns=unix_ns(midnight))


def bundled_price_lists() -> tuple[PriceList, ...]:
    """The lists that come with mcpmeter."""
    found = [file for file in files(__package__).joinpath("lists").iterdir() if file.name.endswith(".toml")]
    return tuple(load_price_list(file) for file in sorted(found, key=lambda file: file.name))


def load_price_list(file: Traversable | Path) -> PriceList:
    """Load a list from its file. Raises ConfigInvalid with the file, the line and what to write instead."""
    try:
        text = file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) else "not UTF-8"
        raise ConfigInvalid(f"The price list {file} cannot be read: {reason}.", hint=_FORMAT_HINT) from None
    return parse_price_list(text, str(file))


def parse_price_list(text: str, origin: str) -> PriceList:
    """Parse a list; `origin` is its name in errors. Raises ConfigInvalid."""
    try:
        # Decimal, so that an unquoted price is recognised and never becomes a binary fraction.
        raw = tomllib.loads(text, parse_float=Decimal)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as fault:
        raise ConfigInvalid(f"{origin}: {fault}.", hint=_FORMAT_HINT) from None
    try:
        prices = msgspec.convert(raw, PriceList)
    except msgspec.ValidationError as fault:
        raise _refusal(str(fault), text, origin) from None
    _refuse_ambiguity(prices, text, origin)
    return prices


def _refuse_ambiguity(prices: PriceList, text: str, origin: str) -> None:
    if not prices.price:
        raise ConfigInvalid(f"{origin}: no [[price]] entry.", hint=_FORMAT_HINT)
    owners: dict[str, str] = {}
    dates: set[tuple[str, date]] = set()
    for index, entry in enumerate(prices.price):
        where = f"{origin}, line {_line_of(text, index, None)}"
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


def _refusal(fault: str, text: str, origin: str) -> ConfigInvalid:
    place = _PLACE.search(fault)
    index = int(place["index"]) if place and place["index"] else None
    unknown = _UNKNOWN_KEY.search(fault)
    key = unknown["key"] if unknown else (place["key"] if place else None)
    line = _line_of(text, index, key)
    entry = f", entry {index + 1}" if index is not None else ""
    what, hint = (_unknown_key(unknown["key"], index), _FORMAT_HINT) if unknown else (_reworded(fault, key), _hint(key))
    return ConfigInvalid(f"{origin}, line {line}{entry}: {what}", hint=hint)


def _unknown_key(key: str, index: int | None) -> str:
    struct = PriceList if index is None else PriceEntry
    near = get_close_matches(key, struct.__struct_encode_fields__, n=1)
    return f"unknown key '{key}'" + (f", did you mean '{near[0]}'?" if near else ".")


def _reworded(fault: str, key: str | None) -> str:
    text = fault.partition(" - at `")[0].replace("Object missing required field", "missing key").replace("`", "'")
    return (f"'{key}': " if key else "") + f"{text[0].lower()}{text[1:]}."


def _hint(key: str | None) -> str:
    return _PRICE_HINT if key in {"prompt", "completion", "cached_read", "cache_write", "blended"} else _FORMAT_HINT


def _line_of(text: str, index: int | None, key: str | None) -> int:
    """The line of a key in the entry of this index, else the entry's first line. tomllib keeps no positions."""
    lines = text.splitlines()
    headers = [number for number, line in enumerate(lines) if _ENTRY_HEADER.match(line)]
    start = 0 if index is None or index >= len(headers) else headers[index]
    stop = next((header for header in headers if header > start), len(lines))
    for number in range(start, stop):
        if key is not None and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", lines[number]):
            return number + 1
    return start + 1


def _rate(price: str | None) -> int | None:
    return None if price is None else attousd_per_mtok(Decimal(price))
