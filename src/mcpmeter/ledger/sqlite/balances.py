"""Balances of limits on SQLite, inside the transaction that opens or settles a call: what a call reserves is on disk
with its row, and what it spent with its settlement, so that the two cannot disagree however the process ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, cast

import apsw
import msgspec

from mcpmeter.ledger.reservations import amount_taken, read_claims, taken_by_row, write_claims
from mcpmeter.ledger.store import InsufficientBudget
from mcpmeter.records import Balance, Call, Reservation, Settlement, TopUp, Unit

MOST: Final = 2**63 - 1

BALANCE_COLUMNS: Final = Balance.__struct_fields__
_RESERVE_SQL: Final = (
    "UPDATE balances SET reserved = reserved + ?3 WHERE balance = ?1 AND period_start_ns = ?2"
    " AND (?5 OR spent + reserved + ?3 <= ?4 + credit)"
)
_GIVE_BACK_SQL: Final = "UPDATE balances SET reserved = reserved - ?3 WHERE balance = ?1 AND period_start_ns = ?2"
_SETTLE_SQL: Final = (
    "UPDATE balances SET reserved = max(reserved - ?3, 0), spent = min(spent + ?4, 9223372036854775807)"
    " WHERE balance = ?1 AND period_start_ns = ?2"
)
SELECT_BALANCES_SQL: Final = f"SELECT {', '.join(BALANCE_COLUMNS)} FROM balances"  # noqa: S608 (constants only)
_ONE_SQL: Final = f"{SELECT_BALANCES_SQL} WHERE balance = ? AND period_start_ns = ?"
_INSERT_SQL: Final = (
    f"INSERT INTO balances ({', '.join(BALANCE_COLUMNS)})"  # noqa: S608 (constants only)
    f" VALUES ({', '.join('?' * len(BALANCE_COLUMNS))})"
)
_IN_SCOPE: Final = (
    "started_at_ns >= ?1 AND (?2 = 0 OR started_at_ns < ?2) AND (?3 = '' OR team = ?3) AND (?4 = '' OR project = ?4)"
    " AND (?5 = '' OR key_id = ?5) AND (?6 = '' OR model = ?6)"
)
_AMOUNT: Final[dict[Unit, str]] = {
    "nanousd": "cost_nanousd + fallback_cost_nanousd",
    "requests": "1",
    "tokens": "prompt_tokens + completion_tokens",
}
_CLAIMING_SQL: Final = f"SELECT state, claims, {_AMOUNT['nanousd']}, {_AMOUNT['tokens']} FROM calls WHERE claims <> ''"  # noqa: S608
_PRUNED_AMOUNT: Final = _AMOUNT | {"requests": "calls"}
_RESERVED: Final[dict[Unit, str]] = {
    "nanousd": "reserved_nanousd",
    "requests": "1",
    "tokens": "prompt_tokens_estimate",
}


def reserve(db: apsw.Connection, call: Call) -> InsufficientBudget | None:
    """Reserve what a call claims, all of it or nothing. Returns the claim that its balance has no room for."""
    for place, claim in enumerate(call.reservations):
        if not _reserve_one(db, claim):
            for before in call.reservations[:place]:
                db.execute(_GIVE_BACK_SQL, (before.balance, before.period_start_ns, before.amount))
            balance = _ensure_one(db, claim)
            return InsufficientBudget(claim, left=claim.limit + balance.credit - balance.spent - balance.reserved)
    return None


def _reserve_one(db: apsw.Connection, claim: Reservation) -> bool:
    values = (claim.balance, claim.period_start_ns, claim.amount, claim.limit, not claim.refuses)
    db.execute(_RESERVE_SQL, values)
    if db.changes():
        return True
    if _read_one(db, claim) is not None:
        return False
    _ensure_one(db, claim)
    db.execute(_RESERVE_SQL, values)
    return bool(db.changes())


def settle_claims(db: apsw.Connection, kept: str, settlement: Settlement) -> None:
    """What a call's row had reserved becomes what it took."""
    for balance, period_start_ns, unit, amount in read_claims(kept):
        db.execute(_SETTLE_SQL, (balance, period_start_ns, amount, amount_taken(unit, settlement)))


def ensure(db: apsw.Connection, claims: Iterable[Reservation]) -> list[Balance]:
    """The balances that these claims are about, made where there was none. Amounts of the claims do not matter."""
    return [_ensure_one(db, claim) for claim in claims]


def _ensure_one(db: apsw.Connection, claim: Reservation) -> Balance:
    found = _read_one(db, claim)
    if found is not None:
        return found
    carried = _carried(db, claim)
    balance = Balance(
        balance=claim.balance,
        unit=claim.unit,
        period_start_ns=claim.period_start_ns,
        period_end_ns=claim.period_end_ns,
        spent=carried,
        reserved=_claim_for_open_calls(db, claim),
        credit=_credit(db, claim.balance),
        carried=carried,
    )
    db.execute(_INSERT_SQL, msgspec.structs.astuple(balance))
    return balance


def _read_one(db: apsw.Connection, claim: Reservation) -> Balance | None:
    row = db.execute(_ONE_SQL, (claim.balance, claim.period_start_ns)).fetchone()
    return None if row is None else balance_of(row)


def _carried(db: apsw.Connection, claim: Reservation) -> int:
    """What calls took that were settled in this period before anybody kept its balance."""
    return _sum(db, claim.unit, _scope_values(claim))


def _sum(db: apsw.Connection, unit: Unit, scope: tuple[Any, ...]) -> int:
    halves = [_halves(amount) for amount in (_AMOUNT[unit], _PRUNED_AMOUNT[unit])]
    sql = (
        f"SELECT {halves[0]} FROM calls WHERE state = 'settled' AND {_IN_SCOPE}"  # noqa: S608 (constants only)
        f" UNION ALL SELECT {halves[1]} FROM pruned_calls WHERE {_IN_SCOPE}"
    )
    rows = cast("Iterable[tuple[int, int]]", db.execute(sql, scope))
    return min(sum((high << 32) + low for high, low in rows), MOST)


def _halves(amount: str) -> str:
    # Two halves, because a sum beyond 64 bits is an error in SQLite.
    return f"coalesce(sum(({amount}) >> 32), 0), coalesce(sum(({amount}) & 4294967295), 0)"


def _claim_for_open_calls(db: apsw.Connection, claim: Reservation) -> int:
    """Calls that are under way claim it too, with what they reserved when they were opened; returns their sum."""
    rows = db.execute(
        f"SELECT id, claims, {_RESERVED[claim.unit]} FROM calls INDEXED BY calls_open"  # noqa: S608
        f" WHERE state = 'open' AND {_IN_SCOPE}",
        _scope_values(claim),
    ).fetchall()
    reserved = 0
    for call_id, kept, amount in cast("list[tuple[str, str, int]]", rows):
        reserved += amount
        claims = [*read_claims(kept), (claim.balance, claim.period_start_ns, claim.unit, amount)]
        db.execute("UPDATE calls SET claims = ? WHERE id = ?", (write_claims(claims), call_id))
    return reserved


def _scope_values(claim: Reservation) -> tuple[Any, ...]:
    scope = claim.scope
    return (claim.period_start_ns, claim.period_end_ns, scope.team, scope.project, scope.key_id, scope.model)


def burn_nanousd(db: apsw.Connection, claim: Reservation, since_ns: int, until_ns: int) -> int:
    """What budgets count for the settled calls of a claim's scope that started in [since, until)."""
    scope = claim.scope
    return _sum(db, "nanousd", (since_ns, until_ns, scope.team, scope.project, scope.key_id, scope.model))


def read_balances(db: apsw.Connection, since_ns: int = 0) -> list[Balance]:
    """All balances whose period has not ended before an instant, by id and period."""
    rows = db.execute(
        f"{SELECT_BALANCES_SQL} WHERE period_end_ns = 0 OR period_end_ns > ? ORDER BY balance, period_start_ns",
        (since_ns,),
    )
    return [balance_of(row) for row in rows]


def claimed_by_calls(
    rows: Callable[[str], Iterable[Sequence[Any]]],
) -> tuple[Counter[tuple[str, int]], Counter[tuple[str, int]]]:
    """What the calls in the ledger, and those that were pruned, say of each balance and period: spent, reserved.

    `rows` answers a SELECT of either engine.
    """
    spent: Counter[tuple[str, int]] = Counter()
    reserved: Counter[tuple[str, int]] = Counter()
    for state, kept, nanousd, tokens in rows(_CLAIMING_SQL):
        for balance, start_ns, unit, amount in read_claims(kept):
            if state == "open":
                reserved[balance, start_ns] += amount
            else:
                spent[balance, start_ns] += taken_by_row(unit, nanousd, tokens)
    for balance, start_ns, amount in rows("SELECT balance, period_start_ns, spent FROM pruned_claims"):
        spent[balance, start_ns] += amount
    return spent, reserved


def forget_minutes(db: apsw.Connection, before_ns: int) -> None:
    """Rates are limited by the minute; those that are over, and owe nothing, are of no use to anybody."""
    db.execute("DELETE FROM balances WHERE unit <> 'nanousd' AND period_end_ns < ? AND reserved = 0", (before_ns,))


def add_top_up(db: apsw.Connection, top_up: TopUp) -> int:
    """Keep a top-up and add it to its balance. Returns the credit, all top-ups together."""
    db.execute(
        "INSERT INTO top_ups (id, balance, amount_nanousd, at_ns, note) VALUES (?, ?, ?, ?, ?)",
        (top_up.id, top_up.balance, top_up.amount_nanousd, top_up.at_ns, top_up.note),
    )
    credit = _credit(db, top_up.balance)
    db.execute("UPDATE balances SET credit = ? WHERE balance = ?", (credit, top_up.balance))
    return credit


def read_top_ups(db: apsw.Connection, balance: str = "") -> list[TopUp]:
    """Top-ups of one balance, or of all, oldest first."""
    rows = db.execute(
        "SELECT id, balance, amount_nanousd, at_ns, note FROM top_ups WHERE ?1 = '' OR balance = ?1 ORDER BY at_ns, id",
        (balance,),
    )
    return [msgspec.convert(dict(zip(TopUp.__struct_fields__, row, strict=True)), TopUp) for row in rows]


def _credit(db: apsw.Connection, balance: str) -> int:
    row: Sequence[Any] | None = db.execute(
        "SELECT coalesce(sum(amount_nanousd), 0) FROM top_ups WHERE balance = ?", (balance,)
    ).fetchone()
    return int(row[0]) if row else 0


def balance_of(row: Sequence[Any]) -> Balance:
    return msgspec.convert(dict(zip(BALANCE_COLUMNS, row, strict=True)), Balance)
