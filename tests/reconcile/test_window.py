"""What a bill names: whole periods, gaps between buckets, pages that are missing."""

from __future__ import annotations

from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.reconcile.conftest import at

from mcpmeter.reconcile import window as module
from mcpmeter.reconcile.bills.base import BillInvalid
from mcpmeter.reconcile.lines import BillLine, Period
from mcpmeter.reconcile.window import UTC, Window, gaps, named_period, unfollowed


def page(*buckets: tuple[int, int], has_more: bool = False) -> Window:
    window = Window(Path("page.json"), has_more)
    for since, until in buckets:
        window.add(Period(since, until))
    return window


def lines(*days: str, request_id: str = "") -> Window:
    window = Window(Path("bill.csv"))
    for place, day in enumerate(days):
        window.add(BillLine(place, at(day), request_id))
    return window


class TestNamedPeriod:
    def test_buckets_give_the_period_to_the_nanosecond(self) -> None:
        window = page((100, 200), (200, 250))
        window.add(BillLine(1, 200, model="m"))
        assert named_period([window], UTC) == Period(100, 250)

    def test_files_are_joined_in_any_order(self) -> None:
        assert named_period([page((30, 40)), page((10, 20)), page()], UTC) == Period(10, 40)

    def test_days_of_lines_are_whole_days_of_the_time_zone(self) -> None:
        zone = ZoneInfo("Asia/Shanghai")
        found = named_period([lines("2026-11-10T20:00:00", "2026-11-12T01:00:00")], zone)
        assert found == Period(at("2026-11-10T16:00:00"), at("2026-11-12T16:00:00"))

    @pytest.mark.parametrize(
        ("days", "since", "until"),
        [
            (("2026-11-10", "2026-11-20"), "2026-11-01", "2026-12-01"),
            (("2026-12-31T23:59:59",), "2026-12-01", "2027-01-01"),
            (("2026-01-31", "2026-02-28"), "2026-01-01", "2026-03-01"),
        ],
    )
    def test_single_requests_give_calendar_months(self, days: tuple[str, ...], since: str, until: str) -> None:
        assert named_period([lines(*days, request_id="r")], UTC) == Period(at(since), at(until))

    def test_an_empty_file_gives_no_period(self) -> None:
        assert named_period([page(), lines()], UTC) is None


class TestGaps:
    def test_times_between_buckets_are_found_across_files(self) -> None:
        assert gaps([page((30, 40), (50, 60)), page((10, 20), (15, 32))]) == [Period(40, 50)]

    def test_buckets_in_any_order_and_repeated_have_no_gap(self) -> None:
        assert gaps([page((20, 30), (10, 20), (20, 30), (30, 40))]) == []

    def test_days_without_use_are_no_gap(self) -> None:
        window = Window(Path("anthropic.csv"))
        for day in ("2026-11-10", "2026-11-20"):
            window.add(Period(at(day)))
        assert gaps([window]) == []

    def test_the_number_of_gaps_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_SPANS", 10)
        descending = page(*((since, since + 1) for since in range(100, 0, -1)))
        assert descending.span == Period(1, 101)
        with pytest.raises(BillInvalid, match=r"page\.json has more than 10 gaps"):
            page(*((since, since + 1) for since in range(0, 100, 2)))

    @given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 5)), min_size=1, max_size=20))
    def test_gaps_are_the_times_that_no_bucket_covers(self, drawn: list[tuple[int, int]]) -> None:
        buckets = [(since, since + length) for since, length in drawn]
        named = {tick for since, until in buckets for tick in range(since, until)}
        missing = {tick for gap in gaps([page(*buckets)]) for tick in range(gap.since_ns, gap.until_ns)}
        assert missing == set(range(min(named), max(named) + 1)) - named


class TestUnfollowed:
    def test_a_page_is_followed_by_one_that_starts_at_its_end(self) -> None:
        first, second = page((10, 20), has_more=True), page((20, 30), has_more=True)
        assert unfollowed([second, first]) == [second]
        assert unfollowed([second, page((30, 40)), first]) == []

    def test_two_chains_of_pages_need_two_next_pages(self) -> None:
        chains = [page((10, 20), has_more=True), page((10, 20), has_more=True), page((20, 30))]
        assert len(unfollowed(chains)) == 1
        assert unfollowed([*chains, page((20, 30))]) == []

    def test_a_page_without_buckets_is_never_followed(self) -> None:
        empty = page(has_more=True)
        assert unfollowed([empty, page((10, 20))]) == [empty]
