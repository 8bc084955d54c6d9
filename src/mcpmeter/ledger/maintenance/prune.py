"""Replace old calls by exact sums, one per quarter of an hour, team, project, key, provider, model, outcome and source.

By quarters, because the days of every time zone begin on one: reports in any zone and budgets of any period stay exact.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from mcpmeter.errors import SetupError
from mcpmeter.ledger.audit import INSERT_AUDIT_SQL, audit_entry, audit_values, encode_change, utc_text
from mcpmeter.ledger.charges import DELETE_CHARGE_SQL, lines_of, unknown_of
from mcpmeter.ledger.location import Location
from mcpmeter.ledger.queries.reader import Writer, open_reader, open_writer, require_ledger
from mcpmeter.ledger.rows import FALLBACK_SQL, Taken, decode_reservations
from mcpmeter.ledger.sqlite.connection import explain, open_for_writing
from mcpmeter.ledger.sqlite.migrations import transaction
from mcpmeter.ledger.sqlite.reader import SqliteWriter
from mcpmeter.ledger.sums import MAX_INT64
from mcpmeter.records import Actor, AuditEntry

Begin = Callable[[], contextlib.AbstractContextManager[Writer]]

QUARTER_NS: Final = 900 * 10**9
KEPT_NS: Final = 48 * 3600 * 10**9
"""Calls of the last two days stay: forecasts need the burn of the last hours to the nanosecond."""

BATCH_CALLS: Final = 2_000
"""Calls per transaction: a service that writes to the same ledger waits for it."""

GROUP: Final = ("team", "project", "key_id", "provider", "model", "outcome", "token_source", "cost_source")
SUMMED: Final = (
    "prompt_tokens",
    "completion_tokens",
    "cached_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "audio_tokens",
    "cost_nanousd",
    "fallback_cost_nanousd",
)
COLUMNS: Final = (
    "started_at_ns",
    *GROUP,
    "calls",
    *SUMMED,
    "fallback_calls",
    "reported_cost_nanousd",
    "reported_cost_calls",
    "unpriced_items",
    "unpriced_item_calls",
)
_FALLBACK_AT: Final = SUMMED.index("fallback_cost_nanousd")
LINE_COLUMNS: Final = (
    "started_at_ns",
    *GROUP,
    "item",
    "line_model",
    "lines",
    "unpriced_lines",
    "quantity",
    "line_nanousd",
)
_OLD: Final = "FROM calls WHERE started_at_ns < ?1 AND state = 'settled'"
# Only the constants above are ever joined into SQL.
_AMOUNTS: Final = ", ".join(FALLBACK_SQL if name == "fallback_cost_nanousd" else name for name in SUMMED)
_SELECT_SQL: Final = (
    "SELECT id, claims, coalesce((SELECT unpriced_items FROM charges WHERE call_id = calls.id), 0),"  # noqa: S608
    f" reported_cost_nanousd, started_at_ns, {', '.join(GROUP)}, {_AMOUNTS} {_OLD}"
    " ORDER BY started_at_ns LIMIT ?2"
)
_CHARGES_SQL: Final = (
    f"SELECT call_id, started_at_ns, {', '.join(GROUP)}, lines, unknown FROM charges CROSS JOIN calls"  # noqa: S608
    " WHERE call_id = calls.id AND call_started_at_ns >= ?1 AND call_started_at_ns <= ?2"
)
_INSERT_LINES_SQL: Final = (
    f"INSERT INTO pruned_lines ({', '.join(LINE_COLUMNS)}) VALUES ({', '.join('?' * len(LINE_COLUMNS))})"  # noqa: S608
)
_INSERT_SQL: Final = f"INSERT INTO pruned_calls ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608
_ADD_SPENT_SQL: Final = (
    "INSERT INTO pruned_claims (balance, period_start_ns, spent) VALUES (?1, ?2, ?3)"
    " ON CONFLICT (balance, period_start_ns) DO UPDATE SET spent = CASE"
    " WHEN pruned_claims.spent > 9223372036854775807 - ?3 THEN 9223372036854775807 ELSE pruned_claims.spent + ?3 END"
)
_COUNT_SQL: Final = f"SELECT count(*), coalesce(min(started_at_ns), 0), coalesce(max(started_at_ns), 0) {_OLD}"


class Prunable(msgspec.Struct, frozen=True, kw_only=True):
    """Settled calls that started before an instant."""

    calls: int
    first_ns: int
    last_ns: int


def prunable(ledger: Location, before_ns: int) -> Prunable:
    """The calls that `prune` would replace by sums. Raises `LedgerNotUsable`."""
    with open_reader(ledger) as reader:
        ((calls, first_ns, last_ns),) = reader.rows(_COUNT_SQL, (before_ns,))
    return Prunable(calls=int(calls), first_ns=int(first_ns), last_ns=int(last_ns))


def prune(
    ledger: Location, before_ns: int, now_ns: int, by: Actor, on_progress: Callable[[int], None] = lambda calls: None
) -> int:
    """Replace settled calls that started before an instant by sums; returns how many. A service may run meanwhile.

    The audit gets one row, whose count grows with each batch, so that it is right wherever the work ends.
    Raises `SetupError` for an instant within the last two days or not on a quarter of an hour, and `LedgerNotUsable`.
    """
    if before_ns > now_ns - KEPT_NS:
        raise SetupError("Calls of the last two days are not pruned.", hint="Give an earlier day.")
    if before_ns % QUARTER_NS:
        raise SetupError("Calls are pruned up to a quarter of an hour.", hint="Give a day, or a time such as 12:15.")
    require_ledger(ledger)  # a wrong name must not create a ledger
    entry = audit_entry("ledger.prune", by, str(ledger), {}, at_ns=now_ns)
    pruned = 0
    with _transactions(ledger) as begin:
        while calls := _prune_some(begin, before_ns, entry, pruned):
            pruned += calls
            on_progress(pruned)
    return pruned


@contextlib.contextmanager
def _transactions(ledger: Location) -> Iterator[Begin]:
    """A way to begin short transactions. A file is opened only once, because each opening checks it."""
    if not isinstance(ledger, Path):
        yield lambda: open_writer(ledger)
        return
    with contextlib.closing(open_for_writing(ledger)) as db, explain(ledger):

        @contextlib.contextmanager
        def begin() -> Iterator[Writer]:
            with transaction(db):
                yield SqliteWriter(db)

        yield begin


def _prune_some(begin: Begin, before_ns: int, entry: AuditEntry, pruned: int) -> int:
    with begin() as writer:
        rows = writer.execute(_SELECT_SQL, (before_ns, BATCH_CALLS))
        for values in sums(row[1:] for row in rows):
            writer.execute(_INSERT_SQL, values)
        for spent in _spent_by_balance(rows):
            writer.execute(_ADD_SPENT_SQL, spent)
        for line in _pruned_lines(writer, rows):
            writer.execute(_INSERT_LINES_SQL, line)
        for row in rows:
            writer.execute("DELETE FROM calls WHERE id = ?", (row[0],))
        if rows:
            change = encode_change({"started_before": utc_text(before_ns), "calls_kept_as_sums": pruned + len(rows)})
            writer.execute(INSERT_AUDIT_SQL, audit_values(msgspec.structs.replace(entry, change=change)))
    return len(rows)


def sums(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Rows of `pruned_calls` for the rows of `_SELECT_SQL` without their id.

    A group whose sums would exceed 64 bits gets another row.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for _, unpriced_items, reported, started_at_ns, *values in rows:
        group = (started_at_ns - started_at_ns % QUARTER_NS, *values[: len(GROUP)])
        amounts = values[len(GROUP) :]
        fallback, has_unpriced = int(amounts[_FALLBACK_AT] > 0), int(unpriced_items > 0)
        figures = [1, *amounts, fallback, reported or 0, int(reported is not None), unpriced_items, has_unpriced]
        yield from _added(groups, group, figures)
    yield from ((*group, *figures) for group, figures in groups.items())


def _added(
    groups: dict[tuple[Any, ...], list[int]], group: tuple[Any, ...], figures: list[int]
) -> Iterator[tuple[Any, ...]]:
    """Add figures to a group. Yields the row of a group whose sums would exceed 64 bits, which starts again."""
    known = groups.get(group)
    added = figures if known is None else [a + b for a, b in zip(known, figures, strict=True)]
    if known is not None and max(added) > MAX_INT64:
        yield (*group, *known)
        added = figures
    groups[group] = added


def _pruned_lines(writer: Writer, rows: Sequence[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Rows of `pruned_lines` for the charges of these calls, which are deleted."""
    if not rows:
        return
    ids = {row[0] for row in rows}
    groups: dict[tuple[Any, ...], list[int]] = {}
    for call_id, started_at_ns, *values in writer.execute(_CHARGES_SQL, (rows[0][4], rows[-1][4])):
        if call_id not in ids:
            continue
        writer.execute(DELETE_CHARGE_SQL, (call_id,))
        group = (started_at_ns - started_at_ns % QUARTER_NS, *values[: len(GROUP)])
        is_priced = values[len(GROUP) - 1] != "unpriced"
        for line in lines_of(values[-2]):
            amounts = [1, int(line.nanousd is None and is_priced), line.quantity, line.nanousd or 0]
            yield from _added(groups, (*group, line.item, line.model), amounts)
        for unknown in unknown_of(values[-1]):
            yield from _added(groups, (*group, unknown.item, ""), [1, 1, unknown.quantity, 0])
    yield from ((*group, *amounts) for group, amounts in groups.items())


def _spent_by_balance(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[str, int, int]]:
    spent: Counter[tuple[str, int]] = Counter()
    for row in rows:
        taken = _taken(row)
        for kept in decode_reservations(row[1]):
            spent[kept.balance, kept.period_start_ns] += taken.of(kept)
    yield from ((balance, start, min(amount, MAX_INT64)) for (balance, start), amount in spent.items())


def _taken(row: tuple[Any, ...]) -> Taken:
    names = GROUP + SUMMED
    values = dict(zip(names, row[-len(names) :], strict=True))
    cost, tokens = ("cost_nanousd", "fallback_cost_nanousd"), ("prompt_tokens", "completion_tokens")
    return Taken(values["model"], sum(values[name] for name in cost), sum(values[name] for name in tokens))
