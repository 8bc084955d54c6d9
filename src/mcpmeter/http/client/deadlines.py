"""Waiting for a provider: who waits, what ends his waiting, and the time it may take."""

from __future__ import annotations

import asyncio

from mcpmeter.errors import UpstreamTimedOut


class Waiting:
    """One waits, and is woken, told of a fault, or told that it took too long. The first fault stays."""

    # fmt: off
    __slots__ = (
        "_fault", "_heard_at", "_is_held", "_is_timed", "_loop", "_provider", "_seconds_left", "_timer", "_timer_at",
        "_waiter", "_waits_for", "_waits_since", "_waits_up_to", "is_complete", "now",
    )
    # fmt: on

    def __init__(self) -> None:
        self.is_complete = True
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._provider = ""
        self._fault: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._seconds_left = 0.0
        self._is_held = False  # nothing is read, so the provider is not timed
        self._is_timed = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._waits_for = ""
        self._waits_up_to = 0.0
        self._waits_since = 0.0
        self._heard_at = 0.0

    async def wait(self, seconds: float, what: str) -> None:
        """Wait for the headers, then for the body.

        Raises UpstreamTimedOut, UpstreamDisconnected, InvalidUpstreamResponse.
        """
        if self._fault is not None:
            raise self._fault
        self._waits_up_to, self._waits_for = seconds, what
        if not self._is_held:
            self._start_clock()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self.is_complete:
                self._is_timed = False  # for good: nothing is left to wait for
            else:
                self._stop_clock()

    def _start_clock(self) -> None:
        self._is_timed = True
        now = self._waits_since = self._heard_at = self.now()
        left, up_to = self._seconds_left, self._waits_up_to
        give_up_at = now + (up_to if up_to < left else left)
        if self._timer is None or self._timer_at > give_up_at:
            self._set_timer(give_up_at)

    def _stop_clock(self) -> None:
        if self._is_timed:
            self._is_timed = False
            self._seconds_left -= self.now() - self._waits_since

    def _give_up_at(self) -> float:
        return min(self._heard_at + self._waits_up_to, self._waits_since + self._seconds_left)

    def _set_timer(self, at: float) -> None:
        """One timer serves all waits of a stream, whose times only move on: making one a chunk would cost more than
        reading it."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._look_at_the_clock)

    def _look_at_the_clock(self) -> None:
        self._timer = None
        if not self._is_timed:
            return
        give_up_at = self._give_up_at()
        if self.now() < give_up_at:
            self._set_timer(give_up_at)
        else:
            is_silent = self._heard_at + self._waits_up_to <= give_up_at
            what = self._waits_for if is_silent else "did not end its answer in time"
            self._fail(UpstreamTimedOut(f"{self._provider} {what}.", hint="Retry, or raise relay.timeouts."))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None  # woken once; what else comes until he runs need not ask
            if not waiter.done():
                waiter.set_result(None)

    def _fail(self, fault: Exception) -> None:
        if self._fault is None:
            self._fault = fault
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._fault)
