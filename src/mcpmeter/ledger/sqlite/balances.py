"""Balances of limits on SQLite, inside the transaction that opens or settles a call.

What a call reserves is on disk with its row, and what it spent with its settlement, so that the two agree after any
crash. A limit is checked by the UPDATE that reserves: it changes no row if the balance has too little left.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, cast

import apsw
import msgspec

from mcpmeter.ledger.balances import (
    CREDIT_SQL,
    INSERT_BALANCE_SQL,
    INSERT_TOP_UP_SQL,
    OTHER_LINES_SQL,
    SELECT_BALANCES_SQL,
    SET_CREDIT_SQL,
    balance_of,
    new_balance,
    open_calls_sql,
    scope_values,
    spent_of,
    spent_sql,
)
from mcpmeter.ledger.rows import Taken, decode_reservations, taken_by, unreserved, with_added, with_postings
from mcpmeter.ledger.store import InsufficientBudget
from mcpmeter.records import Balance, Call, Reservation, Settlement, TopUp

_FIND_SQL: Final = f"{SELECT_BALANCES_SQL} WHERE balance = ?1 AND period_start_ns = ?2"
_RESERVE_SQL: Final = (
    "UPDATE balances SET reserved = reserved + ?3 WHERE balance = ?1 AND period_start_ns = ?2"
    " AND (?5 OR spent + reserved + ?3 <= ?4 + credit)"
)
_RELEASE_SQL: Final = "UPDATE balances SET reserved = reserved - ?3 WHERE balance = ?1 AND period_start_ns = ?2"
_POST_SQL: Final = (
    "UPDATE balances SET reserved = max(reserved - ?3, 0), spent = min(spent + ?4, 9223372036854775807)"
    " WHERE balance = ?1 AND period_start_ns = ?2"
)
_SET_CLAIMS_SQL: Final = "UPDATE calls SET claims = ?1 WHERE id = ?2"
_MOVE_SQL: Final = (
    "UPDATE balances SET spent = min(max(spent + ?3, 0), 9223372036854775807)"
    " WHERE balance = ?1 AND period_start_ns = ?2"
)


def reserve(db: apsw.Connection, call: Call) -> InsufficientBudget | None:
    """Take all reservations of a call, or none. Returns the first that its balance has too little left for."""
    for index, reservation in enumerate(call.reservations):
        if not _reserve_one(db, reservation):
            for taken in call.reservations[:index]:
                db.execute(_RELEASE_SQL, (taken.balance, taken.period_start_ns, taken.amount))
            balance = ensure(db, reservation)
            left = reservation.limit + balance.credit - balance.spent - balance.reserved
            return InsufficientBudget(reservation, left=left)
    return None


def _reserve_one(db: apsw.Connection, reservation: Reservation) -> bool:
    key = (reservation.balance, reservation.period_start_ns)
    values = (*key, reservation.amount, reservation.limit, not reservation.refuses)
    db.execute(_RESERVE_SQL, values)
    if db.changes():
        return True
    if _find(db, reservation) is not None:
        return False
    ensure(db, reservation)
    db.execute(_RESERVE_SQL, values)
    return bool(db.changes())


def ensure_unreserved(db: apsw.Connection, settlement: Settlement) -> None:
    """Make the balances that a call of several models needs and need not have reserved.

    Before its lines are written: a balance counts those that it finds, and they are posted to it.
    """
    for posting in unreserved(settlement):
        ensure(db, posting)


def post(db: apsw.Connection, claims: str, settlement: Settlement) -> None:
    """Replace what a call's row had reserved by what the call took."""
    if settlement.postings:
        claims = _rewrite(db, claims, settlement)
    taken = taken_by(settlement)
    for kept in decode_reservations(claims):
        db.execute(_POST_SQL, (kept.balance, kept.period_start_ns, kept.amount, taken.of(kept)))


def post_difference(db: apsw.Connection, claims: str, settlement: Settlement, estimated: Taken) -> None:
    """Replace what a settled row took by what its call really took."""
    before = {kept.key: estimated.of(kept) for kept in decode_reservations(claims)}
    if settlement.postings:
        claims = _rewrite(db, claims, settlement)
    taken = taken_by(settlement)
    for kept in decode_reservations(claims):
        more = taken.of(kept) - before.get(kept.key, 0)
        db.execute(_MOVE_SQL, (kept.balance, kept.period_start_ns, more))


def _rewrite(db: apsw.Connection, claims: str, settlement: Settlement) -> str:
    """Write what each balance gets of a call of several models into its row."""
    more = with_postings(claims, settlement)
    db.execute(_SET_CLAIMS_SQL, (more, settlement.call.id))
    return more


def ensure(db: apsw.Connection, reservation: Reservation) -> Balance:
    """The balance of a reservation; made from the calls so far if there is none. The amount does not matter."""
    found = _find(db, reservation)
    if found is not None:
        return found
    balance = new_balance(
        reservation,
        spent=_spent(db, reservation, scope_values(reservation)),
        reserved=_reserve_for_open_calls(db, reservation),
        credit=_credit(db, reservation.balance),
    )
    db.execute(INSERT_BALANCE_SQL, msgspec.structs.astuple(balance))
    return balance


def _find(db: apsw.Connection, reservation: Reservation) -> Balance | None:
    row = db.execute(_FIND_SQL, (reservation.balance, reservation.period_start_ns)).fetchone()
    return None if row is None else balance_of(row)


def _reserve_for_open_calls(db: apsw.Connection, reservation: Reservation) -> int:
    """Add the reservation to open calls of its scope, with what they reserved when opened; returns the sum."""
    # The index is named because SQLite would read every call of the period instead of the few that are open.
    sql = open_calls_sql(reservation.unit, "calls INDEXED BY calls_open")
    reserved = 0
    for call_id, claims, amount in list(_rows(db, sql, scope_values(reservation))):
        reserved += amount
        db.execute(_SET_CLAIMS_SQL, (with_added(claims, reservation, amount), call_id))
    return reserved


def burn_nanousd(db: apsw.Connection, reservation: Reservation, since_ns: int, until_ns: int) -> int:
    """The budgeted cost of settled calls in a reservation's scope that started in [since, until)."""
    return _spent(
        db, msgspec.structs.replace(reservation, unit="nanousd"), scope_values(reservation, since_ns, until_ns)
    )


def _spent(db: apsw.Connection, reservation: Reservation, values: tuple[int | str, ...]) -> int:
    other_lines = _rows(db, OTHER_LINES_SQL, values) if reservation.unit == "nanousd" else ()
    return spent_of(_rows(db, spent_sql(reservation.unit), values), other_lines, reservation.scope.model)


def read_balances(db: apsw.Connection) -> list[Balance]:
    """All balances, by id and period."""
    return [balance_of(row) for row in db.execute(f"{SELECT_BALANCES_SQL} ORDER BY balance, period_start_ns")]


def forget_minutes(db: apsw.Connection, before_ns: int) -> None:
    """Delete balances of rate limits whose minute ended before an instant and that no open call has reserved."""
    db.execute("DELETE FROM balances WHERE unit <> 'nanousd' AND period_end_ns < ? AND reserved = 0", (before_ns,))


def add_top_up(db: apsw.Connection, top_up: TopUp) -> int:
    """Store a top-up and add it to its balance. Returns the total credit."""
    db.execute(INSERT_TOP_UP_SQL, msgspec.structs.astuple(top_up))
    credit = _credit(db, top_up.balance)
    db.execute(SET_CREDIT_SQL, (credit, top_up.balance))
    return credit


def _credit(db: apsw.Connection, balance: str) -> int:
    ((credit,),) = _rows(db, CREDIT_SQL, (balance,))
    return int(credit)


def _rows(db: apsw.Connection, sql: str, values: tuple[int | str, ...]) -> Iterable[tuple[Any, ...]]:
    return cast("Iterable[tuple[Any, ...]]", db.execute(sql, values))
