"""Decisions on one call: where each attempt goes, when it may be sent, and what the circuit and credentials learn."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from tests.routing.world import EPOCH_NS, SECOND, TWO_KEYS, A, B, C, World, credential_of

from mcpmeter.errors import (
    UpstreamDisconnected,
    UpstreamFault,
    UpstreamRateLimited,
)
from mcpmeter.providers import Provider
from mcpmeter.routing.attempts import Attempts, Refuse, Send, Wait
from mcpmeter.routing.candidates import Candidate
from mcpmeter.routing.circuit_breaker import CircuitOptions
from mcpmeter.routing.retries import RetryOptions
from mcpmeter.routing.routes import Plan, Route, Upstream


def sent(world: World) -> Attempts:
    """A call whose first attempt is in flight."""
    attempts = world.begin(A)
    assert isinstance(attempts.next(), Send)
    return attempts


class TestWhere:
    def test_a_candidate_has_upstream_model_and_credential(self) -> None:
        step = World().begin(TWO_KEYS).next()
        assert step == Send(Candidate(TWO_KEYS, "m", TWO_KEYS.credentials[0]))

    def test_after_429_the_next_key_precedes_the_next_upstream(self) -> None:
        assert World().call([TWO_KEYS, B], 429, 429, 200) == ["k-1", "k-2", "b-1"]

    def test_after_a_failure_another_upstream_precedes_the_next_key(self) -> None:
        assert World().call([TWO_KEYS, B], 503, 200) == ["k-1", "b-1"]

    def test_a_refused_key_is_excluded_then_last_for_a_minute(self) -> None:
        world = World()
        assert world.call([TWO_KEYS], 401, 200) == ["k-1", "k-2"]
        assert [world.call([TWO_KEYS], 200) for _ in range(3)] == [["k-2"]] * 3
        world.advance(61)
        assert {world.call([TWO_KEYS], 200)[0] for _ in range(2)} == {"k-1", "k-2"}

    def test_a_limited_key_without_retry_after_is_last_for_a_while(self) -> None:
        world = World()
        assert world.call([TWO_KEYS], 429, 200) == ["k-1", "k-2"]
        assert [world.call([TWO_KEYS], 200) for _ in range(2)] == [["k-2"]] * 2
        world.advance(5.1)
        assert {world.call([TWO_KEYS], 200)[0] for _ in range(2)} == {"k-1", "k-2"}

    def test_the_only_key_is_tried_again_although_refused(self) -> None:
        world = World()
        assert world.call([A], 401) == ["a-1"]
        assert world.call([A], 200) == ["a-1"]

    def test_a_forbidden_prompt_is_not_sent_elsewhere(self) -> None:
        world = World()
        assert world.call([TWO_KEYS, B], 403) == ["k-1"]
        assert world.call([TWO_KEYS, B], 200) == ["k-2"]

    def test_x_should_retry_false_prevents_a_retry(self) -> None:
        attempts = World().begin(A, B)
        attempts.next()
        assert not attempts.answered(503, {"x-should-retry": "false"})

    def test_a_fault_of_our_own_is_not_retried(self) -> None:
        world = World()
        attempts = world.begin(A, B)
        attempts.next()
        assert not attempts.failed(RuntimeError("ours"))
        assert world.counts.attempts == {("a", "abandoned"): 1}

    def test_attempts_are_limited(self) -> None:
        assert World(RetryOptions(max_attempts=3)).call([A, B, C], 503, 503, 503) == ["a-1", "b-1", "c-1"]
        assert World(RetryOptions(max_attempts=1)).call([A, B, C], 503) == ["a-1"]

    def test_without_same_place_no_slot_is_tried_twice(self) -> None:
        once = RetryOptions(same_place=False, max_attempts=5)
        assert World(once).call([A], 503) == ["a-1"]
        assert World(once).call([TWO_KEYS, A], 503, 503, 503) == ["k-1", "a-1", "k-2"]

    def test_calls_out_of_turn_raise(self) -> None:
        attempts = World().begin(A)
        with pytest.raises(RuntimeError):
            attempts.answered(200, {})
        attempts.next()
        with pytest.raises(RuntimeError):
            attempts.next()
        assert not attempts.answered(200, {})
        with pytest.raises(RuntimeError):
            attempts.next()
        with pytest.raises(RuntimeError):
            attempts.answered(503, {})


class TestWhen:
    def test_the_same_upstream_is_retried_after_full_jitter(self) -> None:
        world = World(RetryOptions(max_attempts=4, base_seconds=0.1, cap_seconds=0.3))
        attempts = world.begin(A)
        for pause in (0.05, 0.1, 0.15):
            attempts.next()
            assert attempts.answered(503, {})
            assert attempts.next() == Wait(pause)
            world.advance(pause)

    def test_a_pause_beyond_the_deadline_ends_the_call(self) -> None:
        attempts = World().begin(A, seconds=0.04)
        attempts.next()
        assert not attempts.answered(503, {})

    def test_the_pause_is_added_to_a_retry_after_within_the_cap(self) -> None:
        world = World()
        attempts = world.begin(A)
        attempts.next()
        assert attempts.answered(429, {"retry-after": "2"})
        assert attempts.next() == Wait(2.05)
        world.advance(2)
        assert isinstance(attempts.next(), Wait)
        world.advance(0.05)
        assert credential_of(attempts.next()) == "a-1"

    @pytest.mark.parametrize("seconds", ["6", "99999999"])
    def test_a_retry_after_beyond_the_cap_goes_elsewhere(self, seconds: str) -> None:
        for upstreams, again in (([A], False), ([A, B], True)):
            attempts = World().begin(*upstreams)
            attempts.next()
            assert attempts.answered(429, {"retry-after": seconds}) is again

    def test_a_retry_after_beyond_the_deadline_is_handed_on(self) -> None:
        attempts = World().begin(A, seconds=1.5)
        attempts.next()
        assert not attempts.answered(503, {"retry-after": "2"})

    def test_a_date_works_like_seconds(self) -> None:
        world = World()
        attempts = world.begin(A)
        attempts.next()
        at = datetime.fromtimestamp((EPOCH_NS + world.now_ns) / SECOND + 3, UTC)
        assert attempts.answered(503, {"retry-after": format_datetime(at, usegmt=True)})
        assert attempts.next() == Wait(3.05)

    def test_until_it_passes_other_calls_get_the_remaining_time(self) -> None:
        world = World()
        attempts = world.begin(A)
        attempts.next()
        assert not attempts.answered(429, {"retry-after": "30"})
        assert world.call([A, B], 200) == ["b-1"]
        world.advance(0.5)
        refused = world.begin(A).next()
        assert isinstance(refused, Refuse)
        assert isinstance(refused.error, UpstreamRateLimited)
        assert refused.error.retry_after == "30"
        world.advance(29.5)
        assert world.call([A], 200) == ["a-1"]

    def test_after_503_every_key_waits_after_429_one(self) -> None:
        for status, then in ((503, "UpstreamFault"), (429, "k-2")):
            world = World(RetryOptions(max_attempts=1))
            attempts = world.begin(TWO_KEYS)
            attempts.next()
            attempts.answered(status, {"retry-after": "30"})
            assert world.call([TWO_KEYS], 200) == [then]

    def test_a_shorter_wait_does_not_replace_a_longer_one(self) -> None:
        world = World(RetryOptions(max_attempts=1))
        first, second = world.begin(A), world.begin(A)
        first.next()
        second.next()
        first.answered(429, {"retry-after": "30"})
        second.answered(429, {"retry-after": "1"})
        world.advance(29.9)
        assert isinstance(world.begin(A).next(), Refuse)

    def test_a_wait_learned_by_another_call_during_a_pause_holds(self) -> None:
        world = World()
        waiting, other = world.begin(A), world.begin(A)
        waiting.next()
        other.next()
        assert waiting.answered(503, {})
        other.answered(429, {"retry-after": "4"})
        world.advance(0.05)
        assert waiting.next() == Wait(3.95)
        world.advance(3.95)
        assert credential_of(waiting.next()) == "a-1"

    def test_a_wait_that_grew_too_long_returns_the_last_result(self) -> None:
        for reply, kind in (
            (503, UpstreamFault),
            (429, UpstreamRateLimited),
            (UpstreamDisconnected("x"), UpstreamDisconnected),
        ):
            world = World()
            waiting, other = world.begin(A), world.begin(A)
            waiting.next()
            other.next()
            again = waiting.answered(reply, {}) if isinstance(reply, int) else waiting.failed(reply)
            assert again
            other.answered(429, {"retry-after": "40"})
            world.advance(0.05)
            step = waiting.next()
            assert isinstance(step, Refuse)
            assert type(step.error) is kind

    def test_after_the_longest_wait_one_call_tries(self) -> None:
        world = World(RetryOptions(max_attempts=1, max_wait_seconds=300))
        assert not sent(world).answered(429, {"retry-after": "7200"})
        assert world.call([A], 200) == ["UpstreamRateLimited"]
        world.advance(300)
        trial = sent(world)
        assert world.call([A], 200) == ["UpstreamRateLimited"]
        assert not trial.answered(200, {})
        assert world.call([A], 200) == ["a-1"]

    @pytest.mark.parametrize(
        ("reply", "headers", "seconds"), [(429, {"retry-after": "7"}, 7), (429, {}, 300), (500, {}, 300)]
    )
    def test_a_trial_that_is_refused_waits_as_it_says(
        self, reply: int, headers: Mapping[str, str], seconds: int
    ) -> None:
        world = World(RetryOptions(max_attempts=1, max_wait_seconds=300))
        sent(world).answered(429, {"retry-after": "7200"})
        world.advance(300)
        assert not sent(world).answered(reply, headers)
        world.advance(seconds - 0.5)
        assert isinstance(world.begin(A).next(), Refuse)
        world.advance(0.5)
        assert isinstance(world.begin(A).next(), Send)

    def test_an_abandoned_trial_is_followed_by_another(self) -> None:
        world = World(RetryOptions(max_attempts=1, max_wait_seconds=300))
        sent(world).answered(429, {"retry-after": "7200"})
        world.advance(300)
        sent(world).close()
        assert isinstance(world.begin(A).next(), Refuse)
        world.advance(300)
        assert isinstance(world.begin(A).next(), Send)

    def test_a_success_from_before_a_wait_does_not_end_it(self) -> None:
        world = World(RetryOptions(max_attempts=1))
        slow = sent(world)
        sent(world).answered(429, {"retry-after": "7200"})
        assert not slow.answered(200, {})
        assert isinstance(world.begin(A).next(), Refuse)

    @pytest.mark.parametrize("status", [429, 503])
    def test_a_wait_for_one_model_does_not_stop_another(self, status: int) -> None:
        world = World(RetryOptions(max_attempts=1))
        attempts = world.begin(A)
        attempts.next()
        attempts.answered(status, {"retry-after": "30"})
        assert isinstance(world.begin(A).next(), Refuse)
        other = Plan(routes=(Route(upstream=A, model="another"),))
        assert credential_of(world.failover.begin(other, 60.0).next()) == "a-1"

    def test_one_account_under_two_names_waits_under_both(self) -> None:
        world = World(RetryOptions(max_attempts=1))
        provider = Provider(name="x", base_url="https://x.example")
        twice = [Upstream(provider=provider.renamed(name), api_key="k") for name in ("x", "y")]
        attempts = world.begin(twice[0])
        attempts.next()
        attempts.answered(429, {"retry-after": "9"})
        assert isinstance(world.begin(twice[1]).next(), Refuse)

    def test_seconds_left_are_those_of_the_whole_call(self) -> None:
        world = World()
        attempts = world.begin(A, seconds=10)
        world.advance(4)
        assert attempts.seconds_left == 6
        world.advance(7)
        assert attempts.seconds_left == 0


class TestCircuits:
    def test_a_failing_upstream_is_left_out_until_a_probe_succeeds(self) -> None:
        world = World(circuit=CircuitOptions(failures=2, open_seconds=15))
        assert [world.call([A, B], 503, 200) for _ in range(2)] == [["a-1", "b-1"]] * 2
        assert world.counts.circuit_open["a"]
        assert not world.counts.up["a"]
        assert world.call([A, B], 200) == ["b-1"]
        world.advance(15)
        probe = world.begin(A, B)
        assert credential_of(probe.next()) == "a-1"
        assert world.call([A, B], 200) == ["b-1"]
        assert not probe.answered(200, {})
        assert world.call([A, B], 200) == ["a-1"]
        assert not world.counts.circuit_open["a"]
        assert world.counts.up["a"]

    def test_an_abandoned_probe_makes_room_for_the_next(self) -> None:
        world = World(circuit=CircuitOptions(failures=1))
        world.call([A, B], 503, 200)
        world.advance(15)
        probe = world.begin(A, B)
        probe.next()
        probe.close()
        probe.close()
        assert world.counts.attempts["a", "abandoned"] == 1
        assert world.call([A, B], 200) == ["a-1"]

    def test_if_all_are_open_the_first_to_half_open_is_used(self) -> None:
        world = World(RetryOptions(max_attempts=1), CircuitOptions(failures=1))
        assert world.call([B], 503) == ["b-1"]
        world.advance(1)
        assert world.call([A], 503) == ["a-1"]
        world.failover.configure(RetryOptions(), CircuitOptions(failures=1), [A, B])
        assert world.call([A, B], 503) == ["b-1"]
        assert world.call([A, B], 200) == ["b-1"]
        assert world.call([A, B], 200) == ["b-1"]

    def test_a_callers_mistakes_do_not_open_the_circuit(self) -> None:
        world = World(circuit=CircuitOptions(failures=1))
        for status in (400, 401, 402, 403, 404, 408, 422, 429, 499, 501, 505):
            world.call([A], *[status] * 3)
        assert not any(world.counts.circuit_open.values())

    def test_responses_that_break_later_open_the_circuit(self) -> None:
        world = World(circuit=CircuitOptions(failures=3))
        for _ in range(3):
            with world.begin(A) as attempts:
                attempts.next()
                attempts.answered(200, {})
                attempts.broke()
        assert world.counts.circuit_open["a"]

    def test_a_complete_response_clears_the_failures(self) -> None:
        world = World(RetryOptions(max_attempts=1), CircuitOptions(failures=2))
        for _ in range(5):
            world.call([A], 503)
            assert not world.counts.circuit_open["a"]
            world.call([A], 200)

    def test_one_refused_key_of_two_and_403_leave_it_up(self) -> None:
        world = World()
        world.call([TWO_KEYS], 401, 200)
        world.call([TWO_KEYS], 403)
        world.call([A], 403)
        assert world.counts.up == {"k": True, "a": True}
