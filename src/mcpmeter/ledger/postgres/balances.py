"""Balances of limits on PostgreSQL, which several replicas share, inside the transaction that opens or settles calls.

Nothing dead-locks, because locks have one order: rows of calls before those of balances, and those by their name.
Making a balance has to see every call, those of other replicas that are just being written too, so it holds all writers
off for a moment, in a transaction of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from mcpmeter.ledger.postgres.rows import MOST, Db, execute, refused
from mcpmeter.ledger.reservations import KeptReservation, amount_taken, read_claims, write_claims
from mcpmeter.ledger.sqlite.balances import BALANCE_COLUMNS
from mcpmeter.ledger.store import InsufficientBudget
from mcpmeter.ledger.write_queue import Refusal
from mcpmeter.records import Balance, Call, Reservation, Settlement, TopUp, Unit

BalanceKey = tuple[str, int]
"""A balance and the start of its period."""

MAKING_LOCK: Final = 0x6D63706D62
"""`mcpmb`: one balance is made, or topped up, at a time."""

_LOCK_SQL: Final = (
    "SELECT balance, period_start_ns, spent, reserved, credit FROM balances"
    " WHERE (balance, period_start_ns) IN (SELECT * FROM unnest($1::text[], $2::bigint[]))"
    " ORDER BY balance, period_start_ns FOR UPDATE"
)
_KEEP_SQL: Final = (
    "UPDATE balances SET spent = b.spent, reserved = b.reserved"
    " FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) AS b(balance, period_start_ns, spent, reserved)"
    " WHERE balances.balance = b.balance AND balances.period_start_ns = b.period_start_ns"
)
_SELECT_SQL: Final = f"SELECT {', '.join(BALANCE_COLUMNS)} FROM balances"  # noqa: S608 (constants only)
_FIND_SQL: Final = (
    f"{_SELECT_SQL} WHERE (balance, period_start_ns)"  # noqa: S608 (constants only)
    " IN (SELECT * FROM unnest($1::text[], $2::bigint[]))"
)
_INSERT_SQL: Final = (
    f"INSERT INTO balances ({', '.join(BALANCE_COLUMNS)})"  # noqa: S608 (constants only)
    f" VALUES ({', '.join(f'${place}' for place in range(1, len(BALANCE_COLUMNS) + 1))})"
)
_IN_SCOPE: Final = (
    "started_at_ns >= $1::bigint AND ($2::bigint = 0 OR started_at_ns < $2) AND ($3::text = '' OR team = $3)"
    " AND ($4::text = '' OR project = $4) AND ($5::text = '' OR key_id = $5) AND ($6::text = '' OR model = $6)"
)
_AMOUNT: Final[dict[Unit, str]] = {
    "nanousd": "cost_nanousd::numeric + fallback_cost_nanousd",
    "requests": "1",
    "tokens": "prompt_tokens::numeric + completion_tokens",
}
_PRUNED_AMOUNT: Final = _AMOUNT | {"requests": "calls"}
_RESERVED: Final[dict[Unit, str]] = {
    "nanousd": "reserved_nanousd",
    "requests": "1",
    "tokens": "prompt_tokens_estimate",
}


class BalanceMissing(Exception):
    """A claim is about a balance that nobody keeps yet: the transaction has to begin anew, after `make_balances`."""


class Taken:
    """A balance in this transaction's hands."""

    __slots__ = ("credit", "reserved", "spent")

    def __init__(self, spent: int, reserved: int, credit: int) -> None:
        self.spent, self.reserved, self.credit = spent, reserved, credit


async def reserve_and_settle(
    db: Db, opens: Iterable[Call], settled: Iterable[tuple[Settlement, list[KeptReservation]]]
) -> dict[str, Refusal]:
    """Turn what settled calls had reserved into what they took, then reserve what opened ones claim.

    Returns the refusals by the call's id; such a call has reserved nothing. Raises `BalanceMissing`.
    """
    asking = [call for call in opens if call.reservations]
    ending = [(settlement, kept) for settlement, kept in settled if kept]
    wanted = {(claim.balance, claim.period_start_ns) for call in asking for claim in call.reservations}
    slots = wanted | {(balance, start) for _, kept in ending for balance, start, _, _ in kept}
    if not slots:
        return {}
    held = await _lock(db, slots)
    if wanted - held.keys():
        raise BalanceMissing
    for settlement, kept in ending:
        _settle(held, settlement, kept)
    answers = [(call.id, _reserve(held, call)) for call in asking]
    refusals = {call_id: refusal for call_id, refusal in answers if refusal is not None}
    await _keep(db, held)
    return refusals


async def give_back(db: Db, claims: Iterable[KeptReservation]) -> None:
    """Release what calls had reserved that were never made."""
    kept = list(claims)
    held = await _lock(db, {(balance, start) for balance, start, _, _ in kept})
    for balance, start, _, amount in kept:
        if balance_held := held.get((balance, start)):
            balance_held.reserved = max(balance_held.reserved - amount, 0)
    await _keep(db, held)


async def _lock(db: Db, slots: Iterable[BalanceKey]) -> dict[BalanceKey, Taken]:
    balances, starts = zip(*sorted(slots), strict=True) if slots else ((), ())
    rows = await execute(db, _LOCK_SQL, (list(balances), list(starts)))
    return {(row[0], row[1]): Taken(*row[2:]) for row in rows}


async def _keep(db: Db, held: Mapping[BalanceKey, Taken]) -> None:
    rows = [(balance, start, taken.spent, taken.reserved) for (balance, start), taken in held.items()]
    if rows:
        await execute(db, _KEEP_SQL, [list(column) for column in zip(*rows, strict=True)])


def _settle(held: Mapping[BalanceKey, Taken], settlement: Settlement, kept: Sequence[KeptReservation]) -> None:
    for balance, start, unit, amount in kept:
        if taken := held.get((balance, start)):
            taken.reserved = max(taken.reserved - amount, 0)
            taken.spent = min(taken.spent + amount_taken(unit, settlement), MOST)


def _reserve(held: Mapping[BalanceKey, Taken], call: Call) -> Refusal | None:
    for claim in call.reservations:
        taken = held[claim.balance, claim.period_start_ns]
        left = claim.limit + taken.credit - taken.spent - taken.reserved
        if claim.refuses and claim.amount > left:
            return InsufficientBudget(claim, left=left)
        if not 0 <= taken.reserved + claim.amount <= MOST:
            return refused("what it reserves does not fit into 64 bits")
    for claim in call.reservations:
        held[claim.balance, claim.period_start_ns].reserved += claim.amount
    return None


# Making balances ----------------------------------------------------------------------------------------------------


async def find_balances(db: Db, claims: Sequence[Reservation]) -> dict[BalanceKey, Balance]:
    """The balances of these claims that are kept."""
    rows = await execute(
        db,
        _FIND_SQL,
        ([claim.balance for claim in claims], [claim.period_start_ns for claim in claims]),
    )
    kept = [msgspec.convert(dict(zip(BALANCE_COLUMNS, row, strict=True)), Balance) for row in rows]
    return {(balance.balance, balance.period_start_ns): balance for balance in kept}


async def make_balances(db: Db, claims: Sequence[Reservation]) -> None:
    """Make the balances of these claims that nobody keeps, from the calls so far. The transaction's first statement."""
    await execute(db, "SELECT pg_advisory_xact_lock($1)", (MAKING_LOCK,))
    await execute(db, "LOCK TABLE calls IN SHARE ROW EXCLUSIVE MODE")
    for claim in claims:
        if not await find_balances(db, [claim]):
            await _make(db, claim)


async def _make(db: Db, claim: Reservation) -> None:
    carried = await _sum(db, claim.unit, _scope_values(claim))
    balance = Balance(
        balance=claim.balance,
        unit=claim.unit,
        period_start_ns=claim.period_start_ns,
        period_end_ns=claim.period_end_ns,
        spent=carried,
        reserved=await _claim_for_open_calls(db, claim),
        credit=await _credit(db, claim.balance),
        carried=carried,
    )
    await execute(db, _INSERT_SQL, msgspec.structs.astuple(balance))


async def _claim_for_open_calls(db: Db, claim: Reservation) -> int:
    """Calls that are under way claim it too, with what they reserved when they were opened; returns their sum."""
    rows = await execute(
        db,
        f"SELECT id, claims, {_RESERVED[claim.unit]} FROM calls WHERE state = 'open' AND {_IN_SCOPE}",  # noqa: S608
        _scope_values(claim),
    )
    claimed = [
        (call_id, write_claims([*read_claims(kept), (claim.balance, claim.period_start_ns, claim.unit, amount)]))
        for call_id, kept, amount in rows
    ]
    if claimed:
        await execute(
            db,
            "UPDATE calls SET claims = c.claims FROM unnest($1::text[], $2::text[]) AS c(id, claims)"
            " WHERE calls.id = c.id",
            [list(column) for column in zip(*claimed, strict=True)],
        )
    return min(sum(int(amount) for _, _, amount in rows), MOST)


async def burn_nanousd(db: Db, claim: Reservation, since_ns: int, until_ns: int) -> int:
    """What budgets count for the settled calls of a claim's scope that started in [since, until)."""
    scope = claim.scope
    return await _sum(db, "nanousd", (since_ns, until_ns, scope.team, scope.project, scope.key_id, scope.model))


async def _sum(db: Db, unit: Unit, scope: tuple[Any, ...]) -> int:
    sql = (
        f"SELECT coalesce(sum({_AMOUNT[unit]}), 0) FROM calls WHERE state = 'settled' AND {_IN_SCOPE}"  # noqa: S608
        f" UNION ALL SELECT coalesce(sum({_PRUNED_AMOUNT[unit]}), 0) FROM pruned_calls WHERE {_IN_SCOPE}"
    )
    return min(sum(int(total) for (total,) in await execute(db, sql, scope)), MOST)


def _scope_values(claim: Reservation) -> tuple[Any, ...]:
    scope = claim.scope
    return (claim.period_start_ns, claim.period_end_ns, scope.team, scope.project, scope.key_id, scope.model)


async def forget_minutes(db: Db, before_ns: int) -> None:
    """Rates are limited by the minute; those that are over, and owe nothing, are of no use to anybody."""
    await execute(
        db,
        "DELETE FROM balances WHERE (balance, period_start_ns) IN (SELECT balance, period_start_ns FROM balances"
        " WHERE unit <> 'nanousd' AND period_end_ns < $1::bigint AND reserved = 0 FOR UPDATE SKIP LOCKED)",
        (before_ns,),
    )


async def add_top_up(db: Db, top_up: TopUp) -> int:
    """Keep a top-up and add it to its balance. Returns the credit, all top-ups together."""
    await execute(db, "SELECT pg_advisory_xact_lock($1)", (MAKING_LOCK,))
    await execute(
        db,
        "INSERT INTO top_ups (id, balance, amount_nanousd, at_ns, note) VALUES ($1, $2, $3, $4, $5)",
        (top_up.id, top_up.balance, top_up.amount_nanousd, top_up.at_ns, top_up.note),
    )
    credit = await _credit(db, top_up.balance)
    await execute(db, "UPDATE balances SET credit = $1 WHERE balance = $2", (credit, top_up.balance))
    return credit


async def _credit(db: Db, balance: str) -> int:
    [(credit,)] = await execute(
        db, "SELECT coalesce(sum(amount_nanousd), 0) FROM top_ups WHERE balance = $1", (balance,)
    )
    return int(credit)
