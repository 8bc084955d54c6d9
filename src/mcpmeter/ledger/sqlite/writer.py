"""The one thread that writes: whatever was queued while the last commit ran goes into the next transaction."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from mcpmeter.errors import LedgerNotUsable, LedgerUnavailable, MeterError
from mcpmeter.ledger.sqlite.commits import ROW_FAULTS, refusal_of, write_alone, write_one_by_one, write_together
from mcpmeter.ledger.sqlite.connection import FileLock, Synchronous, open_for_writing
from mcpmeter.ledger.write_queue import Answers, OpenEntry, Refusal, Row, SettleEntry, fail, resolve

MAX_ROWS: Final = 2_000
"""In one transaction, about: bounds how long the first row of a batch waits for the last."""

GATHER_S: Final = 0.001
"""How long a commit waits for company when many calls are on their way: a commit costs the processor as much as a
dozen rows. Measured with 128 calls in flight: 30 % less processor time of this thread."""

GATHER_CALLS: Final = 48
"""Calls in flight from which on a commit waits for company. With fewer, waiting costs more latency than it saves."""


class WriterTask(msgspec.Struct, gc=False):
    """Anything that is not a row; `work` looks after its own transaction. None ends the thread."""

    work: Callable[[apsw.Connection], Any] | None
    future: asyncio.Future[Any]
    writes: bool = False


Entry = OpenEntry | SettleEntry | WriterTask


class Writer:
    """Owns the connection, the lock on the file and the thread. Entries come by `submit`; answers go to the loop."""

    def __init__(
        self,
        path: Path,
        loop: asyncio.AbstractEventLoop,
        on_answers: Callable[[Answers], None],
        synchronous: Synchronous = "full",
    ) -> None:
        self._queue: queue.SimpleQueue[list[Entry]] = queue.SimpleQueue()
        self._gathered: list[Entry] = []
        self.healthy = True
        self.open_ids: set[str] = set()
        """Rows opened in this life and not settled."""
        self._path = path
        self._synchronous = synchronous
        self.loop = loop
        self._on_answers = on_answers
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
        """From the event loop's thread. All that one turn of the loop submits is handed over in one piece: waking the
        thread for each row would cost more than writing it."""
        self._gathered.append(entry)
        if len(self._gathered) == 1:
            self.loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        gathered, self._gathered = self._gathered, []
        self._queue.put(gathered)

    def _run(self) -> None:
        try:
            db = self._take_ledger()
        except Exception as error:  # whatever it is, start() has to hear of it
            self._lock.release()
            self._tell(fail, self._started, _setup_error(self._path, error))
            return
        self._tell(resolve, self._started, None)
        last = self._work(db)
        # Closing folds the log into the ledger's file; if that fails, the next start does it.
        with contextlib.suppress(apsw.Error):
            db.close()
        self._lock.release()
        self._tell(resolve, last.future, None)

    def _take_ledger(self) -> apsw.Connection:
        self._lock.take()
        db = open_for_writing(self._path, self._synchronous)
        self._inode = self._path.stat().st_ino
        self._keeps_balances = _has_balances(db)
        return db

    def _work(self, db: apsw.Connection) -> WriterTask:
        while True:
            batch = self._take_batch()
            opens: list[OpenEntry] = []
            settles: list[SettleEntry] = []
            errands: list[WriterTask] = []
            for entry in batch:
                if isinstance(entry, OpenEntry):
                    opens.append(entry)
                elif isinstance(entry, SettleEntry):
                    settles.append(entry)
                else:
                    errands.append(entry)
            if opens or settles:
                self._tell(self._on_answers, self._write(db, opens, settles))
            for errand in errands:
                if errand.work is None:
                    return errand
                self._run_errand(db, errand)

    def _take_batch(self) -> list[Entry]:
        batch = self._queue.get()
        self._take_more(batch)
        if GATHER_CALLS <= len(self.open_ids) > len(batch):
            time.sleep(GATHER_S)
            self._take_more(batch)
        return batch

    def _take_more(self, batch: list[Entry]) -> None:
        while len(batch) < MAX_ROWS and not self._queue.empty():
            batch += self._queue.get_nowait()

    def _write(self, db: apsw.Connection, opens: list[OpenEntry], settles: list[SettleEntry]) -> Answers:
        began_ns = time.perf_counter_ns()
        rows: list[Row] = [*opens, *settles]
        try:
            self._require_same_file()
            self._keeps_balances = self._keeps_balances or any(row.call.reservations for row in opens)
            failed: list[tuple[Row, Refusal]] | None
            if len(rows) == 1 and not self._keeps_balances:
                failed = write_alone(db, rows[0])
            else:
                failed = write_together(db, opens, settles, keeps_balances=self._keeps_balances)
            if failed is None:
                failed = write_one_by_one(db, rows)
        except Exception as error:  # the thread outlives every error, and each waiter hears of it
            self.healthy = False
            return Answers((), [(row, _unavailable(error)) for row in rows], 0.0)
        self.healthy = True
        if failed:
            bad = {id(row) for row, _ in failed}
            rows = [row for row in rows if id(row) not in bad]
        self._count_open(rows)
        return Answers(rows, failed, (time.perf_counter_ns() - began_ns) / 1e9)

    def _count_open(self, rows: list[Row]) -> None:
        for row in rows:
            if isinstance(row, OpenEntry):
                self.open_ids.add(row.call.id)
            else:
                self.open_ids.discard(row.settlement.call.id)

    def _run_errand(self, db: apsw.Connection, errand: WriterTask) -> None:
        if errand.work is None:
            return
        try:
            self._require_same_file()
            result = errand.work(db)
        except ROW_FAULTS as error:
            self._tell(fail, errand.future, refusal_of(error))
        except MeterError as error:  # the errand's own word, no fault of the ledger
            self._tell(fail, errand.future, error)
        except Exception as error:  # as above
            self.healthy = self.healthy and not errand.writes
            self._tell(fail, errand.future, _unavailable(error))
        else:
            self.healthy = self.healthy or errand.writes
            self._keeps_balances = self._keeps_balances or (errand.writes and _has_balances(db))
            self._tell(resolve, errand.future, result)

    def _require_same_file(self) -> None:
        # SQLite goes on writing into a file that was removed, and those rows would be gone with the process.
        if os.stat(self._file).st_ino != self._inode:
            raise OSError("another file took its place")

    def _tell(self, callback: Callable[..., None], *arguments: object) -> None:
        # A loop that is closed has nobody waiting any more; what was queued is committed all the same.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(callback, *arguments)


def _has_balances(db: apsw.Connection) -> bool:
    return db.execute("SELECT 1 FROM balances LIMIT 1").fetchone() is not None


def _unavailable(error: Exception) -> MeterError:
    if isinstance(error, MeterError):
        return error
    if isinstance(error, (apsw.FullError, apsw.ReadOnlyError, apsw.BusyError)):
        what, hint = _KNOWN_FAULTS[type(error)]
    elif isinstance(error, (apsw.Error, OSError)):
        what, hint = f"{getattr(error, 'strerror', None) or error}", "Check the disk and the ledger's folder."
    else:
        what, hint = type(error).__name__, "This is a fault of mcpmeter; please report it."
    return LedgerUnavailable(f"The ledger could not be written: {what}.", hint=hint)


_KNOWN_FAULTS: Final = {
    apsw.FullError: ("the disk is full", "Make room on the ledger's disk; writing goes on by itself."),
    apsw.ReadOnlyError: ("it is read-only", "Give the service the right to write the ledger's file and folder."),
    apsw.BusyError: ("another program holds it", "End what holds the ledger's file (fuser -v shows it)."),
}


def _setup_error(path: Path, error: Exception) -> LedgerNotUsable:
    if isinstance(error, LedgerNotUsable):
        return error
    return LedgerNotUsable(f"The ledger {path} cannot be used: {error!r}.", hint="Name another file: MCPMETER_LEDGER.")
