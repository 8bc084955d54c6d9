"""Where one call may be sent, the best place first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import msgspec

from mcpmeter.relay.failover.state import Cooling, Shared, UpstreamState
from mcpmeter.relay.routing import Credential, Plan, Route, Upstream


class Candidate(msgspec.Struct, frozen=True):
    """An upstream, the model's name there, and the credential to send."""

    upstream: Upstream
    model: str
    credential: Credential


class Entry(msgspec.Struct, eq=False):
    """A candidate with what is known of it, and how often this call has tried it."""

    candidate: Candidate
    state: UpstreamState
    cooling: Cooling
    index: int
    """The credential's place in configuration."""
    tries: int = 0
    is_out: bool = False
    """Whether its credential was refused in this call."""

    @property
    def until_ns(self) -> int:
        """Nothing is sent there before."""
        return self.cooling.until_ns(self.candidate.model)


class Candidates:
    """For one call: routes in their order or drawn by weight, each with its credentials, which take turns.

    A circuit that is open, and a credential that must wait, are left out; one in doubt goes behind the others.
    """

    __slots__ = ("_entries", "_failures")

    def __init__(self, plan: Plan, shared: Shared) -> None:
        routes = drawn_by_weight(plan.routes, shared.random) if plan.mode == "weighted" else plan.routes
        self._entries = [entry for route in routes for entry in _entries(route, shared.of(route.upstream))]
        self._failures: dict[UpstreamState, int] = {}

    def ready(self, now_ns: int, *, is_retry: bool) -> Entry | None:
        """The best that may be sent to now.

        Where every circuit that is left is open, a first attempt goes to the one that will half-open first: nobody is
        refused for a circuit's sake. A further attempt has been refused already, and goes nowhere.
        """
        if len(self._entries) == 1:
            return self._only(self._entries[0], now_ns, is_retry=is_retry)
        free = [entry for entry in self._entries if not entry.is_out and entry.until_ns <= now_ns]
        let_through = [entry for entry in free if entry.state.breaker.lets_through(now_ns)]
        if let_through:
            return min(let_through, key=lambda entry: self._rank(entry, now_ns))
        if is_retry or not free:
            return None
        return min(free, key=lambda entry: entry.state.breaker.half_opens_at_ns)

    @staticmethod
    def _only(entry: Entry, now_ns: int, *, is_retry: bool) -> Entry | None:
        """The usual case: there is one place, and no choice."""
        if entry.is_out or (entry.cooling.waits and entry.until_ns > now_ns):
            return None
        return None if is_retry and not entry.state.breaker.lets_through(now_ns) else entry

    def _rank(self, entry: Entry, now_ns: int) -> tuple[bool, int, int]:
        return entry.cooling.doubtful_until_ns > now_ns, self._failures.get(entry.state, 0), entry.tries

    def soonest(self, now_ns: int) -> Entry | None:
        """Of those that only wait for a Retry-After to pass, the one whose wait ends first."""
        waiting = [entry for entry in self._entries if not entry.is_out and entry.state.breaker.lets_through(now_ns)]
        return min(waiting, key=lambda entry: entry.until_ns, default=None)

    def first_to_end_its_wait(self) -> Entry:
        """Of all, the one whose wait ends first."""
        return min(self._entries, key=lambda entry: entry.until_ns)

    def sent(self, entry: Entry) -> None:
        """An attempt goes there; the next call begins with the next credential."""
        entry.tries += 1
        entry.state.turn = (entry.index + 1) % len(entry.state.coolings)

    def failed(self, entry: Entry) -> None:
        """The upstream failed in this call: others go first."""
        self._failures[entry.state] = self._failures.get(entry.state, 0) + 1

    def refused(self, entry: Entry) -> None:
        """The credential is not tried again in this call."""
        for other in self._entries:
            other.is_out = other.is_out or other.cooling is entry.cooling

    def was_tried(self, entry: Entry) -> bool:
        """Whether a further attempt there has to be spaced out: the same credential, or an upstream that failed."""
        return bool(entry.tries or entry.state in self._failures)


def drawn_by_weight(routes: tuple[Route, ...], random: Callable[[], float]) -> list[Route]:
    """A random order in which each place goes to a route with its share of the weight that is left.

    Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006): sorted by exponential variates.
    """
    return sorted(routes, key=lambda route: -math.log(1.0 - random()) / route.weight)


def _entries(route: Route, state: UpstreamState) -> Iterator[Entry]:
    credentials = route.upstream.credentials
    for index in (*range(state.turn, len(credentials)), *range(state.turn)):
        candidate = Candidate(route.upstream, route.model, credentials[index])
        yield Entry(candidate, state, state.coolings[index], index)
