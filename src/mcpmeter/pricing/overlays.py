"""Overlays: what genai-prices lacks of a provider's prices, as files with source and date. See `lists/README.md`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

import msgspec

from mcpmeter.errors import ConfigInvalid
from mcpmeter.items import ITEMS
from mcpmeter.pricing import list_files, names
from mcpmeter.pricing.calendars import Holidays, Validity, bundled_holidays, interval_ns, midnight_ns
from mcpmeter.records import Conditions

Factor = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,4}(\.[0-9]{1,6})?$")]
Price = Annotated[str, msgspec.Meta(pattern=list_files.PRICE_PATTERN)]
ModelName = Annotated[str, msgspec.Meta(pattern=r"^[!-~]+$", max_length=names.MAX_MODEL_CHARS)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
Condition = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_WEEKDAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class When(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The conditions of an entry: all that are given must hold."""

    tier: Condition = ""
    speed: Condition = ""
    region: Condition = ""
    completion_window: Condition = ""
    batch: Literal[False, True] = False


def condition_pairs(conditions: When | Conditions) -> tuple[tuple[str, str], ...]:
    """What differs from the standard, by name: `("tier", "flex")`, `("batch", "true")`."""
    found = [
        ("tier", conditions.tier),
        ("speed", conditions.speed),
        ("region", conditions.region),
        ("completion_window", conditions.completion_window),
        ("batch", "true" if conditions.batch else ""),
    ]
    return tuple((name, value) for name, value in found if value)


class OverlayEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One `[[price]]` of an overlay."""

    models: Annotated[tuple[ModelName, ...], msgspec.Meta(min_length=1)]
    valid_from: date = msgspec.field(name="from")
    source: Text
    read: date
    until: date | None = None
    when: When = When()
    above_prompt_tokens: Annotated[int, msgspec.Meta(ge=0, le=10**9)] = 0
    hours: tuple[str, ...] = ()
    weekdays: tuple[Weekday, ...] = ()
    except_holidays: str = ""
    times: Factor | dict[str, Factor] = msgspec.field(default_factory=dict)
    """Factors per item, or one for all tokens; of the price that is valid without this entry."""
    prices: dict[str, Price] = msgspec.field(default_factory=dict)
    """In the file, these stand directly in the entry."""
    replaces: bool = False
    """The entry's prices are all token prices of its models: what genai-prices has is dropped."""
    reason: str = ""

    def validity(self, holidays: Mapping[str, Holidays]) -> Validity:
        """When the entry is valid."""
        return Validity(
            from_ns=midnight_ns(self.valid_from),
            until_ns=None if self.until is None else midnight_ns(self.until),
            daily=tuple(interval for text in self.hours if (interval := interval_ns(text)) is not None),
            weekdays=frozenset(_WEEKDAYS.index(day) for day in self.weekdays),
            holidays=holidays[self.except_holidays] if self.except_holidays else None,
        )


class Overlay(msgspec.Struct, frozen=True, kw_only=True):
    """A file of prices for one provider of genai-prices."""

    provider: str
    price: tuple[OverlayEntry, ...]
    aliases: Mapping[str, str]
    """Other names, in lower case, of models of this file or of genai-prices."""


def bundled_overlays(providers: Iterable[str]) -> tuple[Overlay, ...]:
    """The overlays of these providers of genai-prices that come with mcpmeter. Raises ConfigInvalid."""
    folder = files(__package__).joinpath("lists", "overlays")
    found = [folder.joinpath(f"{provider}.toml") for provider in sorted(providers)]
    return tuple(load_overlay(file) for file in found if file.is_file())


def load_overlay(file: Traversable | Path) -> Overlay:
    """Load an overlay from its file. Raises ConfigInvalid with the file, the line and what to write instead."""
    return parse_overlay(list_files.read_text(file), str(file))


def parse_overlay(text: str, origin: str) -> Overlay:
    """Parse an overlay; `origin` is its name in errors. Raises ConfigInvalid."""
    raw = list_files.parse_toml(text, origin)
    if isinstance(entries := raw.get("price"), list):
        raw["price"] = [_with_prices(entry, index, text, origin) for index, entry in enumerate(entries)]
    try:
        read = msgspec.convert(raw, _File)
    except msgspec.ValidationError as fault:
        raise _FORMAT.refusal(str(fault).replace(".prices[...]", ""), text, origin) from None
    holidays = bundled_holidays()
    for index, entry in enumerate(read.price):
        if refused := _fault(entry, holidays):
            where = f"{origin}, line {list_files.line_of(text, index, None)}, entry {index + 1}"
            raise ConfigInvalid(f"{where}: {refused}.", hint=list_files.FORMAT_HINT)
    aliases = {name.lower(): model.lower() for name, model in read.aliases.items()}
    return Overlay(provider=read.provider, price=read.price, aliases=MappingProxyType(aliases))


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    provider: Condition
    price: Annotated[tuple[OverlayEntry, ...], msgspec.Meta(min_length=1)]
    aliases: dict[ModelName, ModelName] = msgspec.field(default_factory=dict)
    note: str = ""


_ENTRY_KEYS: Final = tuple(key for key in OverlayEntry.__struct_encode_fields__ if key != "prices")
_FORMAT: Final = list_files.Format(
    file_keys=_File.__struct_encode_fields__, entry_keys=(*_ENTRY_KEYS, *ITEMS), price_keys=frozenset(ITEMS)
)


def _with_prices(entry: Any, index: int, text: str, origin: str) -> Any:
    """An entry with its prices in a table of their own."""
    if not isinstance(entry, dict):
        return entry
    for key in entry:
        if key not in _ENTRY_KEYS and key not in ITEMS:
            raise _FORMAT.unknown_key(key, index, text, origin)
    known = {key: value for key, value in entry.items() if key in _ENTRY_KEYS}
    return {**known, "prices": {key: value for key, value in entry.items() if key in ITEMS}}


def _fault(entry: OverlayEntry, holidays: Mapping[str, Holidays]) -> str:
    if entry.until is not None and entry.until <= entry.valid_from:
        return "'until' is not after 'from'"
    if unread := [text for text in entry.hours if interval_ns(text) is None]:
        return f"'hours': '{unread[0]}' is not like 01:00-04:00"
    if entry.except_holidays and entry.except_holidays not in holidays:
        return f"'except_holidays': there is no table '{entry.except_holidays}', there is {', '.join(sorted(holidays))}"
    if isinstance(entry.times, dict) and (strange := [item for item in entry.times if item not in ITEMS]):
        return f"'times': '{strange[0]}' is no billable item"
    if not entry.prices and not entry.times:
        return "neither a price nor 'times'"
    if (
        condition_pairs(entry.when)
        and not entry.times
        and not any(ITEMS[item].unit == "token" for item in entry.prices)
    ):
        return "a condition without 'times' or a token's price"
    if entry.replaces and (condition_pairs(entry.when) or entry.times or not entry.reason):
        return "'replaces' needs a 'reason', and takes neither 'when' nor 'times'"
    return ""
