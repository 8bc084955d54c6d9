"""The writer of a PostgreSQL ledger: one task that commits queued rows in batches, on its own connection.

A batch is one transaction: settle rows, lock their balances, reserve, insert open rows. It ends in one of five ways:

- It commits. Calls that a budget refused are left out.
- A row violates a constraint: the batch is halved until the faulty row is alone and refused.
- A balance does not exist yet: it is made in its own transaction, and the batch starts over.
- The connection breaks, for example because the server closed it while idle. Whether the commit happened is unknown, so
  the writer looks for the rows over a new connection, and writes them only if they are absent.
- That fails too, or there is no connection: every caller gets `LedgerUnavailable`, and the writer is unhealthy until a
  later batch succeeds. Openings stay in doubt: before the next batch their rows are deleted and their reservations
  voided, because a refused call must leave no row. Settlements that failed become `unsettled`: nothing retries them, so
  `left_open` returns their rows, to be recovered.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from mcpmeter.errors import MeterError
from mcpmeter.ledger.postgres.balances import BalanceMissing, make_balances, release, reserve_and_settle
from mcpmeter.ledger.postgres.reconnecting import (
    ROW_FAULTS,
    SUM_TIMEOUT_S,
    ConnectionLost,
    ReconnectingConnection,
    refusal,
    unavailable,
)
from mcpmeter.ledger.postgres.rows import checked_open, checked_settled, insert_open, settle_rows
from mcpmeter.ledger.postgres.sql import Db, execute
from mcpmeter.ledger.rows import KeptReservation, decode_reservations
from mcpmeter.ledger.write_queue import (
    BatchResult,
    OpenEntry,
    Refused,
    RowEntry,
    SettleEntry,
    track_open,
    written_rows,
)
from mcpmeter.records import Reservation, Settlement

MAX_BATCH_ROWS: Final = 1_000
"""In one transaction: bounds how long the first row of a batch waits for the last."""


class PostgresWriter:
    """Owns the task. Entries enter by `submit`; results are passed to `on_result`."""

    def __init__(
        self, connection: ReconnectingConnection, owner: str, on_result: Callable[[BatchResult], None]
    ) -> None:
        self.healthy = True
        self.open_ids: set[str] = set()
        """Rows opened by this process and not settled."""
        self.unsettled: set[str] = set()
        """Those of them whose settlement failed; they have to be recovered."""
        self.queued: set[str] = set()
        """Rows with an entry in the queue or in the batch being written."""
        self._connection = connection
        self._owner = owner
        self._on_result = on_result
        self._queue: deque[RowEntry] = deque()
        self._wake_up = asyncio.Event()
        self._closing = False
        self._in_doubt: set[str] = set()
        """Openings that failed and may be in the ledger all the same; deleted before anything else is written."""
        self._task = asyncio.get_running_loop().create_task(self._work(), name="mcpmeter-ledger")

    def submit(self, entry: RowEntry) -> None:
        """Queue an entry."""
        self._queue.append(entry)
        self.queued.add(entry.call_id)
        self._wake_up.set()

    @property
    def in_progress(self) -> set[str]:
        """Rows that this process is going to settle."""
        return (self.open_ids - self.unsettled) | self.queued

    def mark_settled(self, ids: set[str]) -> None:
        """Note rows that were settled by a commit whose response was lost."""
        self.unsettled -= ids
        self.open_ids -= ids

    async def finish(self) -> None:
        """Write what is queued, and end."""
        self._closing = True
        self._wake_up.set()
        await self._task

    async def _work(self) -> None:
        while True:
            await self._wake_up.wait()
            self._wake_up.clear()
            while self._queue:
                await self._write(self._take_batch())
            if self._closing:
                return

    def _take_batch(self) -> list[RowEntry]:
        """One entry per call, or the same settlement repeated: a statement does not see rows of its own batch."""
        batch: list[RowEntry] = []
        first: dict[str, RowEntry] = {}
        while self._queue and len(batch) < MAX_BATCH_ROWS:
            entry = self._queue[0]
            if not _fits_beside(entry, first.setdefault(entry.call_id, entry)):
                break
            batch.append(self._queue.popleft())
        return batch

    async def _write(self, batch: list[RowEntry]) -> None:
        began_ns = time.perf_counter_ns()
        storable, refused = _split_storable(batch)
        refused += await self._write_all(storable)
        written = written_rows(batch, refused)
        track_open(self.open_ids, written)
        self.unsettled |= {entry.call_id for entry, _ in refused if isinstance(entry, SettleEntry)}
        self.unsettled &= self.open_ids
        self.queued -= {entry.call_id for entry in batch} - {entry.call_id for entry in self._queue}
        self._on_result(BatchResult(written, refused, time.perf_counter_ns() - began_ns))

    async def _write_all(self, entries: Sequence[RowEntry]) -> Refused:
        if not entries:
            return []
        try:
            if self._in_doubt:
                await self._resolve_doubt()
            refused = await self._write_once(entries)
        except ROW_FAULTS as error:
            if len(entries) == 1:
                return [(entries[0], refusal(error))]
        except Exception as error:  # the task survives every error, and each waiter gets its own
            self.healthy = False
            return [(entry, unavailable(error)) for entry in entries]
        else:
            self.healthy = True
            return refused
        middle = len(entries) // 2
        return [*await self._write_all(entries[:middle]), *await self._write_all(entries[middle:])]

    async def _write_once(self, entries: Sequence[RowEntry]) -> Refused:
        batch = _Batch(entries, self._owner)
        try:
            return await self._run(batch)
        except ConnectionLost:
            self._in_doubt |= batch.opened
            committed = await self._connection.run(batch.was_committed)
            refused = batch.refused if committed else await self._run(batch)
            self._in_doubt -= batch.opened
            return refused

    async def _run(self, batch: _Batch) -> Refused:
        while True:
            try:
                return await self._connection.run(batch.write)
            except BalanceMissing:
                make = partial(make_balances, reservations=batch.reservations)
                await self._connection.run(make, timeout_s=SUM_TIMEOUT_S)

    async def _resolve_doubt(self) -> None:
        ids = sorted(self._in_doubt)

        async def delete(db: Db) -> None:
            rows = await execute(
                db,
                "DELETE FROM calls WHERE id = ANY($1::text[]) AND owner = $2 AND state = 'open' RETURNING claims",
                (ids, self._owner),
            )
            await release(db, [kept for (claims,) in rows for kept in decode_reservations(claims)])

        await self._connection.run(delete)
        self._in_doubt.clear()


class _Batch:
    """The entries of one transaction, and those that were refused in it."""

    def __init__(self, entries: Sequence[RowEntry], owner: str) -> None:
        self.refused: Refused = []
        self._owner = owner
        self._opens = [entry for entry in entries if isinstance(entry, OpenEntry)]
        self._settles: dict[str, list[SettleEntry]] = {}
        for entry in entries:
            if isinstance(entry, SettleEntry):
                self._settles.setdefault(entry.call_id, []).append(entry)

    @property
    def opened(self) -> set[str]:
        """The ids to be opened."""
        return {entry.call_id for entry in self._opens}

    @property
    def reservations(self) -> list[Reservation]:
        """One reservation per balance, in the order of names."""
        by_key = {(r.balance, r.period_start_ns): r for entry in self._opens for r in entry.call.reservations}
        return [by_key[key] for key in sorted(by_key)]

    async def write(self, db: Db) -> Refused:
        """Settle before balances are locked: all replicas take locks in this order."""
        self.refused = []
        settled = await self._settle(db)
        refusals = await reserve_and_settle(db, [entry.call for entry in self._opens], settled)
        self.refused += [(entry, refusals[entry.call_id]) for entry in self._opens if entry.call_id in refusals]
        admitted = [checked_open(entry.call) for entry in self._opens if entry.call_id not in refusals]
        if admitted:
            await insert_open(db, admitted, self._owner)
        return self.refused

    async def _settle(self, db: Db) -> list[tuple[Settlement, list[KeptReservation]]]:
        if not self._settles:
            return []
        settlements = {call_id: same[0].settlement for call_id, same in self._settles.items()}
        reserved, conflicts = await settle_rows(db, [checked_settled(one) for one in settlements.values()])
        self.refused += [(entry, error) for call_id, error in conflicts.items() for entry in self._settles[call_id]]
        return [(settlements[call_id], kept) for call_id, kept in reserved.items()]

    async def was_committed(self, db: Db) -> bool:
        """Whether the opened rows are in the ledger. A batch of settlements may simply run again."""
        ids = sorted(self.opened - {entry.call_id for entry, _ in self.refused})
        if not ids:
            return False
        sql = "SELECT count(*) FROM calls WHERE id = ANY($1::text[]) AND owner = $2"
        return await execute(db, sql, (ids, self._owner)) == [(len(ids),)]


def _fits_beside(entry: RowEntry, first: RowEntry) -> bool:
    """Whether an entry may be in one batch with the first of its call: it is that one, or the same settlement."""
    if entry is first:
        return True
    return isinstance(entry, SettleEntry) and isinstance(first, SettleEntry) and entry.settlement == first.settlement


def _split_storable(batch: Sequence[RowEntry]) -> tuple[list[RowEntry], Refused]:
    storable: list[RowEntry] = []
    refused: Refused = []
    for entry in batch:
        try:
            if isinstance(entry, OpenEntry):
                checked_open(entry.call)
            else:
                checked_settled(entry.settlement)
            storable.append(entry)
        except MeterError as error:
            refused.append((entry, error))
        except (ValueError, TypeError, AttributeError) as error:
            refused.append((entry, refusal(error)))
    return storable, refused
