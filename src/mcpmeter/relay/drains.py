"""Responses that are read to their end after the client has disconnected, so that the provider's own count is charged.

A drain ends with the response, after `seconds`, after `max_bytes`, or when the service stops. It stays a call in
progress: it counts into the limits on calls and connections, and what it reads is counted and dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

import msgspec

from mcpmeter.catalog import upstream as rows
from mcpmeter.errors import MeterError
from mcpmeter.metrics.recorder import Recorder


class DrainOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of drains."""

    seconds: float = 120.0
    max_bytes: int = 16 * 1024 * 1024
    max_drains: int = 64


class Drain:
    """The drain of one call."""

    __slots__ = ("_give_up", "_max_bytes", "_stops_at_bytes", "_timer", "error")

    def __init__(self, error: MeterError, options: DrainOptions, give_up: Callable[[MeterError], None]) -> None:
        """`error` is the client's disconnect; `give_up` ends the call with it."""
        self.error = error
        self._max_bytes = options.max_bytes
        self._stops_at_bytes: int | None = None
        self._give_up = give_up
        self._timer = asyncio.get_running_loop().call_later(options.seconds, give_up, error)

    def note(self, total_bytes: int) -> None:
        """Note how much of the response is read; the call ends if that is too much more than at the first time."""
        if self._stops_at_bytes is None:
            self._stops_at_bytes = total_bytes + self._max_bytes
        elif total_bytes > self._stops_at_bytes:
            self._give_up(self.error)

    def close(self) -> None:
        """The call has ended."""
        self._timer.cancel()


class Drains:
    """All drains of a pipeline."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._running = 0

    def begin(
        self, provider: str, error: MeterError, options: DrainOptions, give_up: Callable[[MeterError], None]
    ) -> Drain | None:
        """A drain, unless there are too many."""
        if self._running >= options.max_drains:
            return None
        self._running += 1
        self.count(provider, "drain")
        return Drain(error, options, give_up)

    def end(self, drain: Drain) -> None:
        """The call of a drain has ended."""
        self._running -= 1
        drain.close()

    def count(self, provider: str, policy: Literal["cancel", "drain"]) -> None:
        """Count a client that disconnected."""
        self._recorder.add(rows.DISCONNECTS, provider=provider, policy=policy)
