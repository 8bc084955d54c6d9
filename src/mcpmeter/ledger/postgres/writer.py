"""Group commit on PostgreSQL: whatever was queued while the last transaction ran goes into the next one."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from mcpmeter.errors import MeterError
from mcpmeter.ledger.postgres.balances import BalanceMissing, give_back, make_balances, reserve_and_settle
from mcpmeter.ledger.postgres.reconnecting import (
    ROW_FAULTS,
    SUM_LIMIT_S,
    ConnectionLost,
    ReconnectingConnection,
    refusal,
    unavailable,
)
from mcpmeter.ledger.postgres.rows import Db, execute, fitting_open, fitting_settled, insert_open, settle_rows
from mcpmeter.ledger.reservations import KeptReservation, read_claims
from mcpmeter.ledger.write_queue import Answers, OpenEntry, Refusal, Row, SettleEntry
from mcpmeter.records import Reservation, Settlement

MAX_ROWS: Final = 1_000
"""In one transaction: bounds how long the first row of a batch waits for the last."""

Failed = list[tuple[Row, Refusal]]


class PostgresWriter:
    """The one task that writes rows, on a connection of its own."""

    def __init__(self, lane: ReconnectingConnection, owner: str, on_answers: Callable[[Answers], None]) -> None:
        self.healthy = True
        self.open_ids: set[str] = set()
        """Rows opened in this life and not settled."""
        self.unsettled: set[str] = set()
        """Of those, the ones that could not be settled: nobody will try again, so they are to be recovered."""
        self.under_way: set[str] = set()
        """Rows that are queued to be opened or settled, or being so."""
        self._lane = lane
        self._owner = owner
        self._on_answers = on_answers
        self._queue: deque[Row] = deque()
        self._news = asyncio.Event()
        self._ending = False
        self._unsure: set[str] = set()
        """Openings that failed and may be in the ledger all the same: taken out before anything else is written."""
        self._task = asyncio.get_running_loop().create_task(self._work(), name="mcpmeter-ledger")

    def put(self, row: Row) -> None:
        """Queue a row."""
        self._queue.append(row)
        self.under_way.add(_id(row))
        self._news.set()

    @property
    def looked_after(self) -> set[str]:
        """Rows that somebody here is going to settle."""
        return (self.open_ids - self.unsettled) | self.under_way

    def forget(self, unsettled: set[str]) -> None:
        """These are settled after all: their commit came through, and only its answer did not."""
        self.unsettled -= unsettled
        self.open_ids -= unsettled

    async def finish(self) -> None:
        """Write what is queued, and end."""
        self._ending = True
        self._news.set()
        await self._task

    async def _work(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._queue:
                await self._write(self._take_batch())
            if self._ending:
                return

    def _take_batch(self) -> list[Row]:
        """As many rows as go together: of one call only one, because a statement sees none of its own rows."""
        batch: list[Row] = []
        first: dict[str, Row] = {}
        while self._queue and len(batch) < MAX_ROWS:
            row = self._queue[0]
            if not _goes_beside(row, first.setdefault(_id(row), row)):
                break
            batch.append(self._queue.popleft())
        return batch

    async def _write(self, batch: list[Row]) -> None:
        began_ns = time.perf_counter_ns()
        rows, failed = _fitting(batch)
        failed += await self._write_all(rows)
        bad = {id(row) for row, _ in failed}
        kept = [row for row in batch if id(row) not in bad]
        self._count_open(kept)
        self.unsettled |= {_id(row) for row, _ in failed if isinstance(row, SettleEntry)} & self.open_ids
        waiting = {_id(row) for row in self._queue}
        self.under_way -= {_id(row) for row in batch} - waiting
        self._on_answers(Answers(kept, failed, (time.perf_counter_ns() - began_ns) / 1e9))

    def _count_open(self, kept: Iterable[Row]) -> None:
        for row in kept:
            if isinstance(row, OpenEntry):
                self.open_ids.add(row.call.id)
            else:
                self.open_ids.discard(row.settlement.call.id)
                self.unsettled.discard(row.settlement.call.id)

    async def _write_all(self, rows: Sequence[Row]) -> Failed:
        """All in one transaction; if one row is at fault, halves of it, until that row is alone."""
        if not rows:
            return []
        try:
            if self._unsure:
                await self._take_back()
            failed = await self._write_surely(rows)
        except ROW_FAULTS as error:
            if len(rows) == 1:
                return [(rows[0], refusal(error))]
        except Exception as error:  # the task outlives every error, and each waiter hears of it
            self.healthy = False
            return [(row, unavailable(error)) for row in rows]
        else:
            self.healthy = True
            return failed
        middle = len(rows) // 2
        return [*await self._write_all(rows[:middle]), *await self._write_all(rows[middle:])]

    async def _write_surely(self, rows: Sequence[Row]) -> Failed:
        """A connection that breaks is tried once more, by a new one: the server may have closed it for being idle."""
        attempt = _Attempt(rows, self._owner)
        try:
            return await self._run(attempt)
        except ConnectionLost:
            self._unsure |= attempt.opened
            kept = await self._lane.run(attempt.was_kept)
            failed = attempt.failed if kept else await self._run(attempt)
            self._unsure -= attempt.opened
            return failed

    async def _run(self, attempt: _Attempt) -> Failed:
        while True:
            try:
                return await self._lane.run(attempt.write)
            except BalanceMissing:
                await self._lane.run(partial(make_balances, claims=attempt.claims), limit_s=SUM_LIMIT_S)

    async def _take_back(self) -> None:
        """An opening that failed leaves no row and reserves nothing, though its commit may have come through."""
        unsure = sorted(self._unsure)

        async def take_back(db: Db) -> None:
            rows = await execute(
                db,
                "DELETE FROM calls WHERE id = ANY($1::text[]) AND owner = $2 AND state = 'open' RETURNING claims",
                (unsure, self._owner),
            )
            await give_back(db, [claim for (kept,) in rows for claim in read_claims(kept)])

        await self._lane.run(take_back)
        self._unsure.clear()


class _Attempt:
    """One transaction's rows, and how those ended that were refused in it."""

    def __init__(self, rows: Sequence[Row], owner: str) -> None:
        self.failed: Failed = []
        self._owner = owner
        self._opens = [row for row in rows if isinstance(row, OpenEntry)]
        self._settles: dict[str, list[SettleEntry]] = {}
        for row in rows:
            if isinstance(row, SettleEntry):
                self._settles.setdefault(row.settlement.call.id, []).append(row)

    @property
    def opened(self) -> set[str]:
        """The ids of those that are to be opened."""
        return {row.call.id for row in self._opens}

    @property
    def claims(self) -> list[Reservation]:
        """One claim on each balance, in the order of names."""
        claims = {(c.balance, c.period_start_ns): c for row in self._opens for c in row.call.reservations}
        return [claims[place] for place in sorted(claims)]

    async def write(self, db: Db) -> Failed:
        """Calls first and balances after them: the order of locks that all replicas keep to."""
        self.failed = []
        settled = await self._settle(db)
        refusals = await reserve_and_settle(db, [row.call for row in self._opens], settled)
        for row in self._opens:
            if why := refusals.get(row.call.id):
                self.failed.append((row, why))
        admitted = [fitting_open(row.call) for row in self._opens if row.call.id not in refusals]
        if admitted:
            await insert_open(db, admitted, self._owner)
        return self.failed

    async def _settle(self, db: Db) -> list[tuple[Settlement, list[KeptReservation]]]:
        if not self._settles:
            return []
        settlements = {row_id: same[0].settlement for row_id, same in self._settles.items()}
        claimed, conflicts = await settle_rows(db, [fitting_settled(one) for one in settlements.values()])
        self.failed += [(row, conflict) for row_id, conflict in conflicts.items() for row in self._settles[row_id]]
        return [(settlements[row_id], kept) for row_id, kept in claimed.items()]

    async def was_kept(self, db: Db) -> bool:
        """Whether the transaction was kept before its connection broke. Settling once more does no harm."""
        refused = {_id(row) for row, _ in self.failed}
        ids = sorted(self.opened - refused)
        if not ids:
            return False
        sql = "SELECT count(*) FROM calls WHERE id = ANY($1::text[]) AND owner = $2"
        return await execute(db, sql, (ids, self._owner)) == [(len(ids),)]


def _id(row: Row) -> str:
    return row.call.id if isinstance(row, OpenEntry) else row.settlement.call.id


def _goes_beside(row: Row, first: Row) -> bool:
    """Whether a row may be in one batch with the first of its call: if it is that one, or says the same once more."""
    if row is first:
        return True
    return isinstance(row, SettleEntry) and isinstance(first, SettleEntry) and row.settlement == first.settlement


def _fitting(batch: Sequence[Row]) -> tuple[list[Row], Failed]:
    rows: list[Row] = []
    failed: Failed = []
    for row in batch:
        try:
            if isinstance(row, OpenEntry):
                fitting_open(row.call)
            else:
                fitting_settled(row.settlement)
            rows.append(row)
        except MeterError as error:
            failed.append((row, error))
        except (ValueError, TypeError, AttributeError) as error:
            failed.append((row, refusal(error)))
    return rows, failed
