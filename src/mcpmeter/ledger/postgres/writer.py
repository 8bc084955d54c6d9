"""The writer of a PostgreSQL ledger: one task that commits queued rows in batches, on its own connection.

A batch is one transaction: settle rows, lock their balances, reserve, insert open rows. It ends in one of five ways:

- It commits. Calls that a budget refused are left out.
- A row violates a constraint: the batch is halved until the faulty row is alone and refused.
- A balance does not exist yet: it is made in its own transaction, and the batch starts over.
- The connection breaks, for example because the server closed it while idle. Whether the commit happened is unknown, so
  the writer waits until the server has ended the old session, looks for the rows over a new connection, and writes them
  only if they are absent.
- That fails too, or PostgreSQL does not respond within the deadline: every caller gets `LedgerUnavailable`, as does
  each opening that is queued behind, and the writer is unhealthy until a later transaction succeeds. Openings stay in
  doubt until the server has ended their session: then their rows are deleted and their reservations voided, because a
  refused call must leave no row. Settlements that failed become `unsettled`: `left_open` returns their rows, to be
  recovered unless the settlement is written after all.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Final, TypeVar

from mcpmeter.errors import MeterError
from mcpmeter.ledger.postgres.balances import BalanceMissing, Posting, make_balances, reserve_and_settle
from mcpmeter.ledger.postgres.reconnecting import (
    ROW_FAULTS,
    SUM_TIMEOUT_S,
    ConnectionLost,
    ReconnectingConnection,
    has_ended,
    refusal,
    unavailable,
)
from mcpmeter.ledger.postgres.rows import (
    checked_charge,
    checked_open,
    checked_settled,
    insert_open,
    settle_rows,
    withdraw_rows,
)
from mcpmeter.ledger.postgres.sql import Db, execute
from mcpmeter.ledger.postgres.waiting import Wait, is_overdue
from mcpmeter.ledger.rows import has_charge_row, unreserved
from mcpmeter.ledger.write_queue import (
    BatchResult,
    OpenEntry,
    Refused,
    RowEntry,
    SettleEntry,
    fail,
    resolve,
    track_open,
    written_rows,
)
from mcpmeter.records import Reservation

_Result = TypeVar("_Result")

MAX_BATCH_ROWS: Final = 1_000
"""In one transaction: bounds how long the first row of a batch waits for the last."""

MIN_TIMEOUT_S: Final = 0.1
"""For the last step of a batch that has used its time up."""

ENDING_S: Final = 0.02
"""Between two looks whether the server has ended a session."""


class PostgresWriter:
    """Owns the task. Entries enter by `submit`; results are passed to `on_result`."""

    def __init__(
        self,
        connection: ReconnectingConnection,
        owner: str,
        on_result: Callable[[BatchResult], None],
        deadline_s: float,
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
        self._deadline_s = deadline_s
        self._queue: deque[RowEntry] = deque()
        self._wake_up = asyncio.Event()
        self._closing = False
        self._in_doubt: dict[int, set[str]] = {}
        """Openings that failed and may be in the ledger all the same, by the session that wrote them."""
        self._wait: Wait | None = None
        self._revivals: list[asyncio.Future[None]] = []
        self._task = asyncio.get_running_loop().create_task(self._work(), name="mcpmeter-ledger")

    def submit(self, entry: RowEntry) -> None:
        """Queue an entry."""
        self._queue.append(entry)
        self.queued.add(entry.call_id)
        self._wake_up.set()

    def note_refused(self, entry: RowEntry) -> None:
        """Note an entry that was not queued: a row that is not settled now has to be recovered."""
        if isinstance(entry, SettleEntry) and entry.call_id in self.open_ids:
            self.unsettled.add(entry.call_id)

    @property
    def is_silent(self) -> bool:
        """Whether a batch waits for PostgreSQL too long. A balance that is made may take its time."""
        return is_overdue(self._wait)

    @property
    def in_progress(self) -> set[str]:
        """Rows that this process is going to settle, or to delete."""
        return (self.open_ids - self.unsettled) | self.queued | set().union(*self._in_doubt.values())

    def mark_settled(self, ids: set[str]) -> None:
        """Note rows that were settled by a commit whose response was lost."""
        self.unsettled -= ids
        self.open_ids -= ids

    def note_response(self) -> None:
        """PostgreSQL responds: what failed before may work now."""
        if not self.healthy or self._in_doubt:
            self._wake_up.set()

    def revived(self) -> asyncio.Future[None]:
        """Resolves after the next attempt to become healthy."""
        self._revivals.append(asyncio.get_running_loop().create_future())
        self._wake_up.set()
        return self._revivals[-1]

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
            waiting, self._revivals = self._revivals, []
            if not self._closing:
                await self._revive()
            for future in waiting:
                resolve(future, None)
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
        deadline = time.monotonic() + self._deadline_s
        try:
            if self._in_doubt:
                await self._resolve_doubt(deadline)
            refused = await self._write_once(entries, deadline)
        except ROW_FAULTS as error:
            if len(entries) == 1:
                return [(entries[0], refusal(error))]
        except Exception as error:  # the task survives every error, and each waiter gets its own
            self.healthy = False
            self._refuse_queued(error)
            return [(entry, unavailable(error)) for entry in entries]
        else:
            self.healthy = True
            return refused
        middle = len(entries) // 2
        return [*await self._write_all(entries[:middle]), *await self._write_all(entries[middle:])]

    def _refuse_queued(self, error: Exception) -> None:
        """Refuse openings that wait behind a batch that failed; while closing, settlements too."""
        kept = [entry for entry in self._queue if isinstance(entry, SettleEntry) and not self._closing]
        refused = [entry for entry in self._queue if entry not in kept]
        self._queue = deque(kept)
        self.queued -= {entry.call_id for entry in refused} - {entry.call_id for entry in kept}
        for entry in refused:
            fail(entry.future, unavailable(error))

    async def _write_once(self, entries: Sequence[RowEntry], deadline: float) -> Refused:
        batch = _Batch(entries, self._owner)
        try:
            return await self._run(batch, deadline)
        except ConnectionLost as lost:
            self._note_doubt(lost, batch)
            if isinstance(lost.cause, TimeoutError):
                raise
            if await self._was_committed(batch, lost, deadline):
                refused = batch.refused
            else:
                refused = await self._run_again(batch, deadline)
            self._in_doubt.pop(lost.session, None)
            return refused

    async def _run_again(self, batch: _Batch, deadline: float) -> Refused:
        try:
            return await self._run(batch, deadline)
        except ConnectionLost as lost:
            self._note_doubt(lost, batch)
            raise

    def _note_doubt(self, lost: ConnectionLost, batch: _Batch) -> None:
        if batch.opened:
            self._in_doubt.setdefault(lost.session, set()).update(batch.opened)

    async def _was_committed(self, batch: _Batch, lost: ConnectionLost, deadline: float) -> bool:
        async def look(db: Db) -> bool:
            while not await has_ended(db, lost.session):
                if time.monotonic() > deadline:
                    raise lost
                await asyncio.sleep(ENDING_S)
            return await batch.was_committed(db)

        return await self._in_time(look, deadline)

    async def _run(self, batch: _Batch, deadline: float) -> Refused:
        while True:
            try:
                return await self._in_time(batch.write, deadline)
            except BalanceMissing:
                make = partial(make_balances, reservations=batch.reservations)
                await self._connection.run(make, timeout_s=SUM_TIMEOUT_S)
                deadline = time.monotonic() + self._deadline_s

    async def _in_time(self, work: Callable[[Db], Awaitable[_Result]], deadline: float) -> _Result:
        wait = self._wait = Wait()
        try:
            return await self._connection.run(work, timeout_s=max(deadline - time.monotonic(), MIN_TIMEOUT_S))
        finally:
            wait.end()
            self._wait = None

    async def _revive(self) -> None:
        """Become healthy without traffic, and delete what is in doubt."""
        if self.healthy and not self._in_doubt:
            return
        deadline = time.monotonic() + self._deadline_s
        try:
            await self._resolve_doubt(deadline)
            await self._in_time(lambda db: execute(db, "SELECT 1"), deadline)
        except Exception:  # the same as of the batch that failed
            self.healthy = False
        else:
            self.healthy = True

    async def _resolve_doubt(self, deadline: float) -> None:
        for session, ids in list(self._in_doubt.items()):
            if await self._in_time(partial(_withdraw, session=session, ids=sorted(ids)), deadline):
                del self._in_doubt[session]


async def _withdraw(db: Db, session: int, ids: Sequence[str]) -> bool:
    """Delete the rows of refused calls, if the session that may have written them has ended."""
    if not await has_ended(db, session):
        return False
    await withdraw_rows(db, ids)
    return True


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
        by_key |= {(r.balance, r.period_start_ns): r for r in self._unreserved()}
        return [by_key[key] for key in sorted(by_key)]

    def _unreserved(self) -> Iterator[Reservation]:
        """What settlements of calls of several models post to balances that they need not have reserved."""
        return (posting for same in self._settles.values() for posting in unreserved(same[0].settlement))

    async def write(self, db: Db) -> Refused:
        """Settle before balances are locked: all replicas take locks in this order."""
        self.refused = []
        settled = await self._settle(db)
        opens = [entry.call for entry in self._opens]
        refusals = await reserve_and_settle(db, opens, settled, self._unreserved())
        self.refused += [(entry, refusals[entry.call_id]) for entry in self._opens if entry.call_id in refusals]
        admitted = [checked_open(entry.call) for entry in self._opens if entry.call_id not in refusals]
        if admitted:
            await insert_open(db, admitted, self._owner)
        return self.refused

    async def _settle(self, db: Db) -> list[Posting]:
        if not self._settles:
            return []
        postings, conflicts = await settle_rows(db, [same[0].settlement for same in self._settles.values()])
        self.refused += [(entry, error) for call_id, error in conflicts.items() for entry in self._settles[call_id]]
        return postings

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
                if has_charge_row(entry.settlement):
                    checked_charge(entry.settlement)
            storable.append(entry)
        except MeterError as error:
            refused.append((entry, error))
        except (ValueError, TypeError, AttributeError) as error:
            refused.append((entry, refusal(error)))
    return storable, refused
