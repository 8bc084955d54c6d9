"""The circuit breaker alone, on a clock moved by hand."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmeter.routing.circuit_breaker import CircuitBreaker, CircuitOptions

SECOND = 1_000_000_000


def fail(breaker: CircuitBreaker, *at_seconds: float) -> None:
    for at in at_seconds:
        breaker.failed(breaker.send(int(at * SECOND)), int(at * SECOND))


def opened(at_seconds: float = 0.0) -> CircuitBreaker:
    breaker = CircuitBreaker(CircuitOptions(failures=3, window_seconds=30, open_seconds=15))
    fail(breaker, *[at_seconds] * 3)
    assert not breaker.is_closed
    return breaker


def test_enough_failures_in_a_row_open_it() -> None:
    breaker = CircuitBreaker(CircuitOptions(failures=3))
    fail(breaker, 0, 1)
    assert breaker.is_closed
    fail(breaker, 2)
    assert not breaker.allows(2 * SECOND)


def test_failures_further_apart_than_the_window_do_not_open_it() -> None:
    breaker = CircuitBreaker(CircuitOptions(failures=3, window_seconds=30))
    fail(breaker, 0, 20, 31, 52, 63)
    assert breaker.is_closed
    fail(breaker, 64)
    assert not breaker.is_closed


def test_a_success_clears_the_failures() -> None:
    breaker = CircuitBreaker(CircuitOptions(failures=3))
    for at in range(100):
        fail(breaker, at * 0.1, at * 0.1)
        breaker.succeeded(breaker.send(at))
    assert breaker.is_closed


def test_an_abandoned_call_neither_counts_nor_clears() -> None:
    breaker = CircuitBreaker(CircuitOptions(failures=3))
    fail(breaker, 0, 1)
    for _ in range(100):
        breaker.abandoned(breaker.send(SECOND))
    assert breaker.is_closed
    fail(breaker, 2)
    assert not breaker.is_closed


def test_it_half_opens_on_time_for_one_probe() -> None:
    breaker = opened()
    assert not breaker.allows(15 * SECOND - 1)
    assert breaker.send(15 * SECOND).is_probe
    assert not breaker.allows(15 * SECOND)
    assert not breaker.send(15 * SECOND).is_probe


def test_a_probe_that_succeeds_closes_it() -> None:
    breaker = opened()
    breaker.succeeded(breaker.send(15 * SECOND))
    assert breaker.is_closed
    fail(breaker, 16, 17)
    assert breaker.is_closed


def test_a_probes_headers_close_it_before_the_response_ends() -> None:
    breaker = opened()
    permit = breaker.headers_received(breaker.send(15 * SECOND))
    assert breaker.is_closed
    fail(breaker, 16, 17)
    breaker.failed(permit, 18 * SECOND)
    assert not breaker.is_closed


def test_a_probe_that_fails_reopens_it() -> None:
    breaker = opened()
    fail(breaker, 20)
    assert not breaker.allows(35 * SECOND - 1)
    assert breaker.allows(35 * SECOND)


def test_an_abandoned_probe_frees_its_place() -> None:
    breaker = opened()
    breaker.abandoned(breaker.send(15 * SECOND))
    assert breaker.send(16 * SECOND).is_probe


def test_calls_sent_before_it_opened_change_nothing() -> None:
    breaker = CircuitBreaker(CircuitOptions(failures=3, open_seconds=15))
    early = [breaker.send(0) for _ in range(3)]
    fail(breaker, 0, 0, 0)
    breaker.succeeded(early[0])
    breaker.failed(early[1], 14 * SECOND)
    breaker.headers_received(early[2])
    assert not breaker.allows(15 * SECOND - 1)
    assert breaker.allows(15 * SECOND)


def test_a_failure_from_an_earlier_period_does_not_count() -> None:
    breaker = CircuitBreaker(CircuitOptions(failures=1, open_seconds=15))
    early = breaker.send(0)
    fail(breaker, 0)
    breaker.succeeded(breaker.send(15 * SECOND))
    breaker.failed(early, 16 * SECOND)
    assert breaker.is_closed


def test_a_call_against_it_can_close_but_not_prolong_it() -> None:
    breaker = opened()
    fail(breaker, 10)
    assert breaker.half_opens_at_ns == 15 * SECOND
    breaker.succeeded(breaker.send(11 * SECOND))
    assert breaker.is_closed


def test_new_options_keep_the_failures() -> None:
    breaker = CircuitBreaker(CircuitOptions(failures=5))
    fail(breaker, 0, 1, 2)
    breaker.reconfigure(CircuitOptions(failures=2))
    fail(breaker, 3)
    assert not breaker.is_closed


@settings(deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["send", "ok", "fail", "abandon"]), st.integers(0, 9)))
)
def test_at_most_one_probe_and_never_open_for_too_long(steps: list[tuple[int, str, int]]) -> None:
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
        waits = now_ns >= breaker.half_opens_at_ns and not breaker.allows(now_ns)
        assert not waits or any(permit.is_probe for permit in out)
        probes = {permit.period for permit in out if permit.is_probe}
        assert len(probes) == sum(permit.is_probe for permit in out)
