"""The entries of a writer's queue and the result of a batch, whichever engine writes.

Both writers work the same way. The event loop queues an entry and gets its future. One writer takes everything that is
queued as a batch and writes it in one transaction; while that commit runs, the next batch gathers (group commit). The
result returns to the loop in one piece: futures of written rows resolve, those of refused rows fail with their own
error. If the transaction fails as a whole, every future fails with `LedgerUnavailable` and the writer is unhealthy
until a later write succeeds. The writer itself ends only when it is closed, after the queue is empty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from mcpmeter.errors import MeterError
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
    commit_s: float


def deliver(result: BatchResult, on_commit: OnCommit | None) -> None:
    """Complete the futures of a batch, on the event loop's thread."""
    for entry in result.written:
        resolve(entry.future, None)
    for entry, error in result.refused:
        fail(entry.future, error)
    if on_commit is not None and result.written:
        on_commit(len(result.written), result.commit_s)


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
