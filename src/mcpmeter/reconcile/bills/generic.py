"""Any CSV file, read with a mapping: a TOML file that names the columns. docs/reconcile.md has a complete example."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final
from zoneinfo import ZoneInfo

import msgspec

from mcpmeter.reconcile.bills.base import (
    BillFormat,
    BillInvalid,
    Cells,
    Columns,
    ReadRow,
    Unreadable,
    count,
    instant,
    model,
    nanousd,
    request_id,
    shown,
    unix_ns,
    unix_seconds,
)
from mcpmeter.reconcile.lines import BillLine

HINT: Final = "docs/reconcile.md has a complete example."

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Multiplier = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,18})?$")]


class MappedColumns(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file's column names."""

    time: Name
    model: Name = ""
    request_id: Name = ""
    requests: Name = ""
    prompt_tokens: Name | tuple[Name, ...] = ""
    completion_tokens: Name | tuple[Name, ...] = ""
    cost: Name = ""


class Only(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename={"is_": "is"}):
    """A condition on lines, by the text of one column."""

    column: Name
    is_: tuple[str, ...] = ()
    is_not: tuple[str, ...] = ()


class Mapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A mapping file."""

    provider: Name
    columns: MappedColumns
    timezone: str = "UTC"
    delimiter: Annotated[str, msgspec.Meta(min_length=1, max_length=1)] = ","
    time_format: str = ""
    cost_multiplier: Multiplier = "1"
    only: tuple[Only, ...] = ()


def load_mapping(path: Path) -> Mapping:
    """Reads a mapping file. Raises BillInvalid naming the file and the key."""
    try:
        raw = tomllib.loads(path.read_bytes().decode())
        mapping = msgspec.convert(raw, Mapping)
    except OSError as fault:
        raise BillInvalid(f"The mapping {path} cannot be read: {fault.strerror}.", hint=HINT) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as fault:
        raise BillInvalid(f"The mapping {path}: {fault}.", hint=HINT) from None
    columns = mapping.columns
    if not (columns.cost or (columns.prompt_tokens and columns.completion_tokens)):
        raise BillInvalid(
            f"The mapping {path} names neither a cost column nor columns of prompt and completion tokens.", hint=HINT
        )
    if bool(columns.prompt_tokens) != bool(columns.completion_tokens):
        raise BillInvalid(f"The mapping {path} names token columns of one kind only.", hint=HINT)
    _zone(mapping, path)
    return mapping


def mapped_format(mapping: Mapping, path: Path) -> BillFormat:
    """The format that a mapping describes. Raises BillInvalid for an unknown time zone."""
    columns = mapping.columns
    single = [columns.time, columns.model, columns.request_id, columns.requests, columns.cost]
    needed = [*single, *_several(columns.prompt_tokens), *_several(columns.completion_tokens)]
    needed += [only.column for only in mapping.only]
    zone = _zone(mapping, path)
    return BillFormat(
        name="mapped",
        provider=mapping.provider,
        columns=tuple(dict.fromkeys(name for name in needed if name)),
        row_reader=lambda where: _row_reader(mapping, where, zone),
        zone=zone,
        delimiter=mapping.delimiter,
    )


def _row_reader(mapping: Mapping, where: Columns, zone: tzinfo) -> ReadRow:
    named = mapping.columns
    counts = _is_counted(mapping, where)
    at, time = _time_reader(mapping.time_format, zone), where.index(named.time)
    text, number, amount = _texts(where), _counts(where), _amounts(where, Decimal(mapping.cost_multiplier))
    model_of, id_of = text(named.model, model), text(named.request_id, request_id)
    requests, prompt, completion = map(number, (named.requests, named.prompt_tokens, named.completion_tokens))
    cost = amount(named.cost)

    def read_row(line: int, cells: Cells) -> BillLine | None:
        if not counts(cells):
            return None
        return BillLine(
            line, at(cells[time]), id_of(cells), model_of(cells), "", requests(cells), prompt(cells),
            completion(cells), cost(cells),
        )  # fmt: skip

    return read_row


def _is_counted(mapping: Mapping, where: Columns) -> Callable[[Cells], bool]:
    rules = [(where.index(only.column), frozenset(only.is_), frozenset(only.is_not)) for only in mapping.only]

    def is_counted(cells: Cells) -> bool:
        return all(
            (not wanted or cells[index].strip() in wanted) and cells[index].strip() not in unwanted
            for index, wanted, unwanted in rules
        )

    return is_counted


def _time_reader(time_format: str, zone: tzinfo) -> Callable[[str], int]:
    if time_format == "unix":
        return unix_seconds
    if not time_format:
        return lambda text: instant(text, zone)

    @lru_cache(maxsize=4096)
    def read(text: str) -> int:
        try:
            found = datetime.strptime(text.strip(), time_format)
        except ValueError:
            raise Unreadable(f"{shown(text)} is no date in the format {time_format}") from None
        return unix_ns(found if found.tzinfo else found.replace(tzinfo=zone))

    return read


def _texts(where: Columns) -> Callable[[str, Callable[[str], str]], Callable[[Cells], str]]:
    def reader(name: str, read: Callable[[str], str]) -> Callable[[Cells], str]:
        if not name:
            return lambda _cells: ""
        index = where.index(name)
        return lambda cells: read(cells[index])

    return reader


def _counts(where: Columns) -> Callable[[str | tuple[str, ...]], Callable[[Cells], int | None]]:
    def reader(names: str | tuple[str, ...]) -> Callable[[Cells], int | None]:
        indexes = [where.index(name) for name in _several(names)]
        if not indexes:
            return lambda _cells: None
        if len(indexes) == 1:
            (only,) = indexes
            return lambda cells: count(cells[only])
        return lambda cells: sum(count(cells[index]) for index in indexes)

    return reader


def _amounts(where: Columns, multiplier: Decimal) -> Callable[[str], Callable[[Cells], int | None]]:
    def reader(name: str) -> Callable[[Cells], int | None]:
        if not name:
            return lambda _cells: None
        index = where.index(name)
        return lambda cells: nanousd(cells[index], multiplier)

    return reader


def _several(names: str | Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in ([names] if isinstance(names, str) else names) if name)


def _zone(mapping: Mapping, path: Path) -> tzinfo:
    if mapping.timezone == "UTC":
        return UTC
    try:
        return ZoneInfo(mapping.timezone)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        raise BillInvalid(
            f"The mapping {path} names the unknown time zone {shown(mapping.timezone)}.",
            hint="Write it as Europe/Berlin, or UTC.",
        ) from None
