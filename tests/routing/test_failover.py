"""Failover over many calls: state that is kept, reloads, metrics; then simulated load with every outcome."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import format_datetime
from itertools import count, pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.routing.world import EPOCH_NS, SECOND, TWO_KEYS, A, B, C, Counts, World, credential_of, plan, upstream

from mcpmeter.catalog import ALL
from mcpmeter.catalog import upstream as rows
from mcpmeter.catalog.service import LABEL_OVERFLOW
from mcpmeter.errors import UpstreamDisconnected, UpstreamFault, UpstreamTimedOut, UpstreamUnreachable
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.providers import Provider
from mcpmeter.routing.attempts import Attempts, Refuse, Send, Wait
from mcpmeter.routing.candidates import Candidate
from mcpmeter.routing.circuit_breaker import CircuitOptions
from mcpmeter.routing.failover import Failover, FailoverMetrics
from mcpmeter.routing.outcomes import RETRIED_5XX
from mcpmeter.routing.retries import FLOOR, RetryOptions
from mcpmeter.routing.routes import MAX_PLANS, Mode, Plan, Route, Upstream

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

Reply = tuple[int | UpstreamFault | None, Mapping[str, str]]
"""Status or fault, and headers; None: the caller leaves while it waits."""


class TestState:
    def test_a_reload_refreshes_the_targets_of_known_plans(self) -> None:
        world, both = World(RetryOptions(max_attempts=1)), plan(A)
        attempts = world.failover.begin(both, 60.0)
        attempts.next()
        attempts.answered(429, {"retry-after": "30"})
        world.failover.configure(RetryOptions(), CircuitOptions(), [A])
        assert isinstance(world.failover.begin(both, 60.0).next(), Refuse)
        world.failover.configure(RetryOptions(), CircuitOptions(), [B])
        assert credential_of(world.failover.begin(both, 60.0).next()) == "a-1"

    def test_plans_beyond_the_cache_are_followed(self) -> None:
        world = World()
        for n in range(2 * MAX_PLANS + 1):
            with world.failover.begin(Plan(routes=(Route(upstream=A, model=f"m{n}"),)), 60.0) as attempts:
                step = attempts.next()
                assert isinstance(step, Send)
                assert step.candidate.model == f"m{n}"

    def test_an_unchanged_status_is_reported_once(self) -> None:
        reported: list[str] = []

        class Reports(Counts):
            def status(self, provider: str, *, is_up: bool, is_circuit_open: bool) -> None:
                reported.append(provider)

        world = World()
        world.failover = Failover(Reports(), clock_ns=lambda: world.now_ns)
        assert [world.call([A], 200) for _ in range(3)] == [["a-1"]] * 3
        assert reported == ["a"]

    def test_a_reload_keeps_the_state_of_what_remains(self) -> None:
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

    def test_a_new_address_under_an_old_name_starts_healthy(self) -> None:
        world = World(RetryOptions(max_attempts=1), CircuitOptions(failures=1))
        world.call([A], 503)
        moved = Upstream(provider=Provider(name="a", base_url="https://elsewhere.example"))
        world.failover.configure(RetryOptions(), CircuitOptions(), [moved])
        assert world.counts.up["a"]
        assert not world.counts.circuit_open["a"]

    def test_a_reload_to_a_ratio_of_zero_stops_retries(self) -> None:
        world = World()
        world.failover.configure(RetryOptions(budget_ratio=Decimal(0)), CircuitOptions(), [A, B])
        assert world.call([A, B], 503) == ["a-1"]


class TestMetrics:
    def recorder(self) -> Recorder:
        known = {row.name for row in ALL}
        recorder = Recorder(rows=(*ALL, *(row for row in rows.ROWS if row.name not in known)))
        recorder.label_allowlist.register("provider", ["openai", "local"])
        return recorder

    def test_every_series_exists_at_the_start(self) -> None:
        recorder = self.recorder()
        FailoverMetrics(recorder).register(["openai", "local"])
        for row, children in ((rows.ATTEMPTS, 22), (rows.RETRIES, 12)):
            assert [cell.value for cell in recorder.families[row.name].cells.values()] == [0] * children
        assert {labels: cell.value for labels, cell in recorder.families[rows.UP.name].cells.items()} == {
            ("openai",): 1,
            ("local",): 1,
        }

    def test_registering_again_keeps_the_status(self) -> None:
        recorder = self.recorder()
        metrics = FailoverMetrics(recorder)
        metrics.register(["openai"])
        metrics.status("openai", is_up=False, is_circuit_open=True)
        metrics.register(["openai", "local"])
        assert recorder.families[rows.UP.name].cells["openai",].value == 0
        assert recorder.families[rows.CIRCUIT_OPEN.name].cells["openai",].value == 1
        assert recorder.families[rows.UP.name].cells["local",].value == 1

    def test_an_unregistered_provider_counts_as_other_each_time(self) -> None:
        recorder = self.recorder()
        metrics = FailoverMetrics(recorder)
        for name in ("invented", "invented", "other"):
            metrics.attempted(name, "ok")
        assert recorder.families[rows.ATTEMPTS.name].cells["other", "ok"].value == 3
        assert recorder.families[LABEL_OVERFLOW.name].cells["provider",].value == 3

    def test_attempts_and_retries_are_counted_by_provider(self) -> None:
        recorder = self.recorder()
        metrics = FailoverMetrics(recorder)
        metrics.register(["openai"])
        metrics.attempted("openai", "server_error")
        metrics.retried("openai", "server_error")
        assert recorder.families[rows.ATTEMPTS.name].cells["openai", "server_error"].value == 1
        assert recorder.families[rows.RETRIES.name].cells["openai", "server_error"].value == 1


@dataclass
class Sent:
    """One attempt, as seen by an upstream."""

    at_ns: int
    call: int
    candidate: Candidate
    reply: Reply
    ended_at_ns: int = 0


@dataclass
class Simulation:
    """Many calls at once on an event queue, in the loop of failover.py's docstring; `replies` is the upstreams."""

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
                        result, headers = reply
                        if result is None:
                            self.ends["left"] += 1
                            return
                        if isinstance(result, int):
                            again = attempts.answered(result, headers)
                        else:
                            again = attempts.failed(result)
                        if not again:
                            self.ends[result if isinstance(result, int) else type(result).__name__] += 1
                            return

    @property
    def requests(self) -> int:
        """Calls that were sent at least once."""
        return len({sent.call for sent in self.sent})


def retry_afters(simulation: Simulation) -> Iterator[tuple[str, str, int, int]]:
    """(address, secret, from, until) of every Retry-After, parsed independently of the code under test."""
    for sent in simulation.sent:
        result, headers = sent.reply
        if not headers or not isinstance(result, int):
            continue
        text = headers["retry-after"]
        until_ns = (
            sent.ended_at_ns + int(text) * SECOND
            if text.isdigit()
            else int(datetime.strptime(text, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC).timestamp()) * SECOND
            - EPOCH_NS
        )
        of = [sent.candidate.credential] if result == 429 else sent.candidate.upstream.credentials
        for credential in of:
            yield sent.candidate.upstream.provider.base_url, credential.secret, sent.ended_at_ns, until_ns


def check_invariants(simulation: Simulation, options: RetryOptions) -> None:
    """Invariants of every simulation."""
    counts, requests = simulation.world.counts, simulation.requests
    retries = len(simulation.sent) - requests
    assert retries <= max(FLOOR if options.budget_ratio else 0, options.budget_ratio * requests)
    assert counts.attempts.total() == len(simulation.sent)
    assert counts.retries.total() == retries
    for address, secret, from_ns, until_ns in retry_afters(simulation):
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
            result = before.reply[0]
            assert result in (401, 402, 429, *RETRIED_5XX) or isinstance(
                result, UpstreamUnreachable | UpstreamDisconnected
            )
            if result in (401, 402):
                assert before.candidate.credential != after.candidate.credential
        if not options.same_place:
            places = [(sent.candidate.upstream.name, sent.candidate.credential) for sent in attempts]
            assert len(set(places)) == len(places)


def dated(seconds: int) -> Callable[[int], Mapping[str, str]]:
    def headers(now_ns: int) -> Mapping[str, str]:
        at = datetime.fromtimestamp((EPOCH_NS + now_ns) // SECOND + seconds, UTC)
        return {"retry-after": format_datetime(at, usegmt=True)}

    return headers


NO_HEADERS: Mapping[str, str] = {}
REPLIES: list[tuple[int | UpstreamFault | None, Mapping[str, str] | Callable[[int], Mapping[str, str]]]] = [
    (200, NO_HEADERS),
    *((status, NO_HEADERS) for status in (302, 400, 401, 402, 403, 404, 408, 429, 500, 501, 502, 503, 504, 529)),
    *((status, {"retry-after": text}) for status in (429, 503) for text in ("0", "1", "3", "20", "200")),
    (429, dated(2)),
    (503, dated(40)),
    (UpstreamUnreachable("x"), NO_HEADERS),
    (UpstreamTimedOut("x"), NO_HEADERS),
    (UpstreamDisconnected("x"), NO_HEADERS),
    (None, NO_HEADERS),
]
scripts = st.lists(st.lists(st.sampled_from(REPLIES), min_size=1, max_size=8), min_size=1, max_size=4)


def scripted(upstreams: list[Upstream], scripts: list[list[Any]]) -> Callable[[Candidate, int], Reply]:
    """Each upstream repeats its script."""
    turns = {up.name: count() for up in upstreams}

    def reply(candidate: Candidate, now_ns: int) -> Reply:
        script = scripts[upstreams.index(candidate.upstream)]
        result, headers = script[next(turns[candidate.upstream.name]) % len(script)]
        return result, headers(now_ns) if callable(headers) else headers

    return reply


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
def test_budget_waits_and_table_hold_for_any_replies(
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
    replies = scripted(upstreams, scripts)
    world = World(options, circuit, Random(seed).random)
    check_invariants(Simulation(world, plan(*upstreams, mode=mode), replies, slow).run(calls, per_second), options)


@settings(unhurried, max_examples=40)
@given(
    scripts=scripts,
    keys=st.integers(1, 3),
    mode=st.sampled_from(["ordered", "weighted"]),
    same_place=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_the_fast_path_decides_as_the_selector_would(
    scripts: list[list[Any]], keys: int, mode: Mode, same_place: bool, seed: int
) -> None:
    upstreams = [upstream(f"u{n}", *(f"u{n}-key{key}" for key in range(keys))) for n in range(len(scripts))]

    def run() -> tuple[list[tuple[int, Candidate]], Counter[Any], Counter[Any]]:
        world = World(RetryOptions(same_place=same_place), random=Random(seed).random)
        simulation = Simulation(world, plan(*upstreams, mode=mode), scripted(upstreams, scripts), 0.3).run(100, 20)
        return [(sent.at_ns, sent.candidate) for sent in simulation.sent], simulation.ends, world.counts.attempts

    fast = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attempts, "_is_clear", lambda self, slot: False)
        assert run() == fast


class TestStorms:
    @pytest.mark.parametrize("result", [429, 503, UpstreamUnreachable("x")], ids=str)
    @pytest.mark.parametrize("upstreams", [[A], [TWO_KEYS, A, B, C]], ids=len)
    def test_if_everything_fails_retries_stay_below_a_fifth(
        self, upstreams: list[Upstream], result: int | UpstreamFault
    ) -> None:
        world = World(random=Random(1).random)
        simulation = Simulation(world, plan(*upstreams), lambda candidate, now_ns: (result, {})).run(3000, 100)
        check_invariants(simulation, RetryOptions())
        assert simulation.requests == 3000
        assert len(simulation.sent) <= 3600

    def test_a_storm_of_429_uses_the_whole_budget(self) -> None:
        world = World(RetryOptions(base_seconds=0.001), random=Random(2).random)
        simulation = Simulation(world, plan(A, B), lambda candidate, now_ns: (429, {})).run(5000, 200)
        assert 5950 <= len(simulation.sent) <= 6000
        assert simulation.ends == {429: 5000}

    def test_a_storm_with_retry_after_sends_nothing_early(self) -> None:
        world = World(random=Random(3).random)
        upstreams = plan(TWO_KEYS, A)
        simulation = Simulation(world, upstreams, lambda c, now: (429, {"retry-after": "7"})).run(2000, 100)
        check_invariants(simulation, RetryOptions())
        per_credential = Counter(sent.candidate.credential.id for sent in simulation.sent)
        # 20 s of calls, 100 a second; each credential is tried at 0, 7 and 14 s, by the few calls that overlap there.
        assert max(per_credential.values()) <= 12
        assert simulation.ends["UpstreamRateLimited"] > 1900

    def test_a_burst_after_quiet_adds_at_most_the_floor(self) -> None:
        world = World(random=Random(4).random)
        Simulation(world, plan(A), lambda c, now: (200, {})).run(10_000, 1000)
        before = world.counts.retries.total()
        storm = Simulation(world, plan(A, B), lambda c, now: (429, {})).run(1000, 100_000)
        assert before == 0
        assert world.counts.retries.total() <= FLOOR + 200
        assert len(storm.sent) <= 1200 + FLOOR

    def test_a_flapping_upstream_is_mostly_left_alone(self) -> None:
        world = World(random=Random(5).random)
        begin_ns = world.now_ns

        def is_down(now_ns: int) -> bool:
            return (now_ns - begin_ns) // (60 * SECOND) % 2 == 1

        def replies(candidate: Candidate, now_ns: int) -> Reply:
            return (503 if candidate.upstream is A and is_down(now_ns) else 200), {}

        simulation = Simulation(world, plan(A, B), replies).run(12_000, 20)  # ten minutes, five of them down
        check_invariants(simulation, RetryOptions())
        assert simulation.ends == {200: 12_000}
        at_a = [sent for sent in simulation.sent if sent.candidate.upstream is A]
        # Each time five failures open the circuit and at most four probes fail: every 15 s of the minute.
        assert sum(is_down(sent.at_ns) for sent in at_a) <= 5 * (5 + 4)
        # And 15 s after it is back at the latest, it has its calls again.
        assert sum(not is_down(sent.at_ns) for sent in at_a) >= 5 * 45 * 20

    def test_if_all_are_down_no_circuit_refuses_and_all_recover(self) -> None:
        world = World(random=Random(6).random)
        begin_ns = world.now_ns

        def replies(candidate: Candidate, now_ns: int) -> Reply:
            return (503 if now_ns - begin_ns < 60 * SECOND else 200), {}

        simulation = Simulation(world, plan(A, B, C), replies).run(2000, 20)
        check_invariants(simulation, RetryOptions())
        assert simulation.requests == 2000
        assert simulation.ends[503] <= 1201
        assert simulation.ends[200] >= 799
        assert [sent for sent in simulation.sent if sent.at_ns - begin_ns >= 60 * SECOND and sent.reply[0] != 200] == []

    def test_a_half_open_upstream_gets_one_probe_at_a_time(self) -> None:
        world = World(random=Random(7).random)
        down = Simulation(world, plan(A, B), lambda c, now: (503 if c.upstream is A else 200, {}), 0.5).run(3000, 50)
        late = [sent for sent in down.sent if sent.candidate.upstream is A and sent.at_ns > down.sent[0].at_ns + SECOND]
        assert len(late) == 3
        assert all(before.ended_at_ns + 15 * SECOND <= after.at_ns for before, after in pairwise(late))
        # 25 calls were on their way when the first of them failed; the floor of the budget is not enough for all.
        assert down.ends[200] >= 3000 - 25
