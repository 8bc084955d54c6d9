"""Periods with clock changes, short months, and every time zone."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mcpmeter.budgets.period import NS_PER_S, Period, is_time_zone

HOUR = 3600 * NS_PER_S
ZONES = sorted(available_timezones() - {"localtime"})
FIRST, LAST = (round(datetime(year, 1, 2, tzinfo=UTC).timestamp()) * NS_PER_S for year in (1900, 2200))

instants = st.integers(FIRST, LAST)
periods = st.one_of(
    st.builds(Period, st.just("day"), st.sampled_from(ZONES)),
    st.builds(Period, st.just("week"), st.sampled_from(ZONES), st.integers(1, 7)),
    st.builds(Period, st.just("month"), st.sampled_from(ZONES), st.integers(1, 31)),
)


def ns(text: str, zone: str = "UTC") -> int:
    """The instant of a zone's local time; the first if it occurs twice."""
    return round(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()) * NS_PER_S


def shown(period: Period, at_ns: int) -> tuple[str, str]:
    start, end = (period.local_time(bound).isoformat() for bound in period.bounds(at_ns))
    return start, end


@settings(max_examples=1500, deadline=None)
@given(periods, instants)
@example(Period("day", "Pacific/Apia"), ns("2011-12-31T12:00"))  # 30 December was left out
@example(Period("month", "Pacific/Apia", 30), ns("2011-12-31T12:00"))
@example(Period("day", "Pacific/Kwajalein"), ns("1969-10-01T00:00"))  # a day of 47 hours
@example(Period("day", "America/Toronto"), ns("1919-03-31T04:30"))  # 23:30 became 00:30
@example(Period("day", "America/St_Johns"), ns("1999-10-31T02:40"))  # 00:01 became 23:01
def test_every_instant_is_in_exactly_one_period(period: Period, at_ns: int) -> None:
    start, end = period.bounds(at_ns)
    assert start <= at_ns < end
    assert period.bounds(start) == period.bounds(end - 1) == (start, end)
    assert period.bounds(end)[0] == end
    assert period.bounds(start - 1)[1] == start


@settings(max_examples=500, deadline=None)
@given(periods, instants)
def test_a_period_is_as_long_as_its_name_says(period: Period, at_ns: int) -> None:
    start, end = period.bounds(at_ns)
    shortest, longest = {"day": (1, 1), "week": (7, 7), "month": (28, 31)}[period.kind]
    # A zone that changes sides of the date line gains or loses a day; day 31 makes 30 of 28 + 31.
    assert (shortest - 1) * 24 * HOUR < end - start <= (longest + 1) * 24 * HOUR


@pytest.mark.parametrize(
    ("zone", "at", "hours", "why"),
    [
        ("Europe/Berlin", "2026-03-29T12:00", 23, "put forward at 02:00"),
        ("Europe/Berlin", "2026-10-25T12:00", 25, "put back at 03:00"),
        ("America/Sao_Paulo", "2017-10-15T12:00", 23, "put forward at midnight, which does not exist"),
        ("America/Sao_Paulo", "2018-02-17T12:00", 25, "put back at midnight"),
        ("Asia/Beirut", "2022-03-27T12:00", 23, "midnight does not exist"),
        ("America/Havana", "2026-11-01T12:00", 25, "put back at 01:00: midnight comes twice"),
        ("Australia/Lord_Howe", "2026-04-05T12:00", 24.5, "half an hour"),
        ("Pacific/Apia", "2011-12-29T12:00", 24, "the day before the one that was left out"),
    ],
)
def test_a_day_is_as_long_as_the_clocks_make_it(zone: str, at: str, hours: float, why: str) -> None:
    start, end = Period("day", zone).bounds(ns(at, zone))
    assert (end - start) / HOUR == hours, why


@pytest.mark.parametrize(
    ("zone", "date", "begins"),
    [
        ("America/Sao_Paulo", "2017-10-15", "2017-10-15T01:00:00-02:00"),
        ("Asia/Beirut", "2022-03-27", "2022-03-27T01:00:00+03:00"),
        ("America/Toronto", "1919-03-31", "1919-03-31T00:30:00-04:00"),
        ("America/Havana", "2026-11-01", "2026-11-01T00:00:00-04:00"),
        ("Pacific/Apia", "2011-12-31", "2011-12-31T00:00:00+14:00"),
    ],
)
def test_a_day_begins_at_its_first_second(zone: str, date: str, begins: str) -> None:
    period = Period("day", zone)
    assert shown(period, ns(f"{date}T12:00", zone))[0] == begins


def test_a_repeated_date_after_midnight_is_in_the_new_day() -> None:
    # Newfoundland put clocks back at one minute past midnight, to 23:01 of the day before.
    period = Period("day", "America/St_Johns")
    again = ns("1999-10-31T02:32:00")
    assert period.local_time(again).isoformat() == "1999-10-30T23:02:00-03:30"
    assert shown(period, again)[0] == "1999-10-31T00:00:00-02:30"


@pytest.mark.parametrize(
    ("start_day", "at", "start", "end"),
    [
        (1, "2026-11-27T22:00", "2026-11-01", "2026-12-01"),
        (1, "2026-12-31T23:59:59", "2026-12-01", "2027-01-01"),
        (15, "2027-01-03T00:00", "2026-12-15", "2027-01-15"),
        (29, "2028-02-28T12:00", "2028-01-29", "2028-02-29"),
        (29, "2028-02-29T00:00", "2028-02-29", "2028-03-29"),
        (29, "2027-02-28T00:00", "2027-02-28", "2027-03-29"),
        (31, "2026-02-27T23:59", "2026-01-31", "2026-02-28"),
        (31, "2026-02-28T00:00", "2026-02-28", "2026-03-31"),
        (31, "2026-04-30T00:00", "2026-04-30", "2026-05-31"),
        (31, "2028-02-29T00:00", "2028-02-29", "2028-03-31"),
    ],
)
def test_a_month_starts_on_its_day_or_its_last_day(start_day: int, at: str, start: str, end: str) -> None:
    expected = (f"{start}T00:00:00+00:00", f"{end}T00:00:00+00:00")
    assert shown(Period("month", "UTC", start_day), ns(at)) == expected


@pytest.mark.parametrize("start_day", range(1, 8))
def test_a_week_starts_on_its_weekday(start_day: int) -> None:
    start, end = Period("week", "Asia/Tokyo", start_day).bounds(ns("2026-12-30T12:00", "Asia/Tokyo"))
    began = datetime.fromtimestamp(start / NS_PER_S, ZoneInfo("Asia/Tokyo"))
    assert (began.isoweekday(), began.hour) == (start_day, 0)
    assert end - start == 7 * 24 * HOUR


def test_an_instant_can_be_in_different_months_by_zone() -> None:
    at = ns("2026-11-30T23:30", "America/New_York")
    assert shown(Period("month", "America/New_York"), at)[0] == "2026-11-01T00:00:00-04:00"
    assert shown(Period("month", "Europe/Berlin"), at)[0] == "2026-12-01T00:00:00+01:00"


def test_once_has_no_end() -> None:
    assert Period("once").bounds(LAST) == (0, 0)
    assert Period("once", start_ns=FIRST).bounds(LAST) == (FIRST, 0)


def test_zones_are_database_names_not_paths() -> None:
    assert all(map(is_time_zone, ZONES))
    for name in (
        "",
        "Europe",
        "Europe/Bonn",
        "/etc/passwd",
        "../UTC",
        "UTC\n",
        "a" * 300,
        "localtime",
        "Europe//Berlin",
        "\x00",
    ):
        assert not is_time_zone(name), name


@pytest.mark.parametrize(("kind", "day"), [("day", 2), ("week", 0), ("week", 8), ("month", 32), ("month", 0)])
def test_a_start_day_outside_the_period_is_refused(kind: str, day: int) -> None:
    with pytest.raises(ValueError, match="cannot start on day"):
        Period(kind, "UTC", day)  # type: ignore[arg-type]
