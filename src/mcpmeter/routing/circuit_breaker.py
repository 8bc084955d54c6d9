"""A circuit breaker: an upstream that keeps failing is left alone for a while, then tried by one call."""

from __future__ import annotations

from collections import deque
from typing import Literal

import msgspec

from mcpmeter.routing.options import CircuitOptions, nanoseconds

State = Literal["closed", "open", "half_open"]


class Permit(msgspec.Struct, frozen=True, gc=False):
    """That a call was sent, and into which of the circuit's periods its result belongs."""

    period: int
    is_probe: bool


class Breaker:
    """The circuit of one upstream. Instants are monotonic nanoseconds that the caller gives."""

    # fmt: off
    __slots__ = (
        "_failed_at_ns", "_half_opens_at_ns", "_is_open", "_options", "_period", "_probe_is_out", "is_clean", "permit",
    )
    # fmt: on

    def __init__(self, options: CircuitOptions) -> None:
        self._options = options
        self._failed_at_ns: deque[int] = deque(maxlen=options.failures)
        self._is_open = False
        self._half_opens_at_ns = 0
        self._probe_is_out = False
        self._period = 0
        self.is_clean = True
        """Closed, and no failure in its row: a call may be sent, and its success says nothing new."""
        self.permit = Permit(0, is_probe=False)
        """Of all calls of this period but the probe."""

    @property
    def is_closed(self) -> bool:
        """Whether calls go to the upstream as usual."""
        return not self._is_open

    @property
    def half_opens_at_ns(self) -> int:
        """From when on an open circuit lets a probe through."""
        return self._half_opens_at_ns

    def reconfigure(self, options: CircuitOptions) -> None:
        """Take new options; what has happened stays known."""
        self._options = options
        self._failed_at_ns = deque(self._failed_at_ns, maxlen=options.failures)

    def state(self, now_ns: int) -> State:
        """Closed, open, or half-open."""
        if not self._is_open:
            return "closed"
        return "half_open" if now_ns >= self._half_opens_at_ns else "open"

    def lets_through(self, now_ns: int) -> bool:
        """Whether a call may be sent: the circuit is closed, or half-open and no probe is out."""
        return not self._is_open or (now_ns >= self._half_opens_at_ns and not self._probe_is_out)

    def send(self, now_ns: int) -> Permit:
        """A call is sent; the first one in half-open is the probe. Each permit ends by one of the next methods.

        A call may also be sent against the circuit, where there is nowhere else to go.
        """
        is_probe = self._is_open and self.lets_through(now_ns)
        if not is_probe:
            return self.permit
        self._probe_is_out = True
        return Permit(self._period, is_probe=True)

    def answers(self, permit: Permit) -> Permit:
        """The head of a good answer has come: an open circuit closes. Returns the permit that the whole answer ends."""
        if permit.period == self._period and self._is_open:
            self._begin_period(is_open=False)
            return self.permit
        return permit

    def succeeded(self, permit: Permit) -> None:
        """The upstream worked: the row is broken and the circuit closed, unless the call was sent before it opened."""
        if permit.period == self._period:
            self._failed_at_ns.clear()
            self.is_clean = not self._is_open
            self.answers(permit)

    def failed(self, permit: Permit, now_ns: int) -> None:
        """The upstream failed: one more in the row, and back to open if it was the probe."""
        if permit.period != self._period:
            return
        if permit.is_probe:
            self._open(now_ns)
        elif not self._is_open:
            self._failed_at_ns.append(now_ns)
            self.is_clean = False
            if self._row_is_full():
                self._open(now_ns)

    def abandoned(self, permit: Permit) -> None:
        """Nothing was learned: the caller left, or its own mistake was answered. A probe's place is free again."""
        if permit.is_probe and permit.period == self._period:
            self._probe_is_out = False

    def _row_is_full(self) -> bool:
        failed = self._failed_at_ns
        is_full = len(failed) == self._options.failures
        return is_full and failed[-1] - failed[0] <= nanoseconds(self._options.window_seconds)

    def _open(self, now_ns: int) -> None:
        self._half_opens_at_ns = now_ns + nanoseconds(self._options.open_seconds)
        self._begin_period(is_open=True)

    def _begin_period(self, *, is_open: bool) -> None:
        self._is_open = is_open
        self._period += 1
        self._probe_is_out = False
        self._failed_at_ns.clear()
        self.is_clean = not is_open
        self.permit = Permit(self._period, is_probe=False)
