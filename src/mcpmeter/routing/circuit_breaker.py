"""A circuit breaker: an upstream that keeps failing gets no calls for a while, then one probe.

The states are closed, open and half-open. Closed sends every call; `failures` consecutive failures within
`window_seconds` open it. Open sends none for `open_seconds`, then it is half-open and lets one probe through. A good
response closes it, a failed probe opens it for as long again, an abandoned probe frees its place.

Every opening and closing starts a new period. A permit carries its period's number, so the result of a call sent in an
earlier period changes nothing: a slow success from before the failures cannot close the circuit.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import msgspec

from mcpmeter.routing.retries import nanoseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitOptions:
    """`failures` in a row, all within `window_seconds`, open the circuit for `open_seconds`.

    In a row: if successes in between did not count, one failure in ten thousand would cut off a busy upstream.
    """

    failures: int = 5
    window_seconds: float = 30.0
    open_seconds: float = 15.0


class Permit(msgspec.Struct, frozen=True, gc=False):
    """One call that was sent: the circuit's period that its result belongs to, and whether it is the probe."""

    period: int
    is_probe: bool


class CircuitBreaker:
    """The circuit of one upstream. Instants are monotonic nanoseconds given by the caller."""

    # fmt: off
    __slots__ = (
        "_failed_at_ns", "_is_probing", "_options", "_period", "half_opens_at_ns", "is_clean", "is_closed", "permit",
    )
    # fmt: on

    def __init__(self, options: CircuitOptions) -> None:
        self._options = options
        self._failed_at_ns: deque[int] = deque(maxlen=options.failures)
        self._is_probing = False
        self._period = 0
        self.is_closed = True
        """Whether calls go to the upstream as usual."""
        self.half_opens_at_ns = 0
        """When an open circuit lets a probe through."""
        self.is_clean = True
        """Closed without a recent failure: a call may be sent, and its success changes nothing."""
        self.permit = Permit(0, is_probe=False)
        """Shared by all calls of this period except the probe."""

    def reconfigure(self, options: CircuitOptions) -> None:
        """Use new options; recorded failures stay."""
        self._options = options
        self._failed_at_ns = deque(self._failed_at_ns, maxlen=options.failures)

    def allows(self, now_ns: int) -> bool:
        """Whether a call may be sent: the circuit is closed, or half-open without a probe in flight."""
        return self.is_closed or (now_ns >= self.half_opens_at_ns and not self._is_probing)

    def send(self, now_ns: int) -> Permit:
        """Record that a call is sent; the first one in half-open is the probe.

        A call may also be sent against the circuit if there is no other upstream. Each permit ends with `succeeded`,
        `failed` or `abandoned`.
        """
        if self.is_closed or not self.allows(now_ns):
            return self.permit
        self._is_probing = True
        return Permit(self._period, is_probe=True)

    def headers_received(self, permit: Permit) -> Permit:
        """Close an open circuit on the headers of a good response. Returns the permit that ends the whole response."""
        if permit.period == self._period and not self.is_closed:
            self._begin_period(is_closed=True)
            return self.permit
        return permit

    def succeeded(self, permit: Permit) -> None:
        """Forget the failures and close the circuit, unless the call was sent in an earlier period."""
        if permit.period == self._period:
            self._failed_at_ns.clear()
            self.is_clean = self.is_closed
            self.headers_received(permit)

    def failed(self, permit: Permit, now_ns: int) -> None:
        """Count a failure of the upstream; a failed probe opens the circuit again."""
        if permit.period != self._period:
            return
        if permit.is_probe:
            self._open(now_ns)
        elif self.is_closed:
            self._failed_at_ns.append(now_ns)
            self.is_clean = False
            if self._has_too_many_failures():
                self._open(now_ns)

    def abandoned(self, permit: Permit) -> None:
        """End a call that says nothing about the upstream: the caller left, or the request was at fault."""
        if permit.is_probe and permit.period == self._period:
            self._is_probing = False

    def _has_too_many_failures(self) -> bool:
        failed = self._failed_at_ns
        window_ns = nanoseconds(self._options.window_seconds)
        return len(failed) == self._options.failures and failed[-1] - failed[0] <= window_ns

    def _open(self, now_ns: int) -> None:
        self.half_opens_at_ns = now_ns + nanoseconds(self._options.open_seconds)
        self._begin_period(is_closed=False)

    def _begin_period(self, *, is_closed: bool) -> None:
        self.is_closed = self.is_clean = is_closed
        self._period += 1
        self._is_probing = False
        self._failed_at_ns.clear()
        self.permit = Permit(self._period, is_probe=False)
