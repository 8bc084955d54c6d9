"""What every bill is read by: its format, strict figures, and errors that name the file and the place in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec

from mcpmeter.errors import SetupError
from mcpmeter.reconcile.lines import BillLine, Period

Cells = Sequence[str]
ReadRow = Callable[[int, Cells], BillLine | None]
"""The line's number and its cells to a line of the bill; None for one that bills nothing. Raises `Unreadable`."""

ReadPeriod = Callable[[Cells], Period]
"""The cells of a line to the bucket or day it names. Raises `Unreadable`."""

MAX_NANOUSD: Final = 2**63 - 1
MAX_DAYS: Final = 98_000
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""Tokens or requests in JSON."""
Seconds = Annotated[int, msgspec.Meta(gt=0, lt=2**33)]
"""A Unix time in JSON."""

_AMOUNT: Final = re.compile(r"-?[0-9]{1,12}(?:\.[0-9]{0,60})?(?:[eE][+-]?[0-9]{1,5})?", re.ASCII)
# Spreadsheets and data frames write whole numbers as 59200.0.
_COUNT: Final = re.compile(r"([0-9]{1,16})(?:\.0*)?", re.ASCII)
_CONTEXT: Final = Context(prec=200, rounding=ROUND_HALF_EVEN)
_WHOLE: Final = Decimal(1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SHOWN: Final = 60


class BillInvalid(SetupError):
    """A provider's bill that cannot be read: not one that is known, or broken; names the file and the line."""

    id = "bill_invalid"


class Unreadable(ValueError):
    """What is wrong with a cell; the reader adds the file and the line."""


@dataclass(frozen=True)
class BillFormat:
    """One export of one provider."""

    name: str
    provider: str
    """As the provider is called in the configuration unless somebody renamed it."""
    columns: tuple[str, ...] = ()
    """The columns that its CSV form cannot do without; none: it has no such form."""
    row_reader: Callable[[Columns], ReadRow] | None = None
    period_reader: Callable[[Columns], ReadPeriod] | None = None
    """None if its CSV form has no line for a time in which nothing was used."""
    document: type[Any] | None = None
    """What its JSON form is decoded to; `lines_of` then takes it apart."""
    lines_of: Callable[[Any], Iterable[BillLine | Period]] | None = None
    marks: tuple[bytes, ...] = ()
    """What only its JSON form holds, all of them."""
    empty_marks: tuple[bytes, ...] = ()
    """What a page of empty buckets holds; the provider's other formats share it."""
    zone: tzinfo = UTC
    """In which its days begin."""
    delimiter: str = ","


class Columns:
    """Where the columns of a CSV file are."""

    def __init__(self, names: Sequence[str]) -> None:
        self._places = {name: place for place, name in enumerate(names)}

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def place(self, name: str) -> int:
        """Of a column that the format needs."""
        return self._places[name]

    def places(self, *names: str) -> list[int]:
        """Of those of the columns that are there."""
        return [self._places[name] for name in names if name in self._places]


def joined(cells: Cells, places: Iterable[int]) -> str:
    """Cells that tell one line from another of its day and model."""
    return "|".join([cells[place] for place in places])


def count(text: str) -> int:
    """A number of tokens or requests; an empty cell is none. Raises `Unreadable`."""
    if text.isdecimal() and text.isascii() and len(text) <= 16:
        return int(text)
    if not text.strip():
        return 0
    found = _COUNT.fullmatch(text.strip())
    if found is None:
        raise Unreadable(f"{shown(text)} is no whole number")
    return int(found[1])


def nanousd(text: str, multiplier: Decimal = _WHOLE) -> int:
    """Dollars as text in nano-dollars; more decimals than nine are rounded half to even. Raises `Unreadable`."""
    plain = text.strip()
    if _AMOUNT.fullmatch(plain) is None:
        raise Unreadable(f"{shown(text)} is no amount, which is written as 0.0042 or 1.4e-05")
    return to_nanousd(Decimal(plain), multiplier)


def to_nanousd(amount: Decimal, multiplier: Decimal = _WHOLE) -> int:
    """The same for a number of JSON, which never was a binary fraction. Raises `Unreadable`."""
    if not amount.is_finite():
        raise Unreadable(f"{amount} is no amount")
    if not amount or amount.adjusted() < -40:  # a provider writes its zeros as 0E-6176
        return 0
    if amount.adjusted() > 20 or len(amount.as_tuple().digits) > 90:
        raise Unreadable(f"{shown(str(amount))} is too much to be an amount of dollars")
    exact = _CONTEXT.multiply(amount, multiplier).scaleb(9, _CONTEXT)
    rounded = int(exact.quantize(_WHOLE, context=_CONTEXT))
    if abs(rounded) > MAX_NANOUSD:
        raise Unreadable(f"{shown(str(amount))} is too much to be an amount of dollars")
    return rounded


@lru_cache(maxsize=4096)
def instant(text: str, zone: tzinfo = UTC) -> int:
    """A day or an instant in ISO 8601 as Unix ns; without an offset it is in `zone`. Raises `Unreadable`."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise Unreadable(f"{shown(text)} is no date, which is written as 2026-11-30") from None
    return unix_ns(found if found.tzinfo else found.replace(tzinfo=zone))


def unix_ns(at: datetime) -> int:
    """An aware instant as Unix ns. Raises `Unreadable` for one before 1970 or after 2240."""
    since = at - _EPOCH
    if not 0 <= since.days < MAX_DAYS:
        raise Unreadable(f"{at:%Y-%m-%d} is no date of a bill")
    return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000


def unix_seconds(text: str) -> int:
    """Unix seconds as text to Unix ns. Raises `Unreadable`."""
    seconds = count(text)
    if not 0 < seconds < 2**33:
        raise Unreadable(f"{shown(text)} is no Unix time in seconds")
    return seconds * 10**9


def period(since_ns: int, until_ns: int) -> Period:
    """A bucket; an `until_ns` of 0 is unknown. Raises `Unreadable`."""
    if until_ns and until_ns <= since_ns:
        raise Unreadable("a bucket ends before it starts")
    return Period(since_ns, until_ns)


def unix_periods(columns: Columns) -> ReadPeriod:
    """The buckets of the columns `start_time` and, if the file has it, `end_time`."""
    start, ends = columns.place("start_time"), columns.places("end_time")

    def read_period(cells: Cells) -> Period:
        return period(unix_seconds(cells[start]), unix_seconds(cells[ends[0]]) if ends else 0)

    return read_period


def request_id(text: str) -> str:
    """An id as the provider gave it. Raises `Unreadable` for what no header could have carried."""
    if len(text) > 200 or not text.isprintable():
        raise Unreadable(f"{shown(text)} is no request id")
    return text.strip()[:128]  # the ledger keeps as many


def model(text: str) -> str:
    """A model's name. Raises `Unreadable`."""
    if len(text) > 200 or not text.isprintable():
        raise Unreadable(f"{shown(text)} is no name of a model")
    return text.strip()


def shown(text: str) -> str:
    """A cell for a message: quoted, short, printable."""
    return repr(text[:_SHOWN]) + ("…" if len(text) > _SHOWN else "")
