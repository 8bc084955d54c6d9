"""The service's side of the audit: the actor of a request, refused acts, and rows that no other write carries.

A key's change writes its row in its own transaction. A reload and a refusal write nothing else to the ledger, so their
rows are written here. The ledger may be away at that moment: the row is then kept in memory and written once the ledger
is back. A reload never waits for it longer than `WAIT_S`; a row that is lost with the process is in the log.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from mcpmeter.access.keys import KeyRing
from mcpmeter.errors import MeterError, NotAllowed, NotAuthenticated
from mcpmeter.http.exchange import HttpExchange
from mcpmeter.ledger.audit import audit_entry
from mcpmeter.ledger.store import RowRefused, Store
from mcpmeter.records import Actor, AuditAction, AuditEntry
from mcpmeter.service.app import Page

log = logging.getLogger("mcpmeter")

WAIT_S: Final = 1.0
MAX_PENDING: Final = 100
REFUSALS_APART_S: Final = 3600.0
"""A key's refused attempts at one kind of act make one row in this time, so that no caller can fill the ledger."""

PageHandler = Callable[[HttpExchange], Awaitable[Page]]


def this_process(name: str) -> Actor:
    """An actor without a connection, such as a signal: the source is this machine's host name."""
    return Actor(name=name, source=socket.gethostname() or "local")


def actor_of(exchange: HttpExchange, ring: KeyRing) -> Actor:
    """The actor of a request: its key's id and name, or `this machine` for a request without a known key."""
    try:
        key = ring.identify(exchange.secret)
    except NotAuthenticated:
        return Actor(name="this machine", source=exchange.peer)
    return Actor(name=f"{key.id} ({key.name})", source=exchange.peer)


class AuditTrail:
    """Writes rows of acts that write nothing else to the ledger."""

    def __init__(self, store: Store, ring: Callable[[], KeyRing], clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._ring = ring
        self._clock = clock
        self._pending: deque[AuditEntry] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._refused_at: dict[tuple[str, str], float] = {}

    async def note(self, entry: AuditEntry) -> None:
        """Write a row, in the background if that takes longer than `WAIT_S`."""
        if len(self._pending) >= MAX_PENDING:
            lost = self._pending.popleft()
            log.warning("an audit row is lost: %s of %s by %s, %s", lost.action, lost.subject, lost.actor, lost.outcome)
        self._pending.append(entry)
        await asyncio.wait((self._begin_writing(),), timeout=WAIT_S)

    async def flush(self) -> None:
        """Try again to write the rows that the ledger has not taken."""
        if self._pending:
            await asyncio.wait((self._begin_writing(),), timeout=WAIT_S)

    def _begin_writing(self) -> asyncio.Task[None]:
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write_pending())
        return self._writing

    async def _write_pending(self) -> None:
        while self._pending:
            entry = self._pending[0]
            try:
                await self._store.audit(entry)
            except RowRefused as fault:
                log.error("an audit row is lost: %s of %s by %s: %s", entry.action, entry.subject, entry.actor, fault)
            except MeterError as fault:
                log.warning("the audit row of %s by %s is not written yet: %s", entry.action, entry.actor, fault)
                return
            if self._pending and self._pending[0] is entry:
                self._pending.popleft()

    def noting_refusals(self, action: AuditAction, handler: PageHandler) -> PageHandler:
        """The handler of an act; what it refuses to a known key is noted. Strangers leave no row."""

        async def handle(exchange: HttpExchange) -> Page:
            try:
                return await handler(exchange)
            except NotAllowed:
                await self._note_refusal(action, exchange)
                raise

        return handle

    async def _note_refusal(self, action: AuditAction, exchange: HttpExchange) -> None:
        try:
            key = self._ring().identify(exchange.secret)
        except NotAuthenticated:
            return
        now, last = self._clock(), self._refused_at.get((key.id, action))
        if last is not None and now - last < REFUSALS_APART_S:
            return
        self._refused_at[key.id, action] = now
        by = Actor(name=f"{key.id} ({key.name})", source=exchange.peer)
        await self.note(audit_entry(action, by, "", {"path": exchange.endpoint}, outcome="refused"))
