"""How long an answer has been awaited, without the time in which this process could not have seen it.

A starved machine, or a callback that computes, holds the event loop: an answer may be in its socket and not be read. By
the clock alone PostgreSQL would seem to hang then. So time counts in ticks of the event loop, a late one as one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

SILENT_S: Final = 1.4
"""Without an answer for so long PostgreSQL counts as hanging: with a heartbeat's pause, under two seconds."""

TICK_S: Final = 0.1
MAX_TICK_S: Final = 0.15
"""What a late tick counts: a machine that is merely busy makes them a little late."""


class Wait:
    """One wait for an answer, from its creation until `end`. `on_tick` is called at each tick of it."""

    __slots__ = ("_counted_s", "_on_tick", "_ticked_at", "_timer")

    def __init__(self, on_tick: Callable[[], None] = lambda: None) -> None:
        self._counted_s = 0.0
        self._on_tick = on_tick
        self._start_tick()

    @property
    def seconds(self) -> float:
        """How long PostgreSQL has been silent, as far as that could be seen."""
        return self._counted_s + min(time.monotonic() - self._ticked_at, MAX_TICK_S)

    def end(self) -> None:
        """The answer is there, or is not awaited any longer."""
        self._timer.cancel()

    def _start_tick(self) -> None:
        self._ticked_at = time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._counted_s = self.seconds
        self._start_tick()
        self._on_tick()


def is_overdue(wait: Wait | None) -> bool:
    """Whether an answer that is awaited should have arrived."""
    return wait is not None and wait.seconds > SILENT_S
