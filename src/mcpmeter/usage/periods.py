"""Periods of a report: a month, the last days, or between two instants, in a time zone."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from mcpmeter.errors import InvalidRequest

LATEST_NS: Final = 2**63 - 1
_MONTH: Final = re.compile(r"(\d{4})-(\d{2})")
_LAST: Final = re.compile(r"([1-9]\d{0,4})([hdw])")
_HOURS: Final = {"h": 1, "d": 24, "w": 168}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Span(NamedTuple):
    """[since, until) in Unix nanoseconds; None is unbounded."""

    since_ns: int | None
    until_ns: int | None


def time_zone(name: str) -> tzinfo:
    """A zone of the tz database. Raises InvalidRequest."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # an unknown name, or a path out of the database's folder
        raise InvalidRequest(
            "There is no time zone of this name.", hint="Use one such as Europe/Berlin, or UTC."
        ) from None


def span_of(
    *, since: str = "", until: str = "", month: str = "", last: str = "", zone: tzinfo = UTC, now_ns: int
) -> Span:
    """The requested period: since and until, a month, or the last days. Raises InvalidRequest."""
    if sum(map(bool, (since or until, month, last))) > 1:
        raise InvalidRequest(
            "The period is given in several ways.", hint="Give since and until, or a month, or the last days."
        )
    if month:
        return month_of(month, zone)
    if last:
        return _last(last, now_ns)
    span = Span(_instant(since, zone), _instant(until, zone))
    if span.since_ns is not None and span.until_ns is not None and span.since_ns >= span.until_ns:
        raise InvalidRequest("'since' is not before 'until'.", hint="Give the earlier instant as 'since'.")
    return span


def month_of(text: str, zone: tzinfo) -> Span:
    """A month such as 2026-11, by the calendar of the zone. Raises InvalidRequest."""
    match = _MONTH.fullmatch(text)
    if match is None or not 1 <= int(match[2]) <= 12 or not 1970 <= int(match[1]) <= 2200:
        raise InvalidRequest("The month is invalid.", hint="Write it as 2026-11.")
    year, month = int(match[1]), int(match[2])
    following = (year + 1, 1) if month == 12 else (year, month + 1)
    return Span(unix_ns(datetime(year, month, 1, tzinfo=zone)), unix_ns(datetime(*following, 1, tzinfo=zone)))


def unix_ns(instant: datetime) -> int:
    """An aware instant in Unix nanoseconds, clamped to the ledger's range."""
    return max(0, min((instant - _EPOCH) // timedelta(microseconds=1) * 1000, LATEST_NS))


def utc_text(ns: int | None) -> str | None:
    """`2026-11-02T00:00:00Z`, or None for None."""
    return None if ns is None else f"{datetime.fromtimestamp(ns // 10**9, UTC):%Y-%m-%dT%H:%M:%S}Z"


def _last(text: str, now_ns: int) -> Span:
    match = _LAST.fullmatch(text)
    if match is None:
        raise InvalidRequest("The duration is invalid.", hint="Write it as 24h, 7d or 4w.")
    return Span(max(0, now_ns - int(match[1]) * _HOURS[match[2]] * 3600 * 10**9), now_ns)


def _instant(text: str, zone: tzinfo) -> int | None:
    if not text:
        return None
    try:
        instant = datetime.fromisoformat(text)
        return unix_ns(instant if instant.tzinfo else instant.replace(tzinfo=zone))
    except (ValueError, OverflowError):
        raise InvalidRequest(
            "The instant is invalid.", hint="Write an ISO 8601 day or instant: 2026-11-01, 2026-11-01T12:00:00Z."
        ) from None
