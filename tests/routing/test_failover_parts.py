"""CircuitBreaker, budget, waits and the table of outcomes, each alone, with a clock made by hand."""

from __future__ import annotations

import inspect
import typing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from random import Random

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from mcpmeter import errors
from mcpmeter.catalog import ALL
from mcpmeter.catalog import upstream as rows
from mcpmeter.catalog.service import LABEL_OVERFLOW
from mcpmeter.errors import (
    ClientDisconnected,
    InvalidUpstreamResponse,
    MeterError,
    ServiceFault,
    UpstreamDisconnected,
    UpstreamFault,
)
from mcpmeter.errors import UpstreamTimedOut as TimedOut
from mcpmeter.errors import UpstreamUnreachable as Unreachable
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.routing.circuit_breaker import CircuitBreaker, CircuitOptions
from mcpmeter.routing.failover import FailoverMetrics
from mcpmeter.routing.health import MAX_WAITS, CredentialBackoff
from mcpmeter.routing.outcomes import Outcome, is_failure, is_retried, outcome_of_fault, outcome_of_status
from mcpmeter.routing.retries import FLOOR, MAX_RETRY_AFTER_NS, RetryBudget, full_jitter, retry_after_ns

unhurried = budget(deadline=None)

SECOND = 1_000_000_000
NOW = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)
NOW_NS = int(NOW.timestamp()) * SECOND


# CircuitBreaker


def fail(breaker: CircuitBreaker, *at_seconds: float) -> None:
    for at in at_seconds:
        breaker.failed(breaker.send(int(at * SECOND)), int(at * SECOND))


def opened(at_seconds: float = 0.0) -> CircuitBreaker:
    breaker = CircuitBreaker(CircuitOptions(failures=3, window_seconds=30, open_seconds=15))
    fail(breaker, *[at_seconds] * 3)
    assert not breaker.is_closed
    return breaker


class TestBreaker:
    def test_so_many_failures_in_a_row_open_it_and_one_less_does_not(self) -> None:
        breaker = CircuitBreaker(CircuitOptions(failures=3))
        fail(breaker, 0, 1)
        assert breaker.state(SECOND) == "closed"
        fail(breaker, 2)
        assert breaker.state(2 * SECOND) == "open"
        assert not breaker.allows(2 * SECOND)

    def test_failures_further_apart_than_the_window_do_not_open_it(self) -> None:
        breaker = CircuitBreaker(CircuitOptions(failures=3, window_seconds=30))
        fail(breaker, 0, 20, 31, 52, 63)
        assert breaker.is_closed
        fail(breaker, 64)
        assert not breaker.is_closed

    def test_a_success_in_between_begins_the_row_again(self) -> None:
        breaker = CircuitBreaker(CircuitOptions(failures=3))
        for at in range(100):
            fail(breaker, at * 0.1, at * 0.1)
            breaker.succeeded(breaker.send(at))
        assert breaker.is_closed

    def test_what_says_nothing_of_the_upstream_neither_counts_nor_begins_the_row_again(self) -> None:
        breaker = CircuitBreaker(CircuitOptions(failures=3))
        fail(breaker, 0, 1)
        for _ in range(100):
            breaker.abandoned(breaker.send(SECOND))
        assert breaker.is_closed
        fail(breaker, 2)
        assert not breaker.is_closed

    def test_it_half_opens_at_its_time_and_lets_one_probe_through(self) -> None:
        breaker = opened()
        assert breaker.state(15 * SECOND - 1) == "open"
        assert breaker.state(15 * SECOND) == "half_open"
        assert breaker.send(15 * SECOND).is_probe
        assert not breaker.allows(15 * SECOND)
        assert not breaker.send(15 * SECOND).is_probe

    def test_a_probe_that_succeeds_closes_it(self) -> None:
        breaker = opened()
        breaker.succeeded(breaker.send(15 * SECOND))
        assert breaker.is_closed
        fail(breaker, 16, 17)
        assert breaker.is_closed

    def test_a_probe_whose_head_came_closes_it_before_its_long_answer_ends(self) -> None:
        breaker = opened()
        permit = breaker.headers_received(breaker.send(15 * SECOND))
        assert breaker.is_closed
        fail(breaker, 16, 17)
        breaker.failed(permit, 18 * SECOND)
        assert not breaker.is_closed

    def test_a_probe_that_fails_opens_it_for_as_long_again(self) -> None:
        breaker = opened()
        fail(breaker, 20)
        assert breaker.state(35 * SECOND - 1) == "open"
        assert breaker.state(35 * SECOND) == "half_open"

    def test_it_is_clean_while_it_is_closed_and_nothing_has_failed_since_the_last_success(self) -> None:
        breaker = CircuitBreaker(CircuitOptions(failures=2, open_seconds=15))
        assert breaker.is_clean
        fail(breaker, 0)
        assert not breaker.is_clean
        breaker.succeeded(breaker.send(0))
        assert breaker.is_clean
        early = breaker.permit
        fail(breaker, 1, 1)
        breaker.succeeded(early)
        assert not breaker.is_clean
        breaker.headers_received(breaker.send(16 * SECOND))
        assert breaker.is_clean

    def test_a_probe_that_was_given_up_frees_its_place(self) -> None:
        breaker = opened()
        breaker.abandoned(breaker.send(15 * SECOND))
        assert breaker.send(16 * SECOND).is_probe

    def test_what_was_sent_before_it_opened_neither_closes_it_nor_keeps_it_open_longer(self) -> None:
        breaker = CircuitBreaker(CircuitOptions(failures=3, open_seconds=15))
        early = [breaker.send(0) for _ in range(3)]
        fail(breaker, 0, 0, 0)
        breaker.succeeded(early[0])
        breaker.failed(early[1], 14 * SECOND)
        breaker.headers_received(early[2])
        assert breaker.state(15 * SECOND - 1) == "open"
        assert breaker.allows(15 * SECOND)

    def test_a_failure_of_a_call_sent_before_it_opened_does_not_count_after_it_has_closed(self) -> None:
        breaker = CircuitBreaker(CircuitOptions(failures=1, open_seconds=15))
        early = breaker.send(0)
        fail(breaker, 0)
        breaker.succeeded(breaker.send(15 * SECOND))
        breaker.failed(early, 16 * SECOND)
        assert breaker.is_closed

    def test_a_call_sent_against_it_closes_it_by_success_and_does_not_prolong_it_by_failure(self) -> None:
        breaker = opened()
        fail(breaker, 10)
        assert breaker.half_opens_at_ns == 15 * SECOND
        breaker.succeeded(breaker.send(11 * SECOND))
        assert breaker.is_closed

    def test_new_options_count_what_has_happened(self) -> None:
        breaker = CircuitBreaker(CircuitOptions(failures=5))
        fail(breaker, 0, 1, 2)
        breaker.reconfigure(CircuitOptions(failures=2))
        fail(breaker, 3)
        assert not breaker.is_closed

    @unhurried
    @given(
        steps=st.lists(
            st.tuples(st.integers(0, 20), st.sampled_from(["send", "ok", "fail", "gone"]), st.integers(0, 9))
        )
    )
    def test_whatever_comes_there_is_never_more_than_one_probe_and_it_always_half_opens_in_time(
        self, steps: list[tuple[int, str, int]]
    ) -> None:
        options = CircuitOptions(failures=2, window_seconds=10, open_seconds=15)
        breaker, now_ns, out = CircuitBreaker(options), 0, []
        for seconds, what, which in steps:
            now_ns += seconds * SECOND
            if what == "send" and breaker.allows(now_ns):
                out.append(breaker.send(now_ns))
            elif out and what != "send":
                permit = out.pop(which % len(out))
                if what == "ok":
                    breaker.succeeded(permit)
                elif what == "fail":
                    breaker.failed(permit, now_ns)
                else:
                    breaker.abandoned(permit)
            assert breaker.is_closed or breaker.half_opens_at_ns <= now_ns + 15 * SECOND
            assert not breaker.is_closed or breaker.allows(now_ns)
            waits = breaker.state(now_ns) == "half_open" and not breaker.allows(now_ns)
            assert not waits or any(permit.is_probe for permit in out)
            probes = {permit.period for permit in out if permit.is_probe}
            assert len(probes) == sum(permit.is_probe for permit in out)


# Budget


class TestRetryBudget:
    def test_a_fresh_one_lends_the_floor_and_no_more(self) -> None:
        fresh = RetryBudget(Decimal("0.2"))
        assert [fresh.take() for _ in range(FLOOR + 1)] == [True] * FLOOR + [False]

    def test_what_was_lent_is_paid_back_first(self) -> None:
        lent = RetryBudget(Decimal("0.2"))
        taken = 0
        for request in range(1, 1001):
            lent.request()
            while lent.take():
                taken += 1
            assert taken == max(FLOOR, request // 5)

    def test_a_quiet_time_saves_no_more_than_the_floor(self) -> None:
        saved = RetryBudget(Decimal("0.2"))
        for _ in range(100_000):
            saved.request()
        assert sum(saved.take() for _ in range(1000)) == FLOOR

    def test_a_full_one_needs_no_further_request_until_one_is_taken(self) -> None:
        full = RetryBudget(Decimal("0.3"))
        while not full.is_full:
            full.request()
        assert sum(full.take() for _ in range(1000)) == FLOOR
        assert not full.is_full

    def test_a_ratio_of_zero_allows_none_from_the_start(self) -> None:
        none = RetryBudget(Decimal(0))
        for _ in range(1000):
            none.request()
            assert not none.take()

    def test_setting_the_ratio_to_zero_takes_back_what_is_left(self) -> None:
        left = RetryBudget(Decimal("0.2"))
        left.reconfigure(Decimal(0))
        assert not left.take()

    @unhurried
    @given(ratio=st.decimals(0, 1, places=4), steps=st.lists(st.booleans(), max_size=400), begin=st.integers(0, 400))
    def test_retries_never_pass_the_share_over_all_and_pass_it_by_the_floor_at_most_in_any_stretch(
        self, ratio: Decimal, steps: list[bool], begin: int
    ) -> None:
        bucket = RetryBudget(ratio)
        requests = retries = since_requests = since_retries = 0
        for index, is_request in enumerate(steps):
            if is_request:
                bucket.request()
            got = not is_request and bucket.take()
            requests, retries = requests + is_request, retries + got
            assert retries <= max(FLOOR if ratio else 0, ratio * requests)
            if index >= begin:
                since_requests, since_retries = since_requests + is_request, since_retries + got
                assert since_retries <= FLOOR + ratio * since_requests


# Waits


class TestCooling:
    def test_the_last_of_several_times_counts(self) -> None:
        backoff = CredentialBackoff()
        for instant_ns in (50, 90, 70):
            backoff.wait_until(instant_ns, 0, "m", is_rate_limited=True)
        assert backoff.until_ns("m") == 90
        assert backoff.until_ns("another") == 0

    def test_models_that_callers_name_do_not_grow_it_and_the_longest_waits_are_kept(self) -> None:
        backoff = CredentialBackoff()
        backoff.wait_until(10**9, 0, "long", is_rate_limited=True)
        for n in range(10_000):
            backoff.wait_until(n + 100, n, f"model-{n}", is_rate_limited=True)
        assert len(backoff.waits) <= MAX_WAITS
        assert backoff.until_ns("long") == 10**9
        assert backoff.until_ns("model-9999") == 10_099


class TestFullJitter:
    def test_it_spreads_evenly_between_nothing_and_the_doubled_base_up_to_the_cap(self) -> None:
        random = Random(7).random
        for retries, longest in ((0, 0.1), (1, 0.2), (3, 0.8), (6, 5.0), (5000, 5.0)):
            waits = [full_jitter(random, 0.1, 5.0, retries) for _ in range(4000)]
            assert 0 <= min(waits) < 0.01 * longest
            assert 0.99 * longest < max(waits) < longest
            assert sum(waits) / len(waits) == pytest.approx(longest / 2, rel=0.05)


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({}, None),
            ({"retry-after": "0"}, 0),
            ({"retry-after": "7"}, 7),
            ({"retry-after": " 7 "}, 7),
            ({"retry-after": "1.5"}, 1.5),
            ({"retry-after": "7, 9"}, 9),
            ({"retry-after-ms": "1500"}, 1.5),
            ({"retry-after": "2", "retry-after-ms": "1500"}, 2),
            ({"retry-after": "1", "retry-after-ms": "1500"}, 1.5),
            ({"retry-after": "soon", "retry-after-ms": "1500"}, 1.5),
            ({"retry-after": format_datetime(NOW + timedelta(seconds=90), usegmt=True)}, 90),
            ({"retry-after": format_datetime(NOW - timedelta(seconds=90), usegmt=True)}, 0),
            ({"retry-after": "Sunday, 22-Nov-26 10:01:30 GMT"}, 90),
            ({"retry-after": "Sun Nov 22 10:01:30 2026"}, 90),
            ({"retry-after": "Sun, 22 Nov 2026 11:01:30 +0100"}, 90),
            ({"retry-after": "999999999999"}, 86_400),
            ({"retry-after": format_datetime(NOW + timedelta(days=900), usegmt=True)}, 86_400),
            ({"retry-after": "99999999999999999999"}, None),
            ({"retry-after": "-5"}, None),
            ({"retry-after": "NaN"}, None),
            ({"retry-after": "1e9"}, None),
            ({"retry-after": "inf"}, None),
            ({"retry-after": "٧"}, None),
            ({"retry-after": "soon"}, None),
            ({"retry-after": ""}, None),
            ({"retry-after": "Sun, 99 Nov 2026 10:01:30 GMT"}, None),
            ({"retry-after": "Sun, 22 Nov 99999999999 10:01:30 GMT"}, None),
        ],
    )
    def test_it_is_read_in_every_form_and_nonsense_asks_for_nothing(
        self, headers: dict[str, str], seconds: float | None
    ) -> None:
        assert retry_after_ns(headers, NOW_NS) == (None if seconds is None else seconds * SECOND)

    def test_it_is_never_rounded_down(self) -> None:
        assert retry_after_ns({"retry-after": "0.000000001"}, NOW_NS) == 1
        assert retry_after_ns({"retry-after-ms": "0.0000001"}, NOW_NS) == 1
        date = format_datetime(NOW + timedelta(seconds=1), usegmt=True)
        assert retry_after_ns({"retry-after": date}, NOW_NS + 1) == SECOND - 1

    @unhurried
    @given(text=st.text() | st.from_regex(r"\w{3}, \d{1,3} \w{3} \d{1,12} \d+:\d+:\d+ [-+\w]{1,9}"), now=st.integers(0))
    def test_whatever_stands_there_is_a_time_up_to_a_day_or_nothing(self, text: str, now: int) -> None:
        asked = retry_after_ns({"retry-after": text, "retry-after-ms": text}, now)
        assert asked is None or 0 <= asked <= MAX_RETRY_AFTER_NS


# The table


class TestOutcomes:
    def test_statuses_are_tried_again_where_another_attempt_may_help_and_nowhere_else(self) -> None:
        again = {s for s in range(100, 700) if is_retried(outcome_of_status(s), s, after_timeout=True)}
        assert again == {401, 402, 429, 500, 502, 503, 504, 529}

    def test_no_status_that_a_caller_can_provoke_counts_against_an_upstream(self) -> None:
        counted = {s for s in range(100, 700) if is_failure(outcome_of_status(s), s)}
        assert not counted & {*range(200, 300), *range(400, 500), 501, 505}
        assert {500, 502, 503, 504, 520, 529} <= counted

    @pytest.mark.parametrize(
        ("fault", "outcome", "again", "counted"),
        [
            (Unreachable("x"), "unreachable", True, True),
            (UpstreamDisconnected("x"), "broken", True, True),
            (TimedOut("x"), "timeout", False, True),
            (InvalidUpstreamResponse("x"), "garbage", False, True),
            (ClientDisconnected("x"), "abandoned", False, False),
            (ServiceFault("x"), "abandoned", False, False),
            (KeyboardInterrupt(), "abandoned", False, False),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
    )
    def test_faults(self, fault: BaseException, outcome: Outcome, again: bool, counted: bool) -> None:
        assert outcome_of_fault(fault) == outcome
        assert is_retried(outcome, 0, after_timeout=False) is again
        assert is_failure(outcome, 0) is counted

    def test_a_time_out_is_tried_again_where_that_is_configured(self) -> None:
        assert is_retried("timeout", 0, after_timeout=True)

    def test_every_fault_of_an_upstream_has_an_outcome_of_its_side(self) -> None:
        tree = [error for _, error in inspect.getmembers(errors, inspect.isclass) if issubclass(error, MeterError)]
        assert UpstreamFault in tree
        for error in tree:
            assert (outcome_of_fault(error("x")) == "abandoned") is not issubclass(error, UpstreamFault)

    def test_the_labels_are_the_outcomes(self) -> None:
        outcomes = typing.get_args(Outcome)
        assert outcomes == rows.OUTCOMES
        possible = {"server_error", *(name for name in outcomes if is_retried(name, 0, after_timeout=True))}
        assert possible == set(rows.RETRY_REASONS)


# Metrics


class TestUpstreamMetrics:
    def recorder(self) -> Recorder:
        known = {row.name for row in ALL}
        recorder = Recorder(rows=(*ALL, *(row for row in rows.ROWS if row.name not in known)))
        recorder.label_allowlist.register("provider", ["openai", "local"])
        return recorder

    def test_every_series_exists_at_the_start_and_speaks_well_of_everybody(self) -> None:
        recorder = self.recorder()
        FailoverMetrics(recorder).register(["openai", "local"])
        for row, children in ((rows.ATTEMPTS, 22), (rows.RETRIES, 12)):
            assert [cell.value for cell in recorder.families[row.name].cells.values()] == [0] * children
        assert {labels: cell.value for labels, cell in recorder.families[rows.UP.name].cells.items()} == {
            ("openai",): 1,
            ("local",): 1,
        }

    def test_announcing_again_after_a_reload_does_not_raise_who_is_down(self) -> None:
        recorder = self.recorder()
        metrics = FailoverMetrics(recorder)
        metrics.register(["openai"])
        metrics.status("openai", is_up=False, is_circuit_open=True)
        metrics.register(["openai", "local"])
        assert recorder.families[rows.UP.name].cells["openai",].value == 0
        assert recorder.families[rows.CIRCUIT_OPEN.name].cells["openai",].value == 1
        assert recorder.families[rows.UP.name].cells["local",].value == 1

    def test_a_provider_that_nobody_announced_is_counted_as_other_each_time(self) -> None:
        recorder = self.recorder()
        metrics = FailoverMetrics(recorder)
        for name in ("invented", "invented", "other"):
            metrics.attempted(name, "ok")
        assert recorder.families[rows.ATTEMPTS.name].cells["other", "ok"].value == 3
        assert recorder.families[LABEL_OVERFLOW.name].cells["provider",].value == 3

    def test_what_happens_is_counted_under_its_provider(self) -> None:
        recorder = self.recorder()
        metrics = FailoverMetrics(recorder)
        metrics.register(["openai"])
        metrics.attempted("openai", "server_error")
        metrics.retried("openai", "server_error")
        assert recorder.families[rows.ATTEMPTS.name].cells["openai", "server_error"].value == 1
        assert recorder.families[rows.RETRIES.name].cells["openai", "server_error"].value == 1
