"""How a store's rows reach its writer and how their results return, whichever engine writes.

Both writers work the same way. The event loop queues an entry and gets its future. One writer takes everything that is
queued as a batch and writes it in one transaction; while that commit runs, the next batch gathers (group commit). The
result returns to the loop in one piece: futures of written rows resolve, those of refused rows fail with their own
error. If the transaction fails as a whole, every future fails with `LedgerUnavailable` and the writer is unhealthy
until a later write succeeds. The writer itself ends only when it is closed, after the queue is empty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import msgspec

from mcpmeter.errors import LedgerUnavailable, MeterError
from mcpmeter.ledger.store import InsufficientBudget, OnCommit
from mcpmeter.records import Call, Settlement


class OpenEntry(msgspec.Struct, gc=False):
    """A row to open."""

    call: Call
    future: asyncio.Future[None]

    @property
    def call_id(self) -> str:
        """The id of the row."""
        return self.call.id


class SettleEntry(msgspec.Struct, gc=False):
    """A row to settle."""

    settlement: Settlement
    future: asyncio.Future[None]

    @property
    def call_id(self) -> str:
        """The id of the row."""
        return self.settlement.call.id


RowEntry = OpenEntry | SettleEntry
Refusal = MeterError | InsufficientBudget
Refused = list[tuple[RowEntry, Refusal]]


class BatchResult(NamedTuple):
    """Which rows of a batch were written and which were refused."""

    written: Sequence[RowEntry]
    refused: Refused
    commit_ns: int


def resolve(future: asyncio.Future[Any], result: object) -> None:
    """Set a result, unless the waiter cancelled its future."""
    if not future.done():
        future.set_result(result)


def fail(future: asyncio.Future[Any], error: Exception) -> None:
    """Set an error, unless the waiter cancelled its future."""
    if not future.done():
        future.set_exception(error)


def written_rows(entries: Sequence[RowEntry], refused: Refused) -> Sequence[RowEntry]:
    """The entries of a batch without those that were refused."""
    if not refused:
        return entries
    ids = {id(entry) for entry, _ in refused}
    return [entry for entry in entries if id(entry) not in ids]


def track_open(open_ids: set[str], written: Iterable[RowEntry]) -> None:
    """Add rows that were opened to the set, remove those that were settled."""
    for entry in written:
        if isinstance(entry, OpenEntry):
            open_ids.add(entry.call.id)
        else:
            open_ids.discard(entry.settlement.call.id)


class RowWriter(Protocol):
    """The one writer of a store."""

    healthy: bool
    """Whether the last write succeeded (or none was tried)."""
    open_ids: set[str]
    """Rows opened by this process and not settled."""

    def submit(self, entry: RowEntry) -> None:
        """Queue an entry, on the event loop's thread."""


_Writer = TypeVar("_Writer", bound=RowWriter)


class QueuedStore(Generic[_Writer]):
    """The part of `store.Store` that both engines share: rows in, futures back. Started, used and closed once."""

    def __init__(self, on_commit: OnCommit | None) -> None:
        self._on_commit = on_commit
        self._writer: _Writer | None = None
        self._closing: asyncio.Future[None] | None = None

    def open(self, call: Call) -> asyncio.Future[None]:
        """Write the open row; resolves when it is on disk. Fails as `Store.open` says, or with `LedgerUnavailable`."""
        return self._submit(OpenEntry(call, asyncio.get_running_loop().create_future()))

    def settle(self, settlement: Settlement) -> asyncio.Future[None]:
        """Settle the row of the same id; may fail with `SettlementConflict`. Cancelling the wait cancels no write."""
        return self._submit(SettleEntry(settlement, asyncio.get_running_loop().create_future()))

    @property
    def open_rows(self) -> int:
        """Rows opened by this process and not settled."""
        return len(self._writer.open_ids) if self._writer else 0

    @property
    def healthy(self) -> bool:
        """Whether the last write succeeded (or none was tried)."""
        return self._writer is None or self._writer.healthy

    def _submit(self, entry: RowEntry) -> asyncio.Future[None]:
        self._accepting().submit(entry)
        return entry.future

    def _accepting(self) -> _Writer:
        if self._writer is None or self._closing is not None:
            raise LedgerUnavailable("The ledger is not open.", hint="The service is starting or stopping; try again.")
        return self._writer

    def _deliver(self, result: BatchResult) -> None:
        for entry in result.written:
            resolve(entry.future, None)
        for entry, error in result.refused:
            fail(entry.future, error)
        if self._on_commit is not None and result.written:
            self._on_commit(result.commit_ns)
