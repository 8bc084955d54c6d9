"""Rows of calls on PostgreSQL: many rows per statement, as one array per column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from mcpmeter.ledger.charges import CHARGE_COLUMNS, charge_values
from mcpmeter.ledger.postgres.balances import (
    Posting,
    postings_of,
    postings_of_row,
    reserve_and_settle,
    rewrite_claims,
    voidings_of,
)
from mcpmeter.ledger.postgres.sql import Db, execute
from mcpmeter.ledger.rows import (
    FALLBACK_SQL,
    OPEN_COLUMNS,
    SETTLED_COLUMNS,
    Taken,
    has_charge_row,
    open_values,
    settled_values,
    with_postings,
)
from mcpmeter.ledger.store import SettlementConflict, row_refused, settlement_conflict
from mcpmeter.ledger.sums import MAX_INT64
from mcpmeter.records import Call, LedgerRow, Settlement

_TEXTS: Final = frozenset(
    name for name, kind in LedgerRow.__annotations__.items() if "str" in str(kind) or "Literal" in str(kind)
) | {"call_id", "lines", "unknown", "conditions"}
_MAY_BE_NULL: Final = frozenset({"reported_cost_nanousd", "listed_nanousd"})


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
_SET_SETTLED: Final = (
    "UPDATE calls SET state = 'settled', "  # noqa: S608
    + ", ".join(f"{name} = s.{name}" for name in SETTLED_COLUMNS)
    + f" FROM unnest({_arrays(_SETTLE_COLUMNS)}) AS s({', '.join(_SETTLE_COLUMNS)}) WHERE calls.id = s.id"
)
SETTLE_SQL: Final = f"{_SET_SETTLED} AND calls.state = 'open' RETURNING calls.id, calls.claims".encode()
_REPLACE_SQL: Final = f"{_SET_SETTLED} AND calls.outcome = 'recovered'".encode()
_SETTLED_ALREADY_SQL: Final = (
    "SELECT calls.id, calls.state = 'settled' AND "  # noqa: S608
    + " AND ".join(f"calls.{name} IS NOT DISTINCT FROM s.{name}" for name in SETTLED_COLUMNS)
    + f" FROM unnest({_arrays(_SETTLE_COLUMNS)}) AS s({', '.join(_SETTLE_COLUMNS)}) JOIN calls ON calls.id = s.id"
).encode()
_TAKEN: Final = f"claims, model, cost_nanousd + {FALLBACK_SQL}, prompt_tokens + completion_tokens"
_LOCK_RECOVERED_SQL: Final = (
    f"SELECT id, {_TAKEN} FROM calls WHERE id = ANY($1::text[]) AND outcome = 'recovered' ORDER BY id FOR UPDATE"  # noqa: S608
)
_WITHDRAW_SQL: Final = (
    "DELETE FROM calls WHERE id = ANY($1::text[]) AND (state = 'open' OR outcome = 'recovered')"  # noqa: S608
    f" RETURNING state, {_TAKEN}"
)
_INSERT_CHARGES_SQL: Final = (
    f"INSERT INTO charges ({', '.join(CHARGE_COLUMNS)}) SELECT * FROM unnest({_arrays(CHARGE_COLUMNS)})"  # noqa: S608
).encode()
_CHARGES_SQL: Final = f"SELECT {', '.join(CHARGE_COLUMNS)} FROM charges WHERE call_id = ANY($1::text[])"  # noqa: S608
_DELETE_CHARGES_SQL: Final = "DELETE FROM charges WHERE call_id = ANY($1::text[])"
_DELETE_ORPHANS_SQL: Final = f"{_DELETE_CHARGES_SQL} AND NOT EXISTS (SELECT FROM calls WHERE id = call_id)"


def checked_open(call: Call) -> tuple[Any, ...]:
    """The values of an open row. Raises `RowRefused` if PostgreSQL cannot store one of them."""
    return _checked(OPEN_COLUMNS, open_values(call))


def checked_settled(settlement: Settlement) -> tuple[Any, ...]:
    """The values of a settled row. Raises `RowRefused` if PostgreSQL cannot store one of them."""
    return _checked(_SETTLE_COLUMNS, settled_values(settlement))


def checked_charge(settlement: Settlement) -> tuple[Any, ...]:
    """The values of a row of `charges`. Raises `RowRefused` if PostgreSQL cannot store one of them."""
    return _checked(CHARGE_COLUMNS, charge_values(settlement))


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


async def settle_rows(db: Db, settlements: Sequence[Settlement]) -> tuple[list[Posting], dict[str, SettlementConflict]]:
    """Settle rows. Returns what that changes of balances, and the conflicts by id.

    A repeated settlement is in neither. A row that was settled as recovered takes the true figures, once.
    """
    by_id = {settlement.call.id: settlement for settlement in settlements}
    rows = [checked_settled(settlement) for settlement in settlements]
    settled = await execute(db, SETTLE_SQL, _columns(rows))
    postings = [posting for call_id, claims in settled for posting in postings_of(by_id[call_id], claims)]
    await _keep_postings(db, settled, by_id)
    await _insert_charges(db, [by_id[call_id] for call_id, _ in settled])
    if len(settled) == len(rows):
        return postings, {}
    for call_id, _ in settled:
        del by_id[call_id]
    postings += await _replace_recovered(db, by_id)
    rest = [row for row in rows if row[0] in by_id]
    found = dict(await execute(db, _SETTLED_ALREADY_SQL, _columns(rest)))
    charged_otherwise = await _charged_otherwise(db, by_id)
    conflicts = [call_id for call_id in by_id if not found.get(call_id) or call_id in charged_otherwise]
    return postings, {call_id: settlement_conflict(opened=call_id in found) for call_id in conflicts}


async def _insert_charges(db: Db, settlements: Sequence[Settlement]) -> None:
    rows = [checked_charge(settlement) for settlement in settlements if has_charge_row(settlement)]
    if rows:
        await execute(db, _INSERT_CHARGES_SQL, _columns(rows))


async def _charged_otherwise(db: Db, by_id: Mapping[str, Settlement]) -> set[str]:
    """The calls whose row of `charges` is not the settlement's."""
    kept = {row[0]: row for row in await execute(db, _CHARGES_SQL, (list(by_id),))}
    return {
        call_id
        for call_id, settlement in by_id.items()
        if (charge_values(settlement) if has_charge_row(settlement) else None) != kept.get(call_id)
    }


async def _replace_recovered(db: Db, by_id: Mapping[str, Settlement]) -> list[Posting]:
    true = {call_id: settlement for call_id, settlement in by_id.items() if settlement.outcome != "recovered"}
    recovered = await execute(db, _LOCK_RECOVERED_SQL, (sorted(true),)) if true else []
    if not recovered:
        return []
    rows = [checked_settled(true[call_id]) for call_id, *_ in recovered]
    await execute(db, _REPLACE_SQL, _columns(rows))
    await _keep_postings(db, [(call_id, claims) for call_id, claims, *_ in recovered], true)
    await execute(db, _DELETE_CHARGES_SQL, ([row[0] for row in rows],))
    await _insert_charges(db, [true[row[0]] for row in rows])
    return [
        posting
        for call_id, claims, *taken in recovered
        for posting in postings_of_row(claims, Taken(*taken), true[call_id])
    ]


async def _keep_postings(db: Db, rows: Iterable[tuple[Any, ...]], by_id: Mapping[str, Settlement]) -> None:
    """Write what each balance gets of calls of several models into their rows."""
    split = [(call_id, claims) for call_id, claims in rows if by_id[call_id].postings]
    await rewrite_claims(db, {call_id: with_postings(claims, by_id[call_id]) for call_id, claims in split})


async def withdraw_rows(db: Db, ids: Sequence[str]) -> None:
    """Delete rows of calls that were never made, whether open or recovered by another replica, and what they took."""
    postings: list[Posting] = []
    for state, claims, *taken in await execute(db, _WITHDRAW_SQL, (ids,)):
        postings += voidings_of(state, claims, Taken(*taken))
    await execute(db, _DELETE_ORPHANS_SQL, (ids,))
    await reserve_and_settle(db, (), postings)


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [[int(value) if type(value) is bool else value for value in column] for column in zip(*rows, strict=True)]
