"""Periods of budgets: days, weeks and months of a time zone. Callers pass the instant.

Periods tile the time line: the end of one is the start of the next, even if clocks are set forward or back in between.
"""

from __future__ import annotations

import re
from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import Final, Literal
from zoneinfo import ZoneInfo

PeriodKind = Literal["day", "week", "month", "once"]

NS_PER_S: Final = 1_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DAY: Final = timedelta(days=1)
_MACHINE_ZONE: Final = "localtime"
"""A zone on some systems; it would differ between replicas."""
_ZONE_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*")


def is_time_zone(name: str) -> bool:
    """Whether the IANA database has this zone (`Europe/Berlin`, `UTC`)."""
    if not _ZONE_NAME.fullmatch(name) or name == _MACHINE_ZONE:
        return False
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # OSError: a folder of zones, such as `America`
        return False
    return True


@dataclass(frozen=True)
class Period:
    """How often a budget resets; `once` never does.

    `start_day` is the day of the month (1 to 31; in a shorter month its last day) or of the week (1 is Monday).
    """

    kind: PeriodKind
    time_zone: str = "UTC"
    start_day: int = 1
    start_ns: int = 0
    """For `once`: only calls from this Unix nanosecond on; 0 for all."""

    def __post_init__(self) -> None:
        last = {"day": 1, "week": 7, "month": 31, "once": 1}[self.kind]
        if not 1 <= self.start_day <= last:
            raise ValueError(f"A {self.kind} cannot start on day {self.start_day}.")

    def bounds(self, at_ns: int) -> tuple[int, int]:
        """(start, end) in Unix nanoseconds of the period that contains an instant; end is exclusive, 0 for `once`."""
        if self.kind == "once":
            return self.start_ns, 0
        at = at_ns // NS_PER_S
        first = self._first_day(self._local(at).date())
        # A clock set back across midnight shows yesterday's date again after today has begun: then one period further.
        while (end := self._begins(self._next(first))) <= at:
            first = self._next(first)
        while (start := self._begins(first)) > at:
            first, end = self._previous(first), start
        return start * NS_PER_S, end * NS_PER_S

    def local_time(self, at_ns: int) -> datetime:
        """An instant in the zone's local time, to the second."""
        return self._local(at_ns // NS_PER_S)

    @cached_property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self.time_zone)

    def _local(self, at: int) -> datetime:
        return (_EPOCH + timedelta(seconds=at)).astimezone(self._zone)

    def _first_day(self, day: date) -> date:
        """The first day of the period that contains a day."""
        match self.kind:
            case "week":
                return day - _DAY * ((day.isoweekday() - self.start_day) % 7)
            case "month":
                first = self._in_month(day.year, day.month)
                return first if first <= day else self._previous(first)
            case _:
                return day

    def _next(self, first: date) -> date:
        return self._moved(first, 1)

    def _previous(self, first: date) -> date:
        return self._moved(first, -1)

    def _moved(self, first: date, by: int) -> date:
        if self.kind == "month":
            months = first.year * 12 + first.month - 1 + by
            return self._in_month(months // 12, months % 12 + 1)
        return first + by * (7 if self.kind == "week" else 1) * _DAY

    def _in_month(self, year: int, month: int) -> date:
        return date(year, month, min(self.start_day, monthrange(year, month)[1]))

    def _begins(self, day: date) -> int:
        """The first second of a day: midnight, the first of two, or the end of a jump over it."""
        midnight = datetime(day.year, day.month, day.day)
        before, after = (self._offset(midnight.replace(fold=fold)) for fold in (0, 1))
        wall = _seconds(midnight)
        if before >= after:  # one midnight, or two of which the first counts
            return wall - before
        # Clocks skip midnight, by `after - before`: search the first second at which they show a later time.
        low, high = wall - after, wall - before
        while low < high:
            middle = (low + high) // 2
            if middle + self._offset_at(middle) >= wall:
                high = middle
            else:
                low = middle + 1
        return low

    def _offset(self, wall: datetime) -> int:
        return _whole(wall.replace(tzinfo=self._zone).utcoffset())

    def _offset_at(self, at: int) -> int:
        return _whole(self._local(at).utcoffset())


def _seconds(wall: datetime) -> int:
    return _whole(wall.replace(tzinfo=UTC) - _EPOCH)


def _whole(span: timedelta | None) -> int:
    return 0 if span is None else span.days * 86400 + span.seconds
