"""Leases of replicas: whose open calls are in good hands, and whose have to be recovered.

A replica's lease is alive as long as it sends heartbeats, several per lease, by the database's clock. Without a
heartbeat for `lease_s` it expires; a replica that closes ends its own at once. Then any live replica may take over its
open calls: they change owner in one statement, so only one replica gets each, and that replica settles them as
recovered. If the expired replica was alive after all, the first settlement of a call stays.

Two cases must not look like an expired lease. A server that has just restarted has received no heartbeats yet, so a
lease counts from its start. A replica that was itself disconnected waits for a whole lease before it takes over.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Collection
from typing import Final

import psycopg

from mcpmeter.errors import MeterError
from mcpmeter.ledger.postgres.reconnecting import ConnectionLost, ReconnectingConnection
from mcpmeter.ledger.postgres.sql import Db, execute
from mcpmeter.ledger.rows import ROW_COLUMNS, row_of
from mcpmeter.records import LedgerRow

HEARTBEATS_PER_LEASE: Final = 5

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
    f" ORDER BY id FOR UPDATE SKIP LOCKED) RETURNING {_COLUMNS}"
)
_OWN_SQL: Final = f"SELECT {_COLUMNS} FROM calls WHERE state = 'open' AND owner = $1"  # noqa: S608 (constants only)
_FORGET_SQL: Final = "DELETE FROM replicas WHERE beat_at < clock_timestamp() - interval '1 day'"


class Replica:
    """This service among the replicas that share the ledger."""

    def __init__(self, connection: ReconnectingConnection, lease_s: float) -> None:
        self.id = f"replica_{secrets.token_hex(8)}"
        self._connection = connection
        self._lease_s = lease_s
        self._connected_since = time.monotonic() - lease_s
        """Since when no heartbeat failed. If the database was away, other replicas could not send theirs either."""

    async def send_heartbeat(self) -> None:
        """Renew the lease."""
        await self._connection.run(lambda db: execute(db, _HEARTBEAT_SQL, (self.id,)))

    async def keep_lease(self) -> None:
        """Renew the lease until cancelled."""
        while True:
            await asyncio.sleep(self._lease_s / HEARTBEATS_PER_LEASE)
            try:
                await self.send_heartbeat()
            except (MeterError, ConnectionLost, psycopg.Error):
                self._connected_since = time.monotonic()

    async def left_open(self, in_progress: Callable[[], Collection[str]]) -> list[LedgerRow]:
        """Take over open rows of expired leases. Returns them and this replica's own, oldest first, without rows
        that it is about to settle (`in_progress`, which changes while the database is queried)."""
        before = set(in_progress())
        rows = [row_of(row) for row in await self._connection.run(self._take_over)]
        excluded = before | set(in_progress())
        return sorted((row for row in rows if row.id not in excluded), key=lambda row: (row.started_at_ns, row.id))

    async def _take_over(self, db: Db) -> list[tuple[object, ...]]:
        await execute(db, _FORGET_SQL)
        taken = []
        if time.monotonic() - self._connected_since >= self._lease_s:
            taken = await execute(db, _TAKE_OVER_SQL, (self.id, self._lease_s))
        known = {row[0] for row in taken}
        return [*taken, *(row for row in await execute(db, _OWN_SQL, (self.id,)) if row[0] not in known)]

    async def leave(self) -> None:
        """End the lease, so that other replicas may take over open calls at once."""
        # If the database is away, the lease expires by itself.
        with contextlib.suppress(MeterError, ConnectionLost, psycopg.Error):
            await self._connection.run(lambda db: execute(db, "DELETE FROM replicas WHERE id = $1", (self.id,)))
        await self._connection.close()
