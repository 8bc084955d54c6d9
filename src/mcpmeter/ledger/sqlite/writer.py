"""The writer of a SQLite ledger: one thread that owns the connection and the lock file.

Life: `start` takes the lock, opens and migrates the file, or fails with `LedgerNotUsable` and the thread ends. Then the
thread takes whatever is queued as one batch and writes it, until a task without work closes it, after everything
queued before is committed. A batch ends in one of three ways:

- One transaction writes all rows: two statements, plus the updates of balances. A single row without balances needs no
  BEGIN and COMMIT. A call that its budget refuses is left out, and the others are written.
- A row violates a constraint or was settled before: the transaction is rolled back, and the batch is written again with
  a savepoint per row, so that only faulty rows fail.
- The transaction itself fails (disk full, read-only, locked, file replaced): nothing is written, all rows fail with
  `LedgerUnavailable`, and the writer is unhealthy until a later write succeeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from mcpmeter.errors import LedgerNotUsable, LedgerUnavailable, MeterError
from mcpmeter.ledger.charges import (
    DELETE_CHARGE_SQL,
    INSERT_CHARGE_SQL,
    SELECT_CHARGE_SQL,
    charge_values,
)
from mcpmeter.ledger.rows import (
    OPEN_SQL,
    RECOVERED_SQL,
    REPLACE_RECOVERED_SQL,
    SETTLE_SQL,
    SETTLED_COLUMNS,
    Taken,
    has_charge_row,
    open_values,
    settled_values,
)
from mcpmeter.ledger.sqlite.balances import ensure_unreserved, post, post_difference, reserve
from mcpmeter.ledger.sqlite.connection import FileLock, Synchronous, open_for_writing
from mcpmeter.ledger.sqlite.migrations import transaction
from mcpmeter.ledger.store import InsufficientBudget, RowRefused, SettlementConflict, row_refused, settlement_conflict
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
from mcpmeter.records import Settlement

MAX_BATCH_ROWS: Final = 2_000
"""About so many in one transaction: bounds how long the first row of a batch waits for the last."""

GATHER_S: Final = 0.001
"""How long a commit waits for more rows while many calls are in flight: a commit costs as much CPU as a dozen rows.
Measured with 128 calls in flight: 30 % less CPU time of this thread."""

GATHER_CALLS: Final = 48
"""Calls in flight from which on a commit waits for more rows. With fewer, waiting costs more latency than it saves."""

BUSY_TIMEOUT_MS: Final = 750
"""How long a batch waits for another program that holds the file; a call waits for at most two batches."""

# What a row reserved is read from the row, because a limit may be newer than the call.
SETTLE_RETURNING_SQL: Final = f"{SETTLE_SQL} RETURNING claims"
_SETTLED_ALREADY_SQL: Final = (
    "SELECT state = 'settled' AND "  # noqa: S608 (constants only)
    + " AND ".join(f"{column} IS ?{number}" for number, column in enumerate(SETTLED_COLUMNS, start=2))
    + " FROM calls WHERE id = ?1"
)
_ROW_FAULTS: Final = (
    apsw.ConstraintError,
    apsw.MismatchError,
    apsw.TooBigError,
    OverflowError,
    ValueError,
    TypeError,
    AttributeError,
)
"""Faults of one row, not of the ledger."""


class WriterTask(msgspec.Struct, gc=False):
    """Work other than a row, in transactions of its own. Without work it closes the writer."""

    work: Callable[[apsw.Connection], Any] | None
    future: asyncio.Future[Any]
    writes: bool = False


Entry = RowEntry | WriterTask


class Writer:
    """Owns the thread. Entries enter by `submit`; results return on the event loop."""

    def __init__(
        self,
        path: Path,
        loop: asyncio.AbstractEventLoop,
        on_result: Callable[[BatchResult], None],
        synchronous: Synchronous = "full",
    ) -> None:
        self._queue: queue.SimpleQueue[list[Entry]] = queue.SimpleQueue()
        self._submitted: list[Entry] = []
        self.healthy = True
        self.open_ids: set[str] = set()
        """Rows opened by this process and not settled."""
        self._path = path
        self._synchronous = synchronous
        self.loop = loop
        self._on_result = on_result
        self._lock = FileLock(path)
        self._file = str(path)
        self._inode = 0
        self._keeps_balances = False
        self._started: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(target=self._run, name="mcpmeter-ledger", daemon=True)

    def start(self) -> asyncio.Future[None]:
        """Resolves when the ledger is open; fails with `LedgerNotUsable`."""
        self._thread.start()
        return self._started

    def submit(self, entry: Entry) -> None:
        """Queue an entry, on the event loop's thread. Entries of one turn of the loop reach the thread together,
        because waking it for each row would cost more than writing the row."""
        self._submitted.append(entry)
        if len(self._submitted) == 1:
            self.loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        submitted, self._submitted = self._submitted, []
        self._queue.put(submitted)

    def _run(self) -> None:
        try:
            db = self._take_ledger()
        except Exception as error:  # any error has to reach the caller of start()
            self._lock.release()
            self._on_loop(fail, self._started, _setup_error(self._path, error))
            return
        self._on_loop(resolve, self._started, None)
        closing = self._work(db)
        # Closing moves the log into the ledger's file; if that fails, the next start does it.
        with contextlib.suppress(apsw.Error):
            db.close()
        self._lock.release()
        self._on_loop(resolve, closing.future, None)

    def _take_ledger(self) -> apsw.Connection:
        self._lock.take()
        db = open_for_writing(self._path, self._synchronous)
        db.set_busy_timeout(BUSY_TIMEOUT_MS)
        self._inode = self._path.stat().st_ino
        self._keeps_balances = _has_balances(db)
        return db

    def _work(self, db: apsw.Connection) -> WriterTask:
        while True:
            opens: list[OpenEntry] = []
            settles: list[SettleEntry] = []
            tasks: list[WriterTask] = []
            for entry in self._take_batch():
                if isinstance(entry, OpenEntry):
                    opens.append(entry)
                elif isinstance(entry, SettleEntry):
                    settles.append(entry)
                else:
                    tasks.append(entry)
            if opens or settles:
                self._on_loop(self._on_result, self._write(db, opens, settles))
            for task in tasks:
                if task.work is None:
                    return task
                self._run_task(db, task.work, task)

    def _take_batch(self) -> list[Entry]:
        batch = self._queue.get()
        self._take_more(batch)
        if GATHER_CALLS <= len(self.open_ids) > len(batch):
            time.sleep(GATHER_S)
            self._take_more(batch)
        return batch

    def _take_more(self, batch: list[Entry]) -> None:
        while len(batch) < MAX_BATCH_ROWS and not self._queue.empty():
            batch += self._queue.get_nowait()

    def _write(self, db: apsw.Connection, opens: list[OpenEntry], settles: list[SettleEntry]) -> BatchResult:
        began_ns = time.perf_counter_ns()
        entries: Sequence[RowEntry] = [*opens, *settles]
        try:
            self._require_same_file()
            if len(entries) == 1 and not self._keeps_balances and _is_plain(opens, settles):
                refused = _write_alone(db, entries[0])
            else:
                self._keeps_balances = (
                    self._keeps_balances
                    or any(entry.call.reservations for entry in opens)
                    or any(entry.settlement.postings for entry in settles)
                )
                refused = _write_together(db, opens, settles, keeps_balances=self._keeps_balances)
            if refused is None:
                refused = _write_one_by_one(db, entries)
        except Exception as error:  # the thread survives every error, and each waiter gets its own
            self.healthy = False
            return BatchResult((), [(entry, _unavailable(error)) for entry in entries], 0)
        self.healthy = True
        written = written_rows(entries, refused)
        track_open(self.open_ids, written)
        return BatchResult(written, refused, time.perf_counter_ns() - began_ns)

    def _run_task(self, db: apsw.Connection, work: Callable[[apsw.Connection], Any], task: WriterTask) -> None:
        try:
            self._require_same_file()
            result = work(db)
        except _ROW_FAULTS as error:
            self._on_loop(fail, task.future, _refusal_of(error))
        except MeterError as error:  # raised by the task itself, not a fault of the ledger
            self._on_loop(fail, task.future, error)
        except Exception as error:  # as in _write
            self.healthy = self.healthy and not task.writes
            self._on_loop(fail, task.future, _unavailable(error))
        else:
            self.healthy = self.healthy or task.writes
            self._keeps_balances = self._keeps_balances or (task.writes and _has_balances(db))
            self._on_loop(resolve, task.future, result)

    def _require_same_file(self) -> None:
        # SQLite keeps writing into a file that was removed, and those rows would be lost with the process.
        if os.stat(self._file).st_ino != self._inode:
            raise OSError("another file took its place")

    def _on_loop(self, callback: Callable[..., None], *arguments: object) -> None:
        # If the loop is closed, no one waits for a result; what was queued is committed all the same.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(callback, *arguments)


def _has_balances(db: apsw.Connection) -> bool:
    return db.execute("SELECT 1 FROM balances LIMIT 1").fetchone() is not None


# One batch -----------------------------------------------------------------------------------------------------------


class _NotAllSettled(Exception):
    """Rolls the transaction back: a row is unknown or was settled before."""


def _is_plain(opens: list[OpenEntry], settles: list[SettleEntry]) -> bool:
    """Whether the only entry of a batch is one row, with neither balances nor a charge beside it."""
    if opens:
        return not opens[0].call.reservations
    return not settles[0].settlement.postings and not has_charge_row(settles[0].settlement)


def _write_alone(db: apsw.Connection, entry: RowEntry) -> Refused | None:
    """Write one row by one statement, which is a transaction of its own. None, and nothing written, if it is faulty."""
    try:
        if isinstance(entry, OpenEntry):
            db.execute(OPEN_SQL, open_values(entry.call))
        else:
            db.execute(SETTLE_SQL, settled_values(entry.settlement))
            if db.changes() != 1:
                return None
    except _ROW_FAULTS:
        return None
    return []


def _write_together(
    db: apsw.Connection, opens: list[OpenEntry], settles: list[SettleEntry], *, keeps_balances: bool
) -> Refused | None:
    """Write all rows in one transaction. None, and nothing written, if any row is faulty.

    Returns the calls that a budget refused; the others are written.
    """
    refused: Refused = []
    try:
        with transaction(db):
            if keeps_balances:
                opens = _admitted(db, opens, refused)
            if opens:
                db.executemany(OPEN_SQL, [open_values(entry.call) for entry in opens])
            if settles:
                _settle_together(db, settles, keeps_balances=keeps_balances)
    except (_NotAllSettled, *_ROW_FAULTS):
        return None
    return refused


def _admitted(db: apsw.Connection, opens: list[OpenEntry], refused: Refused) -> list[OpenEntry]:
    admitted = []
    for entry in opens:
        refusal = reserve(db, entry.call) if entry.call.reservations else None
        if refusal is None:
            admitted.append(entry)
        else:
            refused.append((entry, refusal))
    return admitted


def _settle_together(db: apsw.Connection, settles: list[SettleEntry], *, keeps_balances: bool) -> None:
    values = [settled_values(entry.settlement) for entry in settles]
    for entry in settles:
        if entry.settlement.postings:
            ensure_unreserved(db, entry.settlement)
    charges = [charge_values(entry.settlement) for entry in settles if has_charge_row(entry.settlement)]
    if charges:
        db.executemany(INSERT_CHARGE_SQL, charges)
    if not keeps_balances:
        before = db.total_changes()
        db.executemany(SETTLE_SQL, values)
        if db.total_changes() - before != len(settles):
            raise _NotAllSettled
        return
    rows = db.executemany(SETTLE_RETURNING_SQL, values).fetchall()
    if len(rows) != len(settles):
        raise _NotAllSettled
    for entry, (claims,) in zip(settles, rows, strict=True):
        post(db, str(claims), entry.settlement)


def _write_one_by_one(db: apsw.Connection, entries: Sequence[RowEntry]) -> Refused:
    """Write the rows with a savepoint each, so that only faulty ones are refused."""
    refused: Refused = []
    with transaction(db):
        for entry in entries:
            db.execute("SAVEPOINT one")
            try:
                if isinstance(entry, SettleEntry):
                    _settle_one(db, entry.settlement)
                elif refusal := reserve(db, entry.call):
                    raise refusal
                else:
                    db.execute(OPEN_SQL, open_values(entry.call))
            except (SettlementConflict, InsufficientBudget) as refusal:
                refused.append((entry, refusal))
            except _ROW_FAULTS as error:
                db.execute("ROLLBACK TO one")
                refused.append((entry, _refusal_of(error)))
            db.execute("RELEASE one")
    return refused


def _settle_one(db: apsw.Connection, settlement: Settlement) -> None:
    """Settle one row, also over an estimate of recovery. The same settlement again is fine; any other raises
    `SettlementConflict`."""
    values = settled_values(settlement)
    ensure_unreserved(db, settlement)
    settled = db.execute(SETTLE_RETURNING_SQL, values).fetchall()
    if settled:
        if has_charge_row(settlement):
            db.execute(INSERT_CHARGE_SQL, charge_values(settlement))
        post(db, str(settled[0][0]), settlement)
        return
    same = db.execute(_SETTLED_ALREADY_SQL, values).fetchone()
    if same is None or not (
        (same[0] and _has_same_charge(db, settlement)) or _replace_recovered(db, settlement, values)
    ):
        raise settlement_conflict(opened=same is not None)


def _has_same_charge(db: apsw.Connection, settlement: Settlement) -> bool:
    kept = db.execute(SELECT_CHARGE_SQL, (settlement.call.id,)).fetchone()
    return kept == (charge_values(settlement) if has_charge_row(settlement) else None)


def _replace_recovered(db: apsw.Connection, settlement: Settlement, values: tuple[Any, ...]) -> bool:
    """Put true figures in the place of those of recovery. False if the row was settled otherwise."""
    if settlement.outcome == "recovered":
        return False
    estimated = db.execute(RECOVERED_SQL, (settlement.call.id,)).fetchone()
    if estimated is None:
        return False
    db.execute(REPLACE_RECOVERED_SQL, values)
    db.execute(DELETE_CHARGE_SQL, (settlement.call.id,))
    if has_charge_row(settlement):
        db.execute(INSERT_CHARGE_SQL, charge_values(settlement))
    claims, *taken = estimated
    post_difference(db, str(claims), settlement, Taken(*taken))
    return True


# Errors --------------------------------------------------------------------------------------------------------------


def _refusal_of(error: Exception) -> RowRefused:
    # SQLite names the column and the check, never the value; Python's own errors may quote it, so they are not quoted.
    if isinstance(error, apsw.Error):
        return row_refused(str(error))
    if isinstance(error, OverflowError):
        return row_refused("a number does not fit into 64 bits")
    if isinstance(error, UnicodeError):
        return row_refused("a text is not valid Unicode")
    return row_refused("a value has the wrong type")


_KNOWN_FAULTS: Final = {
    apsw.FullError: ("the disk is full", "Make room on the ledger's disk; writing goes on by itself."),
    apsw.ReadOnlyError: ("it is read-only", "Give the service the right to write the ledger's file and folder."),
    apsw.BusyError: ("another program holds it", "End what holds the ledger's file (fuser -v shows it)."),
}


def _unavailable(error: Exception) -> MeterError:
    if isinstance(error, MeterError):
        return error
    if isinstance(error, apsw.Error) and type(error) in _KNOWN_FAULTS:
        reason, hint = _KNOWN_FAULTS[type(error)]
    elif isinstance(error, (apsw.Error, OSError)):
        reason, hint = f"{getattr(error, 'strerror', None) or error}", "Check the disk and the ledger's folder."
    else:
        reason, hint = type(error).__name__, "This is a fault of mcpmeter; please report it."
    return LedgerUnavailable(f"The ledger could not be written: {reason}.", hint=hint)


def _setup_error(path: Path, error: Exception) -> LedgerNotUsable:
    if isinstance(error, LedgerNotUsable):
        return error
    return LedgerNotUsable(f"The ledger {path} cannot be used: {error!r}.", hint="Name another file: MCPMETER_LEDGER.")
