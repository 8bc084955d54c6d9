"""Stretches of time in which a time zone has one offset, so that SQL can compute its days by plain arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final, NamedTuple

SECOND_NS: Final = 10**9
DAY_S: Final = 86_400
_EPOCH: Final = date(1970, 1, 1)
_LAST_S: Final = int(datetime(9998, 12, 31, tzinfo=UTC).timestamp())


class Stretch(NamedTuple):
    """From the first to the last nanosecond, both included, with the zone's offset from UTC."""

    first_ns: int
    last_ns: int
    offset_s: int


def stretches(zone: tzinfo, first_ns: int, last_ns: int) -> list[Stretch]:
    """The time from first to last, both included, split at each change of the zone's offset."""
    if first_ns > last_ns:
        return []
    cuts = [first_ns, *(second * SECOND_NS for second in _changes(zone, first_ns // SECOND_NS, last_ns // SECOND_NS))]
    ends = [*(cut - 1 for cut in cuts[1:]), last_ns]
    return [Stretch(a, b, _offset_s(zone, a // SECOND_NS)) for a, b in zip(cuts, ends, strict=True)]


def day_text(days_since_epoch: int) -> str:
    """`2026-11-02`."""
    return (_EPOCH + timedelta(days=days_since_epoch)).isoformat()


def _changes(zone: tzinfo, first_s: int, last_s: int) -> Iterator[int]:
    """The seconds, after the first and up to the last, at which a new offset begins."""
    low = last_s if zone is UTC else first_s
    while low < last_s:
        high = min(low + DAY_S, last_s)
        if _offset_s(zone, low) != _offset_s(zone, high):
            yield _first_with_new_offset(zone, low, high)
        low = high


def _first_with_new_offset(zone: tzinfo, low: int, high: int) -> int:
    before = _offset_s(zone, low)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset_s(zone, middle) == before:
            low = middle
        else:
            high = middle
    return high


def _offset_s(zone: tzinfo, unix_s: int) -> int:
    offset = datetime.fromtimestamp(min(unix_s, _LAST_S), UTC).astimezone(zone).utcoffset()
    return int(offset.total_seconds()) if offset else 0
