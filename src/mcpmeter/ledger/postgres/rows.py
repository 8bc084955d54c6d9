"""Calls to rows of PostgreSQL and back: many rows a statement, as one array a column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from psycopg import AsyncConnection, AsyncRawCursor

from mcpmeter.ledger.reservations import KeptReservation, read_claims
from mcpmeter.ledger.rows import OPEN_COLUMNS, SETTLED_COLUMNS, open_values, settled_values
from mcpmeter.ledger.store import RowRefused, SettlementConflict
from mcpmeter.records import Call, LedgerRow, Settlement

Db = AsyncConnection[Any]

MOST: Final = 2**63 - 1

_TEXTS: Final = frozenset(
    name for name, kind in LedgerRow.__annotations__.items() if "str" in str(kind) or "Literal" in str(kind)
)
_MAY_BE_NULL: Final = frozenset({"reported_cost_nanousd"})


def _arrays(columns: Sequence[str]) -> str:
    types = ("text" if name in _TEXTS else "bigint" for name in columns)
    return ", ".join(f"${place}::{kind}[]" for place, kind in enumerate(types, start=1))


_SETTLING: Final = ("id", *SETTLED_COLUMNS)
_OPENED: Final = (*OPEN_COLUMNS, "owner")

# Only constants are ever joined into SQL; every value is a parameter.
OPEN_SQL: Final = (
    f"INSERT INTO calls ({', '.join(_OPENED)})"  # noqa: S608
    f" SELECT * FROM unnest({_arrays(OPEN_COLUMNS)}, ${len(_OPENED)}::text[])"
).encode()
SETTLE_SQL: Final = (
    "UPDATE calls SET state = 'settled', "  # noqa: S608
    + ", ".join(f"{name} = s.{name}" for name in SETTLED_COLUMNS)
    + f" FROM unnest({_arrays(_SETTLING)}) AS s({', '.join(_SETTLING)})"
    + " WHERE calls.id = s.id AND calls.state = 'open' RETURNING calls.id, calls.claims"
).encode()
_SETTLED_ALREADY_SQL: Final = (
    "SELECT calls.id, calls.state = 'settled' AND "  # noqa: S608
    + " AND ".join(f"calls.{name} IS NOT DISTINCT FROM s.{name}" for name in SETTLED_COLUMNS)
    + f" FROM unnest({_arrays(_SETTLING)}) AS s({', '.join(_SETTLING)}) JOIN calls ON calls.id = s.id"
).encode()


def fitting_open(call: Call) -> tuple[Any, ...]:
    """A call's columns, if PostgreSQL can hold them. Raises `RowRefused`."""
    return _fitting(OPEN_COLUMNS, open_values(call))


def fitting_settled(settlement: Settlement) -> tuple[Any, ...]:
    """A settlement's columns, if PostgreSQL can hold them. Raises `RowRefused`."""
    return _fitting(_SETTLING, settled_values(settlement))


def refused(what: str) -> RowRefused:
    """The refusal of one row; `what` never quotes a value."""
    return RowRefused(f"The ledger refused this row: {what}.", hint="This is a fault of mcpmeter; please report it.")


def _fitting(columns: Sequence[str], values: tuple[Any, ...]) -> tuple[Any, ...]:
    # Here and not in PostgreSQL, where one such value would take the whole batch with it.
    for name, value in zip(columns, values, strict=True):
        if name in _TEXTS:
            if not isinstance(value, str):
                raise refused(f"{name} has the wrong type")
            if "\x00" in value or not _is_unicode(value):
                raise refused(f"{name} is not valid Unicode that PostgreSQL can hold")
        elif value is None and name in _MAY_BE_NULL:
            continue
        elif not isinstance(value, int):
            raise refused(f"{name} has the wrong type")
        elif not -MOST <= value <= MOST:
            raise refused(f"{name} does not fit into 64 bits")
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
    """Settle rows: what each had claimed, by id; and the conflicts. One that was settled so before is in neither."""
    columns = _columns(rows)
    claimed = {str(row[0]): read_claims(row[1]) for row in await execute(db, SETTLE_SQL, columns)}
    if len(claimed) == len(rows):
        return claimed, {}
    found = dict(await execute(db, _SETTLED_ALREADY_SQL, columns))
    left = [str(row[0]) for row in rows if row[0] not in claimed]
    return claimed, {row_id: _conflict(row_id in found) for row_id in left if not found.get(row_id)}


def _conflict(known: bool) -> SettlementConflict:
    if known:
        return SettlementConflict("This call was settled already, with other figures.", hint="The first ones stay.")
    return SettlementConflict("No call with this id was opened.", hint="Open the call before settling it.")


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [[int(value) if type(value) is bool else value for value in column] for column in zip(*rows, strict=True)]


async def execute(db: Db, sql: bytes | str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Run one statement with `$1` parameters; returns its rows, if it has any."""
    cursor = AsyncRawCursor(db)
    await cursor.execute(sql if isinstance(sql, bytes) else sql.encode(), values)
    return await cursor.fetchall() if cursor.description else []
