"""Connections to upstream servers, and the requests that wait for one."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from mcpmeter.errors import ServiceFault
from mcpmeter.http.client.connection import MAX_READ_BYTES, Connection
from mcpmeter.http.client.target import Origin

IDLE_SECONDS: Final = 15.0
"""How long an unused connection is trusted; servers close theirs after a while, and a race with that loses a call."""

READS_PER_ROUND: Final = 16
"""Of connections that have more to read than one read returns: about a millisecond of work."""


class Pool:
    """A fixed number of slots, each free or held by a connection; each connection is in use or idle.

    A request takes the idle connection of its origin that was used last. If there is none, it takes a free slot and
    opens a connection. If all slots are held, the oldest idle connection of any origin closes and the request waits.
    Waiting requests are served in order: a connection that is released goes to the first if it has the same origin, or
    closes, and a slot that becomes free goes to the first. So many requests to one origin do not starve another.

    Reading goes by turns, too. The event loop reads all connections that have something before it does anything else:
    with a thousand fast streams one round would take long, and a health check, which takes several, would wait.
    """

    def __init__(self, slots: int) -> None:
        self._free_slots = slots
        self._open: set[Connection] = set()
        self._idle: dict[Origin, list[Connection]] = {}
        self._waiting: deque[tuple[Origin, asyncio.Future[Connection | None]]] = deque()
        self._is_closed = False
        self._all_closed = asyncio.Event()
        self.read_buffer = memoryview(bytearray(MAX_READ_BYTES))
        self._reading: deque[Connection] = deque()

    def take_idle(self, origin: Origin) -> Connection | None:
        """Return an idle connection that can be trusted."""
        idle = self._idle.get(origin)
        if not idle:
            return None
        while idle:
            connection = idle.pop()
            if connection.idle_since > connection.now() - IDLE_SECONDS and connection.is_usable():
                return connection
            connection.close()
        return None

    async def acquire(self, origin: Origin) -> Connection | None:
        """Wait for a slot to open a connection in (None), or for a connection that is released meanwhile."""
        while True:
            self.refuse_if_closed()
            if self._free_slots:
                self._free_slots -= 1
                return None
            self._close_an_idle_one()
            connection = await self._wait(origin)
            if connection is None or connection.is_usable():
                return connection
            connection.close()  # lost between its release and this task's turn

    async def _wait(self, origin: Origin) -> Connection | None:
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((origin, waiter))
        try:
            return await waiter
        except asyncio.CancelledError:
            self._take_back(waiter)
            raise

    def _take_back(self, waiter: asyncio.Future[Connection | None]) -> None:
        """Pass on what a cancelled request was given."""
        if not waiter.done() or waiter.cancelled() or waiter.exception() is not None:
            return
        connection = waiter.result()
        if connection is not None:
            self.release(connection)
        else:
            self._free_slot()

    def _close_an_idle_one(self) -> None:
        idle = next((idle for idle in self._idle.values() if idle), None)
        if idle is not None:
            idle.pop(0).close()

    def _next_waiting(self) -> tuple[Origin, asyncio.Future[Connection | None]] | None:
        while self._waiting and self._waiting[0][1].done():
            self._waiting.popleft()
        return self._waiting[0] if self._waiting else None

    def opened(self, connection: Connection) -> None:
        """The connection was made."""
        self._open.add(connection)

    def closed(self, connection: Connection) -> None:
        """The connection is closed, or was never made: its slot is free."""
        self._open.discard(connection)
        idle = self._idle.get(connection.origin, ())
        if connection in idle:
            self._idle[connection.origin].remove(connection)
        if not self._open:
            self._all_closed.set()
        self._free_slot()

    def _free_slot(self) -> None:
        waiting = self._next_waiting()
        if waiting is None:
            self._free_slots += 1
        else:
            waiting[1].set_result(None)

    def release(self, connection: Connection) -> None:
        """The connection can be used again."""
        waiting = self._next_waiting() if self._waiting else None
        if waiting is None and not self._is_closed:
            self._keep(connection)
        elif waiting is not None and waiting[0] == connection.origin:
            waiting[1].set_result(connection)
        else:
            connection.close()

    def _keep(self, connection: Connection) -> None:
        now = connection.idle_since = connection.now()
        idle = self._idle.get(connection.origin)
        if idle is None:
            idle = self._idle[connection.origin] = []
        if idle and idle[0].idle_since < now - IDLE_SECONDS:
            idle.pop(0).close()
        idle.append(connection)

    def read_in_turn(self, connection: Connection) -> None:
        """Let a connection read on: in each round of the event loop a few of those that want to, in order."""
        if not self._reading:
            asyncio.get_running_loop().call_soon(self._take_turns)
        self._reading.append(connection)

    def _take_turns(self) -> None:
        for _ in range(min(READS_PER_ROUND, len(self._reading))):
            self._reading.popleft().read_on()
        if self._reading:
            asyncio.get_running_loop().call_soon(self._take_turns)

    def refuse_if_closed(self) -> None:
        """Raises ServiceFault after `close`."""
        if self._is_closed:
            raise _pool_is_closed()

    async def close(self) -> None:
        """Close all connections, and wait until they are."""
        self._is_closed = True
        while waiting := self._next_waiting():
            waiting[1].set_exception(_pool_is_closed())
        self._all_closed.clear()
        for connection in list(self._open):
            connection.close(_pool_is_closed())
        if self._open:
            await self._all_closed.wait()


def _pool_is_closed() -> ServiceFault:
    return ServiceFault("The client to providers is closed.", hint="Retry.")
