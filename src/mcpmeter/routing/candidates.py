"""Where one call may be sent, the best place first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from mcpmeter.routing.health import Cooling, Shared, UpstreamState
from mcpmeter.routing.routes import Credential, Plan, Route, Upstream


class Candidate(msgspec.Struct, frozen=True):
    """An upstream, the model's name there, and the credential to send."""

    upstream: Upstream
    model: str
    credential: Credential


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A candidate with what is known of it between calls."""

    candidate: Candidate
    state: UpstreamState
    cooling: Cooling
    next_turn: int
    """Whose turn it is after this credential's."""

    @property
    def until_ns(self) -> int:
        """Nothing is sent there before."""
        return self.cooling.until_ns(self.candidate.model)


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """A route of a plan with its places, one for each credential in the order of configuration."""

    state: UpstreamState
    places: tuple[Place, ...]
    weight: int


def ways_of(plan: Plan, shared: Shared) -> tuple[Way, ...]:
    """The same for every call on a plan, until a reload."""
    return tuple(_way(route, shared.of(route.upstream)) for route in plan.routes)


def _way(route: Route, state: UpstreamState) -> Way:
    credentials, coolings = route.upstream.credentials, state.coolings
    places = (
        Place(Candidate(route.upstream, route.model, credential), state, cooling, (index + 1) % len(coolings))
        for index, (credential, cooling) in enumerate(zip(credentials, coolings, strict=True))
    )
    return Way(state, tuple(places), route.weight)


class Candidates:
    """For one call: ways in their order, each with its credentials, which take turns; and how often each was tried.

    A circuit that is open, and a credential that must wait, are left out; one in doubt goes behind the others.
    """

    __slots__ = ("_failures", "_out", "_places", "_tries")

    def __init__(self, ways: Sequence[Way], turns: Sequence[int]) -> None:
        """`turns` says for each way which credential goes first."""
        turned = zip(ways, turns, strict=True)
        self._places = [place for way, turn in turned for place in (*way.places[turn:], *way.places[:turn])]
        self._tries: dict[Place, int] = {}
        self._failures: dict[UpstreamState, int] = {}
        self._out: set[Cooling] = set()
        """Credentials that are not tried again in this call."""

    def ready(self, now_ns: int, *, is_retry: bool) -> Place | None:
        """The best that may be sent to now.

        Where every circuit that is left is open, a first attempt goes to the one that will half-open first: nobody is
        refused for a circuit's sake. A further attempt has been refused already, and goes nowhere.
        """
        free = [place for place in self._left() if place.until_ns <= now_ns]
        let_through = [place for place in free if place.state.breaker.lets_through(now_ns)]
        if let_through:
            return min(let_through, key=lambda place: self._rank(place, now_ns))
        if is_retry or not free:
            return None
        return min(free, key=lambda place: place.state.breaker.half_opens_at_ns)

    def _left(self) -> list[Place]:
        return [place for place in self._places if place.cooling not in self._out]

    def _rank(self, place: Place, now_ns: int) -> tuple[bool, int, int]:
        return (
            place.cooling.doubtful_until_ns > now_ns,
            self._failures.get(place.state, 0),
            self._tries.get(place, 0),
        )

    def soonest(self, now_ns: int) -> Place | None:
        """Of those that only wait for a Retry-After to pass, the one whose wait ends first."""
        waiting = [place for place in self._left() if place.state.breaker.lets_through(now_ns)]
        return min(waiting, key=lambda place: place.until_ns, default=None)

    def first_to_end_its_wait(self) -> Place:
        """Of all, the one whose wait ends first."""
        return min(self._places, key=lambda place: place.until_ns)

    def sent(self, place: Place) -> None:
        """An attempt goes there."""
        self._tries[place] = self._tries.get(place, 0) + 1

    def failed(self, place: Place) -> None:
        """The upstream failed in this call: others go first."""
        self._failures[place.state] = self._failures.get(place.state, 0) + 1

    def refused(self, place: Place) -> None:
        """The credential is not tried again in this call."""
        self._out.add(place.cooling)

    def was_tried(self, place: Place) -> bool:
        """Whether a further attempt there has to be spaced out: the same credential, or an upstream that failed."""
        return place in self._tries or place.state in self._failures


def drawn_by_weight(ways: Sequence[Way], random: Callable[[], float]) -> list[Way]:
    """A random order in which each place goes to a way with its share of the weight that is left.

    Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006): sorted by exponential variates.
    """
    return sorted(ways, key=lambda way: -math.log(1.0 - random()) / way.weight)
