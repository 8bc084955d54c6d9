"""Verify a ledger: its file, its rows, its sums and its balances, all in one snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from mcpmeter.errors import LedgerNotUsable
from mcpmeter.ledger.audit import AUDIT_ACTIONS
from mcpmeter.ledger.balances import SELECT_BALANCES_SQL, amounts_by_balance, balance_of
from mcpmeter.ledger.charges import CHARGE_COLUMNS, charge_of
from mcpmeter.ledger.location import Location
from mcpmeter.ledger.objects import PENDING_IDS_SQL
from mcpmeter.ledger.queries.reader import Reader, open_reader
from mcpmeter.ledger.queries.selection import GROUPINGS, Selection
from mcpmeter.ledger.queries.totals import Total, select_in
from mcpmeter.ledger.sqlite.connection import lock_holder
from mcpmeter.ledger.sums import MAX_INT64
from mcpmeter.records import Balance

MAX_FAULTS: Final = 20

_ROW_FAULTS: Final = {
    "are settled without an end, or open with one": "(state = 'open') <> (ended_at_ns IS NULL)",
    "are settled without an outcome, or open with one": "(state = 'open') <> (outcome = '')",
    "are unpriced and have a cost": "cost_source = 'unpriced' AND cost_nanousd <> 0",
    "have a fallback price though they are priced": "fallback_cost_nanousd <> 0 AND cost_source <> 'unpriced'",
    "have tokens of no source": (
        "state = 'settled' AND token_source IN ('', 'missing') AND prompt_tokens + completion_tokens <> 0"
    ),
    "have a cost of no source": "cost_source = '' AND cost_nanousd <> 0",
    "have a negative number": (
        "started_at_ns < 0 OR ended_at_ns < 0 OR duration_ns < 0 OR prompt_tokens < 0 OR completion_tokens < 0"
        " OR cost_nanousd < 0 OR fallback_cost_nanousd < 0 OR reserved_nanousd < 0 OR reported_cost_nanousd < 0"
    ),
}
_TOPPED_UP_SQL: Final = "SELECT balance, sum(amount_nanousd) FROM top_ups GROUP BY balance"
_CHARGES_SQL: Final = (
    f"SELECT state, cost_source, cost_nanousd, {', '.join(CHARGE_COLUMNS)}"  # noqa: S608 (constants only)
    " FROM charges LEFT JOIN calls ON call_id = calls.id"
)
_OPEN_SQL: Final = f"SELECT count(*) FROM calls WHERE state = 'open' AND id NOT IN ({PENDING_IDS_SQL})"  # noqa: S608
"""Without the calls of background responses: those are followed on."""
_AUDIT_SQL: Final = "SELECT id, action, change FROM audit"
_FIGURES: Final = tuple(name for name in Total.__struct_fields__ if name != "group")
_NO_CALLS: Final = Total(group=(), **dict.fromkeys(_FIGURES, 0))


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was verified, and what is wrong; `wrong` is empty for an intact ledger."""

    calls: int = 0
    open_calls: int = 0
    pruned_calls: int = 0
    cost_nanousd: int = 0
    balances: int = 0
    audit_rows: int = 0
    service: str
    """The process that holds the ledger's lock, or empty."""
    wrong: list[str]


def verify(ledger: Location) -> Verdict:
    """Verify everything; takes minutes on a large ledger. Raises `LedgerNotUsable` if it cannot be read."""
    service, since_ns = lock_holder(ledger) if isinstance(ledger, Path) else ("", 0)
    with open_reader(ledger) as reader:
        wrong = list(_file_faults(reader)) if isinstance(ledger, Path) else []
        if wrong:  # rows of a damaged file cannot be trusted
            return Verdict(service=service, wrong=wrong)
        total = next(iter(select_in(reader, Selection())), _NO_CALLS)
        balances = [balance_of(row) for row in reader.rows(SELECT_BALANCES_SQL)]
        of_charges = list(_charge_faults(reader))
        wrong += [*_row_faults(reader), *of_charges]
        wrong += [*(() if of_charges else _sum_faults(reader, total)), *_balance_faults(reader, balances)]
        audited = [(str(row_id), str(action), str(change)) for row_id, action, change in reader.rows(_AUDIT_SQL)]
        wrong += _audit_faults(audited)
        wrong += _open_faults(reader, service, since_ns) if isinstance(ledger, Path) else _orphans(reader)
        ((pruned,),) = reader.rows("SELECT coalesce(sum(calls), 0) FROM pruned_calls")
        return Verdict(
            calls=total.calls,
            open_calls=total.open_calls,
            pruned_calls=int(pruned),
            cost_nanousd=total.cost_nanousd,
            balances=len(balances),
            audit_rows=len(audited),
            service=service,
            wrong=wrong,
        )


def _file_faults(reader: Reader) -> Iterator[str]:
    """SQLite's own check of pages, indexes, types and constraints."""
    try:
        found = [str(fault) for (fault,) in reader.rows(f"PRAGMA integrity_check({MAX_FAULTS})")]
    except LedgerNotUsable as damage:
        yield str(damage)
    else:
        yield from (f"The file is damaged: {' '.join(fault.split())}." for fault in found if fault != "ok")


def _row_faults(reader: Reader) -> Iterator[str]:
    for what, condition in _ROW_FAULTS.items():
        ((count, one),) = reader.rows(f"SELECT count(*), min(id) FROM calls WHERE {condition}")  # noqa: S608
        if count:
            yield f"{count} calls {what} (one is {one})."
    for table in ("calls", "pruned_calls"):
        ((count,),) = reader.rows(
            f"SELECT count(*) FROM {table} WHERE outcome NOT IN ('', 'ok', 'error', 'partial', 'recovered')"  # noqa: S608
        )
        if count:
            yield f"{count} rows of {table} have an unknown outcome."


def _charge_faults(reader: Reader) -> Iterator[str]:
    """Compare each row of `charges` with its call: the lines add up to the cost, and a call is counted once."""
    faults: dict[str, list[str]] = {}
    for state, cost_source, cost_nanousd, *row in reader.rows(_CHARGES_SQL):
        for what in _faults_of_charge(state, cost_source, cost_nanousd, row):
            faults.setdefault(what, []).append(str(row[0]))
    for what, ids in faults.items():
        yield f"{len(ids)} charges {what} (one is of {min(ids)})."


def _faults_of_charge(state: str | None, cost_source: str, cost_nanousd: int, row: Sequence[Any]) -> Iterator[str]:
    if state != "settled":
        yield "are of calls that are not settled or do not exist"
        return
    try:
        charge = charge_of(row)
    except LedgerNotUsable:
        yield "cannot be read"
        return
    if charge.lines and sum(line.nanousd or 0 for line in charge.lines) != cost_nanousd:
        yield "have lines that do not add up to the cost of their call"
    if charge.fallback_nanousd and cost_source == "unpriced":
        yield "have a fallback price beside that of their call"
    lines = () if cost_source == "unpriced" else charge.lines
    if row[5] != sum(line.nanousd is None for line in lines) + len(charge.unknown):
        yield "count other unpriced items than they have"


def _sum_faults(reader: Reader, total: Total) -> Iterator[str]:
    for grouping in GROUPINGS:
        groups = select_in(reader, Selection(by=(grouping,)))
        for name in _FIGURES:
            found = sum(getattr(group, name) for group in groups)
            if found != getattr(total, name):
                yield f"Summed by {grouping}, {name} is {found}; over all it is {getattr(total, name)}."


def _balance_faults(reader: Reader, balances: Sequence[Balance]) -> Iterator[str]:
    """Compare each balance with what was carried into it and what its calls spent and reserve."""
    spent, reserved = amounts_by_balance(reader.rows)
    topped_up = {str(balance): int(amount) for balance, amount in reader.rows(_TOPPED_UP_SQL)}
    for kept in balances:
        if kept.unit != "nanousd":
            continue  # of a minute: deleted when it is over, and made again if a clock steps back
        key = (kept.balance, kept.period_start_ns)
        for name, stored, found in (
            ("spent", kept.spent, min(kept.carried + spent[key], MAX_INT64)),
            ("reserved", kept.reserved, reserved[key]),
            ("credit", kept.credit, topped_up.get(kept.balance, 0)),
        ):
            if stored != found:
                yield f"The balance {kept.balance} ({kept.period_start_ns}) has {name} {stored}; its calls say {found}."


def _audit_faults(rows: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    faulty = [row_id for row_id, action, change in rows if action not in AUDIT_ACTIONS or not _is_object(change)]
    if faulty:
        yield f"{len(faulty)} rows of the audit have an unknown action or an unreadable change (one is {min(faulty)})."


def _is_object(text: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.MsgspecError, UnicodeError):
        return False


def _open_faults(reader: Reader, service: str, since_ns: int) -> Iterator[str]:
    before = since_ns if service else 2**63 - 1
    ((count,),) = reader.rows(f"{_OPEN_SQL} AND started_at_ns < ?", (before,))
    if count and service:
        yield f"{count} calls are open that started before the service did (process {service})."
    elif count:
        yield f"{count} calls are open and no service runs: the next start settles them as recovered."


def _orphans(reader: Reader) -> Iterator[str]:
    """Open calls of replicas that no longer exist; on PostgreSQL a call belongs to a replica."""
    ((count,),) = reader.rows(f"{_OPEN_SQL} AND owner NOT IN (SELECT id FROM replicas)")  # noqa: S608
    if count:
        yield f"{count} calls are open whose replica has ended: the next start settles them as recovered."
