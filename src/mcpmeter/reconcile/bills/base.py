"""What all bill formats share: the format record, strict readers of cells, and errors with file and line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from decimal import ROUND_HALF_EVEN, Context, Decimal
from functools import lru_cache
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec

from mcpmeter.errors import SetupError
from mcpmeter.reconcile.lines import BillLine, Period

_Result = TypeVar("_Result")
_Bucket = TypeVar("_Bucket")

Cells = Sequence[str]
ReadRow = Callable[[int, Cells], BillLine | None]
"""Converts a line's number and cells to a bill line; None if it bills nothing. Raises `Unreadable`."""

ReadPeriod = Callable[[Cells], Period]
"""Converts a line's cells to the bucket or day it names. Raises `Unreadable`."""

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
    """A provider's bill is malformed or in an unknown format; the message names the file and the line."""

    id = "bill_invalid"


class Unreadable(ValueError):
    """A malformed cell; the reader adds the file and the line."""


@dataclass(frozen=True)
class BillFormat:
    """One export of one provider."""

    name: str
    provider: str
    """The provider's default name in the configuration."""
    columns: tuple[str, ...] = ()
    """Required columns of the CSV form; empty if there is no such form."""
    row_reader: Callable[[Columns], ReadRow] | None = None
    period_reader: Callable[[Columns], ReadPeriod] | None = None
    """None if the CSV form has no lines for times without use."""
    document: type[Any] | None = None
    """Type of the JSON form; `lines_of` reads its lines."""
    lines_of: Callable[[Any], Iterable[BillLine | Period]] | None = None
    marks: tuple[bytes, ...] = ()
    """Texts that occur together only in its JSON form."""
    empty_marks: tuple[bytes, ...] = ()
    """Texts in a page of empty buckets; the provider's other formats share them."""
    zone: tzinfo = UTC
    """Time zone of its days."""
    delimiter: str = ","


class Columns:
    """Positions of a CSV file's columns."""

    def __init__(self, names: Sequence[str]) -> None:
        self._indexes = {name: index for index, name in enumerate(names)}

    def index(self, name: str) -> int:
        """Position of a required column."""
        return self._indexes[name]

    def indexes(self, *names: str) -> list[int]:
        """Positions of those columns that exist."""
        return [self._indexes[name] for name in names if name in self._indexes]


def joined(cells: Cells, indexes: Iterable[int]) -> str:
    """The cells that distinguish lines of one day and model."""
    return "|".join([cells[index] for index in indexes])


def count(text: str) -> int:
    """A number of tokens or requests; 0 for an empty cell. Raises `Unreadable`."""
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
        raise Unreadable(f"{shown(text)} is no amount such as 0.0042 or 1.4e-05")
    return to_nanousd(Decimal(plain), multiplier)


def to_nanousd(amount: Decimal, multiplier: Decimal = _WHOLE) -> int:
    """The same for a JSON number, decoded as a decimal. Raises `Unreadable`."""
    if not amount.is_finite():
        raise Unreadable(f"{amount} is no amount")
    if not amount or amount.adjusted() < -40:  # some zeros are written as 0E-6176
        return 0
    if amount.adjusted() > 20 or len(amount.as_tuple().digits) > 90:
        raise Unreadable(f"{shown(str(amount))} is too large for an amount in dollars")
    exact = _CONTEXT.multiply(amount, multiplier).scaleb(9, _CONTEXT)
    rounded = int(exact.quantize(_WHOLE, context=_CONTEXT))
    if abs(rounded) > MAX_NANOUSD:
        raise Unreadable(f"{shown(str(amount))} is too large for an amount in dollars")
    return rounded


@lru_cache(maxsize=4096)
def instant(text: str, zone: tzinfo = UTC) -> int:
    """An ISO 8601 day or instant as Unix ns, in `zone` if it has no offset. Raises `Unreadable`."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise Unreadable(f"{shown(text)} is no date such as 2026-11-30") from None
    return unix_ns(found if found.tzinfo else found.replace(tzinfo=zone))


def unix_ns(at: datetime) -> int:
    """An aware instant as Unix ns. Raises `Unreadable` for one before 1970 or after 2240."""
    since = at - _EPOCH
    if not 0 <= since.days < MAX_DAYS:
        raise Unreadable(f"{at:%Y-%m-%d} is too far away for a bill")
    return (since.days * 86_400 + since.seconds) * 10**9 + since.microseconds * 1000


def unix_seconds(text: str) -> int:
    """Unix seconds as text to Unix ns. Raises `Unreadable`."""
    seconds = count(text)
    if not 0 < seconds < 2**33:
        raise Unreadable(f"{shown(text)} is no Unix time in seconds")
    return seconds * 10**9


class Page(msgspec.Struct, Generic[_Bucket], frozen=True):
    """A page of a provider's API: buckets of results."""

    data: list[_Bucket]
    has_more: bool = False
    next_page: str | None = None


class UnixBucket(msgspec.Struct, Generic[_Result], frozen=True):
    """A bucket of OpenAI's API."""

    start_time: Seconds
    results: list[_Result]
    end_time: Seconds | None = None

    @property
    def period(self) -> Period:
        """Raises `Unreadable`."""
        return period(self.start_time * 10**9, (self.end_time or 0) * 10**9)


class IsoBucket(msgspec.Struct, Generic[_Result], frozen=True):
    """A bucket of Anthropic's API."""

    starting_at: str
    results: list[_Result]
    ending_at: str | None = None

    @property
    def period(self) -> Period:
        """Raises `Unreadable`."""
        return period(instant(self.starting_at), instant(self.ending_at) if self.ending_at else 0)


def bucket_lines(
    line_of: Callable[[int, int, _Result], BillLine | None],
) -> Callable[[Page[UnixBucket[_Result] | IsoBucket[_Result]]], Iterator[BillLine | Period]]:
    """Reads a page: each bucket's period, then its lines. `line_of` takes a result's number, start and content."""

    def lines_of(page: Page[UnixBucket[_Result] | IsoBucket[_Result]]) -> Iterator[BillLine | Period]:
        number = 0
        for bucket in page.data:
            named = bucket.period
            yield named
            for result in bucket.results:
                number += 1
                line = line_of(number, named.since_ns, result)
                if line is not None:
                    yield line

    return lines_of


def period(since_ns: int, until_ns: int) -> Period:
    """A bucket; 0 for an unknown `until_ns`. Raises `Unreadable`."""
    if until_ns and until_ns <= since_ns:
        raise Unreadable("a bucket ends before it starts")
    return Period(since_ns, until_ns)


def unix_periods(columns: Columns) -> ReadPeriod:
    """Reads buckets from the columns `start_time` and, if it exists, `end_time`."""
    start, end = columns.index("start_time"), columns.indexes("end_time")

    def read_period(cells: Cells) -> Period:
        return period(unix_seconds(cells[start]), unix_seconds(cells[end[0]]) if end else 0)

    return read_period


def request_id(text: str) -> str:
    """A provider's request id. Raises `Unreadable` for a text that no header can contain."""
    if len(text) > 200 or not text.isprintable():
        raise Unreadable(f"{shown(text)} is no request id")
    return text.strip()[:128]  # the ledger's limit


def model(text: str) -> str:
    """A model's name. Raises `Unreadable`."""
    if len(text) > 200 or not text.isprintable():
        raise Unreadable(f"{shown(text)} is no model name")
    return text.strip()


def shown(text: str) -> str:
    """A cell for a message: quoted, short, printable."""
    return repr(text[:_SHOWN]) + ("…" if len(text) > _SHOWN else "")
