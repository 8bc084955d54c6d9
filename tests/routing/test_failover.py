"""Attempts of one call and of many, on a clock made by hand: each decision alone, then storms that play everything."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import format_datetime
from itertools import count, pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as budget
from hypothesis import strategies as st

from mcpmeter.errors import (
    UpstreamDisconnected,
    UpstreamFault,
    UpstreamRateLimited,
    UpstreamTimedOut,
    UpstreamUnreachable,
)
from mcpmeter.providers import Provider
from mcpmeter.routing.attempts import Attempts, Refuse, Send, Wait
from mcpmeter.routing.candidates import Candidate
from mcpmeter.routing.circuit_breaker import CircuitOptions
from mcpmeter.routing.failover import Failover
from mcpmeter.routing.outcomes import RETRIED_5XX, Outcome
from mcpmeter.routing.retries import FLOOR, RetryOptions
from mcpmeter.routing.routes import MAX_PLANS, Mode, Plan, Route, Upstream

unhurried = budget(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SECOND = 1_000_000_000
EPOCH_NS = int(datetime(2026, 11, 22, tzinfo=UTC).timestamp()) * SECOND

Reply = tuple[int | UpstreamFault | None, Mapping[str, str]]
"""Status or fault, and headers; None: the caller leaves while it waits."""


class Counts:
    """A `FailoverObserver` that keeps what it was told."""

    def __init__(self) -> None:
        self.attempts: Counter[tuple[str, Outcome]] = Counter()
        self.retries: Counter[tuple[str, Outcome]] = Counter()
        self.up: dict[str, bool] = {}
        self.circuit_open: dict[str, bool] = {}

    def attempted(self, provider: str, outcome: Outcome) -> None:
        self.attempts[provider, outcome] += 1

    def retried(self, provider: str, reason: Outcome) -> None:
        self.retries[provider, reason] += 1

    def status(self, provider: str, *, is_up: bool, is_circuit_open: bool) -> None:
        self.up[provider], self.circuit_open[provider] = is_up, is_circuit_open


class World:
    """A failover with its clock, its dice and its counts."""

    def __init__(
        self,
        retries: RetryOptions | None = None,
        circuit: CircuitOptions | None = None,
        random: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self.now_ns = 1_000 * SECOND
        self.counts = Counts()
        self.failover = Failover(
            self.counts,
            retries=retries,
            circuit=circuit,
            clock_ns=lambda: self.now_ns,
            unix_ns=lambda: EPOCH_NS + self.now_ns,
            random=random,
        )

    def after(self, seconds: float) -> None:
        self.now_ns += math.ceil(seconds * SECOND)

    def begin(self, *upstreams: Upstream, mode: Mode = "ordered", seconds: float = 60.0) -> Attempts:
        return self.failover.begin(plan(*upstreams, mode=mode), seconds)

    def call(self, upstreams: Sequence[Upstream], *statuses: int) -> list[str]:
        """Where a call was sent, one status each; waits are waited for."""
        sent, replies = [], iter(statuses)
        with self.begin(*upstreams) as attempts:
            while True:
                step = attempts.next()
                if isinstance(step, Wait):
                    self.after(step.seconds)
                elif isinstance(step, Refuse):
                    return [*sent, type(step.error).__name__]
                else:
                    sent.append(step.candidate.credential.id)
                    if not attempts.answered(next(replies), {}):
                        return sent


def upstream(name: str, *keys: str, weight: int = 1) -> Upstream:
    return Upstream(provider=Provider(name=name, base_url=f"https://{name}.example"), api_keys=keys, weight=weight)


def plan(*upstreams: Upstream, mode: Mode = "ordered") -> Plan:
    return Plan(routes=tuple(Route(upstream=up, model="m", weight=up.weight) for up in upstreams), mode=mode)


def sent(step: Send | Wait | Refuse) -> str:
    assert isinstance(step, Send)
    return step.candidate.credential.id


A, B, C = upstream("a"), upstream("b"), upstream("c")
TWO_KEYS = upstream("k", "first", "second")


class TestWhereItGoes:
    def test_the_first_in_order_is_asked_and_its_answer_handed_on(self) -> None:
        assert World().call([A, B], 200) == ["a-1"]

    def test_a_candidate_says_upstream_model_and_credential(self) -> None:
        step = World().begin(TWO_KEYS).next()
        assert step == Send(Candidate(TWO_KEYS, "m", TWO_KEYS.credentials[0]))

    def test_after_a_failure_another_upstream_is_asked_at_once(self) -> None:
        world = World()
        attempts = world.begin(A, B)
        assert sent(attempts.next()) == "a-1"
        assert attempts.failed(UpstreamUnreachable("x"))
        assert sent(attempts.next()) == "b-1"

    def test_after_429_the_next_key_is_asked_before_the_next_upstream(self) -> None:
        assert World().call([TWO_KEYS, B], 429, 429, 200) == ["k-1", "k-2", "b-1"]

    def test_after_a_failure_of_the_upstream_its_other_key_does_not_go_before_another_upstream(self) -> None:
        assert World().call([TWO_KEYS, B], 503, 200) == ["k-1", "b-1"]

    def test_keys_take_turns_from_call_to_call(self) -> None:
        world = World()
        three = upstream("k", "x", "y", "z")
        assert [world.call([three], 200)[0] for _ in range(6)] == ["k-1", "k-2", "k-3"] * 2

    def test_a_key_that_was_refused_is_not_sent_again_in_this_call_and_goes_last_in_the_next(self) -> None:
        world = World()
        assert world.call([TWO_KEYS], 401, 200) == ["k-1", "k-2"]
        assert [world.call([TWO_KEYS], 200) for _ in range(3)] == [["k-2"]] * 3
        world.after(61)
        assert {world.call([TWO_KEYS], 200)[0] for _ in range(2)} == {"k-1", "k-2"}

    def test_a_key_that_was_limited_without_a_time_goes_last_for_a_while(self) -> None:
        world = World()
        assert world.call([TWO_KEYS], 429, 200) == ["k-1", "k-2"]
        assert [world.call([TWO_KEYS], 200) for _ in range(2)] == [["k-2"]] * 2
        world.after(5.1)
        assert {world.call([TWO_KEYS], 200)[0] for _ in range(2)} == {"k-1", "k-2"}

    def test_the_only_key_that_was_refused_is_tried_by_the_next_call_all_the_same(self) -> None:
        world = World()
        assert world.call([A], 401) == ["a-1"]
        assert world.call([A], 200) == ["a-1"]

    def test_a_forbidden_prompt_is_not_hawked_about(self) -> None:
        world = World()
        assert world.call([TWO_KEYS, B], 403) == ["k-1"]
        assert world.call([TWO_KEYS, B], 200) == ["k-2"]

    @pytest.mark.parametrize("status", [200, 201, 302, 400, 404, 408, 409, 413, 422, 425, 499, 501, 505, 520])
    def test_what_no_other_attempt_would_mend_is_handed_on(self, status: int) -> None:
        assert World().call([A, B], status) == ["a-1"]

    def test_a_provider_that_says_not_to_retry_is_believed(self) -> None:
        attempts = World().begin(A, B)
        attempts.next()
        assert not attempts.answered(503, {"x-should-retry": "false"})

    def test_no_head_in_time_is_not_tried_again_unless_configured(self) -> None:
        for after_timeout in (False, True):
            attempts = World(RetryOptions(after_timeout=after_timeout)).begin(A, B)
            attempts.next()
            assert attempts.failed(UpstreamTimedOut("x")) is after_timeout

    def test_a_fault_of_our_own_is_not_tried_again(self) -> None:
        world = World()
        attempts = world.begin(A, B)
        attempts.next()
        assert not attempts.failed(RuntimeError("ours"))
        assert world.counts.attempts == {("a", "abandoned"): 1}

    def test_there_are_at_most_so_many_attempts(self) -> None:
        assert World(RetryOptions(max_attempts=3)).call([A, B, C], 503, 503, 503) == ["a-1", "b-1", "c-1"]
        assert World(RetryOptions(max_attempts=1)).call([A, B, C], 503) == ["a-1"]

    def test_the_same_place_is_not_asked_twice_unless_configured(self) -> None:
        once = RetryOptions(same_place=False, max_attempts=5)
        assert World(once).call([A], 503) == ["a-1"]
        assert World(once).call([TWO_KEYS, A], 503, 503, 503) == ["k-1", "a-1", "k-2"]

    def test_asking_out_of_turn_is_a_mistake_of_the_caller(self) -> None:
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

    def test_after_the_last_answer_nothing_is_sent_even_if_asked(self) -> None:
        attempts = World().begin(A, B)
        attempts.next()
        assert not attempts.answered(400, {})
        with pytest.raises(RuntimeError):
            attempts.next()


class TestWhatIsKeptBetweenCalls:
    def test_after_a_reload_a_plan_that_was_used_before_knows_the_credentials_anew(self) -> None:
        world, both = World(RetryOptions(max_attempts=1)), plan(A)
        attempts = world.failover.begin(both, 60.0)
        attempts.next()
        attempts.answered(429, {"retry-after": "30"})
        world.failover.configure(RetryOptions(), CircuitOptions(), [A])
        assert isinstance(world.failover.begin(both, 60.0).next(), Refuse)
        world.failover.configure(RetryOptions(), CircuitOptions(), [B])
        assert sent(world.failover.begin(both, 60.0).next()) == "a-1"

    def test_more_plans_than_are_kept_go_where_they_say(self) -> None:
        world = World()
        for n in range(2 * MAX_PLANS + 1):
            with world.failover.begin(Plan(routes=(Route(upstream=A, model=f"m{n}"),)), 60.0) as attempts:
                step = attempts.next()
                assert isinstance(step, Send)
                assert step.candidate.model == f"m{n}"

    def test_of_an_upstream_that_stays_well_it_is_told_once(self) -> None:
        told: list[str] = []

        class Told(Counts):
            def status(self, provider: str, *, is_up: bool, is_circuit_open: bool) -> None:
                told.append(provider)

        world = World()
        world.failover = Failover(Told(), clock_ns=lambda: world.now_ns)
        assert [world.call([A], 200) for _ in range(3)] == [["a-1"]] * 3
        assert told == ["a"]


class TestWhen:
    def test_the_same_upstream_is_asked_again_after_a_pause_with_full_jitter(self) -> None:
        world = World(RetryOptions(max_attempts=4, base_seconds=0.1, cap_seconds=0.3))
        attempts = world.begin(A)
        for pause in (0.05, 0.1, 0.15):
            attempts.next()
            assert attempts.answered(503, {})
            assert attempts.next() == Wait(pause)
            world.after(pause)

    def test_a_key_that_was_limited_without_a_time_is_sent_again_after_a_pause_as_well(self) -> None:
        attempts = World().begin(A)
        attempts.next()
        assert attempts.answered(429, {})
        assert attempts.next() == Wait(0.05)

    def test_a_pause_beyond_what_is_left_of_the_call_is_not_begun(self) -> None:
        attempts = World().begin(A, seconds=0.04)
        attempts.next()
        assert not attempts.answered(503, {})

    def test_a_retry_after_within_the_cap_is_waited_for_and_the_pause_comes_on_top(self) -> None:
        world = World()
        attempts = world.begin(A)
        attempts.next()
        assert attempts.answered(429, {"retry-after": "2"})
        assert attempts.next() == Wait(2.05)
        world.after(2)
        assert isinstance(attempts.next(), Wait)
        world.after(0.05)
        assert sent(attempts.next()) == "a-1"

    @pytest.mark.parametrize("asked", ["6", "3600", "99999999"])
    def test_a_retry_after_beyond_the_cap_goes_elsewhere_or_is_handed_on(self, asked: str) -> None:
        for upstreams, again in (([A], False), ([A, B], True)):
            attempts = World().begin(*upstreams)
            attempts.next()
            assert attempts.answered(429, {"retry-after": asked}) is again

    def test_a_retry_after_beyond_what_is_left_of_the_call_is_handed_on(self) -> None:
        attempts = World().begin(A, seconds=1.5)
        attempts.next()
        assert not attempts.answered(503, {"retry-after": "2"})

    def test_a_date_is_honoured_like_seconds(self) -> None:
        world = World()
        attempts = world.begin(A)
        attempts.next()
        at = datetime.fromtimestamp((EPOCH_NS + world.now_ns) / SECOND + 3, UTC)
        assert attempts.answered(503, {"retry-after": format_datetime(at, usegmt=True)})
        assert attempts.next() == Wait(3.05)

    def test_until_it_has_passed_other_calls_go_elsewhere_or_are_refused_with_the_time_to_come_back(self) -> None:
        world = World()
        attempts = world.begin(A)
        attempts.next()
        assert not attempts.answered(429, {"retry-after": "30"})
        assert world.call([A, B], 200) == ["b-1"]
        world.after(0.5)
        refused = world.begin(A).next()
        assert isinstance(refused, Refuse)
        assert isinstance(refused.error, UpstreamRateLimited)
        assert refused.error.retry_after == "30"
        world.after(29.5)
        assert world.call([A], 200) == ["a-1"]

    def test_one_of_503_holds_for_every_key_and_one_of_429_for_its_own(self) -> None:
        for status, then in ((503, "UpstreamFault"), (429, "k-2")):
            world = World(RetryOptions(max_attempts=1))
            attempts = world.begin(TWO_KEYS)
            attempts.next()
            attempts.answered(status, {"retry-after": "30"})
            assert world.call([TWO_KEYS], 200) == [then]

    def test_a_shorter_one_does_not_shorten_a_longer_one(self) -> None:
        world = World(RetryOptions(max_attempts=1))
        first, second = world.begin(A), world.begin(A)
        first.next()
        second.next()
        first.answered(429, {"retry-after": "30"})
        second.answered(429, {"retry-after": "1"})
        world.after(29.9)
        assert isinstance(world.begin(A).next(), Refuse)

    def test_one_that_another_call_is_told_during_a_pause_is_kept_as_well(self) -> None:
        world = World()
        waiting, other = world.begin(A), world.begin(A)
        waiting.next()
        other.next()
        assert waiting.answered(503, {})
        other.answered(429, {"retry-after": "4"})
        world.after(0.05)
        assert waiting.next() == Wait(3.95)
        world.after(3.95)
        assert sent(waiting.next()) == "a-1"

    def test_one_that_is_too_long_by_then_ends_the_wait_with_what_the_last_answer_was(self) -> None:
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
            world.after(0.05)
            step = waiting.next()
            assert isinstance(step, Refuse)
            assert type(step.error) is kind

    @pytest.mark.parametrize("status", [429, 503])
    def test_a_wait_for_one_model_does_not_stop_another(self, status: int) -> None:
        world = World(RetryOptions(max_attempts=1))
        attempts = world.begin(A)
        attempts.next()
        attempts.answered(status, {"retry-after": "30"})
        assert isinstance(world.begin(A).next(), Refuse)
        other = Plan(routes=(Route(upstream=A, model="another"),))
        assert sent(world.failover.begin(other, 60.0).next()) == "a-1"

    def test_the_same_key_at_the_same_address_waits_under_both_its_names(self) -> None:
        world = World(RetryOptions(max_attempts=1))
        provider = Provider(name="x", base_url="https://x.example")
        twice = [Upstream(provider=provider.renamed(name), api_key="k") for name in ("x", "y")]
        attempts = world.begin(twice[0])
        attempts.next()
        attempts.answered(429, {"retry-after": "9"})
        assert isinstance(world.begin(twice[1]).next(), Refuse)

    def test_the_time_left_is_that_of_the_whole_call(self) -> None:
        world = World()
        attempts = world.begin(A, seconds=10)
        world.after(4)
        assert attempts.seconds_left == 6
        world.after(7)
        assert attempts.seconds_left == 0


class TestCircuits:
    def test_an_upstream_that_keeps_failing_is_left_out_until_a_probe_succeeds(self) -> None:
        world = World(circuit=CircuitOptions(failures=2, open_seconds=15))
        assert [world.call([A, B], 503, 200) for _ in range(2)] == [["a-1", "b-1"]] * 2
        assert world.counts.circuit_open["a"]
        assert not world.counts.up["a"]
        assert world.call([A, B], 200) == ["b-1"]
        world.after(15)
        probe = world.begin(A, B)
        assert sent(probe.next()) == "a-1"
        assert world.call([A, B], 200) == ["b-1"]
        assert not probe.answered(200, {})
        assert world.call([A, B], 200) == ["a-1"]
        assert not world.counts.circuit_open["a"]
        assert world.counts.up["a"]

    def test_a_probe_whose_caller_leaves_makes_room_for_the_next(self) -> None:
        world = World(circuit=CircuitOptions(failures=1))
        world.call([A, B], 503, 200)
        world.after(15)
        probe = world.begin(A, B)
        probe.next()
        probe.close()
        probe.close()
        assert world.counts.attempts["a", "abandoned"] == 1
        assert world.call([A, B], 200) == ["a-1"]

    def test_where_all_are_open_the_one_that_half_opens_first_is_asked_and_once(self) -> None:
        world = World(RetryOptions(max_attempts=1), CircuitOptions(failures=1))
        assert world.call([B], 503) == ["b-1"]
        world.after(1)
        assert world.call([A], 503) == ["a-1"]
        world.failover.configure(RetryOptions(), CircuitOptions(failures=1), [A, B])
        assert world.call([A, B], 503) == ["b-1"]
        assert world.call([A, B], 200) == ["b-1"]
        assert world.call([A, B], 200) == ["b-1"]

    def test_a_caller_cannot_open_a_circuit_by_his_own_mistakes(self) -> None:
        world = World(circuit=CircuitOptions(failures=1))
        for status in (400, 401, 402, 403, 404, 408, 422, 429, 499, 501, 505):
            world.call([A], *[status] * 3)
        assert not any(world.counts.circuit_open.values())

    def test_answers_that_break_off_later_open_the_circuit_although_their_heads_were_good(self) -> None:
        world = World(circuit=CircuitOptions(failures=3))
        for _ in range(3):
            with world.begin(A) as attempts:
                attempts.next()
                attempts.answered(200, {})
                attempts.broke()
        assert world.counts.circuit_open["a"]

    def test_an_answer_that_is_whole_begins_the_row_again(self) -> None:
        world = World(RetryOptions(max_attempts=1), CircuitOptions(failures=2))
        for _ in range(5):
            world.call([A], 503)
            assert not world.counts.circuit_open["a"]
            world.call([A], 200)

    def test_an_upstream_that_refuses_all_its_keys_is_not_up_until_it_takes_one(self) -> None:
        world = World()
        world.call([TWO_KEYS], 401, 402)
        assert not world.counts.up["k"]
        assert not world.counts.circuit_open["k"]
        world.call([TWO_KEYS], 200)
        assert world.counts.up["k"]

    def test_one_refused_key_of_two_and_a_forbidden_prompt_leave_it_up(self) -> None:
        world = World()
        world.call([TWO_KEYS], 401, 200)
        world.call([TWO_KEYS], 403)
        world.call([A], 403)
        assert world.counts.up == {"k": True, "a": True}


class TestReload:
    def test_what_is_known_survives_and_only_of_what_stays(self) -> None:
        world = World(RetryOptions(max_attempts=1), CircuitOptions(failures=1, open_seconds=60))
        world.call([A], 503)
        world.call([C], 503)
        limited = world.begin(TWO_KEYS)
        limited.next()
        limited.answered(429, {"retry-after": "30"})
        world.failover.configure(
            RetryOptions(), CircuitOptions(failures=1), [upstream("a"), upstream("k", "second", "first")]
        )
        assert world.counts.circuit_open == {"a": True, "c": False, "k": False}
        assert world.counts.up["c"]
        assert world.call([upstream("a"), B], 200) == ["b-1"]
        assert {world.call([upstream("k", "second", "first")], 200)[0] for _ in range(4)} == {"k-1"}

    def test_another_address_under_an_old_name_begins_afresh(self) -> None:
        world = World(RetryOptions(max_attempts=1), CircuitOptions(failures=1))
        world.call([A], 503)
        moved = Upstream(provider=Provider(name="a", base_url="https://elsewhere.example"))
        world.failover.configure(RetryOptions(), CircuitOptions(), [moved])
        assert world.counts.up["a"]
        assert not world.counts.circuit_open["a"]

    def test_a_ratio_of_zero_stops_retries_from_then_on(self) -> None:
        world = World()
        world.failover.configure(RetryOptions(budget_ratio=Decimal(0)), CircuitOptions(), [A, B])
        assert world.call([A, B], 503) == ["a-1"]


class TestWeights:
    CALLS = 20_000

    def shares(self, world: World, *upstreams: Upstream) -> dict[str, float]:
        plans = plan(*upstreams, mode="weighted")
        first: Counter[str] = Counter()
        for _ in range(self.CALLS):
            with world.failover.begin(plans, 60) as attempts:
                step = attempts.next()
                assert isinstance(step, Send)
                first[step.candidate.upstream.name] += 1
                attempts.answered(200, {})
        return {name: n / self.CALLS for name, n in first.items()}

    def within_four_sigma(self, share: float, expected: float) -> bool:
        return abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / self.CALLS)

    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_each_upstream_gets_its_share(self, seed: int) -> None:
        weighted = [upstream("x", weight=1), upstream("y", weight=2), upstream("z", weight=7)]
        shares = self.shares(World(random=Random(seed).random), *weighted)
        for name, expected in (("x", 0.1), ("y", 0.2), ("z", 0.7)):
            assert self.within_four_sigma(shares[name], expected)

    def test_what_an_open_circuit_leaves_is_shared_in_the_same_proportion(self) -> None:
        world = World(RetryOptions(max_attempts=1), CircuitOptions(failures=1), Random(4).random)
        z = upstream("z", weight=7)
        world.call([z], 503)
        shares = self.shares(world, upstream("x", weight=1), upstream("y", weight=2), z)
        assert set(shares) == {"x", "y"}
        assert self.within_four_sigma(shares["x"], 1 / 3)

    def test_a_further_attempt_is_drawn_from_the_others_by_their_weights(self) -> None:
        world = World(RetryOptions(budget_ratio=Decimal(1)), CircuitOptions(failures=10**6), Random(5).random)
        upstreams = plan(upstream("x", weight=1), upstream("y", weight=3), upstream("z", weight=6), mode="weighted")
        second: Counter[str] = Counter()
        for _ in range(self.CALLS):
            attempts = world.failover.begin(upstreams, 60)
            step = attempts.next()
            assert isinstance(step, Send)
            if step.candidate.upstream.name == "z" and attempts.answered(503, {}):
                again = attempts.next()
                assert isinstance(again, Send)
                second[again.candidate.upstream.name] += 1
            attempts.close()
        assert set(second) == {"x", "y"}
        share, n = second["x"] / second.total(), second.total()
        assert n > 10_000
        assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n)


# Simulation: many calls at once, on an event queue


@dataclass
class Sent:
    """One attempt, as an upstream sees it."""

    at_ns: int
    call: int
    candidate: Candidate
    reply: Reply
    ended_at_ns: int = 0


@dataclass
class Simulation:
    """Calls that play the loop of the package's docstring against upstreams that a function plays."""

    world: World
    plan: Plan
    replies: Callable[[Candidate, int], Reply]
    seconds_per_attempt: float = 0.01
    sent: list[Sent] = field(default_factory=list)
    ends: Counter[Any] = field(default_factory=Counter)
    _events: list[tuple[int, int, Iterator[float]]] = field(default_factory=list)
    _order: Iterator[int] = field(default_factory=count)

    def run(self, calls: int, per_second: float) -> Simulation:
        for call in range(calls):
            self._push(self.world.now_ns + int(call / per_second * SECOND), self._call(call))
        while self._events:
            self.world.now_ns, _, process = heapq.heappop(self._events)
            for seconds in process:
                self._push(self.world.now_ns + math.ceil(seconds * SECOND), process)
                break
        return self

    def _push(self, at_ns: int, process: Iterator[float]) -> None:
        heapq.heappush(self._events, (at_ns, next(self._order), process))

    def _call(self, call: int) -> Iterator[float]:
        with self.world.failover.begin(self.plan, 60.0) as attempts:
            while True:
                match attempts.next():
                    case Refuse(error):
                        self.ends[type(error).__name__] += 1
                        return
                    case Wait(seconds):
                        yield seconds
                    case Send(candidate):
                        reply = self.replies(candidate, self.world.now_ns)
                        self.sent.append(sent := Sent(self.world.now_ns, call, candidate, reply))
                        yield self.seconds_per_attempt
                        sent.ended_at_ns = self.world.now_ns
                        said, headers = reply
                        if said is None:
                            self.ends["left"] += 1
                            return
                        if isinstance(said, int):
                            again = attempts.answered(said, headers)
                        else:
                            again = attempts.failed(said)
                        if not again:
                            self.ends[said if isinstance(said, int) else type(said).__name__] += 1
                            return

    @property
    def requests(self) -> int:
        """Calls that were sent at least once."""
        return len({sent.call for sent in self.sent})


def waits_asked(simulation: Simulation) -> Iterator[tuple[str, str, int, int]]:
    """(address, secret, from, until) of every Retry-After, read here by other means than the code under test."""
    for sent in simulation.sent:
        said, headers = sent.reply
        if not headers or not isinstance(said, int):
            continue
        told = headers["retry-after"]
        until_ns = (
            sent.ended_at_ns + int(told) * SECOND
            if told.isdigit()
            else int(datetime.strptime(told, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC).timestamp()) * SECOND
            - EPOCH_NS
        )
        of = [sent.candidate.credential] if said == 429 else sent.candidate.upstream.credentials
        for credential in of:
            yield sent.candidate.upstream.provider.base_url, credential.secret, sent.ended_at_ns, until_ns


def check(simulation: Simulation, options: RetryOptions) -> None:
    """What holds in every world."""
    counts, requests = simulation.world.counts, simulation.requests
    retries = len(simulation.sent) - requests
    assert retries <= max(FLOOR if options.budget_ratio else 0, options.budget_ratio * requests)
    assert counts.attempts.total() == len(simulation.sent)
    assert counts.retries.total() == retries
    for address, secret, from_ns, until_ns in waits_asked(simulation):
        early = [
            sent
            for sent in simulation.sent
            if (sent.candidate.upstream.provider.base_url, sent.candidate.credential.secret) == (address, secret)
            and from_ns < sent.at_ns < until_ns
        ]
        assert early == []
    by_call: dict[int, list[Sent]] = {}
    for sent in simulation.sent:
        by_call.setdefault(sent.call, []).append(sent)
    for attempts in by_call.values():
        assert len(attempts) <= options.max_attempts
        for before, after in pairwise(attempts):
            said = before.reply[0]
            assert said in (401, 402, 429, *RETRIED_5XX) or isinstance(said, UpstreamUnreachable | UpstreamDisconnected)
            if said in (401, 402):
                assert before.candidate.credential != after.candidate.credential
        if not options.same_place:
            places = [(sent.candidate.upstream.name, sent.candidate.credential) for sent in attempts]
            assert len(set(places)) == len(places)


def dated(seconds: int) -> Callable[[int], Mapping[str, str]]:
    def headers(now_ns: int) -> Mapping[str, str]:
        at = datetime.fromtimestamp((EPOCH_NS + now_ns) // SECOND + seconds, UTC)
        return {"retry-after": format_datetime(at, usegmt=True)}

    return headers


NO_PATH_PARAMS: Mapping[str, str] = {}
ANSWERS: list[tuple[int | UpstreamFault | None, Mapping[str, str] | Callable[[int], Mapping[str, str]]]] = [
    (200, NO_PATH_PARAMS),
    *((status, NO_PATH_PARAMS) for status in (302, 400, 401, 402, 403, 404, 408, 429, 500, 501, 502, 503, 504, 529)),
    *((status, {"retry-after": told}) for status in (429, 503) for told in ("0", "1", "3", "20", "200")),
    (429, dated(2)),
    (503, dated(40)),
    (UpstreamUnreachable("x"), NO_PATH_PARAMS),
    (UpstreamTimedOut("x"), NO_PATH_PARAMS),
    (UpstreamDisconnected("x"), NO_PATH_PARAMS),
    (None, NO_PATH_PARAMS),
]
scripts = st.lists(st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=8), min_size=1, max_size=4)


@unhurried
@given(
    scripts=scripts,
    keys=st.integers(1, 3),
    calls=st.integers(1, 150),
    per_second=st.sampled_from([0.5, 5, 50, 5000]),
    slow=st.sampled_from([0.001, 0.3, 20]),
    mode=st.sampled_from(["ordered", "weighted"]),
    options=st.builds(
        RetryOptions,
        max_attempts=st.integers(1, 5),
        same_place=st.booleans(),
        budget_ratio=st.sampled_from([Decimal(0), Decimal("0.2"), Decimal("0.5")]),
        base_seconds=st.sampled_from([0.01, 0.1, 2]),
        cap_seconds=st.sampled_from([2.0, 5.0]),
    ),
    circuit=st.builds(CircuitOptions, failures=st.integers(1, 6), open_seconds=st.sampled_from([0.5, 15])),
    seed=st.integers(0, 2**32),
)
def test_whatever_the_upstreams_answer_the_budget_the_waits_and_the_table_hold(
    scripts: list[list[Any]],
    keys: int,
    calls: int,
    per_second: float,
    slow: float,
    mode: Mode,
    options: RetryOptions,
    circuit: CircuitOptions,
    seed: int,
) -> None:
    upstreams = [upstream(f"u{n}", *(f"u{n}-key{key}" for key in range(keys))) for n in range(len(scripts))]
    turns = {up.name: count() for up in upstreams}

    def replies(candidate: Candidate, now_ns: int) -> Reply:
        script = scripts[upstreams.index(candidate.upstream)]
        said, headers = script[next(turns[candidate.upstream.name]) % len(script)]
        return said, headers(now_ns) if callable(headers) else headers

    world = World(options, circuit, Random(seed).random)
    check(Simulation(world, plan(*upstreams, mode=mode), replies, slow).run(calls, per_second), options)


@budget(unhurried, max_examples=40)
@given(
    scripts=scripts,
    keys=st.integers(1, 3),
    mode=st.sampled_from(["ordered", "weighted"]),
    same_place=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_a_call_whose_first_place_is_clear_goes_where_it_would_go_if_all_places_were_looked_at(
    scripts: list[list[Any]], keys: int, mode: Mode, same_place: bool, seed: int
) -> None:
    upstreams = [upstream(f"u{n}", *(f"u{n}-key{key}" for key in range(keys))) for n in range(len(scripts))]

    def played() -> tuple[list[tuple[int, Candidate]], Counter[Any], Counter[Any]]:
        turns = {up.name: count() for up in upstreams}

        def replies(candidate: Candidate, now_ns: int) -> Reply:
            script = scripts[upstreams.index(candidate.upstream)]
            said, headers = script[next(turns[candidate.upstream.name]) % len(script)]
            return said, headers(now_ns) if callable(headers) else headers

        world = World(RetryOptions(same_place=same_place), random=Random(seed).random)
        simulation = Simulation(world, plan(*upstreams, mode=mode), replies, 0.3).run(100, 20)
        return [(sent.at_ns, sent.candidate) for sent in simulation.sent], simulation.ends, world.counts.attempts

    shortly = played()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attempts, "_is_clear", lambda self, slot: False)
        assert played() == shortly


class TestStorms:
    @pytest.mark.parametrize("said", [429, 500, 503, UpstreamUnreachable("x"), UpstreamDisconnected("x")], ids=str)
    @pytest.mark.parametrize("upstreams", [[A], [A, B], [TWO_KEYS, A, B, C]], ids=len)
    def test_when_everything_is_down_attempts_stay_below_a_fifth_above_the_requests(
        self, upstreams: list[Upstream], said: int | UpstreamFault
    ) -> None:
        world = World(random=Random(1).random)
        simulation = Simulation(world, plan(*upstreams), lambda candidate, now_ns: (said, {})).run(3000, 100)
        check(simulation, RetryOptions())
        assert simulation.requests == 3000
        assert len(simulation.sent) <= 3600

    def test_in_a_storm_of_429_the_whole_budget_is_used_and_no_more(self) -> None:
        world = World(RetryOptions(base_seconds=0.001), random=Random(2).random)
        simulation = Simulation(world, plan(A, B), lambda candidate, now_ns: (429, {})).run(5000, 200)
        assert 5950 <= len(simulation.sent) <= 6000
        assert simulation.ends == {429: 5000}

    def test_a_storm_with_retry_after_sends_nothing_before_it_and_refuses_with_the_time_to_come_back(self) -> None:
        world = World(random=Random(3).random)
        upstreams = plan(TWO_KEYS, A)
        simulation = Simulation(world, upstreams, lambda c, now: (429, {"retry-after": "7"})).run(2000, 100)
        check(simulation, RetryOptions())
        per_credential = Counter(sent.candidate.credential.id for sent in simulation.sent)
        # 20 s of calls, 100 a second; each credential is tried at 0, 7 and 14 s, by the few calls that overlap there.
        assert max(per_credential.values()) <= 12
        assert simulation.ends["UpstreamRateLimited"] > 1900

    def test_a_burst_after_a_quiet_night_has_no_more_than_the_floor_beyond_the_share(self) -> None:
        world = World(random=Random(4).random)
        Simulation(world, plan(A), lambda c, now: (200, {})).run(10_000, 1000)
        before = world.counts.retries.total()
        storm = Simulation(world, plan(A, B), lambda c, now: (429, {})).run(1000, 100_000)
        assert before == 0
        assert world.counts.retries.total() <= FLOOR + 200
        assert len(storm.sent) <= 1200 + FLOOR

    def test_while_the_first_flaps_the_second_answers_every_call_and_the_first_is_mostly_left_alone(self) -> None:
        world = World(random=Random(5).random)
        begin_ns = world.now_ns

        def is_down(now_ns: int) -> bool:
            return (now_ns - begin_ns) // (60 * SECOND) % 2 == 1

        def replies(candidate: Candidate, now_ns: int) -> Reply:
            return (503 if candidate.upstream is A and is_down(now_ns) else 200), {}

        simulation = Simulation(world, plan(A, B), replies).run(12_000, 20)  # ten minutes, five of them down
        check(simulation, RetryOptions())
        assert simulation.ends == {200: 12_000}
        at_a = [sent for sent in simulation.sent if sent.candidate.upstream is A]
        # Each time five failures open the circuit and at most four probes fail: every 15 s of the minute.
        assert sum(is_down(sent.at_ns) for sent in at_a) <= 5 * (5 + 4)
        # And 15 s after it is back at the latest, it has its calls again.
        assert sum(not is_down(sent.at_ns) for sent in at_a) >= 5 * 45 * 20

    def test_when_all_are_down_nobody_is_refused_for_a_circuits_sake_and_all_recover_by_themselves(self) -> None:
        world = World(random=Random(6).random)
        begin_ns = world.now_ns

        def replies(candidate: Candidate, now_ns: int) -> Reply:
            return (503 if now_ns - begin_ns < 60 * SECOND else 200), {}

        simulation = Simulation(world, plan(A, B, C), replies).run(2000, 20)
        check(simulation, RetryOptions())
        assert simulation.requests == 2000
        assert simulation.ends[503] <= 1201
        assert simulation.ends[200] >= 799
        assert [sent for sent in simulation.sent if sent.at_ns - begin_ns >= 60 * SECOND and sent.reply[0] != 200] == []

    def test_a_half_open_upstream_gets_one_probe_at_a_time_while_another_one_works(self) -> None:
        world = World(random=Random(7).random)
        down = Simulation(world, plan(A, B), lambda c, now: (503 if c.upstream is A else 200, {}), 0.5).run(3000, 50)
        late = [sent for sent in down.sent if sent.candidate.upstream is A and sent.at_ns > down.sent[0].at_ns + SECOND]
        assert len(late) == 3
        assert all(before.ended_at_ns + 15 * SECOND <= after.at_ns for before, after in pairwise(late))
        # 25 calls were on their way when the first of them failed; the floor of the budget is not enough for all.
        assert down.ends[200] >= 3000 - 25
