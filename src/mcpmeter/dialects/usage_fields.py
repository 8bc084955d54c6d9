"""Reads a usage object by a table of its fields, so that nothing in it passes unnoticed.

Used where a dialect's one decoding of plain usage fails. A table maps the path of a field to what stands there. A path
is written with dots, an entry of a list as `[]`, or as `[TEXT]` if the entry has a text under `modality` or `type`
(`promptTokensDetails[AUDIO].tokenCount`). What no table names is an unknown item under its own path.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from copy import copy
from decimal import Decimal, InvalidOperation
from itertools import islice
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, Self

import msgspec

from mcpmeter import items
from mcpmeter.dialects import json_body
from mcpmeter.dialects.tokens import MAX_TOKENS
from mcpmeter.records import UsageItem

MAX_DEPTH: Final = 8
MAX_LEAVES: Final = 512
MAX_UNKNOWN: Final = 32
MORE: Final = "more"
"""Name of the unknown item that stands for all beyond the bounds."""

MAX_PATH_LENGTH: Final = 64
MAX_TEXT_LENGTH: Final = 64
MAX_EXACT_DIGITS: Final = 40
_TOO_LARGE: Final = Decimal("Infinity")
_TOO_SMALL: Final = Decimal(1).scaleb(-MAX_EXACT_DIGITS)
MAX_NAME_LENGTH: Final = 128
"""Characters of a field's name that a path keeps."""

ENTRY_NAMES: Final = ("modality", "type")
_ENTRY_NAMES: Final = tuple(f"].{name}" for name in ENTRY_NAMES)
"""The text that names an entry of a list is no item itself."""


class Field(NamedTuple):
    """What stands at a path."""

    role: Literal["count", "known", "text"]
    name: str = ""
    """Canonical name of a count or a text: an item, one of `items.TOTALS`, or a dialect's own."""
    scale: int = 1
    """Multiplies the number as written: seconds become milliseconds."""


def count(name: str, scale: int = 1) -> Field:
    """A count. Fields with one name mirror each other, so the greatest counts; entries of one list add up."""
    return Field("count", name, scale)


def text(name: str) -> Field:
    """A text that decides a price, such as a service tier."""
    return Field("text", name)


PART: Final = Field("known")
"""A part of another count at the same price, or a total of others."""
FREE: Final = Field("known")
"""Never billed, with all that is below it: durations, rates."""
MONEY: Final = Field("known")
"""An amount of money, which is read with its own digits elsewhere."""

Table = Mapping[str, Field]


class Reading(NamedTuple):
    """What a usage object holds."""

    counts: Mapping[str, int]
    """By canonical name; absent and null fields are missing."""
    texts: Mapping[str, str]
    paths: Mapping[str, str]
    """Canonical name of a count to the path that it was read from."""
    unknown: tuple[UsageItem, ...]
    """Also counts that are no whole number, negative or too large."""
    unknown_counts: Mapping[str, int]
    """The whole numbers among them, by path."""
    invalid: frozenset[str]
    """Canonical names of counts that cannot be read."""

    def unknown_below(self, *prefixes: str) -> int:
        """The sum of unknown whole numbers at paths that begin with one of these."""
        return sum(number for path, number in self.unknown_counts.items() if path.startswith(prefixes))


def parsed(raw: msgspec.Raw | bytes) -> Any:
    """A usage object as Python values; None if it is not JSON. Numbers of any length are read."""
    try:
        return msgspec.json.decode(raw)
    except json_body.UNREADABLE:
        pass
    try:
        return json.loads(bytes(raw), parse_int=_long_number, parse_float=_long_number)
    except (ValueError, RecursionError):
        return None


def read(usage: Any, table: Table) -> Reading:
    """Read a parsed usage object. Bounded in depth and number of fields; never raises."""
    sums: dict[str, int] = {}
    texts: dict[str, str] = {}
    strange: dict[str, int] = {}
    unknown_counts: dict[str, int] = {}
    invalid: set[str] = set()
    for path, value in _leaves(usage, table):
        field = table.get(path)
        number = whole(value, field.scale if field else 1)
        if field is None and number is not None and path != MORE:
            unknown_counts[path] = unknown_counts.get(path, 0) + number
        if field is not None and field.role == "count" and number is not None:
            sums[path] = min(MAX_TOKENS, sums.get(path, 0) + number)
        elif field is not None and field.role == "text" and isinstance(value, str):
            texts[field.name] = printable(value, MAX_TEXT_LENGTH)
        elif not path.endswith(_ENTRY_NAMES):
            strange[path] = strange.get(path, 0) + _quantity(value)
            if field is not None:
                invalid.add(field.name)
    counts: dict[str, int] = {}
    paths: dict[str, str] = {}
    for path, number in sums.items():
        name = table[path].name
        if number >= counts.get(name, 0):
            counts[name], paths[name] = number, path
    return Reading(counts, texts, paths, unknown_items(strange), unknown_counts, frozenset(invalid))


def unknown_items(quantities: Mapping[str, int]) -> tuple[UsageItem, ...]:
    """Unknown items by path, without zeros; at most `MAX_UNKNOWN`, then one that counts the rest."""
    named = [(path, number) for path, number in quantities.items() if number and path != MORE]
    rest = quantities.get(MORE, 0) + len(named[MAX_UNKNOWN:])
    shown = [
        UsageItem(printable(path, MAX_PATH_LENGTH), min(number, MAX_TOKENS)) for path, number in named[:MAX_UNKNOWN]
    ]
    return (*shown, UsageItem(MORE, rest)) if rest else tuple(shown)


def with_aliases(table: Table, aliases: Mapping[str, str]) -> Table:
    """The table with fields that a provider adds: `usage.my_cached` or `my_cached` to the name of a count.

    Raises ValueError for a name that is neither an item, nor a total, nor `free`.
    """
    added: dict[str, Field] = {}
    for path, name in aliases.items():
        if not items.is_alias_target(name):
            raise ValueError(f"'{name}' is no billable item")
        added[path.removeprefix("usage.")] = FREE if name == items.FREE else count(name)
    return MappingProxyType({**table, **added})


class OwnNames:
    """For dialects that decode usage in one piece: a provider's own names become the dialect's before that."""

    names_of_counts: Mapping[str, str] = MappingProxyType({})
    """An item or a total to the path at which the dialect counts it."""
    _own: Mapping[str, str] = MappingProxyType({})

    def with_aliases(self, aliases: Mapping[str, str]) -> Self:
        """This dialect for a provider with names of its own. An item that the dialect does not count stays unknown."""
        dialect = copy(self)
        dialect._own = {
            path.removeprefix("usage.").removeprefix("usageMetadata."): self.names_of_counts.get(name, "")
            for path, name in aliases.items()
            if name == items.FREE or name in self.names_of_counts
        }
        return dialect

    def renamed_usage(self, usage: msgspec.Raw) -> msgspec.Raw:
        """A usage object in the dialect's names, without what is free."""
        fields = parsed(usage) if json_body.is_set(usage) else None
        if not isinstance(fields, dict):
            return usage
        found = {path: _taken(fields, path) for path in self._own}
        for path, value in found.items():
            if value is not None and self._own[path]:
                _put(fields, self._own[path], value)
        return json_body.raw(fields)


def _taken(fields: dict[str, Any], path: str) -> Any:
    """Remove the value at a path; None if there is none."""
    *parents, name = path.split(".")
    inner = json_body.under(fields, *parents)
    return inner.pop(name, None) if isinstance(inner, dict) else None


def _put(fields: dict[str, Any], path: str, value: Any) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if not isinstance(fields.get(parent), dict):
            fields[parent] = {}
        fields = fields[parent]
    fields[name] = value


def whole(value: Any, scale: int = 1) -> int | None:
    """A count; None unless it is a whole number from 0 to `MAX_TOKENS`. `1200.0` is 1200 (RFC 8259, 6)."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    if not 0 <= value <= MAX_TOKENS:  # neither is NaN
        return None
    if scale == 1 and value != int(value):
        return None
    scaled: Any = value if scale == 1 else round(Decimal(str(value)) * scale, 6)
    return min(MAX_TOKENS, math.ceil(Decimal(scaled)))


def printable(written: str, length: int) -> str:
    """A provider's text, bounded and without control characters."""
    short = written[:length]
    return short if short.isprintable() else "".join(char if char.isprintable() else "?" for char in short)


def _leaves(usage: Any, table: Table) -> Iterator[tuple[str, Any]]:
    """(path, value) of each field that is neither empty nor below one that is known as a whole."""
    pending: list[tuple[str, Any, int]] = [("", usage, 0)]
    seen = 0
    while pending:
        path, value, depth = pending.pop()
        field = table.get(path)
        if _is_nothing(value) or (field is not None and field.role == "known"):
            continue
        if _is_zero(value) and (field is None or field.role != "count"):
            continue
        seen += 1
        if seen > MAX_LEAVES:
            yield MORE, 1
            return
        if not isinstance(value, dict | list):
            yield path, value
        elif depth > MAX_DEPTH:
            yield MORE, 1
        else:
            pending.extend(reversed([(name, inner, depth + 1) for name, inner in _below(path, value)]))


def _below(path: str, value: dict[str, Any] | list[Any]) -> Iterator[tuple[str, Any]]:
    """The fields of an object or entries of a list with their paths; only as many as the bound lets be noticed."""
    # Names are cut: a long one before many fields would be copied for each of them.
    if isinstance(value, dict):
        start = f"{path}." if path else ""
        for name, inner in islice(value.items(), MAX_LEAVES + 1):
            yield start + name[:MAX_NAME_LENGTH], inner
    else:
        for inner in islice(value, MAX_LEAVES + 1):
            yield path + _entry(inner), inner


def _entry(value: Any) -> str:
    names = (value.get(name) for name in ENTRY_NAMES) if isinstance(value, dict) else ()
    return next((f"[{name[:MAX_NAME_LENGTH]}]" for name in names if isinstance(name, str)), "[]")


def _is_nothing(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and value == 0


def _quantity(value: Any) -> int:
    """The quantity of an unknown item: the number, rounded up and without its sign; 1 for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return 1
    size: Any = abs(value)
    if size <= MAX_TOKENS:
        return max(1, math.ceil(Decimal(size)))
    return MAX_TOKENS if size > MAX_TOKENS else 1  # NaN is neither


def _long_number(written: str) -> Decimal:
    """Decimal takes any number of digits in linear time, which int does not."""
    if len(written) > MAX_EXACT_DIGITS:
        return _TOO_LARGE
    try:
        number = Decimal(written)
    except InvalidOperation:  # the exponent has too many digits
        return _TOO_LARGE
    # Beyond a context's exponents even abs() raises.
    if not number or abs(number.adjusted()) <= MAX_EXACT_DIGITS:
        return number or Decimal(0)
    return _TOO_LARGE if number.adjusted() > 0 else _TOO_SMALL
