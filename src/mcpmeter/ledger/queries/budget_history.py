"""Balances of budgets for commands: read, and topped up, beside a service that may be running on the same ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from mcpmeter.errors import SetupError
from mcpmeter.ledger.location import Location
from mcpmeter.ledger.queries.reader import Reader, Writer, open_reader, open_writer, require_ledger
from mcpmeter.money import MAX_NANOUSD
from mcpmeter.records import Balance, Reservation, TopUp

_COLUMNS: Final = ", ".join(Balance.__struct_fields__)
_TOP_UP_COLUMNS: Final = ", ".join(TopUp.__struct_fields__)
_IN_SCOPE: Final = (
    "started_at_ns >= ?1 AND (?2 = 0 OR started_at_ns < ?2) AND (?3 = '' OR team = ?3) AND (?4 = '' OR project = ?4)"
    " AND (?5 = '' OR key_id = ?5) AND (?6 = '' OR model = ?6)"
)
# Summed as two halves, because a sum beyond 64 bits is an error in SQLite.
_HALVES: Final = (
    "SELECT coalesce(sum((cost_nanousd + fallback_cost_nanousd) >> 32), 0),"
    " coalesce(sum((cost_nanousd + fallback_cost_nanousd) & 4294967295), 0) FROM"
)
_TAKEN: Final = (
    f"{_HALVES} calls WHERE state = 'settled' AND {_IN_SCOPE} UNION ALL {_HALVES} pruned_calls WHERE {_IN_SCOPE}"
)
_RESERVED: Final = f"SELECT coalesce(sum(reserved_nanousd), 0) FROM calls WHERE state = 'open' AND {_IN_SCOPE}"  # noqa: S608
_CREDIT: Final = "SELECT coalesce(sum(amount_nanousd), 0) FROM top_ups WHERE balance = ?1"


class BudgetHistory(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger knows of a budget: its present period, what burned lately, the periods before, its top-ups."""

    balance: Balance
    burned_nanousd: int
    periods: list[Balance]
    """Those that the ledger kept, the latest first; the present one among them once it has seen a call."""
    top_ups: list[TopUp]
    """The oldest first."""


def read_histories(ledger: Location, claims: Sequence[tuple[Reservation, int]], now_ns: int) -> list[BudgetHistory]:
    """How the balances of these claims stand; what burned is asked for since the instant beside each claim.

    A balance that no call has touched yet is what the calls of its scope make of it. Raises `LedgerNotUsable`.
    """
    with open_reader(ledger) as reader:
        return [_standing(reader, claim, since_ns, now_ns) for claim, since_ns in claims]


def _standing(reader: Reader, claim: Reservation, since_ns: int, now_ns: int) -> BudgetHistory:
    rows = reader.rows(f"SELECT {_COLUMNS} FROM balances WHERE balance = ?1", (claim.balance,))  # noqa: S608
    kept = [msgspec.convert(dict(zip(Balance.__struct_fields__, row, strict=True)), Balance) for row in rows]
    kept.sort(key=lambda balance: -balance.period_start_ns)
    present = next((balance for balance in kept if balance.period_start_ns == claim.period_start_ns), None)
    return BudgetHistory(
        balance=present or _made_of_calls(reader, claim),
        burned_nanousd=_taken(reader, claim, since_ns, now_ns),
        periods=kept,
        top_ups=_top_ups(reader, claim.balance),
    )


def _made_of_calls(reader: Reader, claim: Reservation) -> Balance:
    spent = _taken(reader, claim, claim.period_start_ns, claim.period_end_ns)
    ((reserved,),) = reader.rows(_RESERVED, _scope(claim, claim.period_start_ns, claim.period_end_ns))
    ((credit,),) = reader.rows(_CREDIT, (claim.balance,))
    return Balance(
        balance=claim.balance,
        unit="nanousd",
        period_start_ns=claim.period_start_ns,
        period_end_ns=claim.period_end_ns,
        spent=spent,
        reserved=int(reserved),
        credit=int(credit),
        carried=spent,
    )


def _taken(reader: Reader, claim: Reservation, since_ns: int, until_ns: int) -> int:
    rows = reader.rows(_TAKEN, _scope(claim, since_ns, until_ns))
    return sum((int(high) << 32) + int(low) for high, low in rows)


def _scope(claim: Reservation, since_ns: int, until_ns: int) -> tuple[int | str, ...]:
    scope = claim.scope
    return (since_ns, until_ns, scope.team, scope.project, scope.key_id, scope.model)


def _top_ups(reader: Reader, balance: str) -> list[TopUp]:
    sql = f"SELECT {_TOP_UP_COLUMNS} FROM top_ups WHERE balance = ?1 ORDER BY at_ns, id"  # noqa: S608
    rows = reader.rows(sql, (balance,))
    return [msgspec.convert(dict(zip(TopUp.__struct_fields__, row, strict=True)), TopUp) for row in rows]


def add_top_up(ledger: Location, top_up: TopUp) -> int:
    """Keep a top-up durably; returns the balance's whole credit. A running service counts it with the next call.

    Raises `LedgerNotUsable`, also where there is no ledger yet: a slip in its name must not swallow money.
    """
    require_ledger(ledger)
    with open_writer(ledger) as writer:
        credit = _credit(writer, top_up.balance) + top_up.amount_nanousd
        if abs(credit) > MAX_NANOUSD:
            raise SetupError("The credit would be more than 9 billion dollars.", hint="Top up by less.")
        writer.execute(
            f"INSERT INTO top_ups ({_TOP_UP_COLUMNS}) VALUES (?, ?, ?, ?, ?)",  # noqa: S608 (constants only)
            msgspec.structs.astuple(top_up),
        )
        # Added and not set: two top-ups at once must both count.
        writer.execute(
            "UPDATE balances SET credit = credit + ? WHERE balance = ?", (top_up.amount_nanousd, top_up.balance)
        )
        return credit


def _credit(writer: Writer, balance: str) -> int:
    ((credit,),) = writer.execute(_CREDIT, (balance,))
    return int(credit)
