"""Failover: the state over all calls of a pipeline, and its metrics.

The relay asks for each step and reports each result:

    plan = routing.plan(model).where(speaks_the_dialect)
    with failover.begin(plan, total_seconds) as attempts:      # for the whole call, until its last byte
        response = await self._send(attempts)
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
                        response = await self._post(candidate)  # timeout: min(its total_seconds, attempts.seconds_left)
                    except UpstreamFault as fault:
                        if not attempts.failed(fault):
                            raise
                    else:
                        if not attempts.answered(response.status, response.headers):
                            return response
                        response.abort()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from random import Random

from mcpmeter.catalog import upstream as rows
from mcpmeter.metrics.family import Cell
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.routing.attempts import Attempts
from mcpmeter.routing.candidates import RouteTarget, route_targets
from mcpmeter.routing.circuit_breaker import CircuitOptions
from mcpmeter.routing.health import FailoverObserver, FailoverState
from mcpmeter.routing.outcomes import Outcome
from mcpmeter.routing.retries import RetryBudget, RetryOptions
from mcpmeter.routing.routes import MAX_PLANS, Plan, Upstream


class Failover:
    """One per pipeline: circuits, backoff of credentials and the retry budget, over all calls and reloads.

    `clock_ns` is monotonic, `unix_ns` is UTC (for dates in Retry-After), `random` returns values in [0, 1).
    """

    def __init__(
        self,
        observer: FailoverObserver,
        *,
        retries: RetryOptions | None = None,
        circuit: CircuitOptions | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        unix_ns: Callable[[], int] = time.time_ns,
        random: Callable[[], float] | None = None,
    ) -> None:
        retries = retries or RetryOptions()
        self._state = FailoverState(
            retries=retries,
            circuit=circuit or CircuitOptions(),
            budget=RetryBudget(retries.budget_ratio),
            observer=observer,
            clock_ns=clock_ns,
            unix_ns=unix_ns,
            random=random or Random().random,  # noqa: S311 (spreads load, guards nothing)
        )
        self._targets: dict[int, tuple[Plan, tuple[RouteTarget, ...]]] = {}
        """By the plan's identity; the plan is kept so that its id is not reused. Bounded: callers name the models."""

    def configure(self, retries: RetryOptions, circuit: CircuitOptions, upstreams: Sequence[Upstream]) -> None:
        """Apply a reload. State of upstreams and credentials that remain is kept."""
        self._state.retries, self._state.circuit = retries, circuit
        self._state.budget.reconfigure(retries.budget_ratio)
        self._state.forget_all_but(upstreams)
        self._targets.clear()

    def begin(self, plan: Plan, total_seconds: float) -> Attempts:
        """The attempts of one call; waits and attempts together take at most `total_seconds`."""
        kept = self._targets.get(id(plan)) or self._look_up(plan)
        return Attempts(plan, kept[1], total_seconds, self._state)

    def _look_up(self, plan: Plan) -> tuple[Plan, tuple[RouteTarget, ...]]:
        if len(self._targets) >= MAX_PLANS:
            self._targets.clear()
        kept = self._targets[id(plan)] = plan, route_targets(plan, self._state)
        return kept


class FailoverMetrics:
    """The `FailoverObserver` that feeds a recorder. Call `register` before the first call and after each reload."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._attempts: dict[tuple[str, str], Cell] = {}

    def register(self, providers: Iterable[str]) -> None:
        """Create every series: counters at 0, new upstreams up with a closed circuit."""
        attempts = self._recorder.families[rows.ATTEMPTS.name]
        for name in providers:
            self._recorder.register_children(rows.RETRIES, provider=[name])
            self._recorder.register_children(rows.DISCONNECTS, provider=[name])
            is_new = (name, rows.OUTCOMES[0]) not in self._attempts
            for outcome in rows.OUTCOMES:
                self._attempts[name, outcome] = attempts.cell(provider=name, outcome=outcome)
            if is_new:
                self.status(name, is_up=True, is_circuit_open=False)

    def attempted(self, provider: str, outcome: Outcome) -> None:
        """Count an attempt that received its response headers, or ended before them."""
        cell = self._attempts.get((provider, outcome))
        if cell is not None:
            cell.value += 1
        else:
            self._recorder.add(rows.ATTEMPTS, provider=provider, outcome=outcome)

    def retried(self, provider: str, reason: Outcome) -> None:
        """Count a retry, by the provider and outcome that caused it."""
        self._recorder.add(rows.RETRIES, provider=provider, reason=reason)

    def status(self, provider: str, *, is_up: bool, is_circuit_open: bool) -> None:
        """Set the gauges of an upstream."""
        self._recorder.set(rows.UP, int(is_up), provider=provider)
        self._recorder.set(rows.CIRCUIT_OPEN, int(is_circuit_open), provider=provider)
