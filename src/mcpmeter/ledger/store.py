"""What the meter asks of a ledger, whichever engine keeps it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from mcpmeter.records import Call, Key, LedgerRow, Settlement

OnCommit = Callable[[int, float], None]


class Store(Protocol):
    """A durable ledger of model calls. An awaitable resolves only when its row is on disk.

    Every method may raise `LedgerUnavailable`; `start` raises `LedgerNotUsable`.
    """

    async def start(self) -> None:
        """Take the ledger for this process, create or migrate its tables."""

    async def close(self) -> None:
        """Commit what is queued and let go."""

    def open(self, call: Call) -> Awaitable[None]:
        """Write the open row. Awaited before anything is sent upstream."""

    def settle(self, settlement: Settlement) -> Awaitable[None]:
        """Settle the row of the same id. The same settlement twice leaves one row; another payload is refused."""

    async def left_open(self) -> Sequence[LedgerRow]:
        """Rows that an earlier life of the service opened and never settled."""

    async def keys(self) -> Sequence[Key]:
        """All keys, revoked ones too."""

    async def add_key(self, key: Key) -> None:
        """Keep a new key."""

    @property
    def open_rows(self) -> int:
        """How many rows of this life are open now."""

    @property
    def healthy(self) -> bool:
        """Whether the last write succeeded (or none was tried)."""
