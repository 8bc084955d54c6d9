"""What is left, how fast it burns and when it is gone: fixed windows, token buckets, several models, long silence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.catalog import ALL
from mcpmeter.catalog import quota as rows
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.quota.rate_limit_headers import MOST, Sample
from mcpmeter.quota.tracker import (
    BETWEEN_READS_NS,
    FORGOTTEN_AFTER_NS,
    MAX_POOLS,
    MAX_QUOTAS,
    MAX_SOURCES,
    QuotaStatus,
    QuotaTracker,
    credential_id,
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
def board(recorder: Recorder) -> QuotaTracker:
    made = QuotaTracker(recorder)
    made.register(["openai-1", "openai-2", "anthropic-1"])
    return made


def requests(
    remaining: int | None, *, limit: int | None = 1000, resets_at: float | None = None, window: int = 0
) -> Sample:
    """A sample of `requests`; `resets_at` in seconds after the start."""
    reset = None if resets_at is None else NOW + round(resets_at * S)
    return Sample(resource="requests", limit=limit, remaining=remaining, reset_at_ns=reset, window_ns=window * S)


def take(board: QuotaTracker, sample: Sample, at: float, *, pool: str = "") -> None:
    board.take(*OPENAI_1, [sample], now=NOW + round(at * S), pool=pool)


def standing(board: QuotaTracker, at: float) -> QuotaStatus:
    (found,) = board.report(NOW + round(at * S)).quotas
    return found


def gauges(recorder: Recorder) -> dict[str, dict[tuple[str, ...], int]]:
    """Name without the prefix -> labels -> value, of those that are shown."""
    families = {f.metric.name: f.values for f in recorder.snapshot()}
    shown = {row.name: {labels: value for labels, value, _ in families[row.name]} for row in rows.ROWS}
    return {name.removeprefix("mcp_upstream_quota_"): cells for name, cells in shown.items() if cells}


def test_a_credentials_public_id_is_its_place_never_its_key() -> None:
    assert [credential_id("openai", index) for index in range(2)] == ["openai-1", "openai-2"]


class TestLatest:
    def test_a_report_shows_the_latest_of_each_resource(self, board: QuotaTracker) -> None:
        take(board, requests(990, resets_at=60), 0)
        take(board, requests(980, resets_at=60), 10)
        board.take(*OPENAI_1, [Sample(resource="tokens", remaining=5)], now=NOW)
        board.take("anthropic", "anthropic-1", [requests(3)], now=NOW)
        report = board.report(NOW + 20 * S)
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

    def test_a_limit_stays_known_where_an_answer_leaves_it_out_but_a_remaining_does_not(
        self, board: QuotaTracker
    ) -> None:
        take(board, requests(990), 0)
        take(board, requests(None, limit=None), 1)
        found = standing(board, 2)
        assert (found.limit, found.remaining) == (1000, None)

    def test_after_the_announced_reset_the_whole_limit_remains(self, board: QuotaTracker) -> None:
        take(board, requests(0, resets_at=60), 0)
        assert standing(board, 59).remaining == 0
        after = standing(board, 60)
        assert (after.remaining, after.resets_in_seconds, after.exhausted_in_seconds) == (1000, 0, None)

    def test_a_window_of_known_length_has_ended_by_then_although_no_reset_was_told(self, board: QuotaTracker) -> None:
        take(board, requests(0, window=60), 0)
        assert standing(board, 59).remaining == 0
        assert standing(board, 60).remaining == 1000
        assert standing(board, 60).reset_at is None

    def test_after_the_reset_of_a_quota_without_a_limit_nothing_is_claimed(self, board: QuotaTracker) -> None:
        take(board, requests(5, limit=None, resets_at=60), 0)
        assert board.report(NOW + 61 * S).quotas == []

    def test_a_retry_after_is_shown_until_it_has_passed(self, board: QuotaTracker) -> None:
        wait = Sample(resource="retry_after", reset_at_ns=NOW + 30 * S)
        board.take(*OPENAI_1, [wait], now=NOW, pool="gpt-4.1")
        board.take(*OPENAI_1, [Sample(resource="retry_after", reset_at_ns=NOW + 9 * S)], now=NOW, pool="gpt-5")
        found = standing(board, 5)
        assert (found.limit, found.remaining, found.resets_in_seconds) == (None, None, 25)
        assert board.report(NOW + 30 * S).quotas == []

    def test_what_nobody_spoke_of_for_long_is_forgotten(self, board: QuotaTracker) -> None:
        take(board, requests(5, resets_at=7200), 0)
        end = NOW + 7200 * S + FORGOTTEN_AFTER_NS
        assert len(board.report(end - 1).quotas) == 1
        assert board.report(end).quotas == []


class TestBurn:
    def test_one_answer_tells_no_rate(self, board: QuotaTracker) -> None:
        take(board, requests(990, resets_at=600), 0)
        found = standing(board, 10)
        assert (found.burn_per_second, found.exhausted_in_seconds) == (None, None)

    def test_a_steady_burn_gives_the_time_to_exhaustion(self, board: QuotaTracker) -> None:
        for second in range(0, 101, 10):
            take(board, requests(1000 - 4 * second, resets_at=3600), second)
        found = standing(board, 100)
        assert found.remaining == 600
        assert found.burn_per_second == pytest.approx(4)
        assert found.exhausted_in_seconds == pytest.approx(150)

    def test_nothing_is_exhausted_that_resets_first(self, board: QuotaTracker) -> None:
        for second in range(0, 51, 10):
            take(board, requests(1000 - 4 * second, resets_at=60), second)
        found = standing(board, 50)
        assert found.burn_per_second == pytest.approx(4)
        assert found.exhausted_in_seconds is None

    def test_a_window_of_known_length_resets_first_too(self, board: QuotaTracker) -> None:
        for second in range(0, 51, 10):
            take(board, requests(1000 - 4 * second, window=60), second)
        assert standing(board, 50).exhausted_in_seconds is None

    def test_nothing_left_is_exhausted_now_even_without_a_rate(self, board: QuotaTracker) -> None:
        take(board, requests(0, resets_at=60), 0)
        assert standing(board, 1).exhausted_in_seconds == 0

    def test_no_burn_is_a_rate_of_zero_and_no_end(self, board: QuotaTracker) -> None:
        take(board, requests(990), 0)
        take(board, requests(990), 10)
        found = standing(board, 10)
        assert (found.burn_per_second, found.exhausted_in_seconds) == (0, None)

    def test_a_reset_begins_the_burn_anew(self, board: QuotaTracker) -> None:
        for second in (0, 20, 40, 59):
            take(board, requests(1000 - 10 * second, resets_at=60), second)
        take(board, requests(1000, resets_at=120), 61)
        assert standing(board, 61).burn_per_second is None
        take(board, requests(980, resets_at=120), 71)
        assert standing(board, 71).burn_per_second == pytest.approx(2)

    def test_a_reset_that_took_more_than_it_gave_is_no_burn_of_the_old_window(self, board: QuotaTracker) -> None:
        take(board, requests(500, resets_at=60), 50)
        take(board, requests(400, resets_at=120), 70)  # 600 of the new window
        assert standing(board, 70).burn_per_second is None

    def test_a_rise_is_a_reset_where_no_reset_is_told(self, board: QuotaTracker) -> None:
        take(board, requests(10), 0)
        take(board, requests(900), 10)
        take(board, requests(890), 20)
        assert standing(board, 20).burn_per_second == pytest.approx(1)

    def test_a_token_bucket_burns_net_of_what_flows_back(self, board: QuotaTracker) -> None:
        # It falls by 26 and rises by 24 in turn. By its falls alone it would be gone in 177 s; it loses 1 in 5 s.
        for turn in range(41):
            remaining = 500 - turn - 25 * (turn % 2)
            take(board, requests(remaining, resets_at=5 * turn + 6000), 5 * turn)
        found = standing(board, 200)
        assert found.remaining == 460
        assert found.burn_per_second == pytest.approx(0.2)
        assert found.exhausted_in_seconds == pytest.approx(2300)

    def test_a_bucket_that_fills_does_not_burn(self, board: QuotaTracker) -> None:
        for turn in range(10):
            take(board, requests(100 + turn, resets_at=5 * turn + 6000), 5 * turn)
        found = standing(board, 50)
        assert (found.burn_per_second, found.exhausted_in_seconds) == (0, None)

    def test_another_limit_is_another_quota(self, board: QuotaTracker) -> None:
        take(board, requests(990, limit=1000, resets_at=600), 0)
        take(board, requests(90, limit=100, resets_at=600), 10)
        assert standing(board, 10).burn_per_second is None

    def test_the_rate_looks_minutes_back_not_hours(self, board: QuotaTracker) -> None:
        take(board, requests(1000, limit=1000, resets_at=9000), 0)
        for second in range(1000, 1400, 10):
            take(board, requests(100 - (second - 1000) // 10, resets_at=9000), second)
        assert standing(board, 1390).burn_per_second == pytest.approx(0.1)

    def test_the_rate_fades_while_nothing_comes(self, board: QuotaTracker) -> None:
        take(board, requests(1000, resets_at=9000), 0)
        take(board, requests(900, resets_at=9000), 10)
        rates = [standing(board, at).burn_per_second for at in (10, 100, 290, 400)]
        assert rates == [pytest.approx(10), pytest.approx(1), pytest.approx(100 / 290), None]

    def test_a_clock_that_was_set_back_begins_anew(self, board: QuotaTracker) -> None:
        take(board, requests(1000, resets_at=9000), 100)
        take(board, requests(900, resets_at=9000), 0)
        assert standing(board, 10).burn_per_second is None
        take(board, requests(880, resets_at=9000), 10)
        assert standing(board, 10).burn_per_second == pytest.approx(2)


class TestModels:
    def test_models_that_a_provider_counts_apart_do_not_burn_each_other(self, board: QuotaTracker) -> None:
        for second in range(0, 51, 10):
            take(board, requests(9000, limit=10_000, resets_at=3600), second, pool="gpt-4.1-mini")
            take(board, requests(450 - second, limit=500, resets_at=3600), second + 1, pool="gpt-4.1")
        found = standing(board, 51)
        assert (found.limit, found.remaining) == (500, 400)
        assert found.burn_per_second == pytest.approx(1)

    def test_the_one_that_is_exhausted_soonest_is_shown(self, board: QuotaTracker) -> None:
        for second in range(0, 51, 10):
            take(board, requests(100, limit=1000, resets_at=3600), second, pool="still")
            take(board, requests(500 - 5 * second, limit=500, resets_at=3600), second, pool="burning")
        found = standing(board, 50)
        assert (found.limit, found.remaining) == (500, 250)
        assert found.exhausted_in_seconds == pytest.approx(50)


class TestGauges:
    KEY = ("openai", "openai-1", "requests")

    def test_all_four_are_written(self, board: QuotaTracker, recorder: Recorder) -> None:
        for second in range(0, 101, 10):
            take(board, requests(1000 - 4 * second, resets_at=3600.5), second)
        board.publish(NOW + 100 * S)
        assert gauges(recorder) == {
            "limit": {self.KEY: 1000},
            "remaining": {self.KEY: 600},
            "reset_timestamp_seconds": {self.KEY: NOW // S + 3601},  # rounded up: never before it
            "exhaustion_seconds": {self.KEY: 150},
        }

    def test_what_is_not_known_is_absent_never_zero(self, board: QuotaTracker, recorder: Recorder) -> None:
        assert gauges(recorder) == {}
        take(board, requests(7, limit=None), 0)
        board.publish(NOW)
        assert gauges(recorder) == {"remaining": {self.KEY: 7}}

    def test_an_exhaustion_that_is_averted_is_taken_back(self, board: QuotaTracker, recorder: Recorder) -> None:
        take(board, requests(0, resets_at=60), 0)
        board.publish(NOW)
        assert gauges(recorder)["exhaustion_seconds"] == {self.KEY: 0}
        board.publish(NOW + 60 * S)
        assert "exhaustion_seconds" not in gauges(recorder)
        assert gauges(recorder)["remaining"] == {self.KEY: 1000}

    def test_what_is_forgotten_is_taken_back(self, board: QuotaTracker, recorder: Recorder) -> None:
        take(board, requests(5, resets_at=60), 0)
        board.publish(NOW)
        board.publish(NOW + 60 * S + FORGOTTEN_AFTER_NS)
        assert gauges(recorder) == {}
        take(board, requests(4, resets_at=9000), 8000)
        board.publish(NOW + 8001 * S)
        assert gauges(recorder)["remaining"] == {self.KEY: 4}

    def test_a_credential_that_was_not_announced_is_other_and_counted_once(
        self, board: QuotaTracker, recorder: Recorder
    ) -> None:
        board.take("openai", "sk-live-0123456789", [requests(5)], now=NOW)
        board.publish(NOW)
        board.publish(NOW + S)
        assert gauges(recorder)["remaining"] == {("openai", "other", "requests"): 5}
        overflow = recorder.families["mcp_label_overflow_total"].cells
        assert overflow[("credential",)].value == 1


class TestNote:
    @staticmethod
    def headers(remaining: int) -> dict[str, str]:
        return {"x-ratelimit-limit-requests": "1000", "x-ratelimit-remaining-requests": str(remaining)}

    def test_the_last_answer_counts_although_few_are_read(self, board: QuotaTracker, recorder: Recorder) -> None:
        for call in range(500):
            board.note(*OPENAI_1, self.headers(1000 - call), "openai", now=NOW + call * BETWEEN_READS_NS // 100)
        assert standing(board, 5).remaining == 501
        board.note(*OPENAI_1, self.headers(7), "openai", now=NOW + 5 * S)
        board.publish(NOW + 5 * S)
        assert gauges(recorder)["remaining"] == {("openai", "openai-1", "requests"): 7}

    def test_it_burns_as_if_all_were_read(self, board: QuotaTracker) -> None:
        for call in range(1000):
            board.note(*OPENAI_1, self.headers(1000 - call), "openai", now=NOW + call * S // 50)
        found = standing(board, 20)
        assert found.remaining == 1
        assert found.burn_per_second == pytest.approx(50, rel=0.01)

    def test_models_are_noted_apart(self, board: QuotaTracker) -> None:
        board.note(*OPENAI_1, self.headers(7), "openai", now=NOW, pool="a")
        board.note(*OPENAI_1, self.headers(900), "openai", now=NOW + 1, pool="b")
        assert standing(board, 1).remaining == 7

    def test_an_answer_without_headers_changes_nothing(self, board: QuotaTracker) -> None:
        board.note(*OPENAI_1, self.headers(7), "openai", now=NOW)
        board.note(*OPENAI_1, {}, "openai", now=NOW + S)
        found = standing(board, 2)
        assert (found.remaining, found.reported_at) == (7, START)


class TestBounds:
    def test_neither_models_nor_credentials_nor_sources_grow_without_end(self, board: QuotaTracker) -> None:
        for n in range(3 * MAX_QUOTAS):
            board.take("openai", f"openai-{n}", [requests(n)], now=NOW + n)
            board.take(*OPENAI_1, [requests(n)], now=NOW + n, pool=f"model-{n}")
            board.note(*OPENAI_1, TestNote.headers(n), "openai", now=NOW + n, pool=f"model-{n}")
        assert len(board._tracks) == MAX_QUOTAS
        assert len(board._sources) == MAX_SOURCES
        assert max(map(len, board._tracks.values())) == MAX_POOLS

    def test_what_is_spoken_of_stays_and_what_is_silent_goes(self, board: QuotaTracker) -> None:
        for n in range(2 * MAX_QUOTAS):
            board.take("openai", f"openai-{n}", [requests(n)], now=NOW + n)
            take(board, requests(5), 0)
        kept = {q.credential for q in board.report(NOW + S).quotas}
        assert "openai-1" in kept
        assert "openai-2" not in kept

    def test_points_are_bounded_however_long_a_window_is(self, board: QuotaTracker) -> None:
        for second in range(0, 7200, 2):
            take(board, requests(MOST - second, limit=MOST, resets_at=86_400), second)
        ((track,),) = [pools.values() for pools in board._tracks.values()]
        assert len(track._points) <= 61
        assert standing(board, 7198).burn_per_second == pytest.approx(1, rel=0.02)


OPTIONAL = st.none() | st.integers(0, MOST)
REPORTS = st.tuples(
    st.integers(-10, 4000), st.builds(requests, OPTIONAL, limit=OPTIONAL, resets_at=st.none() | st.floats(0, 10**6)),
    st.sampled_from(["", "a"]),
)  # fmt: skip


@given(reports=st.lists(REPORTS, max_size=30), looked_at=st.integers(0, 10_000))
def test_no_series_of_reports_shows_what_cannot_be(reports: list[tuple[int, Sample, str]], looked_at: int) -> None:
    recorder = Recorder(rows=tuple(dict.fromkeys((*ALL, *rows.ROWS))))
    board = QuotaTracker(recorder)
    for at, sample, pool in reports:
        take(board, sample, at, pool=pool)
        board.publish(NOW + at * S)
    board.publish(NOW + looked_at * S)
    for quota in board.report(NOW + looked_at * S).quotas:
        for value in (quota.limit, quota.remaining):
            assert value is None or 0 <= value <= MOST
        for seconds in (quota.resets_in_seconds, quota.burn_per_second, quota.exhausted_in_seconds):
            assert seconds is None or 0 <= seconds < 10**18
        if quota.exhausted_in_seconds and quota.resets_in_seconds is not None:
            assert quota.exhausted_in_seconds <= quota.resets_in_seconds
    assert all(value >= 0 for cells in gauges(recorder).values() for value in cells.values())
