"""Settlements that the ledger cannot take now: kept in memory and in a file, and settled when the ledger is back.

An entry is *kept* once its record in the file is flushed; then its call is settled for the client. If the file does
not take it in time, the entry is *unwritten*: it stays in memory, the client gets an error, and no new call is taken
(`unwritten`) until the ledger or the file has it. One thread writes the file: records that wait while it flushes go in
its next write. One task offers all entries to the ledger, again and again, until none is left; then the file is reset.

A settlement that the ledger refuses for good (another one is stored, no such row) is logged, counted and appended to a
file beside, so that it never holds up others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from mcpmeter.errors import LedgerUnavailable, MeterError
from mcpmeter.ledger.location import Location, PostgresUrl, state_folder
from mcpmeter.ledger.pending_file import SIZE_BYTES, PendingFiles, PendingPlace
from mcpmeter.ledger.store import RowRefused, SettlementConflict, Store, row_refused
from mcpmeter.ledger.write_queue import fail, resolve
from mcpmeter.records import Settlement

log = logging.getLogger("mcpmeter")

_Result = TypeVar("_Result")

WRITE_SECONDS: Final = 2.0
"""How long a client waits for the file, which is one flush. Then the settlement counts as unwritten."""

RETRY_SECONDS: Final = (0.05, 1.0)
"""First and longest wait before entries are offered to the ledger again."""

MAX_BATCH: Final = 500
"""Entries offered to the ledger at once."""

CLOSE_SECONDS: Final = 2.0
"""How long closing waits for the thread of the file."""

_decoder = msgspec.msgpack.Decoder(Settlement)


def pending_place(location: Location, folder: Path | None = None) -> PendingPlace:
    """The place of a ledger's pending settlements: `folder` if given, else beside the file, else the user's folder."""
    if isinstance(location, PostgresUrl):
        return PendingPlace(folder or state_folder(), "postgres")
    return PendingPlace(folder or location.absolute().parent, location.name)


class Entry(msgspec.Struct, gc=False, eq=False):
    """One settlement that waits for the ledger."""

    settlement: Settlement
    payload: bytes
    future: asyncio.Future[None]
    """Resolves when the settlement is durable; fails if that takes too long."""
    is_counted: bool = False
    """The metrics have it, or will have it when the future resolves."""
    is_kept: bool = False


class Callbacks(NamedTuple):
    """What the owner counts; called on the event loop's thread."""

    on_late: Callable[[Settlement], object]
    """A settlement whose call has failed for the client is durable after all."""
    on_rejected: Callable[[], object]
    on_unwritten: Callable[[], object]


class PendingSettlements:
    """The settlements of one service that its ledger cannot take now. Started, used and closed once."""

    def __init__(self, store: Store, place: PendingPlace, callbacks: Callbacks, size_bytes: int = SIZE_BYTES) -> None:
        self.unwritten: set[str] = set()
        """Calls whose settlement is in neither the ledger nor the file. While there are any, no call is taken."""
        self._store = store
        self._callbacks = callbacks
        self._entries: dict[str, Entry] = {}
        self._to_write: list[Entry] = []
        self._files = PendingFiles(place, size_bytes)
        self._thread = _Thread()
        self._is_writing = False
        self._is_dirty = False
        """The file has records."""
        self._is_closed = False
        self._retrying: asyncio.Task[None] | None = None
        self._tick: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, call_id: str) -> bool:
        return call_id in self._entries

    async def start(self) -> None:
        """Make the file, and read what earlier processes left. Raises `LedgerNotUsable`."""
        self._thread.start()
        ledger_id = await self._store.ledger_id()
        payloads = await self._thread.run(lambda: self._files.open(ledger_id))
        for path in self._files.of_others:
            log.warning("%s holds settlements for another ledger; it is left as it is", path)
        for payload in payloads:
            try:
                settlement = _decoder.decode(payload)
            except msgspec.MsgspecError:
                log.error("a pending settlement cannot be read; it is kept aside")
                self._keep_aside(msgspec.json.encode({"unreadable": payload}))
                continue
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._entries[settlement.call.id] = Entry(settlement, payload, future, is_counted=True, is_kept=True)
        self._is_dirty = bool(payloads)

    async def settle_left(self) -> int:
        """Settle what earlier processes left, before open rows are recovered. Returns how many there were.

        Raises `LedgerUnavailable` if the ledger takes none.
        """
        found = len(self._entries)
        while self._entries:
            if (fault := await self._offer()) is not None:
                raise fault
        self._pump()
        return found

    def keep(self, settlement: Settlement, *, is_counted: bool = False) -> asyncio.Future[None]:
        """Take a settlement. Resolves when it is durable; fails with `LedgerUnavailable` if it cannot be written now.

        `is_counted`: the metrics have the call already, whatever becomes of it. Raises `RowRefused`.
        """
        loop, call_id = asyncio.get_running_loop(), settlement.call.id
        if (entry := self._entries.get(call_id)) is not None:
            entry.is_counted = entry.is_counted or is_counted
            return entry.future
        entry = self._entries[call_id] = Entry(settlement, _encoded(settlement), loop.create_future(), is_counted)
        # If the waiter is cancelled, nothing else looks at the error.
        entry.future.add_done_callback(lambda future: future.cancelled() or future.exception())
        if self._is_closed:
            self._failed_to_write(entry)
            self._report_unwritten(settlement)
            return entry.future
        if len(self._entries) == 1:
            log.warning("the ledger takes no settlements now; they wait in its pending file %s", self._files.path)
        loop.call_later(WRITE_SECONDS, self._overdue, entry)
        self._to_write.append(entry)
        self._pump()
        if self._retrying is None or self._retrying.done():
            self._retrying = loop.create_task(self._retry(), name="mcpmeter-pending")
            self._tick = self._tick or loop.call_later(RETRY_SECONDS[1], self._check_file)
        return entry.future

    async def close(self, seconds: float) -> None:
        """Offer everything to the ledger once more, and report what is in neither ledger nor file."""
        if self._is_closed:
            return
        if self._retrying is not None:
            self._retrying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._retrying
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._offer_last(), seconds)
        self._is_closed = True
        if self._tick is not None:
            self._tick.cancel()
        path = self._files.path
        with contextlib.suppress(TimeoutError, OSError):
            await asyncio.wait_for(
                self._thread.run(lambda: self._files.close(is_empty=not self._entries)), CLOSE_SECONDS
            )
        self._thread.stop()
        # After the file is closed: a write may have ended only now.
        unwritten = [entry.settlement for entry in self._entries.values() if not entry.is_kept]
        for settlement in unwritten:
            self._report_unwritten(settlement)
        if kept := len(self._entries) - len(unwritten):
            log.warning("%d settlements wait for the ledger in its pending file %s", kept, path)

    async def _offer_last(self) -> None:
        while self._entries:
            fault = await self._offer()
            if fault is not None and not self.unwritten and not self._to_write:
                return
            if fault is not None:
                self._write_again()
                await asyncio.sleep(RETRY_SECONDS[0])

    # The file ---------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Give the thread its next work: write what waits, or reset the file after the last entry is settled."""
        if self._is_writing:
            return
        new = [entry for entry in self._to_write if entry.settlement.call.id in self._entries]
        self._to_write.clear()
        if new:
            self._write(new)
        elif self._is_dirty and not self._entries:
            self._is_dirty = False
            self._run(self._files.reset, lambda error: None)

    def _write(self, new: list[Entry]) -> None:
        self._is_dirty = True
        payloads = [entry.payload for entry in new]
        kept = [entry.payload for entry in self._entries.values() if entry.is_kept]

        def written(error: BaseException | None) -> None:
            for entry in new:
                if error is None:
                    entry.is_kept = True
                    self._durable(entry)
                else:
                    self._failed_to_write(entry)
            if error is not None and self._files.is_lost:
                for call_id, entry in self._entries.items():
                    entry.is_kept = False
                    self.unwritten.add(call_id)

        self._run(lambda: self._files.append(payloads, kept), written)

    def _run(self, work: Callable[[], None], then: Callable[[BaseException | None], None]) -> None:
        self._is_writing = True

        def done(future: asyncio.Future[None]) -> None:
            self._is_writing = False
            error = None if future.cancelled() else future.exception()
            if error is not None:
                log.debug("the file of pending settlements cannot be written: %s", error)
            then(error)
            if not self._is_closed:
                self._pump()

        self._thread.run(work).add_done_callback(done)

    def _check_file(self) -> None:
        """Runs once a second while there are entries."""
        self._tick = None
        if self._entries and not self._is_closed:
            self._tick = asyncio.get_running_loop().call_later(RETRY_SECONDS[1], self._check_file)
            self._write_again()

    def _write_again(self) -> None:
        """Write what could not be written, and everything if the file was removed."""
        if not self._is_writing:
            self._write([entry for call_id, entry in self._entries.items() if call_id in self.unwritten])

    def _durable(self, entry: Entry) -> None:
        self.unwritten.discard(entry.settlement.call.id)
        if not entry.future.done():
            entry.is_counted = True
            entry.future.set_result(None)
        elif not entry.is_counted and not entry.future.cancelled():
            entry.is_counted = True
            self._callbacks.on_late(entry.settlement)

    def _overdue(self, entry: Entry) -> None:
        if not entry.future.done():
            self._failed_to_write(entry)

    def _failed_to_write(self, entry: Entry) -> None:
        if entry.settlement.call.id in self._entries and not entry.is_kept:
            self.unwritten.add(entry.settlement.call.id)
        fail(
            entry.future,
            LedgerUnavailable(
                "Neither the ledger nor the file of pending settlements can be written.",
                hint="Make their disks writable; what is known is kept in memory and written then.",
            ),
        )

    # The ledger -------------------------------------------------------------------------------------------------------

    async def _retry(self) -> None:
        seconds = RETRY_SECONDS[0]
        while self._entries:
            await asyncio.sleep(seconds)
            fault = await self._offer()
            seconds = RETRY_SECONDS[0] if fault is None else min(seconds * 2, RETRY_SECONDS[1])
        log.warning("the ledger has all settlements of its pending file again")
        self._pump()

    async def _offer(self) -> LedgerUnavailable | None:
        """Settle the oldest entries, in one batch. Returns why the ledger did not take them, if it did not."""
        entries = list(self._entries.values())[:MAX_BATCH]
        results = await asyncio.gather(*(self._settle(entry.settlement) for entry in entries), return_exceptions=True)
        fault: LedgerUnavailable | None = None
        for entry, result in zip(entries, results, strict=True):
            if result is None:
                self._settled(entry)
            elif isinstance(result, (SettlementConflict, RowRefused)):
                self._reject(entry, result)
            else:
                fault = result if isinstance(result, LedgerUnavailable) else LedgerUnavailable("The ledger failed.")
        return fault

    async def _settle(self, settlement: Settlement) -> None:
        await self._store.settle(settlement)

    def _settled(self, entry: Entry) -> None:
        self._entries.pop(entry.settlement.call.id, None)
        self._durable(entry)

    def _reject(self, entry: Entry, refusal: MeterError) -> None:
        settlement = entry.settlement
        self._entries.pop(settlement.call.id, None)
        self.unwritten.discard(settlement.call.id)
        fail(entry.future, refusal)
        if settlement.usage is None and settlement.charge is None:
            return  # it ended before anything was sent, and its row was not written either
        log.error("a pending settlement was refused (%s) and is kept aside: %s", refusal.id, _described(settlement))
        self._callbacks.on_rejected()
        self._keep_aside(msgspec.json.encode(settlement))

    def _keep_aside(self, line: bytes) -> None:
        def report(done: asyncio.Future[None]) -> None:
            if done.exception() is not None:
                log.error("a refused settlement could not be kept aside: %s", done.exception())

        self._thread.run(lambda: self._files.keep_aside(line + b"\n")).add_done_callback(report)

    def _report_unwritten(self, settlement: Settlement) -> None:
        log.error("a known settlement could not be written anywhere: %s", _described(settlement))
        self._callbacks.on_unwritten()


class _Thread:
    """Runs one piece of work after the other. A daemon: a disk that hangs does not hold up the end of the process."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mcpmeter-pending", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def run(self, work: Callable[[], _Result]) -> asyncio.Future[_Result]:
        future: asyncio.Future[_Result] = asyncio.get_running_loop().create_future()
        self._queue.put((work, future))
        return future

    def stop(self) -> None:
        self._queue.put(None)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            work, future = item
            try:
                result = work()
            except Exception as error:  # every waiter gets its error; the thread goes on
                self._on_loop(future, fail, error)
            else:
                self._on_loop(future, resolve, result)

    @staticmethod
    def _on_loop(future: asyncio.Future[Any], finish: Callable[..., None], value: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the waiter is gone
            future.get_loop().call_soon_threadsafe(finish, future, value)


def _encoded(settlement: Settlement) -> bytes:
    call = msgspec.structs.replace(settlement.call, reservations=())  # its row has them, and they are half of it
    try:
        return msgspec.msgpack.encode(msgspec.structs.replace(settlement, call=call))
    except (UnicodeError, OverflowError, TypeError, ValueError):
        raise row_refused("a value cannot be encoded") from None


def _described(settlement: Settlement) -> str:
    """A settlement in a line of the log."""
    usage, charge = settlement.usage, settlement.charge
    tokens = f"{usage.prompt_tokens} + {usage.completion_tokens} tokens" if usage else "no tokens"
    cost = f"{charge.nanousd} nano-dollars" if charge else "no cost"
    return f"{settlement.call.id}, {tokens}, {cost}"
