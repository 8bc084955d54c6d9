"""The ledger on SQLite: WAL, `synchronous=FULL` unless configured otherwise, one writer thread, group commit.

It needs SQLite 3.51.3 or newer, which apsw brings along: in older ones two connections that reset the write-ahead log
at the same moment can lose committed rows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import apsw

from mcpmeter.errors import LedgerUnavailable
from mcpmeter.ledger.rows import change_key, insert_key, read_keys, read_open_rows
from mcpmeter.ledger.sqlite.balances import add_top_up, burn_nanousd, ensure, forget_minutes
from mcpmeter.ledger.sqlite.connection import Synchronous, default_ledger_path
from mcpmeter.ledger.sqlite.migrations import transaction
from mcpmeter.ledger.sqlite.writer import Writer, WriterTask
from mcpmeter.ledger.store import OnCommit
from mcpmeter.ledger.write_queue import Answers, OpenEntry, SettleEntry, fail, resolve
from mcpmeter.records import Balance, Call, Key, LedgerRow, Reservation, Settlement, TopUp

__all__ = ["SqliteStore", "default_ledger_path"]

_Result = TypeVar("_Result")

KEPT_MINUTES_NS: Final = 3600 * 10**9
"""How long the balance of a rate limit's minute is kept; a clock that steps back less far finds it again."""


class SqliteStore:
    """`store.Store` on one SQLite file, for one service and one event loop. Lives once: started, used, closed.

    With `synchronous="normal"` a row is the operating system's when it is told, and on disk some time later.
    """

    def __init__(self, path: Path, *, on_commit: OnCommit | None = None, synchronous: Synchronous = "full") -> None:
        self._path = path.absolute()
        self._on_commit = on_commit
        self._synchronous = synchronous
        self._writer: Writer | None = None
        self._closing: asyncio.Future[None] | None = None
        self._keys_version = -1

    async def start(self) -> None:
        """Take the lock, check the file, bring its tables up to date. Raises `LedgerNotUsable`, one line."""
        loop = asyncio.get_running_loop()
        writer = Writer(self._path, loop, self._answer, self._synchronous)
        try:
            await writer.start()
        except asyncio.CancelledError:
            writer.submit(WriterTask(None, loop.create_future()))
            raise
        self._writer = writer

    async def close(self) -> None:
        """Commit what is queued, fold the log into the file, release the lock. From then on every call fails."""
        if self._writer is None:
            return
        if self._closing is None:
            self._closing = self._writer.loop.create_future()
            self._writer.submit(WriterTask(None, self._closing))
        await asyncio.shield(self._closing)

    def open(self, call: Call) -> asyncio.Future[None]:
        """Write the open row; resolves when it is on disk. Fails as `Store.open` says, or with `LedgerUnavailable`."""
        writer = self._accepting()
        future: asyncio.Future[None] = writer.loop.create_future()
        writer.submit(OpenEntry(call, future))
        return future

    def settle(self, settlement: Settlement) -> asyncio.Future[None]:
        """Settle the row of the same id; also fails with `SettlementConflict`. Cancelling the wait cancels no write."""
        writer = self._accepting()
        future: asyncio.Future[None] = writer.loop.create_future()
        writer.submit(SettleEntry(settlement, future))
        return future

    async def left_open(self) -> Sequence[LedgerRow]:
        """Rows that an earlier life opened and never settled, oldest first. `settle` settles them like any other."""
        rows = await self._run(read_open_rows)
        mine = self._accepting().open_ids
        return [row for row in rows if row.id not in mine]

    async def keys(self) -> Sequence[Key]:
        """All keys, revoked ones too, oldest first."""
        self._keys_version, keys = await self._run(lambda db: (db.pragma("data_version"), read_keys(db)))
        return keys

    async def keys_changed(self) -> bool:
        """Whether another process wrote to the ledger since `keys` was last read: a key created, a key revoked."""
        version = await self._run(lambda db: int(db.pragma("data_version")))
        return version != self._keys_version

    async def add_key(self, key: Key) -> None:
        """Keep a new key. Raises `RowRefused` if its id or hash is kept already."""

        def write(db: apsw.Connection) -> None:
            with transaction(db):
                insert_key(db, key)

        await self._run(write, writes=True)

    async def change_key(self, key_id: str, change: Callable[[Key], Key]) -> Key | None:
        """Keep a key's new secret or its end, as `change` makes it of the record; None if there is no such key."""

        def write(db: apsw.Connection) -> Key | None:
            with transaction(db):
                return change_key(db, key_id, change)

        return await self._run(write, writes=True)

    async def balances(self, claims: Sequence[Reservation]) -> Sequence[Balance]:
        """The balances of these claims, made where there are none; over minutes of rate limits are forgotten."""

        def write(db: apsw.Connection) -> list[Balance]:
            with transaction(db):
                forget_minutes(db, time.time_ns() - KEPT_MINUTES_NS)
                return ensure(db, claims)

        return await self._run(write, writes=True)

    async def burn_nanousd(self, claim: Reservation, since_ns: int, until_ns: int) -> int:
        """What budgets count for the calls of a claim's scope that started in [since, until)."""
        return await self._run(lambda db: burn_nanousd(db, claim, since_ns, until_ns))

    async def top_up(self, top_up: TopUp) -> int:
        """Keep a top-up; returns the balance's whole credit. Raises `RowRefused` if its id is kept already."""

        def write(db: apsw.Connection) -> int:
            with transaction(db):
                return add_top_up(db, top_up)

        return await self._run(write, writes=True)

    async def probe(self) -> None:
        """Try a tiny durable write: `healthy` says afterwards how it went. Raises `LedgerUnavailable`."""

        def write(db: apsw.Connection) -> None:
            with transaction(db):
                db.execute("INSERT OR REPLACE INTO probe VALUES (1, ?)", (time.time_ns(),))

        await self._run(write, writes=True)

    @property
    def open_rows(self) -> int:
        """Rows opened in this life and not settled."""
        return len(self._writer.open_ids) if self._writer else 0

    @property
    def healthy(self) -> bool:
        """Whether the last write succeeded (or none was tried)."""
        return self._writer is None or self._writer.healthy

    def _accepting(self) -> Writer:
        if self._writer is None or self._closing is not None:
            raise LedgerUnavailable("The ledger is not open.", hint="The service is starting or stopping; try again.")
        return self._writer

    async def _run(self, work: Callable[[apsw.Connection], _Result], *, writes: bool = False) -> _Result:
        writer = self._accepting()
        future: asyncio.Future[_Result] = writer.loop.create_future()
        writer.submit(WriterTask(work, future, writes))
        return await future

    def _answer(self, answers: Answers) -> None:
        for row in answers.kept:
            resolve(row.future, None)
        for row, error in answers.failed:
            fail(row.future, error)
        if self._on_commit is not None and answers.kept:
            self._on_commit(len(answers.kept), answers.commit_s)
