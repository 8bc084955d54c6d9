"""Rows as transactions of SQLite: one alone, many together, and one by one where a bad one is among them."""

from __future__ import annotations

from typing import Final

import apsw

from mcpmeter.ledger.rows import (
    OPEN_SQL,
    SETTLE_RETURNING_SQL,
    SETTLE_SQL,
    open_values,
    settle_one,
    settled_values,
)
from mcpmeter.ledger.sqlite.balances import reserve, settle_claims
from mcpmeter.ledger.sqlite.migrations import transaction
from mcpmeter.ledger.store import InsufficientBudget, RowRefused, SettlementConflict
from mcpmeter.ledger.write_queue import OpenEntry, Refusal, Row, SettleEntry

ROW_FAULTS: Final = (
    apsw.ConstraintError,
    apsw.MismatchError,
    apsw.TooBigError,
    OverflowError,
    ValueError,
    TypeError,
    AttributeError,
)
"""Faults of one row and not of the ledger."""


def write_alone(db: apsw.Connection, row: Row) -> list[tuple[Row, Refusal]] | None:
    """A row that came alone: one statement is a transaction of its own, and takes the write lock at once as well.

    None, and nothing written, if it is not as it should be.
    """
    try:
        if isinstance(row, OpenEntry):
            db.execute(OPEN_SQL, open_values(row.call))
        else:
            db.execute(SETTLE_SQL, settled_values(row.settlement))
            if db.changes() != 1:
                return None
    except ROW_FAULTS:
        return None
    return []


def write_together(
    db: apsw.Connection, opens: list[OpenEntry], settles: list[SettleEntry], *, keeps_balances: bool
) -> list[tuple[Row, Refusal]] | None:
    """The usual case: one transaction, two statements. None, and nothing written, if any row is not as it should be.

    A call that a balance has no room for is no such case: it is told so, and the others are written.
    """
    refused: list[tuple[Row, Refusal]] = []
    try:
        with transaction(db):
            if keeps_balances:
                opens = _admitted(db, opens, refused)
            if opens:
                db.executemany(OPEN_SQL, [open_values(row.call) for row in opens])
            if settles:
                _settle_together(db, settles, keeps_balances=keeps_balances)
    except (_SomeNotSettled, *ROW_FAULTS):
        return None
    return refused


def _admitted(db: apsw.Connection, opens: list[OpenEntry], refused: list[tuple[Row, Refusal]]) -> list[OpenEntry]:
    admitted = []
    for row in opens:
        refusal = reserve(db, row.call) if row.call.reservations else None
        if refusal is None:
            admitted.append(row)
        else:
            refused.append((row, refusal))
    return admitted


def _settle_together(db: apsw.Connection, settles: list[SettleEntry], *, keeps_balances: bool) -> None:
    values = [settled_values(row.settlement) for row in settles]
    if not keeps_balances:
        before = db.total_changes()
        db.executemany(SETTLE_SQL, values)
        if db.total_changes() - before != len(settles):
            raise _SomeNotSettled
        return
    kept = db.executemany(SETTLE_RETURNING_SQL, values).fetchall()
    if len(kept) != len(settles):
        raise _SomeNotSettled
    for row, (claims,) in zip(settles, kept, strict=True):
        settle_claims(db, str(claims), row.settlement)


def write_one_by_one(db: apsw.Connection, rows: list[Row]) -> list[tuple[Row, Refusal]]:
    """The same transaction with a savepoint for each row, so that a bad one is alone in being refused."""
    failed: list[tuple[Row, Refusal]] = []
    with transaction(db):
        for row in rows:
            db.execute("SAVEPOINT one")
            try:
                if isinstance(row, SettleEntry):
                    settle_one(db, row.settlement)
                elif refusal := reserve(db, row.call):
                    raise refusal
                else:
                    db.execute(OPEN_SQL, open_values(row.call))
            except (SettlementConflict, InsufficientBudget) as refusal:
                failed.append((row, refusal))
            except ROW_FAULTS as error:
                db.execute("ROLLBACK TO one")
                failed.append((row, refusal_of(error)))
            db.execute("RELEASE one")
    return failed


class _SomeNotSettled(Exception):
    """Rolls the transaction back: a row is unknown or was settled before."""


def refusal_of(error: Exception) -> RowRefused:
    # SQLite names the column and the check, never the value; Python's own errors may quote it, so they are not quoted.
    if isinstance(error, apsw.Error):
        what = str(error)
    elif isinstance(error, OverflowError):
        what = "a number does not fit into 64 bits"
    elif isinstance(error, UnicodeError):
        what = "a text is not valid Unicode"
    else:
        what = "a value has the wrong type"
    return RowRefused(f"The ledger refused this row: {what}.", hint="This is a fault of mcpmeter; please report it.")
