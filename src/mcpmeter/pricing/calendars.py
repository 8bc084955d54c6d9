"""When a price is valid: from a day, until a day, at hours of the day, on weekdays, except on holidays. All in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from importlib.resources import files
from types import MappingProxyType
from typing import Final

import msgspec

from mcpmeter.errors import ConfigInvalid
from mcpmeter.pricing import list_files

DAY_NS: Final = 86_400 * 10**9
_EPOCH: Final = date(1970, 1, 1)
_EPOCH_WEEKDAY: Final = 3
"""1970-01-01 is a Thursday; Monday is 0."""
_HOURS: Final = 24 * 60


class Holidays(msgspec.Struct, frozen=True, kw_only=True):
    """The public holidays of one country, as its government announces them per year.

    A year that the file does not have yet has none: the price of a working day is the higher one.
    """

    name: str
    days: frozenset[int]
    """Days since 1970-01-01."""


class Validity(msgspec.Struct, frozen=True, kw_only=True):
    """The instants at which a price is valid."""

    from_ns: int | None = None
    """Unix nanoseconds, UTC; None for always."""
    until_ns: int | None = None
    """The first instant at which it is no longer valid."""
    daily: tuple[tuple[int, int], ...] = ()
    """Half-open intervals of the day in nanoseconds; empty for the whole day. An end before its begin passes
    midnight."""
    weekdays: frozenset[int] = frozenset()
    """Monday is 0; empty for all."""
    holidays: Holidays | None = None
    """The days on which it is not valid."""

    def active(self, at_ns: int) -> bool:
        """Whether the price is valid at an instant in Unix nanoseconds."""
        if (self.from_ns is not None and at_ns < self.from_ns) or (
            self.until_ns is not None and at_ns >= self.until_ns
        ):
            return False
        day, of_day = divmod(at_ns, DAY_NS)
        if self.daily and not any(_within(of_day, *interval) for interval in self.daily):
            return False
        if self.weekdays and (day + _EPOCH_WEEKDAY) % 7 not in self.weekdays:
            return False
        return self.holidays is None or day not in self.holidays.days

    def edges(self, at_ns: int) -> list[int]:
        """The instants around this one at which the price may become valid or invalid."""
        edges = [edge for edge in (self.from_ns, self.until_ns) if edge is not None]
        midnight = at_ns - at_ns % DAY_NS
        if self.weekdays or self.holidays is not None:
            edges += [midnight, midnight + DAY_NS]
        days = (midnight - DAY_NS, midnight, midnight + DAY_NS)
        return edges + [day + of_day for interval in self.daily for of_day in interval for day in days]


ALWAYS: Final = Validity()


def midnight_ns(day: date) -> int:
    """A day's begin in Unix nanoseconds, UTC."""
    return (day - _EPOCH).days * DAY_NS


def interval_ns(text: str) -> tuple[int, int] | None:
    """`01:00-04:00` in nanoseconds of the day; None if it is no such interval."""
    begin, _, end = text.partition("-")
    minutes = [_minutes(part.strip()) for part in (begin, end)]
    if minutes[0] is None or minutes[1] is None or minutes[0] == minutes[1]:
        return None
    return minutes[0] * 60 * 10**9, minutes[1] * 60 * 10**9


def bundled_holidays() -> Mapping[str, Holidays]:
    """The holiday tables that come with mcpmeter, by name. Raises ConfigInvalid."""
    found = [file for file in files(__package__).joinpath("lists", "holidays").iterdir() if file.name.endswith(".toml")]
    tables = (_parse(list_files.read_text(file), str(file)) for file in found)
    return MappingProxyType({table.name: table for table in tables})


class _Year(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    days: tuple[tuple[date, date], ...]
    source: str
    read: date


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    year: tuple[_Year, ...]


def _parse(text: str, origin: str) -> Holidays:
    try:
        table = msgspec.convert(list_files.parse_toml(text, origin), _Table)
    except msgspec.ValidationError as fault:
        raise ConfigInvalid(f"{origin}: {fault}.", hint=list_files.FORMAT_HINT) from None
    spans = [span for year in table.year for span in year.days]
    days = (first + timedelta(days=number) for first, last in spans for number in range((last - first).days + 1))
    return Holidays(name=table.name, days=frozenset((day - _EPOCH).days for day in days))


def _within(of_day: int, begin: int, end: int) -> bool:
    return of_day >= begin or of_day < end if end < begin else begin <= of_day < end


def _minutes(clock: str) -> int | None:
    try:
        hour, minute = (int(part) for part in clock.split(":"))
    except ValueError:
        return None
    minutes = hour * 60 + minute
    return minutes if 0 <= minute < 60 and 0 <= minutes <= _HOURS else None


def unix_ns(at: datetime) -> int:
    """An aware instant in Unix nanoseconds, exactly. ValueError for a naive one."""
    if at.tzinfo is None:
        raise ValueError("A price depends on the instant; give a datetime with a time zone.")
    since = at - datetime(1970, 1, 1, tzinfo=UTC)
    return ((since.days * 86_400 + since.seconds) * 10**6 + since.microseconds) * 1000
