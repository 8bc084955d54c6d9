"""A failover on a clock moved by hand, shared by the tests of routing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from mcpmeter.providers import Provider
from mcpmeter.routing.attempts import Attempts, Refuse, Send, Wait
from mcpmeter.routing.circuit_breaker import CircuitOptions
from mcpmeter.routing.failover import Failover
from mcpmeter.routing.outcomes import Outcome
from mcpmeter.routing.retries import RetryOptions
from mcpmeter.routing.routes import Mode, Plan, Route, Upstream

SECOND = 1_000_000_000
EPOCH_NS = int(datetime(2026, 11, 22, tzinfo=UTC).timestamp()) * SECOND


class Counts:
    """A `FailoverObserver` that counts."""

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
    """A failover with its clock, its random numbers and its counts."""

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

    def advance(self, seconds: float) -> None:
        self.now_ns += math.ceil(seconds * SECOND)

    def begin(self, *upstreams: Upstream, mode: Mode = "ordered", seconds: float = 60.0) -> Attempts:
        return self.failover.begin(plan(*upstreams, mode=mode), seconds)

    def call(self, upstreams: Sequence[Upstream], *statuses: int) -> list[str]:
        """The credentials that a call was sent with; `statuses` answer in turn, waits pass at once."""
        sent, replies = [], iter(statuses)
        with self.begin(*upstreams) as attempts:
            while True:
                step = attempts.next()
                if isinstance(step, Wait):
                    self.advance(step.seconds)
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


def credential_of(step: Send | Wait | Refuse) -> str:
    assert isinstance(step, Send)
    return step.candidate.credential.id


A, B, C = upstream("a"), upstream("b"), upstream("c")
TWO_KEYS = upstream("k", "first", "second")
