"""The ledger on PostgreSQL, which several replicas of the service share: `store.Store` by psycopg, with group commit.

Four connections: one writes rows, one sums up calls, one renews the lease, one does everything else. Each reconnects
by itself, so the service needs no restart when the database had one.

A database may also hang: its connections stay and nothing is answered. Then the store is unhealthy as soon as a batch
or a heartbeat is overdue, and rows are refused at once until a heartbeat is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import psycopg

from mcpmeter.errors import LedgerNotUsable, LedgerUnavailable, MeterError
from mcpmeter.ledger.audit import INSERT_AUDIT_SQL, audit_values, key_changed, key_created, topped_up
from mcpmeter.ledger.balances import KEPT_MINUTES_NS
from mcpmeter.ledger.location import PostgresUrl
from mcpmeter.ledger.migrations import LEDGER_ID_SQL, ledger_id
from mcpmeter.ledger.objects import (
    END_OBJECT_SQL,
    FIND_OBJECT_SQL,
    INSERT_OBJECT_SQL,
    PENDING_OBJECTS_SQL,
    PENDING_ROWS_SQL,
    ROW_SQL,
    object_of,
    object_values,
    with_rows,
)
from mcpmeter.ledger.postgres.balances import add_top_up, burn_nanousd, find_balances, forget_minutes, make_balances
from mcpmeter.ledger.postgres.connecting import Connector
from mcpmeter.ledger.postgres.connection import CONNECT_S, cannot_be_reached, not_usable, prepare
from mcpmeter.ledger.postgres.leases import Replica
from mcpmeter.ledger.postgres.reconnecting import (
    ROW_FAULTS,
    SUM_TIMEOUT_S,
    ReconnectingConnection,
    refusal,
    unavailable,
)
from mcpmeter.ledger.postgres.sql import Db, execute, execute_portable
from mcpmeter.ledger.postgres.writer import PostgresWriter
from mcpmeter.ledger.rows import (
    INSERT_KEY_SQL,
    SELECT_KEY_SQL,
    SELECT_KEYS_SQL,
    UPDATE_KEY_SQL,
    changed_values,
    key_of,
    key_values,
    row_of,
)
from mcpmeter.ledger.store import OnCommit
from mcpmeter.ledger.write_queue import QueuedStore, RowEntry
from mcpmeter.records import (
    Actor,
    AuditAction,
    AuditEntry,
    Balance,
    Key,
    LedgerRow,
    ObjectState,
    ProviderObject,
    Reservation,
    TopUp,
)

log = logging.getLogger("mcpmeter")

_Result = TypeVar("_Result")

LEASE_S: Final = 30.0
"""A replica without a heartbeat for so long counts as dead, and another one recovers its open calls."""

_ROW_FAULTS: Final = (*ROW_FAULTS, ValueError, TypeError, AttributeError)


class PostgresStore(QueuedStore[PostgresWriter]):
    """`store.Store` on one database, for one service and one event loop. Started, used and closed once."""

    def __init__(
        self,
        location: PostgresUrl,
        *,
        on_commit: OnCommit | None = None,
        lease_s: float = LEASE_S,
        connect_s: float = CONNECT_S,
    ) -> None:
        super().__init__(on_commit)
        self._location = location
        self._lease_s = lease_s
        self._connect_s = connect_s
        self._keys_version = -1

    async def start(self) -> None:
        """Connect, migrate, join the other replicas. Raises `LedgerNotUsable`, one line."""
        connector = self._connector = Connector(self._location, self._connect_s)
        await self._reach(connector)
        for warning in await asyncio.to_thread(prepare, self._location, connector.reached):
            log.warning("%s", warning)
        self._replica = Replica(connector, self._lease_s, self._on_heartbeat)
        self._connection, self._sums, self._writer_connection = (
            ReconnectingConnection(connector, lambda: self._replica.fault is not None, never_cancelled=is_writer)
            for is_writer in (False, False, True)
        )
        try:
            await self._translated(self._replica.send_heartbeat())
        except LedgerUnavailable as fault:
            await self._replica.leave()
            raise LedgerNotUsable(fault.message, hint="Look at PostgreSQL, its disk and its log.") from fault
        self._heartbeats = asyncio.get_running_loop().create_task(self._replica.keep_lease())
        self._writer = PostgresWriter(self._writer_connection, self._replica.id, self._deliver, self._connect_s)

    async def _reach(self, connector: Connector) -> None:
        """Raise `LedgerNotUsable` within the deadline unless PostgreSQL can be reached."""
        try:
            db = await connector.connect()
        except psycopg.Error as error:
            raise not_usable(self._location, error) from error
        except OSError as error:
            reason = "it does not respond" if isinstance(error, TimeoutError) else str(error.strerror)
            raise cannot_be_reached(self._location, reason) from error
        await db.close()

    @property
    def healthy(self) -> bool:
        """Whether PostgreSQL responds and the last write succeeded."""
        return self._writer is None or (self._writer.healthy and not self._is_silent)

    @property
    def _is_silent(self) -> bool:
        writer = self._writer
        if self._replica.is_silent or writer is None:
            return True
        return writer.is_silent or (self._connector.is_failing and not writer.healthy)

    def _submit(self, entry: RowEntry) -> asyncio.Future[None]:
        """While PostgreSQL does not respond, rows are refused at once."""
        writer = self._accepting()
        if self._is_silent:
            writer.note_refused(entry)
            raise unavailable(self._replica.fault or TimeoutError())
        return super()._submit(entry)

    def _on_heartbeat(self) -> None:
        if self._writer is not None:
            self._writer.note_response()

    async def close(self) -> None:
        """Commit what is queued and leave the other replicas. After that every method fails."""
        if self._writer is None:
            return
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(self._writer))
        await asyncio.shield(self._closing)

    async def _close(self, writer: PostgresWriter) -> None:
        await writer.finish()
        self._heartbeats.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._heartbeats
        await self._replica.leave()
        for connection in (self._connection, self._sums, self._writer_connection):
            await connection.close()

    async def ledger_id(self) -> str:
        """The instant at which the ledger's first table was made."""
        return ledger_id(await self._run(lambda db: execute(db, LEDGER_ID_SQL)))

    async def left_open(self) -> Sequence[LedgerRow]:
        """Rows of dead replicas, and rows of this one that it failed to settle, oldest first; now its own."""
        writer = self._accepting()
        unsettled = set(writer.unsettled)
        rows = await self._translated(self._replica.left_open(self._connection, lambda: writer.in_progress))
        # An unsettled row that is no longer open was settled by a commit whose response was lost.
        writer.mark_settled(unsettled - {row.id for row in rows} - writer.queued)
        return rows

    async def add_object(self, kept: ProviderObject) -> None:
        """Store an object that a provider keeps. Raises `RowRefused` if its id is taken."""
        await self._run(lambda db: execute_portable(db, INSERT_OBJECT_SQL, object_values(kept)))
        self._accepting().open_ids.discard(kept.call_id)

    async def find_object(self, object_id: str, team: str) -> ProviderObject | None:
        """The latest object of this id that the team made."""
        rows = await self._run(lambda db: execute_portable(db, FIND_OBJECT_SQL, (object_id, team)))
        return object_of(rows[0]) if rows else None

    async def end_object(self, kept: ProviderObject, state: ObjectState, at_ns: int) -> None:
        """Note that the call of a pending object is settled."""
        values = (kept.id, kept.provider, state, at_ns)
        await self._run(lambda db: execute_portable(db, END_OBJECT_SQL, values))

    async def pending_objects(self) -> Sequence[tuple[ProviderObject, LedgerRow]]:
        """Pending objects with the rows of their calls, oldest first; of open calls only this replica's own.

        `left_open` makes those of dead replicas its own.
        """
        own = f"{PENDING_ROWS_SQL} AND (owner = ?1 OR state <> 'open')"

        async def read(db: Db) -> list[tuple[ProviderObject, LedgerRow]]:
            rows = {row[0]: row_of(row) for row in await execute_portable(db, own, (self._replica.id,))}
            return with_rows(map(object_of, await execute_portable(db, PENDING_OBJECTS_SQL)), rows)

        return await self._run(read)

    async def row_of_call(self, call_id: str) -> LedgerRow | None:
        """The row of one call."""
        rows = await self._run(lambda db: execute_portable(db, ROW_SQL, (call_id,)))
        return row_of(rows[0]) if rows else None

    async def keys(self) -> Sequence[Key]:
        """All keys, revoked ones too, oldest first."""
        version = await self._read_keys_version()
        rows = await self._run(lambda db: execute(db, SELECT_KEYS_SQL))
        self._keys_version = version
        return [key_of(row) for row in rows]

    async def keys_changed(self) -> bool:
        """Whether a key was created, changed or revoked since `keys` was last read."""
        return await self._read_keys_version() != self._keys_version

    async def _read_keys_version(self) -> int:
        [(version,)] = await self._run(lambda db: execute(db, "SELECT version FROM key_changes"))
        return int(version)

    async def add_key(self, key: Key, by: Actor) -> None:
        """Store a new key and its audit row. Raises `RowRefused` if its id or hash is taken."""
        entry = key_created(key, by)

        async def write(db: Db) -> None:
            await execute_portable(db, INSERT_KEY_SQL, key_values(key))
            await _audit(db, entry)

        await self._run(write)

    async def change_key(
        self, key_id: str, change: Callable[[Key], Key], *, action: AuditAction, by: Actor
    ) -> Key | None:
        """Store a key's new secret or its end, as `change` returns it; None if there is no such key."""

        async def write(db: Db) -> Key | None:
            for row in await execute_portable(db, f"{SELECT_KEY_SQL} FOR UPDATE", (key_id,)):
                key = key_of(row)
                changed = change(key)
                await execute_portable(db, UPDATE_KEY_SQL, changed_values(changed))
                await _audit(db, key_changed(action, key, changed, by))
                return changed
            return None

        return await self._run(write)

    async def audit(self, entry: AuditEntry) -> None:
        """Store the audit row of an act that writes nothing else."""
        await self._run(lambda db: _audit(db, entry))

    async def balances(self, reservations: Sequence[Reservation]) -> Sequence[Balance]:
        """The balances of these reservations, made if there are none; deletes those of rate limits' past minutes."""
        await self._run(lambda db: forget_minutes(db, time.time_ns() - KEPT_MINUTES_NS))
        by_key = {(r.balance, r.period_start_ns): r for r in reservations}
        found = await self._run(lambda db: find_balances(db, reservations))
        missing = [by_key[key] for key in sorted(by_key.keys() - found.keys())]
        if missing:
            await self._sum(lambda db: make_balances(db, missing))
            found = await self._run(lambda db: find_balances(db, reservations))
        return [found[r.balance, r.period_start_ns] for r in reservations]

    async def burn_nanousd(self, reservation: Reservation, since_ns: int, until_ns: int) -> int:
        """The budgeted cost of settled calls in the reservation's scope that started in [since, until)."""
        return await self._sum(lambda db: burn_nanousd(db, reservation, since_ns, until_ns))

    async def top_up(self, top_up: TopUp, *, budget: str, by: Actor) -> int:
        """Store a top-up; returns the balance's total credit. Raises `RowRefused` if its id is taken."""

        async def write(db: Db) -> int:
            credit = await add_top_up(db, top_up)
            await _audit(db, topped_up(budget, top_up, credit, by))
            return credit

        return await self._run(write)

    async def probe(self) -> None:
        """Try a tiny durable write, which updates `healthy`. Raises `LedgerUnavailable`."""
        writer = self._accepting()
        await self._translated(self._replica.send_heartbeat())
        await writer.revived()
        if not writer.healthy:
            raise unavailable(TimeoutError())

    async def _run(self, work: Callable[[Db], Awaitable[_Result]]) -> _Result:
        """Run work other than a row, in its own transaction."""
        self._accepting()
        return await self._translated(self._connection.run(work))

    async def _sum(self, work: Callable[[Db], Awaitable[_Result]]) -> _Result:
        """The same for sums over many calls, on a connection of their own, so that nothing waits behind them."""
        self._accepting()
        return await self._translated(self._sums.run(work, timeout_s=SUM_TIMEOUT_S))

    async def _translated(self, work: Awaitable[_Result]) -> _Result:
        try:
            return await work
        except MeterError:
            raise
        except _ROW_FAULTS as error:
            raise refusal(error) from error
        except Exception as error:  # nothing was written, whatever it is
            raise unavailable(error) from error


async def _audit(db: Db, entry: AuditEntry) -> None:
    await execute_portable(db, INSERT_AUDIT_SQL, audit_values(entry))
