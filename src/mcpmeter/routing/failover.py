"""Failover: where a call goes, whether it is tried again, and what is learned of upstreams and credentials from it.

Pure: no I/O, no waiting; time and chance are injected. Whoever sends asks what to do and tells what came of it:

    plan = routing.plan(model).where(speaks_the_dialect)
    with failover.begin(plan, total_seconds) as attempts:      # for the whole call, until its last byte
        answer = await self._send(attempts)
        ...                                                    # attempts.broke() if the provider breaks it off later

    async def _send(self, attempts):
        while True:
            match attempts.next():
                case Refuse(error):
                    raise error
                case Wait(seconds):
                    await asyncio.sleep(seconds)
                case Send(candidate):
                    try:
                        answer = await self._post(candidate)   # timed by min(its total_seconds, attempts.seconds_left)
                    except UpstreamFault as fault:
                        if not attempts.failed(fault):
                            raise
                    else:
                        if not attempts.answered(answer.status, answer.headers):
                            return answer
                        answer.abort()

Nothing is sent again once `answered` has said False, and that comes before the first byte to the client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from random import Random

from mcpmeter.routing.attempts import Attempts, Refuse, Send, Wait
from mcpmeter.routing.candidates import Candidate, RouteTarget, route_targets
from mcpmeter.routing.circuit_breaker import Breaker
from mcpmeter.routing.health import FailoverObserver, FailoverState
from mcpmeter.routing.metrics import FailoverMetrics
from mcpmeter.routing.options import CircuitOptions, RetryOptions
from mcpmeter.routing.outcomes import Outcome
from mcpmeter.routing.retry_budget import FLOOR, RetryBudget
from mcpmeter.routing.routes import MAX_PLANS, Plan, Upstream

__all__ = [
    "FLOOR",
    "Attempts",
    "Breaker",
    "Candidate",
    "CircuitOptions",
    "Failover",
    "FailoverMetrics",
    "FailoverObserver",
    "Outcome",
    "Refuse",
    "RetryBudget",
    "RetryOptions",
    "Send",
    "Wait",
]


class Failover:
    """One for a pipeline: circuits, credentials that must wait, and the retry budget, over all calls and reloads.

    `clock_ns` is monotonic, `unix_ns` is UTC (for dates in Retry-After), `random` gives values in [0, 1).
    """

    def __init__(
        self,
        tally: FailoverObserver,
        *,
        retries: RetryOptions | None = None,
        circuit: CircuitOptions | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        unix_ns: Callable[[], int] = time.time_ns,
        random: Callable[[], float] | None = None,
    ) -> None:
        retries = retries or RetryOptions()
        self._shared = FailoverState(
            retries=retries,
            circuit=circuit or CircuitOptions(),
            budget=RetryBudget(retries.budget_ratio),
            tally=tally,
            clock_ns=clock_ns,
            unix_ns=unix_ns,
            random=random or Random().random,  # noqa: S311 (spreads load, guards nothing)
        )
        self._ways: dict[int, tuple[Plan, tuple[RouteTarget, ...]]] = {}
        """By the identity of the plan, which is kept with them; bounded, for callers name the models."""

    def configure(self, retries: RetryOptions, circuit: CircuitOptions, upstreams: Sequence[Upstream]) -> None:
        """Take what a reload says. What is known of upstreams and credentials that stay is kept."""
        self._shared.retries, self._shared.circuit = retries, circuit
        self._shared.budget.reconfigure(retries.budget_ratio)
        self._shared.forget_all_but(upstreams)
        self._ways.clear()

    def begin(self, plan: Plan, total_seconds: float) -> Attempts:
        """The attempts of one call, all waits and attempts together in `total_seconds`."""
        kept = self._ways.get(id(plan)) or self._look_up(plan)
        return Attempts(plan, kept[1], total_seconds, self._shared)

    def _look_up(self, plan: Plan) -> tuple[Plan, tuple[RouteTarget, ...]]:
        if len(self._ways) >= MAX_PLANS:
            self._ways.clear()
        kept = self._ways[id(plan)] = plan, route_targets(plan, self._shared)
        return kept
