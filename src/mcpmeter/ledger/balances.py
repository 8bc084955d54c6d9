"""Balances of limits: the SQL and the arithmetic that both engines share. Parameters are `?1`, `?2`, …

A balance has what its settled calls spent and what its open calls reserve, in one period of a limit. It is made when
the first call needs it, from the calls of its scope so far, and then changes only with a call's row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec

from mcpmeter.ledger.charges import lines_of
from mcpmeter.ledger.rows import FALLBACK_SQL, Taken, decode_reservations
from mcpmeter.ledger.sums import MAX_INT64, halves, whole_of
from mcpmeter.records import Balance, Reservation, TopUp, Unit

BalanceKey = tuple[str, int]
"""A balance and the start of its period."""

KEPT_MINUTES_NS: Final = 3600 * 10**9
"""How long the balance of a rate limit's minute is kept; a clock that steps back by less finds it again."""

BALANCE_COLUMNS: Final = Balance.__struct_fields__
TOP_UP_COLUMNS: Final = TopUp.__struct_fields__

# Only constants are ever joined into SQL; every value is a parameter.
SELECT_BALANCES_SQL: Final = f"SELECT {', '.join(BALANCE_COLUMNS)} FROM balances"  # noqa: S608
INSERT_BALANCE_SQL: Final = (
    f"INSERT INTO balances ({', '.join(BALANCE_COLUMNS)}) VALUES ({', '.join('?' * len(BALANCE_COLUMNS))})"  # noqa: S608
)
INSERT_TOP_UP_SQL: Final = (
    f"INSERT INTO top_ups ({', '.join(TOP_UP_COLUMNS)}) VALUES ({', '.join('?' * len(TOP_UP_COLUMNS))})"  # noqa: S608
)
CREDIT_SQL: Final = "SELECT coalesce(sum(amount_nanousd), 0) FROM top_ups WHERE balance = ?1"
SET_CREDIT_SQL: Final = "UPDATE balances SET credit = ?1 WHERE balance = ?2"

_IN_SCOPE: Final = (
    "started_at_ns >= ?1 AND (?2 = 0 OR started_at_ns < ?2) AND (?3 = '' OR team = ?3) AND (?4 = '' OR project = ?4)"
    " AND (?5 = '' OR key_id = ?5) AND (?6 = '' OR model = ?6)"
)
_SPENT: Final[dict[Unit, tuple[str, ...]]] = {
    "nanousd": ("cost_nanousd", "fallback_cost_nanousd"),
    "requests": ("CAST(1 AS bigint)",),  # PostgreSQL shifts a plain 1 as 32 bits
    "tokens": ("prompt_tokens", "completion_tokens"),
}
# CROSS JOIN keeps SQLite from reading every call of the period to look up the few that have such a row.
_UNPRICED_ITEMS_SQL: Final = (
    f"SELECT {halves('fallback_nanousd')} FROM charges CROSS JOIN calls WHERE call_id = calls.id"  # noqa: S608
    f" AND call_started_at_ns >= ?1 AND (?2 = 0 OR call_started_at_ns < ?2) AND {_IN_SCOPE}"
)
_RESERVED: Final[dict[Unit, str]] = {
    "nanousd": "reserved_nanousd",
    "requests": "1",
    "tokens": "prompt_tokens_estimate",
}
_RESERVING_SQL: Final = (
    f"SELECT state, claims, model, cost_nanousd, {FALLBACK_SQL}, prompt_tokens, completion_tokens"  # noqa: S608
    " FROM calls WHERE claims <> ''"
)


_OTHER_LINES: Final = (
    "SELECT model, '', lines, 0 FROM charges CROSS JOIN calls WHERE call_id = calls.id AND other_models = 1"
    " AND call_started_at_ns >= ?1 AND (?2 = 0 OR call_started_at_ns < ?2) AND ",
    "SELECT model, line_model, '', line_nanousd FROM pruned_lines WHERE line_model <> '' AND ",
)
_IN_SCOPE_OF_ANY_MODEL: Final = _IN_SCOPE.replace("(?6 = '' OR model = ?6)", "?6 <> ''")
OTHER_LINES_SQL: Final = " UNION ALL ".join(select + _IN_SCOPE_OF_ANY_MODEL for select in _OTHER_LINES)
"""What other models than their own the calls of a scope with a model were billed for; the model is not compared."""


def moved_by_lines(rows: Iterable[Sequence[Any]], model: str) -> int:
    """What the rows of `OTHER_LINES_SQL` change of the sum of `spent_sql`, which counts calls by their own model."""
    moved = 0
    for own, line_model, lines, nanousd in rows:
        parts = [(line_model, nanousd)] if line_model else [(line.model, line.nanousd or 0) for line in lines_of(lines)]
        moved += sum(amount * ((other == model) - (own == model)) for other, amount in parts if other)
    return moved


def spent_sql(unit: Unit) -> str:
    """Rows of halves: what the settled calls of a scope spent, those that were pruned included."""
    pruned = ("calls",) if unit == "requests" else _SPENT[unit]
    sql = (
        f"SELECT {halves(*_SPENT[unit])} FROM calls WHERE state = 'settled' AND {_IN_SCOPE}"  # noqa: S608
        f" UNION ALL SELECT {halves(*pruned)} FROM pruned_calls WHERE {_IN_SCOPE}"
    )
    return f"{sql} UNION ALL {_UNPRICED_ITEMS_SQL}" if unit == "nanousd" else sql


def spent_of(rows: Iterable[Sequence[Any]], other_lines: Iterable[Sequence[Any]] = (), model: str = "") -> int:
    """The sum of the rows of `spent_sql`, with those of `OTHER_LINES_SQL`, as far as a column can hold it."""
    return min(max(whole_of(rows) + moved_by_lines(other_lines, model), 0), MAX_INT64)


def open_calls_sql(unit: Unit, calls: str = "calls") -> str:
    """Id, stored reservations and amount of the open calls of a scope."""
    return f"SELECT id, claims, {_RESERVED[unit]} FROM {calls} WHERE state = 'open' AND {_IN_SCOPE}"  # noqa: S608


def scope_values(
    reservation: Reservation, since_ns: int | None = None, until_ns: int | None = None
) -> tuple[int | str, ...]:
    """The parameters of `spent_sql` and `open_calls_sql`: the reservation's period unless another one is given."""
    scope = reservation.scope
    return (
        reservation.period_start_ns if since_ns is None else since_ns,
        reservation.period_end_ns if until_ns is None else until_ns,
        scope.team,
        scope.project,
        scope.key_id,
        scope.model,
    )


def new_balance(reservation: Reservation, *, spent: int, reserved: int, credit: int) -> Balance:
    """A balance as its calls make it before any call changes it."""
    return Balance(
        balance=reservation.balance,
        unit=reservation.unit,
        period_start_ns=reservation.period_start_ns,
        period_end_ns=reservation.period_end_ns,
        spent=spent,
        reserved=reserved,
        credit=credit,
        carried=spent,
    )


def balance_of(row: Sequence[Any]) -> Balance:
    """A balance from its columns, in the order of `BALANCE_COLUMNS`."""
    return msgspec.convert(dict(zip(BALANCE_COLUMNS, row, strict=True)), Balance)


def amounts_by_balance(
    rows: Callable[[str], Iterable[Sequence[Any]]],
) -> tuple[Counter[BalanceKey], Counter[BalanceKey]]:
    """What all calls, pruned ones included, spent and reserve of each balance. `rows` runs a SELECT."""
    spent: Counter[BalanceKey] = Counter()
    reserved: Counter[BalanceKey] = Counter()
    for state, claims, model, cost, fallback, prompt, completion in rows(_RESERVING_SQL):
        taken = Taken(model, cost + fallback, prompt + completion)
        for kept in decode_reservations(claims):
            if state == "open":
                reserved[kept.balance, kept.period_start_ns] += kept.amount
            else:
                spent[kept.balance, kept.period_start_ns] += taken.of(kept)
    for balance, start_ns, amount in rows("SELECT balance, period_start_ns, spent FROM pruned_claims"):
        spent[balance, start_ns] += amount
    return spent, reserved
