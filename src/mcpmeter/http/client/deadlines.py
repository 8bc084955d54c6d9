"""Timeouts of one in-flight request: first byte, idle, total."""

from __future__ import annotations

import asyncio

from mcpmeter.errors import UpstreamTimedOut


class Deadlines:
    """One task waits for the upstream at a time, until it is woken, gets a fault or a deadline passes. The first fault
    stays.

    The clock runs only while the task waits and the connection is read: a slow client costs its provider no time. Each
    wait has an idle limit, which every byte restarts, and all waits together have the total limit.
    """

    # fmt: off
    __slots__ = (
        "_fault", "_idle_seconds", "_is_suspended", "_is_timed", "_last_byte_at", "_loop", "_provider", "_timeout_text",
        "_timer", "_timer_at", "_total_seconds_left", "_wait_started_at", "_waiter", "is_complete", "now",
    )
    # fmt: on

    def __init__(self) -> None:
        self.is_complete = True
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._provider = ""
        self._fault: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._total_seconds_left = 0.0
        self._is_suspended = False
        """Whether nothing is read on purpose, so that the upstream cannot send."""
        self._is_timed = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._timeout_text = ""
        self._idle_seconds = 0.0
        self._wait_started_at = 0.0
        self._last_byte_at = 0.0

    async def wait(self, idle_seconds: float, timeout_text: str) -> None:
        """Wait for the headers or for a part of the body.

        Raises UpstreamTimedOut, UpstreamDisconnected, InvalidUpstreamResponse.
        """
        if self._fault is not None:
            raise self._fault
        self._idle_seconds, self._timeout_text = idle_seconds, timeout_text
        if not self._is_suspended:
            self._start_clock()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self.is_complete:
                self._is_timed = False
            else:
                self._stop_clock()

    def _start_clock(self) -> None:
        self._is_timed = True
        now = self._wait_started_at = self._last_byte_at = self.now()
        left, idle = self._total_seconds_left, self._idle_seconds
        deadline = now + (idle if idle < left else left)
        if self._timer is None or self._timer_at > deadline:
            self._set_timer(deadline)

    def _stop_clock(self) -> None:
        if self._is_timed:
            self._is_timed = False
            self._total_seconds_left -= self.now() - self._wait_started_at

    def _set_timer(self, at: float) -> None:
        """One timer serves all waits of a stream, as deadlines only move on: a timer per chunk costs more than reading
        the chunk."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._check)

    def _check(self) -> None:
        self._timer = None
        if not self._is_timed:
            return
        idle_deadline = self._last_byte_at + self._idle_seconds
        deadline = min(idle_deadline, self._wait_started_at + self._total_seconds_left)
        if self.now() < deadline:
            self._set_timer(deadline)
        else:
            what = self._timeout_text if idle_deadline <= deadline else "did not end its response in time"
            self._fail(UpstreamTimedOut(f"{self._provider} {what}.", hint="Retry, or raise relay.timeouts."))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None  # once; further parts that arrive before the task runs need not look
            if not waiter.done():
                waiter.set_result(None)

    def _fail(self, fault: Exception) -> None:
        if self._fault is None:
            self._fault = fault
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._fault)
