"""The ledger on PostgreSQL, which several replicas of the service share: `store.Store` by psycopg, with group commit.

Three connections: one writes rows, one says that this replica lives, one does everything else. Each is made anew when
it is gone, so the service needs no restart when the database had one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from mcpmeter.errors import LedgerUnavailable, MeterError
from mcpmeter.ledger.location import PostgresUrl
from mcpmeter.ledger.postgres.balances import add_top_up, burn_nanousd, find_balances, forget_minutes, make_balances
from mcpmeter.ledger.postgres.connection import prepare
from mcpmeter.ledger.postgres.leases import Replica
from mcpmeter.ledger.postgres.reconnecting import (
    ANSWER_LIMIT_S,
    ROW_FAULTS,
    SUM_LIMIT_S,
    ReconnectingConnection,
    refusal,
    unavailable,
)
from mcpmeter.ledger.postgres.rows import Db, execute
from mcpmeter.ledger.postgres.writer import PostgresWriter
from mcpmeter.ledger.rows import CHANGING_KEY_COLUMNS, KEY_COLUMNS, SELECT_KEYS_SQL, changed_values, key_of, key_values
from mcpmeter.ledger.sqlite.store import KEPT_MINUTES_NS
from mcpmeter.ledger.store import OnCommit
from mcpmeter.ledger.write_queue import Answers, OpenEntry, Row, SettleEntry, fail, resolve
from mcpmeter.records import Balance, Call, Key, LedgerRow, Reservation, Settlement, TopUp

log = logging.getLogger("mcpmeter")

_Result = TypeVar("_Result")

LEASE_S: Final = 30.0
"""A replica that has not been heard of for so long is dead, and its open calls are recovered by another."""

_ADD_KEY_SQL: Final = (
    f"INSERT INTO keys ({', '.join(KEY_COLUMNS)})"  # noqa: S608 (constants only)
    f" VALUES ({', '.join(f'${place}' for place in range(1, len(KEY_COLUMNS) + 1))})"
)
_ONE_KEY_SQL: Final = f"SELECT {', '.join(KEY_COLUMNS)} FROM keys WHERE id = $1 FOR UPDATE"  # noqa: S608
_CHANGE_KEY_SQL: Final = (
    f"UPDATE keys SET {', '.join(f'{name} = ${place}' for place, name in enumerate(CHANGING_KEY_COLUMNS, start=1))}"  # noqa: S608
    f" WHERE id = ${len(CHANGING_KEY_COLUMNS) + 1}"
)
_PROBE_SQL: Final = (
    "INSERT INTO probe VALUES (1, $1::bigint) ON CONFLICT (id) DO UPDATE SET probed_at_ns = excluded.probed_at_ns"
)
_ROW_FAULTS: Final = (*ROW_FAULTS, ValueError, TypeError, AttributeError)


class PostgresStore:
    """`store.Store` on one database, for one service and one event loop. Lives once: started, used, closed."""

    def __init__(self, location: PostgresUrl, *, on_commit: OnCommit | None = None, lease_s: float = LEASE_S) -> None:
        self._location = location
        self._on_commit = on_commit
        self._lease_s = lease_s
        self._writer: PostgresWriter | None = None
        self._closing: asyncio.Task[None] | None = None
        self._keys_version = -1

    async def start(self) -> None:
        """Connect, bring the tables up to date, join the other replicas. Raises `LedgerNotUsable`, one line."""
        if not await asyncio.to_thread(prepare, self._location):
            log.warning("PostgreSQL runs with fsync off: when the machine fails, calls that were answered can be lost")
        self._lane = ReconnectingConnection(self._location)
        self._writers_lane = ReconnectingConnection(self._location)
        self._replica = Replica(ReconnectingConnection(self._location), self._lease_s)
        await self._run(self._replica.beat)
        self._beating = asyncio.get_running_loop().create_task(self._replica.keep_beating())
        self._writer = PostgresWriter(self._writers_lane, self._replica.id, self._answer)

    async def close(self) -> None:
        """Commit what is queued and leave the other replicas. From then on every call fails."""
        if self._writer is None:
            return
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(self._writer))
        await asyncio.shield(self._closing)

    async def _close(self, writer: PostgresWriter) -> None:
        await writer.finish()
        self._beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._beating
        await self._replica.leave()
        await self._lane.close()
        await self._writers_lane.close()

    def open(self, call: Call) -> Awaitable[None]:
        """Write the open row; resolves when it is on disk. Fails as `Store.open` says, or with `LedgerUnavailable`."""
        return self._queued(OpenEntry(call, asyncio.get_running_loop().create_future()))

    def settle(self, settlement: Settlement) -> Awaitable[None]:
        """Settle the row of the same id; also fails with `SettlementConflict`. Cancelling the wait cancels no write."""
        return self._queued(SettleEntry(settlement, asyncio.get_running_loop().create_future()))

    def _queued(self, row: Row) -> asyncio.Future[None]:
        self._accepting().put(row)
        return row.future

    async def left_open(self) -> Sequence[LedgerRow]:
        """Rows whose replica is dead, and those of this one that it failed to settle, oldest first; now its own."""
        writer = self._accepting()
        unsettled = set(writer.unsettled)
        rows = await self._run(lambda: self._replica.left_open(lambda: writer.looked_after))
        writer.forget(unsettled - {row.id for row in rows} - writer.under_way)
        return rows

    async def keys(self) -> Sequence[Key]:
        """All keys, revoked ones too, oldest first."""
        version = await self._version_of_keys()
        rows = await self._do(lambda db: execute(db, SELECT_KEYS_SQL))
        self._keys_version = version
        return [key_of(row) for row in rows]

    async def keys_changed(self) -> bool:
        """Whether a key was created, changed or revoked since `keys` was last read."""
        return await self._version_of_keys() != self._keys_version

    async def _version_of_keys(self) -> int:
        [(version,)] = await self._do(lambda db: execute(db, "SELECT version FROM key_changes"))
        return int(version)

    async def add_key(self, key: Key) -> None:
        """Keep a new key. Raises `RowRefused` if its id or hash is kept already."""
        await self._do(lambda db: execute(db, _ADD_KEY_SQL, key_values(key)))

    async def change_key(self, key_id: str, change: Callable[[Key], Key]) -> Key | None:
        """Keep a key's new secret or its end, as `change` makes it of the record; None if there is no such key."""

        async def write(db: Db) -> Key | None:
            for row in await execute(db, _ONE_KEY_SQL, (key_id,)):
                changed = change(key_of(row))
                await execute(db, _CHANGE_KEY_SQL, changed_values(changed))
                return changed
            return None

        return await self._do(write)

    async def balances(self, claims: Sequence[Reservation]) -> Sequence[Balance]:
        """The balances of these claims, made where there are none; over minutes of rate limits are forgotten."""
        await self._do(lambda db: forget_minutes(db, time.time_ns() - KEPT_MINUTES_NS))
        slots = {(claim.balance, claim.period_start_ns): claim for claim in claims}
        found = await self._do(lambda db: find_balances(db, claims))
        missing = [slots[place] for place in sorted(slots.keys() - found.keys())]
        if missing:
            await self._do(lambda db: make_balances(db, missing), limit_s=SUM_LIMIT_S)
            found = await self._do(lambda db: find_balances(db, claims))
        return [found[claim.balance, claim.period_start_ns] for claim in claims]

    async def burn_nanousd(self, claim: Reservation, since_ns: int, until_ns: int) -> int:
        """What budgets count for the calls of a claim's scope that started in [since, until)."""
        return await self._do(lambda db: burn_nanousd(db, claim, since_ns, until_ns), limit_s=SUM_LIMIT_S)

    async def top_up(self, top_up: TopUp) -> int:
        """Keep a top-up; returns the balance's whole credit. Raises `RowRefused` if its id is kept already."""
        return await self._do(lambda db: add_top_up(db, top_up))

    async def probe(self) -> None:
        """Try a tiny durable write: `healthy` says afterwards how it went. Raises `LedgerUnavailable`."""
        writer = self._accepting()
        try:
            await self._do(lambda db: execute(db, _PROBE_SQL, (time.time_ns(),)))
        except LedgerUnavailable:
            writer.healthy = False
            raise
        writer.healthy = True

    @property
    def open_rows(self) -> int:
        """Rows opened in this life and not settled."""
        return len(self._writer.open_ids) if self._writer else 0

    @property
    def healthy(self) -> bool:
        """Whether the last write succeeded (or none was tried)."""
        return self._writer is None or self._writer.healthy

    def _accepting(self) -> PostgresWriter:
        if self._writer is None or self._closing is not None:
            raise LedgerUnavailable("The ledger is not open.", hint="The service is starting or stopping; try again.")
        return self._writer

    async def _do(self, work: Callable[[Db], Awaitable[_Result]], *, limit_s: float = ANSWER_LIMIT_S) -> _Result:
        """Anything that is no row, in a transaction of its own."""
        self._accepting()
        return await self._run(lambda: self._lane.run(work, limit_s=limit_s))

    async def _run(self, work: Callable[[], Awaitable[_Result]]) -> _Result:
        try:
            return await work()
        except MeterError:
            raise
        except _ROW_FAULTS as error:
            raise refusal(error) from error
        except Exception as error:  # whatever else it is, nothing was written
            raise unavailable(error) from error

    def _answer(self, answers: Answers) -> None:
        for row in answers.kept:
            resolve(row.future, None)
        for row, error in answers.failed:
            fail(row.future, error)
        if self._on_commit is not None and answers.kept:
            self._on_commit(len(answers.kept), answers.commit_s)
