"""Sums for reports, read while a service may be writing. Every amount is an exact integer.

Pruned calls are stored as sums (`pruned_calls`). One statement reads both tables, so that a call is counted exactly
once even while it is being pruned. What a call used of other models than its own counts as theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from mcpmeter.ledger.charges import SELECT_CHARGE_SQL, KeptCharge, charge_of
from mcpmeter.ledger.location import Location
from mcpmeter.ledger.queries.charge_lines import parts_of_other_models
from mcpmeter.ledger.queries.reader import Reader, open_reader
from mcpmeter.ledger.queries.selection import Grouping, Selection, group_of, statement
from mcpmeter.ledger.rows import SELECT_ROWS_SQL, row_of
from mcpmeter.ledger.sums import halves, whole
from mcpmeter.records import LedgerRow


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of one group. Tokens and cost are those of settled calls; a call belongs to the period it started in."""

    group: tuple[str, ...]
    """Values in the order of `by`."""
    calls: int
    """Settled calls."""
    open_calls: int
    """Not settled: in flight, or to be recovered at the next start of the service."""
    prompt_tokens: int
    completion_tokens: int
    cached_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    audio_tokens: int
    reported_calls: int
    """Settled calls by the source of their tokens; the rest of `calls` reached no model."""
    estimated_calls: int
    partial_calls: int
    missing_calls: int
    unpriced_calls: int
    cost_nanousd: int
    listed_cost_nanousd: int
    """The part of the cost from dated price lists; the rest was reported by providers."""
    reported_cost_nanousd: int
    """What providers reported, for the calls with a reported cost."""
    reported_cost_calls: int
    fallback_calls: int = 0
    """Calls of which budgets count something at the configured fallback price: all, or their unpriced items."""
    fallback_cost_nanousd: int = 0
    """What budgets count for them; not a cost, and part of no sum of costs."""
    unpriced_item_calls: int = 0
    """Calls with at least one unpriced item; the cost of such a call is that of its other items."""
    unpriced_items: int = 0
    """Items without a price in calls with one, and items that no table knows in any call."""


_SETTLED: Final = "outcome <> ''"
_COUNTED: Final = {
    "calls": _SETTLED,
    "open_calls": "outcome = ''",
    "reported_calls": "token_source = 'reported'",
    "estimated_calls": "token_source = 'estimated'",
    "partial_calls": "token_source = 'partial'",
    "missing_calls": "token_source = 'missing'",
    "unpriced_calls": "cost_source = 'unpriced'",
}
_COUNTED_BY_COLUMN: Final = {
    "reported_cost_calls": "reported_cost_nanousd IS NOT NULL",
    "fallback_calls": "fallback_cost_nanousd > 0",
    "unpriced_item_calls": "1 = 0",  # in `charges`
}
"""Counts that `pruned_calls` has a column for, because they are not part of its groups."""

_SUMMED: Final = {
    "prompt_tokens": "prompt_tokens",
    "completion_tokens": "completion_tokens",
    "cached_read_tokens": "cached_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "reasoning_tokens": "reasoning_tokens",
    "audio_tokens": "audio_tokens",
    "cost_nanousd": "cost_nanousd",
    "listed_cost_nanousd": "CASE WHEN cost_source = 'listed' THEN cost_nanousd ELSE 0 END",
    "reported_cost_nanousd": "reported_cost_nanousd",
    "fallback_cost_nanousd": "fallback_cost_nanousd",
    "unpriced_items": "0",  # in `charges`
}
_IN_CHARGES: Final = {
    "fallback_calls": "count(*) FILTER (WHERE fallback_nanousd > 0)",
    "unpriced_item_calls": "count(*) FILTER (WHERE unpriced_items > 0)",
    "fallback_cost_nanousd": halves("fallback_nanousd"),
    "unpriced_items": halves("unpriced_items"),
}
_NAMES: Final = (*_COUNTED, *_COUNTED_BY_COLUMN)
_HALVES: Final = [halves(sql) for sql in _SUMMED.values()]
_FROM_CALLS: Final = ", ".join(
    [f"count(*) FILTER (WHERE {condition})" for condition in (_COUNTED | _COUNTED_BY_COLUMN).values()] + _HALVES
)
_FROM_PRUNED: Final = ", ".join(
    [f"coalesce(sum(calls) FILTER (WHERE {condition}), 0)" for condition in _COUNTED.values()]
    + [f"coalesce(sum({name}), 0)" for name in _COUNTED_BY_COLUMN]
    + [halves(name if name == "unpriced_items" else sql) for name, sql in _SUMMED.items()]
)
_FROM_CHARGES: Final = ", ".join(
    [_IN_CHARGES.get(name, "0") for name in _NAMES] + [_IN_CHARGES.get(name, "0, 0") for name in _SUMMED]
)
_SOURCES: Final = (
    (_FROM_CALLS, "calls WHERE", "started_at_ns"),
    (_FROM_PRUNED, "pruned_calls WHERE", "started_at_ns"),
    # CROSS JOIN keeps SQLite from reading every call of the period to look up the few that have such a row.
    (_FROM_CHARGES, "charges CROSS JOIN calls WHERE call_id = calls.id AND", "call_started_at_ns"),
)
_FIGURES: Final = (*_NAMES, *_SUMMED)


def totals(
    ledger: Location, *, by: Sequence[Grouping], since_ns: int | None = None, until_ns: int | None = None
) -> list[Total]:
    """Sums of all calls started in [since, until), one for each group that has any, ordered by group.

    With an empty `by` there is one total, or none if there are no calls. Raises `LedgerNotUsable`.
    """
    return select(ledger, Selection(by=tuple(by), since_ns=since_ns or 0, until_ns=until_ns))


def select(ledger: Location, selection: Selection) -> list[Total]:
    """The sums of a selection. Raises `LedgerNotUsable`."""
    with open_reader(ledger) as reader:
        return select_in(reader, selection)


def select_in(reader: Reader, selection: Selection) -> list[Total]:
    """The sums of a selection, from an open ledger."""
    sql, values = statement(reader, selection, _selects)
    if not sql:
        return []
    sums = _summed(selection, reader.rows(sql, values))
    if "model" in selection.by:
        _move_to_other_models(sums, reader, selection)
    return [Total(group=group, **dict(zip(_FIGURES, figures, strict=True))) for group, figures in sorted(sums.items())]


def find_call(ledger: Location, call_id: str) -> LedgerRow | None:
    """The row of one call, or None. Raises `LedgerNotUsable`."""
    with open_reader(ledger) as reader:
        return next((row_of(row) for row in reader.rows(f"{SELECT_ROWS_SQL} WHERE id = ?", (call_id,))), None)


def find_charge(ledger: Location, call_id: str) -> KeptCharge | None:
    """The charge of one call line by line; None for a call of plain prompt and completion. Raises `LedgerNotUsable`."""
    with open_reader(ledger) as reader:
        return next((charge_of(row) for row in reader.rows(SELECT_CHARGE_SQL, (call_id,))), None)


def _selects(groups: Sequence[str], where: str) -> list[str]:
    columns = ", ".join(str(number) for number in range(1, len(groups) + 1))
    end = f" GROUP BY {columns}" if groups else " HAVING count(*) > 0"
    return [
        f"SELECT {', '.join([*groups, figures])} FROM {source} {where.format(start=start)}{end}"  # noqa: S608 (constants only)
        for figures, source, start in _SOURCES
    ]


def _summed(selection: Selection, rows: Iterable[Sequence[Any]]) -> dict[tuple[str, ...], list[int]]:
    width = len(selection.by)
    sums: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        figures = list(_figures(row[width:]))
        group = group_of(selection.by, row[:width])
        known = sums.get(group)
        sums[group] = figures if known is None else [a + b for a, b in zip(known, figures, strict=True)]
    return sums


def _move_to_other_models(sums: dict[tuple[str, ...], list[int]], reader: Reader, selection: Selection) -> None:
    """Move what calls used of other models from the group of their own model to that of the other."""
    model_at = selection.by.index("model")
    for group, model, part in parts_of_other_models(reader, selection):
        other = (*group[:model_at], model, *group[model_at + 1 :])
        for name, amount in part.items():
            index = _FIGURES.index(name)
            sums[group][index] -= amount
            sums.setdefault(other, [0] * len(_FIGURES))[index] += amount


def _figures(row: Sequence[Any]) -> Iterator[int]:
    counts, sums = row[: len(_NAMES)], row[len(_NAMES) :]
    yield from (int(count) for count in counts)
    yield from (whole(pair) for pair in zip(sums[::2], sums[1::2], strict=True))
