"""What the meter asks of a ledger, whichever engine keeps it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from mcpmeter.errors import ServiceFault
from mcpmeter.records import Balance, Call, Key, LedgerRow, Reservation, Settlement, TopUp

OnCommit = Callable[[int, float], None]
"""Told after each commit, on the event loop's thread: rows written, seconds taken."""


class SettlementConflict(ServiceFault):
    """The row was settled with another payload, or no such row was opened; what the ledger holds stays."""

    id = "settlement_conflict"


class RowRefused(ServiceFault):
    """This one row cannot be kept as it is: negative, out of 64 bits, not Unicode, id taken. Others are not touched."""

    id = "row_refused"


class InsufficientBudget(Exception):
    """A balance has no room for what a call claims of it: nothing was written.

    No error of the tree: whoever made the claim catches it and says it in words, as `BudgetExhausted` or `RateLimited`.
    """

    def __init__(self, claim: Reservation, *, left: int) -> None:
        super().__init__("A limit has no room for this call.")
        self.reservation = claim
        self.left = left
        """In the claim's unit; negative where more was spent than the limit allows."""


class Store(Protocol):
    """A durable ledger of model calls. An awaitable resolves only when its row is on disk.

    Every method may raise `LedgerUnavailable`; `start` raises `LedgerNotUsable`.
    """

    async def start(self) -> None:
        """Take the ledger for this process, create or migrate its tables."""

    async def close(self) -> None:
        """Commit what is queued and let go."""

    def open(self, call: Call) -> Awaitable[None]:
        """Write the open row and reserve what the call claims, in one step. Awaited before anything is sent upstream.

        Raises `InsufficientBudget` if a balance has no room, `RowRefused` for a row that cannot be stored; then nothing
        is written.
        """

    def settle(self, settlement: Settlement) -> Awaitable[None]:
        """Settle the row of the same id, and turn what it reserved into what it took, in one step.

        The same settlement twice leaves one row and counts once; another payload, or an id that was never opened,
        raises `SettlementConflict`; a row that cannot be kept raises `RowRefused`.
        """

    async def left_open(self) -> Sequence[LedgerRow]:
        """Rows that an earlier life of the service opened and never settled."""

    async def keys(self) -> Sequence[Key]:
        """All keys, revoked ones too."""

    async def keys_changed(self) -> bool:
        """Whether another process wrote to the ledger since this was last asked (a key created, a key revoked)."""

    async def add_key(self, key: Key) -> None:
        """Keep a new key."""

    async def change_key(self, key_id: str, change: Callable[[Key], Key]) -> Key | None:
        """Keep a key's new secret or its end, as `change` makes it of the record now; None if there is no such key.

        In one transaction: of two changes at once the second sees the first. What `change` raises, this raises.
        """

    async def balances(self, claims: Sequence[Reservation]) -> Sequence[Balance]:
        """The balances of these claims, in their order; made, from the calls so far, where there are none."""

    async def burn_nanousd(self, claim: Reservation, since_ns: int, until_ns: int) -> int:
        """What budgets count for the calls of a claim's scope that started in [since, until)."""

    async def top_up(self, top_up: TopUp) -> int:
        """Keep a top-up; returns the balance's whole credit. `RowRefused` if its id is kept already."""

    async def probe(self) -> None:
        """Try a tiny durable write, so that `healthy` can become true again without traffic."""

    @property
    def open_rows(self) -> int:
        """How many rows of this life are open now."""

    @property
    def healthy(self) -> bool:
        """Whether the last write succeeded (or none was tried)."""
