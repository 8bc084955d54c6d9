"""The interface between the meter and a ledger, whichever engine stores it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from mcpmeter.errors import ServiceFault
from mcpmeter.records import (
    Actor,
    AuditAction,
    AuditEntry,
    Balance,
    Call,
    Key,
    LedgerRow,
    ObjectState,
    ProviderObject,
    Reservation,
    Settlement,
    TopUp,
)

OnCommit = Callable[[int], None]
"""Called on the event loop's thread after each commit, with the nanoseconds it took."""


class SettlementConflict(ServiceFault):
    """The row was settled with another payload, or no such row was opened; what the ledger holds stays."""

    id = "settlement_conflict"


class RowRefused(ServiceFault):
    """This row cannot be stored: a value is negative, out of 64 bits or not Unicode, or its id is taken."""

    id = "row_refused"


class InsufficientBudget(Exception):
    """A balance has too little left for a reservation: nothing was written.

    Not part of the error tree: the relay turns it into `BudgetExhausted` or `RateLimited`.
    """

    def __init__(self, reservation: Reservation, *, left: int) -> None:
        super().__init__("A limit has too little left for this call.")
        self.reservation = reservation
        self.left = left
        """In the reservation's unit; negative if more was spent than the limit allows."""


def settlement_conflict(*, opened: bool) -> SettlementConflict:
    """The error for a settlement that differs from the stored one, or whose call was never opened."""
    if opened:
        return SettlementConflict("This call was settled already, with other figures.", hint="The first ones stay.")
    return SettlementConflict("No call with this id was opened.", hint="Open the call before settling it.")


def row_refused(reason: str) -> RowRefused:
    """The error for one row; `reason` never quotes a value."""
    return RowRefused(f"The ledger refused this row: {reason}.", hint="This is a fault of mcpmeter; please report it.")


class Store(Protocol):
    """A durable ledger of model calls. An awaitable resolves only when its row is on disk.

    Every method may raise `LedgerUnavailable`; `start` raises `LedgerNotUsable`.
    """

    async def start(self) -> None:
        """Take the ledger for this process, create or migrate its tables."""

    async def close(self) -> None:
        """Commit what is queued and release the ledger."""

    def open(self, call: Call) -> Awaitable[None]:
        """Write the open row and its reservations in one step. Awaited before anything is sent upstream.

        Raises `InsufficientBudget` if a balance has too little left, `RowRefused` for a row that cannot be stored;
        then nothing is written.
        """

    def settle(self, settlement: Settlement) -> asyncio.Future[None]:
        """Settle the row of the same id and post its reservations at their true amounts, in one step.

        The same settlement twice leaves one row and counts once. A row that was settled as `recovered` takes the true
        figures, and its balances move by the difference. Any other payload, or an id that was never opened, raises
        `SettlementConflict`; a row that cannot be stored raises `RowRefused`. The future may be ended early: the row
        is written all the same.
        """

    async def ledger_id(self) -> str:
        """What tells this ledger from others, wherever its data is moved: at most 64 ASCII characters."""

    async def left_open(self) -> Sequence[LedgerRow]:
        """Rows that a previous process opened and never settled, without those of pending objects."""

    async def add_object(self, kept: ProviderObject) -> None:
        """Store an object that a provider keeps. Its pending call no longer counts as open: it is followed.

        `RowRefused` if the provider's id is taken.
        """

    async def find_object(self, object_id: str, team: str) -> ProviderObject | None:
        """The latest object of this id that the team made."""

    async def end_object(self, kept: ProviderObject, state: ObjectState, at_ns: int) -> None:
        """Note that the call of a pending object is settled."""

    async def pending_objects(self) -> Sequence[tuple[ProviderObject, LedgerRow]]:
        """Pending objects with the rows of their calls, oldest first, without those of other replicas."""

    async def row_of_call(self, call_id: str) -> LedgerRow | None:
        """The row of one call."""

    async def keys(self) -> Sequence[Key]:
        """All keys, revoked ones too."""

    async def keys_changed(self) -> bool:
        """Whether another process wrote to the ledger since `keys` was last read (a key created or revoked)."""

    async def add_key(self, key: Key, by: Actor) -> None:
        """Store a new key and its audit row in one step."""

    async def change_key(
        self, key_id: str, change: Callable[[Key], Key], *, action: AuditAction, by: Actor
    ) -> Key | None:
        """Store a key's new secret or its end, as `change` returns it, and its audit row; None if there is no such key.

        One transaction: of two concurrent changes the second sees the first. Raises what `change` raises.
        """

    async def audit(self, entry: AuditEntry) -> None:
        """Store the audit row of an act that writes nothing else. The same entry twice leaves one row."""

    async def balances(self, reservations: Sequence[Reservation]) -> Sequence[Balance]:
        """The balances of these reservations, in their order; missing ones are computed from the calls so far."""

    async def burn_nanousd(self, reservation: Reservation, since_ns: int, until_ns: int) -> int:
        """The budgeted cost of calls in the reservation's scope that started in [since, until)."""

    async def top_up(self, top_up: TopUp, *, budget: str, by: Actor) -> int:
        """Store a top-up of a budget and its audit row; returns the balance's total credit.

        `RowRefused` if its id is taken.
        """

    async def probe(self) -> None:
        """Try a tiny durable write, so that `healthy` can become true again without traffic."""

    @property
    def open_rows(self) -> int:
        """How many rows of this process are open now."""

    @property
    def healthy(self) -> bool:
        """Whether the last write succeeded (or none was tried)."""
