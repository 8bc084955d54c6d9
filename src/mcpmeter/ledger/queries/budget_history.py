"""A budget's balances for commands: read them, and top them up, beside a service that may be running."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from mcpmeter.errors import SetupError
from mcpmeter.ledger.audit import INSERT_AUDIT_SQL, audit_values, topped_up
from mcpmeter.ledger.balances import (
    CREDIT_SQL,
    INSERT_TOP_UP_SQL,
    OTHER_LINES_SQL,
    SELECT_BALANCES_SQL,
    SET_CREDIT_SQL,
    TOP_UP_COLUMNS,
    balance_of,
    new_balance,
    open_calls_sql,
    scope_values,
    spent_of,
    spent_sql,
)
from mcpmeter.ledger.location import Location
from mcpmeter.ledger.queries.reader import Reader, open_reader, open_writer, require_ledger
from mcpmeter.money import MAX_NANOUSD
from mcpmeter.records import Actor, Balance, Reservation, TopUp

_PERIODS_SQL: Final = f"{SELECT_BALANCES_SQL} WHERE balance = ?1 ORDER BY period_start_ns DESC"
_TOP_UPS_SQL: Final = f"SELECT {', '.join(TOP_UP_COLUMNS)} FROM top_ups WHERE balance = ?1 ORDER BY at_ns, id"  # noqa: S608


class BudgetHistory(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger has on a budget: the current period, the recent burn, stored periods, top-ups."""

    balance: Balance
    burned_nanousd: int
    periods: list[Balance]
    """Newest first; the current one is among them once it has had a call."""
    top_ups: list[TopUp]
    """Oldest first."""


def read_histories(
    ledger: Location, reservations: Sequence[tuple[Reservation, int]], now_ns: int
) -> list[BudgetHistory]:
    """The histories of these reservations' balances; burn is counted since the instant beside each reservation.

    A balance that no call has touched yet is computed from the calls of its scope. Raises `LedgerNotUsable`.
    """
    with open_reader(ledger) as reader:
        return [_history(reader, reservation, since_ns, now_ns) for reservation, since_ns in reservations]


def _history(reader: Reader, reservation: Reservation, since_ns: int, now_ns: int) -> BudgetHistory:
    periods = [balance_of(row) for row in reader.rows(_PERIODS_SQL, (reservation.balance,))]
    current = next((b for b in periods if b.period_start_ns == reservation.period_start_ns), None)
    top_ups = reader.rows(_TOP_UPS_SQL, (reservation.balance,))
    return BudgetHistory(
        balance=current or _computed(reader, reservation),
        burned_nanousd=_spent(reader, reservation, since_ns, now_ns),
        periods=periods,
        top_ups=[msgspec.convert(dict(zip(TOP_UP_COLUMNS, row, strict=True)), TopUp) for row in top_ups],
    )


def _computed(reader: Reader, reservation: Reservation) -> Balance:
    open_calls = reader.rows(open_calls_sql("nanousd"), scope_values(reservation))
    ((credit,),) = reader.rows(CREDIT_SQL, (reservation.balance,))
    return new_balance(
        reservation,
        spent=_spent(reader, reservation),
        reserved=sum(amount for _, _, amount in open_calls),
        credit=int(credit),
    )


def _spent(reader: Reader, reservation: Reservation, since_ns: int | None = None, until_ns: int | None = None) -> int:
    values = scope_values(reservation, since_ns, until_ns)
    other_lines = reader.rows(OTHER_LINES_SQL, values)
    return spent_of(reader.rows(spent_sql("nanousd"), values), other_lines, reservation.scope.model)


def add_top_up(ledger: Location, top_up: TopUp, *, budget: str, by: Actor) -> int:
    """Store a top-up of a budget and its audit row; returns the balance's total credit.

    A running service counts it at its next call. Raises `LedgerNotUsable`, also if there is no ledger: a typing error
    in its name must not swallow money.
    """
    require_ledger(ledger)
    with open_writer(ledger) as writer:
        ((before,),) = writer.execute(CREDIT_SQL, (top_up.balance,))
        credit = int(before) + top_up.amount_nanousd
        if abs(credit) > MAX_NANOUSD:
            raise SetupError("The credit would be more than 9 billion dollars.", hint="Top up by less.")
        writer.execute(INSERT_TOP_UP_SQL, msgspec.structs.astuple(top_up))
        writer.execute(SET_CREDIT_SQL, (credit, top_up.balance))
        writer.execute(INSERT_AUDIT_SQL, audit_values(topped_up(budget, top_up, credit, by)))
        return credit
