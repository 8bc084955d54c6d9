"""State of upstreams and credentials between calls. One `FailoverState` per pipeline; it survives reloads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec
from msgspec.structs import replace

from mcpmeter.routing.circuit_breaker import CircuitBreaker, CircuitOptions
from mcpmeter.routing.outcomes import Outcome
from mcpmeter.routing.retries import RetryBudget, RetryOptions
from mcpmeter.routing.routes import Credential, Upstream

MAX_WAITS: Final = 256
HEALTHY: Final = (True, False)
"""Status of an upstream without known problems: up, circuit not open."""


class FailoverObserver(Protocol):
    """Receives what failover does, to count it."""

    def attempted(self, provider: str, outcome: Outcome) -> None:
        """An attempt received its response headers, or ended before them."""

    def retried(self, provider: str, reason: Outcome) -> None:
        """Another attempt is sent because of the outcome of the one at `provider`."""

    def status(self, provider: str, *, is_up: bool, is_circuit_open: bool) -> None:
        """The present status of an upstream."""


class Pause(msgspec.Struct, frozen=True, order=True, gc=False):
    """A provider's Retry-After. Instants are monotonic nanoseconds."""

    until_ns: int = 0
    """Nothing is sent before: its end, or the latest instant up to which it is honoured."""
    ends_ns: int = 0
    """Its end as the provider gave it. Between the two, one call at a time tries whether the provider answers again."""
    is_rate_limited: bool = False
    """Whether a 429 sent it, not a 5xx."""


NO_PAUSE: Final = Pause()


@dataclass(slots=True, eq=False)
class CredentialBackoff:
    """Why a credential is avoided. Instants are monotonic nanoseconds."""

    waits: dict[str, Pause] = field(default_factory=dict)
    """Per model: providers limit models separately, so an exhausted model must not stop the others."""
    doubtful_until_ns: int = 0
    """Other credentials are preferred until then: it was limited or refused, without a Retry-After."""
    is_refused: bool = False
    """Its last response was 401 or 402."""

    def until_ns(self, model: str) -> int:
        """Nothing is sent for this model before."""
        return self.waits.get(model, NO_PAUSE).until_ns

    def is_rate_limited(self, model: str) -> bool:
        """Whether the wait comes from a 429, not from a 5xx."""
        return self.waits.get(model, NO_PAUSE).is_rate_limited

    def is_free(self, model: str, now_ns: int) -> bool:
        """Whether no Retry-After is left for this model."""
        return self.waits.get(model, NO_PAUSE).ends_ns <= now_ns

    def wait_until(self, model: str, pause: Pause, now_ns: int) -> None:
        """Record a Retry-After; the latest of several counts."""
        if len(self.waits) >= MAX_WAITS:
            # Callers choose model names, so the set is bounded: drop expired waits, then the one that ends first.
            self.waits = {name: kept for name, kept in self.waits.items() if kept.ends_ns > now_ns}
        if len(self.waits) >= MAX_WAITS and model not in self.waits:
            del self.waits[min(self.waits, key=self.waits.__getitem__)]
        self.waits[model] = max(pause, self.waits.get(model, NO_PAUSE))

    def begin_trial(self, model: str, now_ns: int, max_wait_ns: int) -> bool:
        """Whether a call that is sent now is the trial of a Retry-After that has not ended.

        Others then wait as long again, whatever becomes of the trial: no state has to be freed if it is abandoned.
        """
        pause = self.waits.get(model, NO_PAUSE)
        if pause.ends_ns <= now_ns:
            return False
        self.waits[model] = replace(pause, until_ns=min(pause.ends_ns, now_ns + max_wait_ns))
        return True

    def end_trial(self, model: str) -> None:
        """The provider answers again before its Retry-After has ended."""
        self.waits.pop(model, None)

    def doubt(self, until_ns: int) -> None:
        """Prefer other credentials until then."""
        self.doubtful_until_ns = max(self.doubtful_until_ns, until_ns)

    def trust(self) -> None:
        """Clear doubt and refusal after a success; a Retry-After stays."""
        self.doubtful_until_ns, self.is_refused = 0, False


@dataclass(slots=True, eq=False)
class UpstreamState:
    """One upstream's circuit and credentials."""

    name: str
    breaker: CircuitBreaker
    backoffs: tuple[CredentialBackoff, ...]
    """One per entry of `Upstream.credentials`, in the same order."""
    turn: int = 0
    """Index of the credential that the next call uses first."""
    reported: tuple[bool, bool] | None = None
    """The status last passed to the observer: up, circuit open."""

    @property
    def is_up(self) -> bool:
        """Whether calls to it are expected to work."""
        return self.breaker.is_closed and not all(backoff.is_refused for backoff in self.backoffs)


@dataclass(slots=True, kw_only=True)
class FailoverState:
    """Everything that the calls of a pipeline share."""

    retries: RetryOptions
    circuit: CircuitOptions
    budget: RetryBudget
    observer: FailoverObserver
    clock_ns: Callable[[], int]
    unix_ns: Callable[[], int]
    random: Callable[[], float]
    _upstreams: dict[tuple[str, str, tuple[Credential, ...]], UpstreamState] = field(default_factory=dict)
    _breakers: dict[tuple[str, str], CircuitBreaker] = field(default_factory=dict)
    _backoffs: dict[tuple[str, str], CredentialBackoff] = field(default_factory=dict)

    def of(self, upstream: Upstream) -> UpstreamState:
        """The state of an upstream; a new one starts healthy.

        A circuit belongs to a name and address, a credential to an address: two names for one account share it.
        """
        address, credentials = upstream.provider.base_url, upstream.credentials
        state = self._upstreams.get((upstream.name, address, credentials))
        if state is None:
            breaker = self._breakers.setdefault((upstream.name, address), CircuitBreaker(self.circuit))
            backoffs = tuple(self._backoffs.setdefault((address, c.secret), CredentialBackoff()) for c in credentials)
            state = UpstreamState(upstream.name, breaker, backoffs)
            self._upstreams[upstream.name, address, credentials] = state
        return state

    def report_status(self, state: UpstreamState) -> None:
        """Pass an upstream's status to the observer if it has changed."""
        status = state.is_up, not state.breaker.is_closed
        if status != state.reported:
            state.reported = status
            self.observer.status(state.name, is_up=status[0], is_circuit_open=status[1])

    def forget_all_but(self, upstreams: Sequence[Upstream]) -> None:
        """Drop what a reload no longer configures. It is reported healthy, so that no alert stays on."""
        kept = [self.of(upstream) for upstream in upstreams]
        for name in {state.name for state in self._upstreams.values()}.difference(state.name for state in kept):
            self.observer.status(name, is_up=True, is_circuit_open=False)
        breakers = {id(state.breaker) for state in kept}
        backoffs = {id(backoff) for state in kept for backoff in state.backoffs}
        self._upstreams = {key: state for key, state in self._upstreams.items() if state in kept}
        self._breakers = {key: breaker for key, breaker in self._breakers.items() if id(breaker) in breakers}
        self._backoffs = {key: backoff for key, backoff in self._backoffs.items() if id(backoff) in backoffs}
        for state in kept:
            state.breaker.reconfigure(self.circuit)
            self.report_status(state)
