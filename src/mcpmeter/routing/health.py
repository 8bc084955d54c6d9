"""What is known of upstreams and credentials between calls. One for a pipeline; it outlives a reload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from mcpmeter.routing.circuit_breaker import Breaker
from mcpmeter.routing.options import CircuitOptions, RetryOptions
from mcpmeter.routing.outcomes import Outcome
from mcpmeter.routing.retry_budget import RetryBudget
from mcpmeter.routing.routes import Upstream

MAX_WAITS: Final = 256
NO_WAIT: Final = (0, False)
WELL: Final = (True, False)
"""The standing of an upstream that nothing is held against: up, and its circuit not open."""


class FailoverObserver(Protocol):
    """Who counts what happens."""

    def attempted(self, provider: str, outcome: Outcome) -> None:
        """An attempt came to its answer's head, or to an end before that."""

    def retried(self, provider: str, reason: Outcome) -> None:
        """A further attempt is sent, because of what came of the one at `provider`."""

    def standing(self, provider: str, *, is_up: bool, is_circuit_open: bool) -> None:
        """How an upstream stands now."""


@dataclass(slots=True, eq=False)
class CredentialBackoff:
    """What is held against one credential. Instants are monotonic nanoseconds."""

    waits: dict[str, tuple[int, bool]] = field(default_factory=dict)
    """Model to an instant, before which nothing is sent for it as the provider said so, and whether that was by a 429.
    By model, since providers count and serve models apart: one that is overrun must not stop the others."""
    doubtful_until_ns: int = 0
    """Others go before it until then: it was limited or refused lately, without a time given."""
    is_refused: bool = False
    """Its last answer was 401 or 402."""

    def until_ns(self, model: str) -> int:
        """Nothing is sent for this model before."""
        return self.waits.get(model, NO_WAIT)[0]

    def is_rate_limited(self, model: str) -> bool:
        """Whether it is a 429 that has to be waited for; else an answer of 5xx."""
        return self.waits.get(model, NO_WAIT)[1]

    def wait_until(self, instant_ns: int, now_ns: int, model: str, *, is_rate_limited: bool) -> None:
        """The provider asks to wait; of several such times the last counts."""
        if len(self.waits) >= MAX_WAITS:
            # Models are named by callers, so the set is bounded: what has passed goes, then what ends first.
            self.waits = {name: until for name, until in self.waits.items() if until[0] > now_ns}
        if len(self.waits) >= MAX_WAITS and model not in self.waits:
            del self.waits[min(self.waits, key=self.waits.__getitem__)]
        self.waits[model] = max((instant_ns, is_rate_limited), self.waits.get(model, NO_WAIT))

    def doubt(self, until_ns: int) -> None:
        """Let others go first."""
        self.doubtful_until_ns = max(self.doubtful_until_ns, until_ns)

    def trust(self) -> None:
        """It worked. What the provider asked to wait stays."""
        self.doubtful_until_ns, self.is_refused = 0, False


@dataclass(slots=True, eq=False)
class UpstreamState:
    """One upstream's circuit and credentials."""

    name: str
    breaker: Breaker
    backoffs: tuple[CredentialBackoff, ...]
    """One for each of `Upstream.credentials`, in their order."""
    turn: int = 0
    """Which credential goes first in the next call."""
    told: tuple[bool, bool] | None = None
    """What was last said of it: up, circuit open."""

    @property
    def is_up(self) -> bool:
        """Whether calls to it may be expected to work."""
        return self.breaker.is_closed and not all(backoff.is_refused for backoff in self.backoffs)


@dataclass(slots=True, kw_only=True)
class FailoverState:
    """All that calls share."""

    retries: RetryOptions
    circuit: CircuitOptions
    budget: RetryBudget
    tally: FailoverObserver
    clock_ns: Callable[[], int]
    unix_ns: Callable[[], int]
    random: Callable[[], float]
    _upstreams: dict[tuple[str, str, tuple[str, ...]], UpstreamState] = field(default_factory=dict)
    _breakers: dict[tuple[str, str], Breaker] = field(default_factory=dict)
    _backoffs: dict[tuple[str, str], CredentialBackoff] = field(default_factory=dict)

    def of(self, upstream: Upstream) -> UpstreamState:
        """What is known of an upstream; one that is new starts with a clean record.

        A circuit belongs to a name and address, a credential to an address: two names for one account share it.
        """
        address, secrets = upstream.provider.base_url, upstream.secrets
        state = self._upstreams.get((upstream.name, address, secrets))
        if state is None:
            breaker = self._breakers.setdefault((upstream.name, address), Breaker(self.circuit))
            backoffs = tuple(self._backoffs.setdefault((address, secret), CredentialBackoff()) for secret in secrets)
            state = UpstreamState(upstream.name, breaker, backoffs)
            self._upstreams[upstream.name, address, secrets] = state
        return state

    def tell_standing(self, state: UpstreamState) -> None:
        """Say how an upstream stands, if that has changed: this is asked after every attempt."""
        standing = state.is_up, not state.breaker.is_closed
        if standing != state.told:
            state.told = standing
            self.tally.standing(state.name, is_up=standing[0], is_circuit_open=standing[1])

    def forget_all_but(self, upstreams: Sequence[Upstream]) -> None:
        """After a reload: what is not configured any more is dropped, and stands well, so that no alert stays on."""
        kept = [self.of(upstream) for upstream in upstreams]
        for name in {state.name for state in self._upstreams.values()}.difference(state.name for state in kept):
            self.tally.standing(name, is_up=True, is_circuit_open=False)
        breakers = {id(state.breaker) for state in kept}
        backoffs = {id(backoff) for state in kept for backoff in state.backoffs}
        self._upstreams = {key: state for key, state in self._upstreams.items() if state in kept}
        self._breakers = {key: breaker for key, breaker in self._breakers.items() if id(breaker) in breakers}
        self._backoffs = {key: backoff for key, backoff in self._backoffs.items() if id(backoff) in backoffs}
        for state in kept:
            state.breaker.reconfigure(self.circuit)
            self.tell_standing(state)
