"""Rows of calls on PostgreSQL: many rows per statement, as one array per column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from mcpmeter.ledger.postgres.sql import Db, execute
from mcpmeter.ledger.rows import (
    OPEN_COLUMNS,
    SETTLED_COLUMNS,
    KeptReservation,
    decode_reservations,
    open_values,
    settled_values,
)
from mcpmeter.ledger.store import SettlementConflict, row_refused, settlement_conflict
from mcpmeter.ledger.sums import MAX_INT64
from mcpmeter.records import Call, LedgerRow, Settlement

_TEXTS: Final = frozenset(
    name for name, kind in LedgerRow.__annotations__.items() if "str" in str(kind) or "Literal" in str(kind)
)
_MAY_BE_NULL: Final = frozenset({"reported_cost_nanousd"})


def _arrays(columns: Sequence[str]) -> str:
    types = ("text" if name in _TEXTS else "bigint" for name in columns)
    return ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(types, start=1))


_SETTLE_COLUMNS: Final = ("id", *SETTLED_COLUMNS)
_INSERT_COLUMNS: Final = (*OPEN_COLUMNS, "owner")

# Only constants are ever joined into SQL; every value is a parameter.
OPEN_SQL: Final = (
    f"INSERT INTO calls ({', '.join(_INSERT_COLUMNS)})"  # noqa: S608
    f" SELECT * FROM unnest({_arrays(OPEN_COLUMNS)}, ${len(_INSERT_COLUMNS)}::text[])"
).encode()
SETTLE_SQL: Final = (
    "UPDATE calls SET state = 'settled', "  # noqa: S608
    + ", ".join(f"{name} = s.{name}" for name in SETTLED_COLUMNS)
    + f" FROM unnest({_arrays(_SETTLE_COLUMNS)}) AS s({', '.join(_SETTLE_COLUMNS)})"
    + " WHERE calls.id = s.id AND calls.state = 'open' RETURNING calls.id, calls.claims"
).encode()
_SETTLED_ALREADY_SQL: Final = (
    "SELECT calls.id, calls.state = 'settled' AND "  # noqa: S608
    + " AND ".join(f"calls.{name} IS NOT DISTINCT FROM s.{name}" for name in SETTLED_COLUMNS)
    + f" FROM unnest({_arrays(_SETTLE_COLUMNS)}) AS s({', '.join(_SETTLE_COLUMNS)}) JOIN calls ON calls.id = s.id"
).encode()


def checked_open(call: Call) -> tuple[Any, ...]:
    """The values of an open row. Raises `RowRefused` if PostgreSQL cannot store one of them."""
    return _checked(OPEN_COLUMNS, open_values(call))


def checked_settled(settlement: Settlement) -> tuple[Any, ...]:
    """The values of a settled row. Raises `RowRefused` if PostgreSQL cannot store one of them."""
    return _checked(_SETTLE_COLUMNS, settled_values(settlement))


def _checked(columns: Sequence[str], values: tuple[Any, ...]) -> tuple[Any, ...]:
    # Checked here and not by PostgreSQL, where one such value would fail the whole batch.
    for name, value in zip(columns, values, strict=True):
        if name in _TEXTS:
            if not isinstance(value, str):
                raise row_refused(f"{name} has the wrong type")
            if "\x00" in value or not _is_unicode(value):
                raise row_refused(f"{name} is not valid Unicode that PostgreSQL can hold")
        elif value is None and name in _MAY_BE_NULL:
            continue
        elif not isinstance(value, int):
            raise row_refused(f"{name} has the wrong type")
        elif not -MAX_INT64 <= value <= MAX_INT64:
            raise row_refused(f"{name} does not fit into 64 bits")
    return values


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


async def insert_open(db: Db, rows: Sequence[tuple[Any, ...]], owner: str) -> None:
    """Write open rows of one owner."""
    await execute(db, OPEN_SQL, [*_columns(rows), [owner] * len(rows)])


async def settle_rows(
    db: Db, rows: Sequence[tuple[Any, ...]]
) -> tuple[dict[str, list[KeptReservation]], dict[str, SettlementConflict]]:
    """Settle rows. Returns by id what each had reserved, and the conflicts; a repeated settlement is in neither."""
    columns = _columns(rows)
    reserved = {str(row[0]): decode_reservations(row[1]) for row in await execute(db, SETTLE_SQL, columns)}
    if len(reserved) == len(rows):
        return reserved, {}
    found = dict(await execute(db, _SETTLED_ALREADY_SQL, columns))
    not_settled = [str(row[0]) for row in rows if row[0] not in reserved]
    conflicts = {call_id for call_id in not_settled if not found.get(call_id)}
    return reserved, {call_id: settlement_conflict(opened=call_id in found) for call_id in conflicts}


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [[int(value) if type(value) is bool else value for value in column] for column in zip(*rows, strict=True)]
