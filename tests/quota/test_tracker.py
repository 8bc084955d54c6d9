"""Remaining, burn and exhaustion: fixed windows, token buckets, several models, no new reports."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.catalog import ALL
from mcpmeter.catalog import quota as rows
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.quota.rate_limit_headers import MAX_COUNT, Sample
from mcpmeter.quota.tracker import (
    BETWEEN_READS_NS,
    FORGOTTEN_AFTER_NS,
    MAX_POOLS,
    MAX_QUOTAS,
    MAX_SOURCES,
    QuotaStatus,
    QuotaTracker,
)

S = 1_000_000_000
START = datetime(2026, 11, 22, 11, 0, 0, tzinfo=UTC)
NOW = int(START.timestamp()) * S
OPENAI_1 = ("openai", "openai-1")


@pytest.fixture
def recorder() -> Recorder:
    made = Recorder(rows=tuple(dict.fromkeys((*ALL, *rows.ROWS))))
    made.label_allowlist.register("provider", ["openai", "anthropic"])
    return made


@pytest.fixture
def tracker(recorder: Recorder) -> QuotaTracker:
    made = QuotaTracker(recorder)
    made.register(["openai-1", "openai-2", "anthropic-1"])
    return made


def requests(
    remaining: int | None, *, limit: int | None = 1000, resets_at: float | None = None, window: int = 0
) -> Sample:
    """A sample of `requests`; `resets_at` in seconds after the start."""
    reset = None if resets_at is None else NOW + round(resets_at * S)
    return Sample(resource="requests", limit=limit, remaining=remaining, reset_at_ns=reset, window_ns=window * S)


def take(tracker: QuotaTracker, sample: Sample, at: float, *, pool: str = "") -> None:
    tracker.take(*OPENAI_1, [sample], now=NOW + round(at * S), pool=pool)


def status_at(tracker: QuotaTracker, at: float) -> QuotaStatus:
    (found,) = tracker.report(NOW + round(at * S)).quotas
    return found


def gauges(recorder: Recorder) -> dict[str, dict[tuple[str, ...], int]]:
    """Name without the prefix -> labels -> value, of those that are shown."""
    families = {f.metric.name: f.values for f in recorder.snapshot()}
    shown = {row.name: {labels: value for labels, value, _ in families[row.name]} for row in rows.ROWS}
    return {name.removeprefix("mcp_upstream_quota_"): cells for name, cells in shown.items() if cells}


class TestLatest:
    def test_a_report_shows_the_latest_of_each_resource(self, tracker: QuotaTracker) -> None:
        take(tracker, requests(990, resets_at=60), 0)
        take(tracker, requests(980, resets_at=60), 10)
        tracker.take(*OPENAI_1, [Sample(resource="tokens", remaining=5)], now=NOW)
        tracker.take("anthropic", "anthropic-1", [requests(3)], now=NOW)
        report = tracker.report(NOW + 20 * S)
        assert report.at == START + timedelta(seconds=20)
        assert [(q.provider, q.credential, q.resource, q.remaining) for q in report.quotas] == [
            ("anthropic", "anthropic-1", "requests", 3),
            ("openai", "openai-1", "requests", 980),
            ("openai", "openai-1", "tokens", 5),
        ]
        requests_left = report.quotas[1]
        assert requests_left.limit == 1000
        assert requests_left.reset_at == START + timedelta(seconds=60)
        assert requests_left.resets_in_seconds == 40
        assert requests_left.reported_at == START + timedelta(seconds=10)

    def test_a_missing_limit_is_kept_a_missing_remaining_is_not(self, tracker: QuotaTracker) -> None:
        take(tracker, requests(990), 0)
        take(tracker, requests(None, limit=None), 1)
        found = status_at(tracker, 2)
        assert (found.limit, found.remaining) == (1000, None)

    def test_after_the_reset_the_whole_limit_remains(self, tracker: QuotaTracker) -> None:
        take(tracker, requests(0, resets_at=60), 0)
        assert status_at(tracker, 59).remaining == 0
        after = status_at(tracker, 60)
        assert (after.remaining, after.resets_in_seconds, after.exhausted_in_seconds) == (1000, 0, None)

    def test_a_window_of_known_length_ends_without_a_reset(self, tracker: QuotaTracker) -> None:
        take(tracker, requests(0, window=60), 0)
        assert status_at(tracker, 59).remaining == 0
        assert status_at(tracker, 60).remaining == 1000
        assert status_at(tracker, 60).reset_at is None

    def test_without_a_limit_a_quota_ends_at_its_reset(self, tracker: QuotaTracker) -> None:
        take(tracker, requests(5, limit=None, resets_at=60), 0)
        assert tracker.report(NOW + 61 * S).quotas == []

    def test_a_retry_after_is_shown_until_it_passes(self, tracker: QuotaTracker) -> None:
        wait = Sample(resource="retry_after", reset_at_ns=NOW + 30 * S)
        tracker.take(*OPENAI_1, [wait], now=NOW, pool="gpt-4.1")
        tracker.take(*OPENAI_1, [Sample(resource="retry_after", reset_at_ns=NOW + 9 * S)], now=NOW, pool="gpt-5")
        found = status_at(tracker, 5)
        assert (found.limit, found.remaining, found.resets_in_seconds) == (None, None, 25)
        assert tracker.report(NOW + 30 * S).quotas == []

    def test_an_old_quota_is_forgotten(self, tracker: QuotaTracker) -> None:
        take(tracker, requests(5, resets_at=7200), 0)
        end = NOW + 7200 * S + FORGOTTEN_AFTER_NS
        assert len(tracker.report(end - 1).quotas) == 1
        assert tracker.report(end).quotas == []


class TestBurn:
    def test_one_report_gives_no_rate(self, tracker: QuotaTracker) -> None:
        take(tracker, requests(990, resets_at=600), 0)
        found = status_at(tracker, 10)
        assert (found.burn_per_second, found.exhausted_in_seconds) == (None, None)

    def test_a_steady_burn_gives_the_time_to_exhaustion(self, tracker: QuotaTracker) -> None:
        for second in range(0, 101, 10):
            take(tracker, requests(1000 - 4 * second, resets_at=3600), second)
        found = status_at(tracker, 100)
        assert found.remaining == 600
        assert found.burn_per_second == pytest.approx(4)
        assert found.exhausted_in_seconds == pytest.approx(150)

    def test_a_quota_that_resets_first_is_not_exhausted(self, tracker: QuotaTracker) -> None:
        for second in range(0, 51, 10):
            take(tracker, requests(1000 - 4 * second, resets_at=60), second)
        found = status_at(tracker, 50)
        assert found.burn_per_second == pytest.approx(4)
        assert found.exhausted_in_seconds is None

    def test_nothing_left_is_exhausted_now(self, tracker: QuotaTracker) -> None:
        take(tracker, requests(0, resets_at=60), 0)
        assert status_at(tracker, 1).exhausted_in_seconds == 0

    def test_no_burn_is_a_rate_of_zero(self, tracker: QuotaTracker) -> None:
        take(tracker, requests(990), 0)
        take(tracker, requests(990), 10)
        found = status_at(tracker, 10)
        assert (found.burn_per_second, found.exhausted_in_seconds) == (0, None)

    def test_a_reset_restarts_the_burn(self, tracker: QuotaTracker) -> None:
        for second in (0, 20, 40, 59):
            take(tracker, requests(1000 - 10 * second, resets_at=60), second)
        take(tracker, requests(1000, resets_at=120), 61)
        assert status_at(tracker, 61).burn_per_second is None
        take(tracker, requests(980, resets_at=120), 71)
        assert status_at(tracker, 71).burn_per_second == pytest.approx(2)

    def test_a_fall_across_a_reset_is_not_burn(self, tracker: QuotaTracker) -> None:
        take(tracker, requests(500, resets_at=60), 50)
        take(tracker, requests(400, resets_at=120), 70)  # 600 of the new window
        assert status_at(tracker, 70).burn_per_second is None

    def test_a_rise_without_a_reset_time_is_a_reset(self, tracker: QuotaTracker) -> None:
        take(tracker, requests(10), 0)
        take(tracker, requests(900), 10)
        take(tracker, requests(890), 20)
        assert status_at(tracker, 20).burn_per_second == pytest.approx(1)

    def test_a_token_bucket_burns_net_of_refills(self, tracker: QuotaTracker) -> None:
        # It falls by 26 and rises by 24 in turn. Its falls alone would exhaust it in 177 s; the net loss is 1 in 5 s.
        for turn in range(41):
            remaining = 500 - turn - 25 * (turn % 2)
            take(tracker, requests(remaining, resets_at=5 * turn + 6000), 5 * turn)
        found = status_at(tracker, 200)
        assert found.remaining == 460
        assert found.burn_per_second == pytest.approx(0.2)
        assert found.exhausted_in_seconds == pytest.approx(2300)

    def test_another_limit_is_another_quota(self, tracker: QuotaTracker) -> None:
        take(tracker, requests(990, limit=1000, resets_at=600), 0)
        take(tracker, requests(90, limit=100, resets_at=600), 10)
        assert status_at(tracker, 10).burn_per_second is None

    def test_the_rate_looks_back_minutes_not_hours(self, tracker: QuotaTracker) -> None:
        take(tracker, requests(1000, limit=1000, resets_at=9000), 0)
        for second in range(1000, 1400, 10):
            take(tracker, requests(100 - (second - 1000) // 10, resets_at=9000), second)
        assert status_at(tracker, 1390).burn_per_second == pytest.approx(0.1)

    def test_the_rate_fades_without_reports(self, tracker: QuotaTracker) -> None:
        take(tracker, requests(1000, resets_at=9000), 0)
        take(tracker, requests(900, resets_at=9000), 10)
        rates = [status_at(tracker, at).burn_per_second for at in (10, 100, 290, 400)]
        assert rates == [pytest.approx(10), pytest.approx(1), pytest.approx(100 / 290), None]

    def test_a_clock_set_back_restarts_the_burn(self, tracker: QuotaTracker) -> None:
        take(tracker, requests(1000, resets_at=9000), 100)
        take(tracker, requests(900, resets_at=9000), 0)
        assert status_at(tracker, 10).burn_per_second is None
        take(tracker, requests(880, resets_at=9000), 10)
        assert status_at(tracker, 10).burn_per_second == pytest.approx(2)


class TestModels:
    def test_models_burn_separately(self, tracker: QuotaTracker) -> None:
        for second in range(0, 51, 10):
            take(tracker, requests(9000, limit=10_000, resets_at=3600), second, pool="gpt-4.1-mini")
            take(tracker, requests(450 - second, limit=500, resets_at=3600), second + 1, pool="gpt-4.1")
        found = status_at(tracker, 51)
        assert (found.limit, found.remaining) == (500, 400)
        assert found.burn_per_second == pytest.approx(1)

    def test_the_model_exhausted_soonest_is_shown(self, tracker: QuotaTracker) -> None:
        for second in range(0, 51, 10):
            take(tracker, requests(100, limit=1000, resets_at=3600), second, pool="still")
            take(tracker, requests(500 - 5 * second, limit=500, resets_at=3600), second, pool="burning")
        found = status_at(tracker, 50)
        assert (found.limit, found.remaining) == (500, 250)
        assert found.exhausted_in_seconds == pytest.approx(50)


class TestGauges:
    KEY = ("openai", "openai-1", "requests")

    def test_all_four_are_written(self, tracker: QuotaTracker, recorder: Recorder) -> None:
        for second in range(0, 101, 10):
            take(tracker, requests(1000 - 4 * second, resets_at=3600.5), second)
        tracker.publish(NOW + 100 * S)
        assert gauges(recorder) == {
            "limit": {self.KEY: 1000},
            "remaining": {self.KEY: 600},
            "reset_timestamp_seconds": {self.KEY: NOW // S + 3601},  # rounded up: never before it
            "exhaustion_seconds": {self.KEY: 150},
        }

    def test_an_unknown_value_is_absent_never_zero(self, tracker: QuotaTracker, recorder: Recorder) -> None:
        assert gauges(recorder) == {}
        take(tracker, requests(7, limit=None), 0)
        tracker.publish(NOW)
        assert gauges(recorder) == {"remaining": {self.KEY: 7}}

    def test_an_averted_exhaustion_is_removed(self, tracker: QuotaTracker, recorder: Recorder) -> None:
        take(tracker, requests(0, resets_at=60), 0)
        tracker.publish(NOW)
        assert gauges(recorder)["exhaustion_seconds"] == {self.KEY: 0}
        tracker.publish(NOW + 60 * S)
        assert "exhaustion_seconds" not in gauges(recorder)
        assert gauges(recorder)["remaining"] == {self.KEY: 1000}

    def test_gauges_of_a_forgotten_quota_are_removed(self, tracker: QuotaTracker, recorder: Recorder) -> None:
        take(tracker, requests(5, resets_at=60), 0)
        tracker.publish(NOW)
        tracker.publish(NOW + 60 * S + FORGOTTEN_AFTER_NS)
        assert gauges(recorder) == {}
        take(tracker, requests(4, resets_at=9000), 8000)
        tracker.publish(NOW + 8001 * S)
        assert gauges(recorder)["remaining"] == {self.KEY: 4}

    def test_an_unregistered_credential_is_other_and_counted_once(
        self, tracker: QuotaTracker, recorder: Recorder
    ) -> None:
        tracker.take("openai", "sk-live-0123456789", [requests(5)], now=NOW)
        tracker.publish(NOW)
        tracker.publish(NOW + S)
        assert gauges(recorder)["remaining"] == {("openai", "other", "requests"): 5}
        overflow = recorder.families["mcp_label_overflow_total"].cells
        assert overflow[("credential",)].value == 1


class TestNote:
    @staticmethod
    def headers(remaining: int) -> dict[str, str]:
        return {"x-ratelimit-limit-requests": "1000", "x-ratelimit-remaining-requests": str(remaining)}

    def test_the_last_response_counts_although_few_are_read(self, tracker: QuotaTracker, recorder: Recorder) -> None:
        for call in range(500):
            tracker.note(*OPENAI_1, self.headers(1000 - call), "openai", now=NOW + call * BETWEEN_READS_NS // 100)
        assert status_at(tracker, 5).remaining == 501
        tracker.note(*OPENAI_1, self.headers(7), "openai", now=NOW + 5 * S)
        tracker.publish(NOW + 5 * S)
        assert gauges(recorder)["remaining"] == {("openai", "openai-1", "requests"): 7}

    def test_the_burn_is_as_if_all_were_read(self, tracker: QuotaTracker) -> None:
        for call in range(1000):
            tracker.note(*OPENAI_1, self.headers(1000 - call), "openai", now=NOW + call * S // 50)
        found = status_at(tracker, 20)
        assert found.remaining == 1
        assert found.burn_per_second == pytest.approx(50, rel=0.01)

    def test_models_are_noted_separately(self, tracker: QuotaTracker) -> None:
        tracker.note(*OPENAI_1, self.headers(7), "openai", now=NOW, pool="a")
        tracker.note(*OPENAI_1, self.headers(900), "openai", now=NOW + 1, pool="b")
        assert status_at(tracker, 1).remaining == 7

    def test_a_response_without_headers_changes_nothing(self, tracker: QuotaTracker) -> None:
        tracker.note(*OPENAI_1, self.headers(7), "openai", now=NOW)
        tracker.note(*OPENAI_1, {}, "openai", now=NOW + S)
        found = status_at(tracker, 2)
        assert (found.remaining, found.reported_at) == (7, START)


class TestBounds:
    def test_models_credentials_and_sources_are_bounded(self, tracker: QuotaTracker) -> None:
        for n in range(3 * MAX_QUOTAS):
            tracker.take("openai", f"openai-{n}", [requests(n)], now=NOW + n)
            tracker.take(*OPENAI_1, [requests(n)], now=NOW + n, pool=f"model-{n}")
            tracker.note(*OPENAI_1, TestNote.headers(n), "openai", now=NOW + n, pool=f"model-{n}")
        assert len(tracker._tracks) == MAX_QUOTAS
        assert len(tracker._sources) == MAX_SOURCES
        assert max(map(len, tracker._tracks.values())) == MAX_POOLS

    def test_the_quota_without_reports_makes_room(self, tracker: QuotaTracker) -> None:
        for n in range(2 * MAX_QUOTAS):
            tracker.take("openai", f"openai-{n}", [requests(n)], now=NOW + n)
            take(tracker, requests(5), 0)
        kept = {q.credential for q in tracker.report(NOW + S).quotas}
        assert "openai-1" in kept
        assert "openai-2" not in kept

    def test_points_are_bounded_for_any_window(self, tracker: QuotaTracker) -> None:
        for second in range(0, 7200, 2):
            take(tracker, requests(MAX_COUNT - second, limit=MAX_COUNT, resets_at=86_400), second)
        ((track,),) = [pools.values() for pools in tracker._tracks.values()]
        assert len(track._points) <= 61
        assert status_at(tracker, 7198).burn_per_second == pytest.approx(1, rel=0.02)


OPTIONAL = st.none() | st.integers(0, MAX_COUNT)
REPORTS = st.tuples(
    st.integers(-10, 4000), st.builds(requests, OPTIONAL, limit=OPTIONAL, resets_at=st.none() | st.floats(0, 10**6)),
    st.sampled_from(["", "a"]),
)  # fmt: skip


@given(reports=st.lists(REPORTS, max_size=30), looked_at=st.integers(0, 10_000))
def test_no_series_of_reports_shows_impossible_values(reports: list[tuple[int, Sample, str]], looked_at: int) -> None:
    recorder = Recorder(rows=tuple(dict.fromkeys((*ALL, *rows.ROWS))))
    tracker = QuotaTracker(recorder)
    for at, sample, pool in reports:
        take(tracker, sample, at, pool=pool)
        tracker.publish(NOW + at * S)
    tracker.publish(NOW + looked_at * S)
    for quota in tracker.report(NOW + looked_at * S).quotas:
        for value in (quota.limit, quota.remaining):
            assert value is None or 0 <= value <= MAX_COUNT
        for seconds in (quota.resets_in_seconds, quota.burn_per_second, quota.exhausted_in_seconds):
            assert seconds is None or 0 <= seconds < 10**18
        if quota.exhausted_in_seconds and quota.resets_in_seconds is not None:
            assert quota.exhausted_in_seconds <= quota.resets_in_seconds
    assert all(value >= 0 for cells in gauges(recorder).values() for value in cells.values())
