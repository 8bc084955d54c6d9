"""Periods as people write them, by the calendar of the time zone that they mean."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.errors import InvalidRequest
from mcpmeter.usage.periods import Span, month_of, span_of, time_zone, utc_text

NOW = int(datetime(2026, 11, 22, 11, tzinfo=UTC).timestamp()) * 10**9
HOUR = 3600 * 10**9


def texts(span: Span) -> tuple[str | None, str | None]:
    return utc_text(span.since_ns), utc_text(span.until_ns)


@pytest.mark.parametrize(
    ("month", "zone", "since", "until"),
    [
        ("2026-11", "UTC", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"),
        ("2026-12", "UTC", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
        ("2028-02", "UTC", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"),
        ("2026-10", "Europe/Berlin", "2026-09-30T22:00:00Z", "2026-10-31T23:00:00Z"),
        ("2026-03", "America/New_York", "2026-03-01T05:00:00Z", "2026-04-01T04:00:00Z"),
    ],
)
def test_a_month_follows_the_calendar_of_the_time_zone(month, zone, since, until):
    assert texts(month_of(month, time_zone(zone))) == (since, until)


def test_the_last_days_end_now():
    assert span_of(last="7d", now_ns=NOW) == (NOW - 168 * HOUR, NOW)
    assert span_of(last="1w", now_ns=NOW) == span_of(last="168h", now_ns=NOW)


def test_a_day_begins_at_midnight_unless_it_has_an_offset():
    span = span_of(since="2026-11-02", until="2026-11-03T00:00:00Z", zone=ZoneInfo("Asia/Kathmandu"), now_ns=NOW)
    assert texts(span) == ("2026-11-01T18:15:00Z", "2026-11-03T00:00:00Z")
    assert span_of(now_ns=NOW) == (None, None)


@given(st.text(max_size=12), st.sampled_from(["since", "until", "month", "last"]))
def test_any_text_is_a_period_or_is_refused(text, way):
    try:
        span = span_of(**{way: text}, now_ns=NOW)
    except InvalidRequest:
        return
    assert all(ns is None or 0 <= ns < 2**63 for ns in span)


@given(st.text(max_size=20))
def test_any_name_is_a_time_zone_or_is_refused(name):
    with contextlib.suppress(InvalidRequest):
        assert datetime.now(time_zone(name)).tzinfo is not None
