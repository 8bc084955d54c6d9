"""Leases of replicas: whose open calls are in good hands, and whose have to be recovered.

A replica's lease is alive as long as it sends heartbeats, several per lease, by the database's clock. Without a
heartbeat for `lease_s` it expires; a replica that closes ends its own at once. Then any live replica may take over its
open calls: they change owner in one statement, so only one replica gets each, and that replica settles them as
recovered. If the expired replica was alive after all, its own settlement replaces the recovered one.

Three cases must not look like an expired lease. A server that has just restarted has received no heartbeats yet, so a
lease counts from its start. A replica that was itself without an answer waits for a whole lease before it takes over,
because the others could not send heartbeats either. A takeover that hangs is rolled back, for the same reason.

A heartbeat is a durable write of its own connection, so it is also the probe that shows whether PostgreSQL responds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Collection
from typing import Final

import psycopg

from mcpmeter.errors import MeterError
from mcpmeter.ledger.objects import PENDING_IDS_SQL
from mcpmeter.ledger.postgres.connecting import Connector
from mcpmeter.ledger.postgres.reconnecting import ConnectionLost, ReconnectingConnection, unavailable
from mcpmeter.ledger.postgres.sql import Db, execute
from mcpmeter.ledger.postgres.waiting import SILENT_S, Wait, is_overdue
from mcpmeter.ledger.rows import ROW_COLUMNS, row_of
from mcpmeter.records import LedgerRow

log = logging.getLogger("mcpmeter")

HEARTBEATS_PER_LEASE: Final = 5
HEARTBEAT_S: Final = 0.4

_COLUMNS: Final = ", ".join(ROW_COLUMNS)
_HEARTBEAT_SQL: Final = (
    "INSERT INTO replicas (id, beat_at) VALUES ($1, clock_timestamp())"
    " ON CONFLICT (id) DO UPDATE SET beat_at = excluded.beat_at"
)
_TAKE_OVER_SQL: Final = (
    "UPDATE calls SET owner = $1 WHERE state = 'open' AND id IN ("  # noqa: S608 (constants only)
    " SELECT id FROM calls WHERE state = 'open' AND owner <> $1 AND NOT EXISTS ("
    "  SELECT 1 FROM replicas WHERE replicas.id = calls.owner AND greatest(beat_at, pg_postmaster_start_time())"
    "   > clock_timestamp() - make_interval(secs => $2::float8))"
    f" ORDER BY id LIMIT 10000 FOR UPDATE SKIP LOCKED) RETURNING {_COLUMNS}"
)
_OWN_SQL: Final = f"SELECT {_COLUMNS} FROM calls WHERE state = 'open' AND owner = $1"  # noqa: S608 (constants only)
_FORGET_SQL: Final = "DELETE FROM replicas WHERE beat_at < clock_timestamp() - interval '1 day'"


class Replica:
    """This service among the replicas that share the ledger."""

    def __init__(self, connector: Connector, lease_s: float, on_heartbeat: Callable[[], None]) -> None:
        self.id = f"replica_{secrets.token_hex(8)}"
        self.fault: Exception | None = None
        """Of the last heartbeat, if it failed."""
        self._connector = connector
        self._connection = ReconnectingConnection(connector)
        self._lease_s = lease_s
        self._on_heartbeat = on_heartbeat
        self._waits: list[Wait] = []
        self._last_beat_at = time.monotonic()
        self._connected_since = time.monotonic() - lease_s
        """Since when heartbeats are answered. If the database was away, other replicas could not send theirs either."""

    @property
    def is_silent(self) -> bool:
        """Whether PostgreSQL does not respond: heartbeats fail, or one waits for its answer."""
        return self.fault is not None or any(map(is_overdue, self._waits))

    async def send_heartbeat(self) -> None:
        """Renew the lease. Raises `ConnectionLost`, `LedgerUnavailable` and errors of PostgreSQL."""
        self._waits.append(wait := Wait())
        try:
            await self._send(wait)
        except (MeterError, ConnectionLost, psycopg.Error) as error:
            self.fault = error
            raise
        finally:
            wait.end()
            self._waits.remove(wait)
        now = time.monotonic()
        if now - self._last_beat_at > self._lease_s / 2:
            self._connected_since = now
        self._last_beat_at = now
        self.fault = None
        self._on_heartbeat()

    async def _send(self, wait: Wait) -> None:
        try:
            await self._beat()
        except ConnectionLost:
            if is_overdue(wait):
                raise
            await self._beat()  # the server closed the connection, for example because it restarted

    async def _beat(self) -> None:
        await self._connection.run(
            lambda db: execute(db, _HEARTBEAT_SQL, (self.id,)), timeout_s=self._connector.connect_s
        )

    async def keep_lease(self) -> None:
        """Renew the lease until cancelled."""
        while True:
            await asyncio.sleep(min(self._lease_s / HEARTBEATS_PER_LEASE, HEARTBEAT_S))
            was_lost = self.fault is not None
            try:
                await self.send_heartbeat()
            except (MeterError, ConnectionLost, psycopg.Error) as error:
                self._connected_since = time.monotonic()
                if not was_lost:
                    log.warning("calls are refused: %s", unavailable(error).message)
            else:
                if was_lost:
                    log.warning("PostgreSQL responds again")

    async def left_open(
        self, connection: ReconnectingConnection, in_progress: Callable[[], Collection[str]]
    ) -> list[LedgerRow]:
        """Take over open rows of expired leases. Returns them and this replica's own, oldest first, without rows
        that it is about to settle (`in_progress`, which changes while the database is queried) and those of pending
        objects, which are followed."""
        before = set(in_progress())
        rows = [row_of(row) for row in await connection.run(self._take_over)]
        excluded = before | set(in_progress())
        return sorted((row for row in rows if row.id not in excluded), key=lambda row: (row.started_at_ns, row.id))

    async def _take_over(self, db: Db) -> list[tuple[object, ...]]:
        began = time.monotonic()
        await execute(db, _FORGET_SQL)
        taken = []
        if not self.is_silent and began - self._connected_since >= self._lease_s:
            taken = await execute(db, _TAKE_OVER_SQL, (self.id, self._lease_s))
            if time.monotonic() - began > self._lease_s / 2:
                raise ConnectionLost(TimeoutError())
        known = {row[0] for row in taken}
        rows = [*taken, *(row for row in await execute(db, _OWN_SQL, (self.id,)) if row[0] not in known)]
        followed = {call_id for (call_id,) in await execute(db, PENDING_IDS_SQL)}
        return [row for row in rows if row[0] not in followed]

    async def leave(self) -> None:
        """End the lease, so that other replicas may take over open calls at once."""
        # If the database is away, the lease expires by itself.
        with contextlib.suppress(MeterError, ConnectionLost, psycopg.Error):
            if not self.is_silent:
                await self._connection.run(
                    lambda db: execute(db, "DELETE FROM replicas WHERE id = $1", (self.id,)), timeout_s=SILENT_S
                )
        await self._connection.close()
