"""Balances of limits on PostgreSQL, shared by replicas, inside the transaction that opens or settles calls.

A transaction locks the rows of its balances, changes them in memory and writes them back. Locks have one order (rows of
calls, then balances by name), so transactions never deadlock. Making a balance has to count every call, those that
other replicas are writing included, so it blocks all writers for a moment, in a transaction of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from mcpmeter.ledger.balances import (
    CREDIT_SQL,
    INSERT_BALANCE_SQL,
    INSERT_TOP_UP_SQL,
    OTHER_LINES_SQL,
    SELECT_BALANCES_SQL,
    SET_CREDIT_SQL,
    BalanceKey,
    balance_of,
    new_balance,
    open_calls_sql,
    scope_values,
    spent_of,
    spent_sql,
)
from mcpmeter.ledger.postgres.sql import Db, execute, execute_portable
from mcpmeter.ledger.rows import Taken, decode_reservations, taken_by, with_added, with_postings
from mcpmeter.ledger.store import InsufficientBudget, row_refused
from mcpmeter.ledger.sums import MAX_INT64
from mcpmeter.ledger.write_queue import Refusal
from mcpmeter.records import Balance, Call, Reservation, Settlement, TopUp

MAKING_LOCK: Final = 0x6D63706D62
"""`mcpmb`, an advisory lock: one balance is made, or topped up, at a time."""

LOCK_TIMEOUT_S: Final = 2

_LOCK_SQL: Final = (
    "SELECT balance, period_start_ns, spent, reserved, credit FROM balances"
    " WHERE (balance, period_start_ns) IN (SELECT * FROM unnest($1::text[], $2::bigint[]))"
    " ORDER BY balance, period_start_ns FOR UPDATE"
)
_WRITE_BACK_SQL: Final = (
    "UPDATE balances SET spent = b.spent, reserved = b.reserved"
    " FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) AS b(balance, period_start_ns, spent, reserved)"
    " WHERE balances.balance = b.balance AND balances.period_start_ns = b.period_start_ns"
)
_FIND_SQL: Final = (
    f"{SELECT_BALANCES_SQL} WHERE (balance, period_start_ns)"  # noqa: S608 (constants only)
    " IN (SELECT * FROM unnest($1::text[], $2::bigint[]))"
)
_SET_CLAIMS_SQL: Final = (
    "UPDATE calls SET claims = c.claims FROM unnest($1::text[], $2::text[]) AS c(id, claims) WHERE calls.id = c.id"
)
_FORGET_SQL: Final = (
    "DELETE FROM balances WHERE (balance, period_start_ns) IN (SELECT balance, period_start_ns FROM balances"
    " WHERE unit <> 'nanousd' AND period_end_ns < $1::bigint AND reserved = 0 FOR UPDATE SKIP LOCKED)"
)


class BalanceMissing(Exception):
    """A reservation's balance does not exist yet: the transaction has to start over after `make_balances`."""


class LockedBalance:
    """A balance that this transaction has locked."""

    __slots__ = ("credit", "reserved", "spent")

    def __init__(self, spent: int, reserved: int, credit: int) -> None:
        self.spent, self.reserved, self.credit = spent, reserved, credit


class Posting(NamedTuple):
    """How a call that is settled changes one balance."""

    balance: str
    period_start_ns: int
    reserved: int
    spent: int


def postings_of(settlement: Settlement, claims: str) -> list[Posting]:
    """What a settlement changes: the reservations end, the true amounts are spent."""
    taken = taken_by(settlement)
    if settlement.postings:
        claims = with_postings(claims, settlement)
    return [
        Posting(kept.balance, kept.period_start_ns, -kept.amount, taken.of(kept))
        for kept in decode_reservations(claims)
    ]


def postings_of_row(claims: str, before: Taken, settlement: Settlement) -> list[Posting]:
    """What a settled row changes if `settlement` replaces it."""
    changes = Counter({kept.key: -before.of(kept) for kept in decode_reservations(claims)})
    for balance, start_ns, _, spent in postings_of(settlement, claims):
        changes[balance, start_ns] += spent
    return [Posting(*key, 0, change) for key, change in changes.items()]


def voidings_of(state: str, claims: str, before: Taken) -> list[Posting]:
    """What the deletion of a row changes: its reservations end, or nothing is spent any more."""
    return [
        Posting(kept.balance, kept.period_start_ns, -kept.amount, 0)
        if state == "open"
        else Posting(kept.balance, kept.period_start_ns, 0, -before.of(kept))
        for kept in decode_reservations(claims)
    ]


async def rewrite_claims(db: Db, changed: Mapping[str, str]) -> None:
    """Write the column `claims` of rows, by id."""
    if changed:
        await execute(db, _SET_CLAIMS_SQL, (list(changed), list(changed.values())))


async def reserve_and_settle(
    db: Db, opens: Iterable[Call], postings: Sequence[Posting], unreserved: Iterable[Reservation] = ()
) -> dict[str, Refusal]:
    """Post what settled calls took, then take the reservations of opened calls.

    `unreserved` have balances that postings need and that no call may have reserved. Returns the refusals by call id; a
    refused call has reserved nothing. Raises `BalanceMissing`.
    """
    opening = [call for call in opens if call.reservations]
    needed = {(r.balance, r.period_start_ns) for call in opening for r in call.reservations}
    needed |= {(r.balance, r.period_start_ns) for r in unreserved}
    slots = needed | {(posting.balance, posting.period_start_ns) for posting in postings}
    if not slots:
        return {}
    locked = await _lock(db, slots)
    if needed - locked.keys():
        raise BalanceMissing
    _post(locked, postings)
    results = [(call.id, _reserve(locked, call)) for call in opening]
    await _write_back(db, locked)
    return {call_id: refusal for call_id, refusal in results if refusal is not None}


async def _lock(db: Db, slots: Iterable[BalanceKey]) -> dict[BalanceKey, LockedBalance]:
    balances, starts = zip(*sorted(slots), strict=True) if slots else ((), ())
    rows = await execute(db, _LOCK_SQL, (list(balances), list(starts)))
    return {(row[0], row[1]): LockedBalance(*row[2:]) for row in rows}


async def _write_back(db: Db, locked: Mapping[BalanceKey, LockedBalance]) -> None:
    rows = [(balance, start, slot.spent, slot.reserved) for (balance, start), slot in locked.items()]
    if rows:
        await execute(db, _WRITE_BACK_SQL, [list(column) for column in zip(*rows, strict=True)])


def _post(locked: Mapping[BalanceKey, LockedBalance], postings: Sequence[Posting]) -> None:
    for balance, start, reserved, spent in postings:
        if slot := locked.get((balance, start)):
            slot.reserved = max(slot.reserved + reserved, 0)
            slot.spent = min(max(slot.spent + spent, 0), MAX_INT64)


def _reserve(locked: Mapping[BalanceKey, LockedBalance], call: Call) -> Refusal | None:
    for reservation in call.reservations:
        slot = locked[reservation.balance, reservation.period_start_ns]
        left = reservation.limit + slot.credit - slot.spent - slot.reserved
        if reservation.refuses and reservation.amount > left:
            return InsufficientBudget(reservation, left=left)
        if not 0 <= slot.reserved + reservation.amount <= MAX_INT64:
            return row_refused("what it reserves does not fit into 64 bits")
    for reservation in call.reservations:
        locked[reservation.balance, reservation.period_start_ns].reserved += reservation.amount
    return None


# Making balances ----------------------------------------------------------------------------------------------------


async def find_balances(db: Db, reservations: Sequence[Reservation]) -> dict[BalanceKey, Balance]:
    """The balances of these reservations that exist."""
    keys = ([r.balance for r in reservations], [r.period_start_ns for r in reservations])
    found = [balance_of(row) for row in await execute(db, _FIND_SQL, keys)]
    return {(balance.balance, balance.period_start_ns): balance for balance in found}


async def make_balances(db: Db, reservations: Sequence[Reservation]) -> None:
    """Make the balances of these reservations that do not exist. Has to be the transaction's first statement."""
    await execute(db, "SET LOCAL lock_timeout TO 0")
    await execute(db, "SELECT pg_advisory_xact_lock($1)", (MAKING_LOCK,))
    # All writers queue behind this lock, so it must not wait long for a transaction that hangs.
    await execute(db, f"SET LOCAL lock_timeout TO '{LOCK_TIMEOUT_S}s'")
    await execute(db, "LOCK TABLE calls IN SHARE ROW EXCLUSIVE MODE")
    for reservation in reservations:
        if not await find_balances(db, [reservation]):
            await _make(db, reservation)


async def _make(db: Db, reservation: Reservation) -> None:
    balance = new_balance(
        reservation,
        spent=await _spent(db, reservation, scope_values(reservation)),
        reserved=await _reserve_for_open_calls(db, reservation),
        credit=await _credit(db, reservation.balance),
    )
    await execute_portable(db, INSERT_BALANCE_SQL, msgspec.structs.astuple(balance))


async def _reserve_for_open_calls(db: Db, reservation: Reservation) -> int:
    """Add the reservation to open calls of its scope, with what they reserved when opened; returns the sum."""
    rows = await execute_portable(db, open_calls_sql(reservation.unit), scope_values(reservation))
    await rewrite_claims(db, {call_id: with_added(claims, reservation, amount) for call_id, claims, amount in rows})
    return min(sum(int(amount) for _, _, amount in rows), MAX_INT64)


async def burn_nanousd(db: Db, reservation: Reservation, since_ns: int, until_ns: int) -> int:
    """The budgeted cost of settled calls in a reservation's scope that started in [since, until)."""
    return await _spent(
        db, msgspec.structs.replace(reservation, unit="nanousd"), scope_values(reservation, since_ns, until_ns)
    )


async def _spent(db: Db, reservation: Reservation, values: tuple[int | str, ...]) -> int:
    other_lines = await execute_portable(db, OTHER_LINES_SQL, values) if reservation.unit == "nanousd" else ()
    rows = await execute_portable(db, spent_sql(reservation.unit), values)
    return spent_of(rows, other_lines, reservation.scope.model)


async def forget_minutes(db: Db, before_ns: int) -> None:
    """Delete balances of rate limits whose minute ended before an instant and that no open call has reserved."""
    await execute(db, _FORGET_SQL, (before_ns,))


async def add_top_up(db: Db, top_up: TopUp) -> int:
    """Store a top-up and add it to its balance. Returns the total credit."""
    await execute(db, "SELECT pg_advisory_xact_lock($1)", (MAKING_LOCK,))
    await execute_portable(db, INSERT_TOP_UP_SQL, msgspec.structs.astuple(top_up))
    credit = await _credit(db, top_up.balance)
    await execute_portable(db, SET_CREDIT_SQL, (credit, top_up.balance))
    return credit


async def _credit(db: Db, balance: str) -> int:
    [(credit,)] = await execute_portable(db, CREDIT_SQL, (balance,))
    return int(credit)
