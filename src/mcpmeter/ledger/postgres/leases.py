"""Which replicas live: each says so by the database's clock; the open calls of one that fell silent are taken over."""

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
from mcpmeter.ledger.postgres.rows import Db, execute
from mcpmeter.ledger.rows import ROW_COLUMNS, row_of
from mcpmeter.records import LedgerRow

BEATS_A_LEASE: Final = 5
"""So many may be missed in a row, less one, before a replica counts as dead."""

_COLUMNS: Final = ", ".join(ROW_COLUMNS)
_BEAT_SQL: Final = (
    "INSERT INTO replicas (id, beat_at) VALUES ($1, clock_timestamp())"
    " ON CONFLICT (id) DO UPDATE SET beat_at = excluded.beat_at"
)
# A server that has just come back has heard from nobody yet.
_TAKE_OVER_SQL: Final = (
    "UPDATE calls SET owner = $1 WHERE state = 'open' AND id IN ("  # noqa: S608 (constants only)
    " SELECT id FROM calls WHERE state = 'open' AND owner <> $1 AND NOT EXISTS ("
    "  SELECT 1 FROM replicas WHERE replicas.id = calls.owner AND greatest(beat_at, pg_postmaster_start_time())"
    "   > clock_timestamp() - make_interval(secs => $2::float8))"
    f" ORDER BY id FOR UPDATE SKIP LOCKED) RETURNING {_COLUMNS}"
)
_MINE_SQL: Final = f"SELECT {_COLUMNS} FROM calls WHERE state = 'open' AND owner = $1"  # noqa: S608 (constants only)
_FORGET_SQL: Final = "DELETE FROM replicas WHERE beat_at < clock_timestamp() - interval '1 day'"


class Replica:
    """This service among those that share the ledger."""

    def __init__(self, lane: ReconnectingConnection, lease_s: float) -> None:
        self.id = f"replica_{secrets.token_hex(8)}"
        self._lane = lane
        self._lease_s = lease_s
        self._heard_since = time.monotonic() - lease_s
        """Since when the database has been there without a break: before, others may have had no chance to beat."""

    async def beat(self) -> None:
        """Say that this replica lives."""
        await self._lane.run(lambda db: execute(db, _BEAT_SQL, (self.id,)))

    async def keep_beating(self) -> None:
        """Say so for ever, several times a lease."""
        while True:
            await asyncio.sleep(self._lease_s / BEATS_A_LEASE)
            try:
                await self.beat()
            except (MeterError, ConnectionLost, psycopg.Error):
                self._heard_since = time.monotonic()

    async def left_open(self, mine: Callable[[], Collection[str]]) -> list[LedgerRow]:
        """Open rows that nobody looks after, oldest first; from now on they are this replica's, and nobody else's."""
        before = set(mine())
        rows = [row_of(row) for row in await self._lane.run(self._taken)]
        looked_after = before | set(mine())
        return sorted((row for row in rows if row.id not in looked_after), key=lambda row: (row.started_at_ns, row.id))

    async def _taken(self, db: Db) -> list[tuple[object, ...]]:
        await execute(db, _FORGET_SQL)
        others = []
        if time.monotonic() - self._heard_since >= self._lease_s:
            others = await execute(db, _TAKE_OVER_SQL, (self.id, self._lease_s))
        known = {row[0] for row in others}
        return [*others, *(row for row in await execute(db, _MINE_SQL, (self.id,)) if row[0] not in known)]

    async def leave(self) -> None:
        """This replica ends; what it left open is anybody's at once."""
        # If the database is away, the lease ends by itself.
        with contextlib.suppress(MeterError, ConnectionLost, psycopg.Error):
            await self._lane.run(lambda db: execute(db, "DELETE FROM replicas WHERE id = $1", (self.id,)))
        await self._lane.close()
