"""Where one call may be sent, the best place first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from mcpmeter.routing.health import CredentialBackoff, FailoverState, UpstreamState
from mcpmeter.routing.routes import Credential, Plan, Route, Upstream


class Candidate(msgspec.Struct, frozen=True):
    """An upstream, the model's name there, and the credential to send."""

    upstream: Upstream
    model: str
    credential: Credential


@dataclass(frozen=True, slots=True, eq=False)
class CredentialSlot:
    """A candidate with what is known of it between calls."""

    candidate: Candidate
    state: UpstreamState
    backoff: CredentialBackoff
    next_turn: int
    """Whose turn it is after this credential's."""

    @property
    def until_ns(self) -> int:
        """Nothing is sent there before."""
        return self.backoff.until_ns(self.candidate.model)


@dataclass(frozen=True, slots=True, eq=False)
class RouteTarget:
    """A route of a plan with its places, one for each credential in the order of configuration."""

    state: UpstreamState
    slots: tuple[CredentialSlot, ...]
    weight: int


def route_targets(plan: Plan, shared: FailoverState) -> tuple[RouteTarget, ...]:
    """The same for every call on a plan, until a reload."""
    return tuple(_way(route, shared.of(route.upstream)) for route in plan.routes)


def _way(route: Route, state: UpstreamState) -> RouteTarget:
    credentials, backoffs = route.upstream.credentials, state.backoffs
    slots = (
        CredentialSlot(Candidate(route.upstream, route.model, credential), state, backoff, (index + 1) % len(backoffs))
        for index, (credential, backoff) in enumerate(zip(credentials, backoffs, strict=True))
    )
    return RouteTarget(state, tuple(slots), route.weight)


class Selector:
    """For one call: ways in their order, each with its credentials, which take turns; and how often each was tried.

    A circuit that is open, and a credential that must wait, are left out; one in doubt goes behind the others.
    """

    __slots__ = ("_failures", "_out", "_slots", "_tries")

    def __init__(self, ways: Sequence[RouteTarget], turns: Sequence[int]) -> None:
        """`turns` says for each way which credential goes first."""
        turned = zip(ways, turns, strict=True)
        self._slots = [slot for way, turn in turned for slot in (*way.slots[turn:], *way.slots[:turn])]
        self._tries: dict[CredentialSlot, int] = {}
        self._failures: dict[UpstreamState, int] = {}
        self._out: set[CredentialBackoff] = set()
        """Credentials that are not tried again in this call."""

    def ready(self, now_ns: int, *, is_retry: bool) -> CredentialSlot | None:
        """The best that may be sent to now.

        Where every circuit that is left is open, a first attempt goes to the one that will half-open first: nobody is
        refused for a circuit's sake. A further attempt has been refused already, and goes nowhere.
        """
        free = [slot for slot in self._left() if slot.until_ns <= now_ns]
        let_through = [slot for slot in free if slot.state.breaker.lets_through(now_ns)]
        if let_through:
            return min(let_through, key=lambda slot: self._rank(slot, now_ns))
        if is_retry or not free:
            return None
        return min(free, key=lambda slot: slot.state.breaker.half_opens_at_ns)

    def _left(self) -> list[CredentialSlot]:
        return [slot for slot in self._slots if slot.backoff not in self._out]

    def _rank(self, slot: CredentialSlot, now_ns: int) -> tuple[bool, int, int]:
        return (
            slot.backoff.doubtful_until_ns > now_ns,
            self._failures.get(slot.state, 0),
            self._tries.get(slot, 0),
        )

    def soonest(self, now_ns: int) -> CredentialSlot | None:
        """Of those that only wait for a Retry-After to pass, the one whose wait ends first."""
        waiting = [slot for slot in self._left() if slot.state.breaker.lets_through(now_ns)]
        return min(waiting, key=lambda slot: slot.until_ns, default=None)

    def first_to_end_its_wait(self) -> CredentialSlot:
        """Of all, the one whose wait ends first."""
        return min(self._slots, key=lambda slot: slot.until_ns)

    def sent(self, slot: CredentialSlot) -> None:
        """An attempt goes there."""
        self._tries[slot] = self._tries.get(slot, 0) + 1

    def failed(self, slot: CredentialSlot) -> None:
        """The upstream failed in this call: others go first."""
        self._failures[slot.state] = self._failures.get(slot.state, 0) + 1

    def refused(self, slot: CredentialSlot) -> None:
        """The credential is not tried again in this call."""
        self._out.add(slot.backoff)

    def was_tried(self, slot: CredentialSlot) -> bool:
        """Whether a further attempt there has to be spaced out: the same credential, or an upstream that failed."""
        return slot in self._tries or slot.state in self._failures


def drawn_by_weight(ways: Sequence[RouteTarget], random: Callable[[], float]) -> list[RouteTarget]:
    """A random order in which each place goes to a way with its share of the weight that is left.

    Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006): sorted by exponential variates.
    """
    return sorted(ways, key=lambda way: -math.log(1.0 - random()) / way.weight)
