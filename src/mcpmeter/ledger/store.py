"""What the meter asks of a ledger, whichever engine keeps it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from mcpmeter.errors import ServiceFault
from mcpmeter.records import Call, Key, LedgerRow, Settlement

OnCommit = Callable[[int, float], None]
"""Told after each commit, on the event loop's thread: rows written, seconds taken."""


class SettlementConflict(ServiceFault):
    """The row was settled with another payload, or no such row was opened; what the ledger holds stays."""

    id = "settlement_conflict"


class RowRefused(ServiceFault):
    """This one row cannot be kept as it is: negative, out of 64 bits, not Unicode, id taken. Others are not touched."""

    id = "row_refused"


class Store(Protocol):
    """A durable ledger of model calls. An awaitable resolves only when its row is on disk.

    Every method may raise `LedgerUnavailable`; `start` raises `LedgerNotUsable`.
    """

    async def start(self) -> None:
        """Take the ledger for this process, create or migrate its tables."""

    async def close(self) -> None:
        """Commit what is queued and let go."""

    def open(self, call: Call) -> Awaitable[None]:
        """Write the open row. Awaited before anything is sent upstream. `RowRefused` for one that cannot be kept."""

    def settle(self, settlement: Settlement) -> Awaitable[None]:
        """Settle the row of the same id. The same settlement twice leaves one row; another payload, or an id that was
        never opened, raises `SettlementConflict`; a row that cannot be kept raises `RowRefused`."""

    async def left_open(self) -> Sequence[LedgerRow]:
        """Rows that an earlier life of the service opened and never settled."""

    async def keys(self) -> Sequence[Key]:
        """All keys, revoked ones too."""

    async def keys_changed(self) -> bool:
        """Whether another process wrote to the ledger since this was last asked (a key created, a key revoked)."""

    async def add_key(self, key: Key) -> None:
        """Keep a new key."""

    async def probe(self) -> None:
        """Try a tiny durable write, so that `healthy` can become true again without traffic."""

    @property
    def open_rows(self) -> int:
        """How many rows of this life are open now."""

    @property
    def healthy(self) -> bool:
        """Whether the last write succeeded (or none was tried)."""
