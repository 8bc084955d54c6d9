"""Where one call may be sent, best first."""

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
    """A candidate with its state between calls."""

    candidate: Candidate
    state: UpstreamState
    backoff: CredentialBackoff
    next_turn: int
    """Index of the credential that follows this one in rotation."""

    @property
    def until_ns(self) -> int:
        """Nothing is sent to this slot before."""
        return self.backoff.until_ns(self.candidate.model)


@dataclass(frozen=True, slots=True, eq=False)
class RouteTarget:
    """A route of a plan with one slot per credential, in the order of configuration."""

    state: UpstreamState
    slots: tuple[CredentialSlot, ...]
    weight: int


def route_targets(plan: Plan, state: FailoverState) -> tuple[RouteTarget, ...]:
    """The targets of a plan: the same for every call until a reload."""
    return tuple(_target(route, state.of(route.upstream)) for route in plan.routes)


def _target(route: Route, state: UpstreamState) -> RouteTarget:
    credentials, backoffs = route.upstream.credentials, state.backoffs
    slots = (
        CredentialSlot(Candidate(route.upstream, route.model, credential), state, backoff, (index + 1) % len(backoffs))
        for index, (credential, backoff) in enumerate(zip(credentials, backoffs, strict=True))
    )
    return RouteTarget(state, tuple(slots), route.weight)


class Selector:
    """Selects the slot for each attempt of one call.

    Slots are ordered by target, then by their credentials' rotation. `ready` leaves out open circuits and credentials
    that must wait. Of the rest it prefers: no doubt about the credential, fewest failures of the upstream in this call,
    fewest attempts at the slot in this call, then the order.
    """

    __slots__ = ("_excluded", "_failures", "_slots", "_tries")

    def __init__(self, targets: Sequence[RouteTarget], turns: Sequence[int]) -> None:
        """`turns` holds for each target the index of the credential that goes first."""
        turned = zip(targets, turns, strict=True)
        self._slots = [slot for target, turn in turned for slot in (*target.slots[turn:], *target.slots[:turn])]
        self._tries: dict[CredentialSlot, int] = {}
        self._failures: dict[UpstreamState, int] = {}
        self._excluded: set[CredentialBackoff] = set()
        """Credentials that this call does not use again."""

    def ready(self, now_ns: int, *, is_retry: bool) -> CredentialSlot | None:
        """The best slot that may be used now.

        If every remaining circuit is open, a first attempt uses the one that half-opens first: a circuit alone never
        refuses a call. A retry has a response to hand on already, so it gets no slot.
        """
        free = [slot for slot in self._remaining() if slot.until_ns <= now_ns]
        allowed = [slot for slot in free if slot.state.breaker.allows(now_ns)]
        if allowed:
            return min(allowed, key=lambda slot: self._rank(slot, now_ns))
        if is_retry or not free:
            return None
        return min(free, key=lambda slot: slot.state.breaker.half_opens_at_ns)

    def _remaining(self) -> list[CredentialSlot]:
        return [slot for slot in self._slots if slot.backoff not in self._excluded]

    def _rank(self, slot: CredentialSlot, now_ns: int) -> tuple[bool, int, int]:
        return (
            slot.backoff.doubtful_until_ns > now_ns,
            self._failures.get(slot.state, 0),
            self._tries.get(slot, 0),
        )

    def soonest(self, now_ns: int) -> CredentialSlot | None:
        """Of the slots that only wait for a Retry-After, the one whose wait ends first."""
        waiting = [slot for slot in self._remaining() if slot.state.breaker.allows(now_ns)]
        return min(waiting, key=lambda slot: slot.until_ns, default=None)

    def shortest_wait(self) -> CredentialSlot:
        """Of all slots, the one whose wait ends first."""
        return min(self._slots, key=lambda slot: slot.until_ns)

    def sent(self, slot: CredentialSlot) -> None:
        """Count an attempt at a slot."""
        self._tries[slot] = self._tries.get(slot, 0) + 1

    def failed(self, slot: CredentialSlot) -> None:
        """Count a failure of a slot's upstream: other upstreams are preferred."""
        self._failures[slot.state] = self._failures.get(slot.state, 0) + 1

    def exclude(self, slot: CredentialSlot) -> None:
        """Do not use the slot's credential again in this call."""
        self._excluded.add(slot.backoff)

    def was_tried(self, slot: CredentialSlot) -> bool:
        """Whether a retry there needs a pause: the same credential, or an upstream that failed in this call."""
        return slot in self._tries or slot.state in self._failures


def drawn_by_weight(targets: Sequence[RouteTarget], random: Callable[[], float]) -> list[RouteTarget]:
    """A random order in which each position goes to a target with its share of the remaining weight.

    Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006): sorted by exponential variates.
    """
    return sorted(targets, key=lambda target: -math.log(1.0 - random()) / target.weight)
