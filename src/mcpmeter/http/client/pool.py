"""Connections to providers: those that are open, those that are idle, and who waits for one."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from mcpmeter.errors import ServiceFault

if TYPE_CHECKING:
    from mcpmeter.http.client.connection import Connection
    from mcpmeter.http.client.target import Origin

IDLE_SECONDS: Final = 15.0
"""How long an unused connection is trusted; servers close theirs after a while, and a race with that loses a call."""


class Pool:
    """Connections that are open, those of them that are idle, and who waits for one. Each takes one of the places.

    Who has waited longest is served first, with a connection as it is or with its place: many calls to one origin
    cannot keep a call to another one waiting.
    """

    def __init__(self, places: int) -> None:
        self._free_places = places
        self._open: set[Connection] = set()
        self._idle: dict[Origin, list[Connection]] = {}
        self._waiting: deque[tuple[Origin, asyncio.Future[Connection | None]]] = deque()
        self._is_closed = False
        self._all_lost = asyncio.Event()

    def idle(self, origin: Origin) -> Connection | None:
        """A connection to use again, if there is one that can be trusted."""
        kept = self._idle.get(origin)
        if not kept:
            return None
        while kept:
            connection = kept.pop()
            if connection.idle_since > connection.now() - IDLE_SECONDS and connection.is_usable():
                return connection
            connection.close()
        return None

    async def place(self, origin: Origin) -> Connection | None:
        """Take a place to open a connection in (None), or a connection that has become idle meanwhile."""
        while True:
            self.refuse_if_closed()
            if self._free_places:
                self._free_places -= 1
                return None
            self._close_an_idle_one()
            connection = await self._wait(origin)
            if connection is None or connection.is_usable():
                return connection
            connection.close()  # lost between being given and being taken

    async def _wait(self, origin: Origin) -> Connection | None:
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((origin, waiter))
        try:
            return await waiter
        except asyncio.CancelledError:
            self._take_back(waiter)
            raise

    def _take_back(self, waiter: asyncio.Future[Connection | None]) -> None:
        """What was given to somebody who no longer waits."""
        if not waiter.done() or waiter.cancelled() or waiter.exception() is not None:
            return
        connection = waiter.result()
        if connection is not None:
            self.free(connection)
        else:
            self._give_place()

    def _close_an_idle_one(self) -> None:
        kept = next((kept for kept in self._idle.values() if kept), None)
        if kept is not None:
            kept.pop(0).close()

    def _next_waiting(self) -> tuple[Origin, asyncio.Future[Connection | None]] | None:
        while self._waiting and self._waiting[0][1].done():
            self._waiting.popleft()
        return self._waiting[0] if self._waiting else None

    def opened(self, connection: Connection) -> None:
        """A connection is there."""
        self._open.add(connection)

    def lost(self, connection: Connection) -> None:
        """A connection has gone or was never made: its place is free."""
        self._open.discard(connection)
        kept = self._idle.get(connection.origin, ())
        if connection in kept:
            self._idle[connection.origin].remove(connection)
        if not self._open:
            self._all_lost.set()
        self._give_place()

    def _give_place(self) -> None:
        waiting = self._next_waiting()
        if waiting is None:
            self._free_places += 1
        else:
            waiting[1].set_result(None)

    def free(self, connection: Connection) -> None:
        """A connection's answer is complete: who waits gets it, or its place if he wants to go elsewhere."""
        waiting = self._next_waiting() if self._waiting else None
        if waiting is None and not self._is_closed:
            self._keep(connection)
        elif waiting is not None and waiting[0] == connection.origin:
            waiting[1].set_result(connection)
        else:
            connection.close()

    def _keep(self, connection: Connection) -> None:
        now = connection.idle_since = connection.now()
        kept = self._idle.get(connection.origin)
        if kept is None:
            kept = self._idle[connection.origin] = []
        if kept and kept[0].idle_since < now - IDLE_SECONDS:
            kept.pop(0).close()
        kept.append(connection)

    def refuse_if_closed(self) -> None:
        """Raises ServiceFault after `close`."""
        if self._is_closed:
            raise _closed()

    async def close(self) -> None:
        """Close all connections, and wait until they are."""
        self._is_closed = True
        while waiting := self._next_waiting():
            waiting[1].set_exception(_closed())
        self._all_lost.clear()
        for connection in list(self._open):
            connection.close(_closed())
        if self._open:
            await self._all_lost.wait()


def _closed() -> ServiceFault:
    return ServiceFault("The client to providers is closed.", hint="Retry.")
