"""The ledger on SQLite: WAL, `synchronous=FULL` unless configured otherwise, one writer thread, group commit.

Needs SQLite 3.51.3 or newer, which apsw bundles: in older versions two connections that reset the write-ahead log at
the same moment can lose committed rows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import apsw

from mcpmeter.ledger.audit import INSERT_AUDIT_SQL, audit_values, key_changed, key_created, topped_up
from mcpmeter.ledger.balances import KEPT_MINUTES_NS
from mcpmeter.ledger.migrations import LEDGER_ID_SQL, ledger_id
from mcpmeter.ledger.objects import (
    END_OBJECT_SQL,
    FIND_OBJECT_SQL,
    INSERT_OBJECT_SQL,
    PENDING_IDS_SQL,
    PENDING_OBJECTS_SQL,
    PENDING_ROWS_SQL,
    ROW_SQL,
    object_of,
    object_values,
    with_rows,
)
from mcpmeter.ledger.rows import (
    INSERT_KEY_SQL,
    SELECT_KEY_SQL,
    SELECT_KEYS_SQL,
    SELECT_ROWS_SQL,
    UPDATE_KEY_SQL,
    changed_values,
    key_of,
    key_values,
    row_of,
)
from mcpmeter.ledger.sqlite.balances import add_top_up, burn_nanousd, ensure, forget_minutes
from mcpmeter.ledger.sqlite.connection import Synchronous
from mcpmeter.ledger.sqlite.migrations import transaction
from mcpmeter.ledger.sqlite.writer import Writer, WriterTask
from mcpmeter.ledger.store import OnCommit
from mcpmeter.ledger.write_queue import QueuedStore
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

_Result = TypeVar("_Result")

# The index is named because SQLite would read all rows to sort them, rather than sort the few that are open.
OPEN_ROWS_SQL: Final = f"{SELECT_ROWS_SQL} INDEXED BY calls_open WHERE state = 'open' AND id NOT IN ({PENDING_IDS_SQL})"


class SqliteStore(QueuedStore[Writer]):
    """`store.Store` on one SQLite file, for one service and one event loop. Started, used and closed once.

    With `synchronous="normal"` a row is with the operating system when its awaitable resolves, and on disk later.
    """

    def __init__(self, path: Path, *, on_commit: OnCommit | None = None, synchronous: Synchronous = "full") -> None:
        super().__init__(on_commit)
        self._path = path.absolute()
        self._synchronous = synchronous
        self._keys_version = -1

    async def start(self) -> None:
        """Take the lock, check the file, bring its tables up to date. Raises `LedgerNotUsable`, one line."""
        loop = asyncio.get_running_loop()
        writer = Writer(self._path, loop, self._deliver, self._synchronous)
        try:
            await writer.start()
        except asyncio.CancelledError:
            writer.submit(WriterTask(None, loop.create_future()))
            raise
        self._writer = writer

    async def close(self) -> None:
        """Commit what is queued, move the log into the file, release the lock. After that every method fails."""
        if self._writer is None:
            return
        if self._closing is None:
            self._closing = self._writer.loop.create_future()
            self._writer.submit(WriterTask(None, self._closing))
        await asyncio.shield(self._closing)

    async def ledger_id(self) -> str:
        """The instant at which the ledger's first table was made."""
        return await self._run(lambda db: ledger_id(db.execute(LEDGER_ID_SQL)))

    async def left_open(self) -> Sequence[LedgerRow]:
        """Rows that a previous process opened and never settled, without those of pending objects, oldest first."""
        rows = await self._run(lambda db: [row_of(row) for row in db.execute(OPEN_ROWS_SQL)])
        own = self._accepting().open_ids
        return sorted((row for row in rows if row.id not in own), key=lambda row: (row.started_at_ns, row.id))

    async def add_object(self, kept: ProviderObject) -> None:
        """Store an object that a provider keeps. Raises `RowRefused` if its id is taken."""
        await self._write(lambda db: db.execute(INSERT_OBJECT_SQL, object_values(kept)))
        self._accepting().open_ids.discard(kept.call_id)

    async def find_object(self, object_id: str, team: str) -> ProviderObject | None:
        """The latest object of this id that the team made."""
        row = await self._run(lambda db: db.execute(FIND_OBJECT_SQL, (object_id, team)).fetchone())
        return object_of(row) if row else None

    async def end_object(self, kept: ProviderObject, state: ObjectState, at_ns: int) -> None:
        """Note that the call of a pending object is settled."""
        await self._write(lambda db: db.execute(END_OBJECT_SQL, (kept.id, kept.provider, state, at_ns)))

    async def pending_objects(self) -> Sequence[tuple[ProviderObject, LedgerRow]]:
        """Pending objects with the rows of their calls, oldest first."""

        def read(db: apsw.Connection) -> list[tuple[ProviderObject, LedgerRow]]:
            rows = {row[0]: row_of(row) for row in db.execute(PENDING_ROWS_SQL)}
            return with_rows(map(object_of, db.execute(PENDING_OBJECTS_SQL)), rows)

        return await self._run(read)

    async def row_of_call(self, call_id: str) -> LedgerRow | None:
        """The row of one call."""
        row = await self._run(lambda db: db.execute(ROW_SQL, (call_id,)).fetchone())
        return row_of(row) if row else None

    async def keys(self) -> Sequence[Key]:
        """All keys, revoked ones too, oldest first."""

        def read(db: apsw.Connection) -> tuple[int, list[Key]]:
            return int(db.pragma("data_version")), [key_of(row) for row in db.execute(SELECT_KEYS_SQL)]

        self._keys_version, keys = await self._run(read)
        return keys

    async def keys_changed(self) -> bool:
        """Whether another process wrote to the ledger since `keys` was last read: a key created or revoked."""
        return await self._run(lambda db: int(db.pragma("data_version"))) != self._keys_version

    async def add_key(self, key: Key, by: Actor) -> None:
        """Store a new key and its audit row. Raises `RowRefused` if its id or hash is taken."""

        def write(db: apsw.Connection) -> None:
            db.execute(INSERT_KEY_SQL, key_values(key))
            _audit(db, key_created(key, by))

        await self._write(write)

    async def change_key(
        self, key_id: str, change: Callable[[Key], Key], *, action: AuditAction, by: Actor
    ) -> Key | None:
        """Store a key's new secret or its end, as `change` returns it; None if there is no such key."""

        def write(db: apsw.Connection) -> Key | None:
            row = db.execute(SELECT_KEY_SQL, (key_id,)).fetchone()
            if row is None:
                return None
            key = key_of(row)
            changed = change(key)
            db.execute(UPDATE_KEY_SQL, changed_values(changed))
            _audit(db, key_changed(action, key, changed, by))
            return changed

        return await self._write(write)

    async def audit(self, entry: AuditEntry) -> None:
        """Store the audit row of an act that writes nothing else."""
        await self._write(lambda db: _audit(db, entry))

    async def balances(self, reservations: Sequence[Reservation]) -> Sequence[Balance]:
        """The balances of these reservations, made if there are none; deletes those of rate limits' past minutes."""

        def write(db: apsw.Connection) -> list[Balance]:
            forget_minutes(db, time.time_ns() - KEPT_MINUTES_NS)
            return [ensure(db, reservation) for reservation in reservations]

        return await self._write(write)

    async def burn_nanousd(self, reservation: Reservation, since_ns: int, until_ns: int) -> int:
        """The budgeted cost of settled calls in the reservation's scope that started in [since, until)."""
        return await self._run(lambda db: burn_nanousd(db, reservation, since_ns, until_ns))

    async def top_up(self, top_up: TopUp, *, budget: str, by: Actor) -> int:
        """Store a top-up; returns the balance's total credit. Raises `RowRefused` if its id is taken."""

        def write(db: apsw.Connection) -> int:
            credit = add_top_up(db, top_up)
            _audit(db, topped_up(budget, top_up, credit, by))
            return credit

        return await self._write(write)

    async def probe(self) -> None:
        """Try a tiny durable write, which updates `healthy`. Raises `LedgerUnavailable`."""
        await self._write(lambda db: db.execute("INSERT OR REPLACE INTO probe VALUES (1, ?)", (time.time_ns(),)))

    async def _write(self, work: Callable[[apsw.Connection], _Result]) -> _Result:
        def write(db: apsw.Connection) -> _Result:
            with transaction(db):
                return work(db)

        return await self._run(write, writes=True)

    async def _run(self, work: Callable[[apsw.Connection], _Result], *, writes: bool = False) -> _Result:
        writer = self._accepting()
        future: asyncio.Future[_Result] = writer.loop.create_future()
        writer.submit(WriterTask(work, future, writes))
        return await future


def _audit(db: apsw.Connection, entry: AuditEntry) -> None:
    db.execute(INSERT_AUDIT_SQL, audit_values(entry))
