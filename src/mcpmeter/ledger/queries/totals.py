"""Sums for reports, read while a service may be writing. Every amount is an exact integer.

Pruned calls are stored as sums (`pruned_calls`). One statement reads both tables, so that a call is counted exactly
once even while it is being pruned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, tzinfo
from typing import Any, Final, Literal, NamedTuple, get_args

import msgspec

from mcpmeter.ledger.location import Location
from mcpmeter.ledger.queries.days import DAY_S, Stretch, day_text, stretches
from mcpmeter.ledger.queries.reader import Reader, open_reader
from mcpmeter.ledger.rows import SELECT_ROWS_SQL, row_of
from mcpmeter.ledger.sums import MAX_INT64, halves, whole
from mcpmeter.records import LedgerRow

Grouping = Literal["team", "project", "model", "provider", "key", "day", "outcome"]
"""What totals may be grouped by; `day` is that of the call's start, in UTC unless a time zone is given."""

GROUPINGS: Final[tuple[Grouping, ...]] = get_args(Grouping)


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
    """Unpriced calls that budgets count at the configured fallback price."""
    fallback_cost_nanousd: int = 0
    """What budgets count for them; not a cost, and part of no sum of costs."""


class Selection(NamedTuple):
    """Which calls, and how they are grouped."""

    by: tuple[Grouping, ...] = ()
    since_ns: int = 0
    until_ns: int | None = None
    """Exclusive; None for no end."""
    team: str | None = None
    """Only this team's calls."""
    zone: tzinfo = UTC
    """The time zone of `day`."""


_GROUP_SQL: Final[dict[Grouping, str]] = {
    "team": "team",
    "project": "project",
    "model": "model",
    "provider": "provider",
    "key": "key_id",
    "day": "(started_at_ns / 1000000000 + {offset}) / 86400",
    "outcome": "CASE WHEN outcome = '' THEN 'open' ELSE outcome END",
}
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
}
_NAMES: Final = (*_COUNTED, *_COUNTED_BY_COLUMN)
_HALVES: Final = [halves(sql) for sql in _SUMMED.values()]
_FROM_CALLS: Final = ", ".join(
    [f"count(*) FILTER (WHERE {condition})" for condition in (_COUNTED | _COUNTED_BY_COLUMN).values()] + _HALVES
)
_FROM_PRUNED: Final = ", ".join(
    [f"coalesce(sum(calls) FILTER (WHERE {condition}), 0)" for condition in _COUNTED.values()]
    + [f"coalesce(sum({name}), 0)" for name in _COUNTED_BY_COLUMN]
    + _HALVES
)
_SOURCES: Final = {"calls": _FROM_CALLS, "pruned_calls": _FROM_PRUNED}


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
    unknown = set(selection.by) - set(GROUPINGS)
    if unknown:
        raise ValueError(f"no grouping {sorted(unknown)}; there are {', '.join(GROUPINGS)}")
    first_ns, last_ns = selection.since_ns, _last_ns(selection)
    zone: tzinfo = UTC
    if "day" in selection.by and selection.zone is not UTC:
        first_ns, last_ns = _narrowed(reader, first_ns, last_ns)
        zone = selection.zone
    sql, values = _statement(selection, stretches(zone, first_ns, last_ns))
    return _merged(selection, reader.rows(sql, values)) if sql else []


def find_call(ledger: Location, call_id: str) -> LedgerRow | None:
    """The row of one call, or None. Raises `LedgerNotUsable`."""
    with open_reader(ledger) as reader:
        return next((row_of(row) for row in reader.rows(f"{SELECT_ROWS_SQL} WHERE id = ?", (call_id,))), None)


def _last_ns(selection: Selection) -> int:
    return MAX_INT64 if selection.until_ns is None else min(selection.until_ns - 1, MAX_INT64)


def _narrowed(reader: Reader, first_ns: int, last_ns: int) -> tuple[int, int]:
    """Limit a period to where there are calls, because a zone's changes are searched day by day."""
    ends = [
        int(ns)
        for row in reader.rows(
            "SELECT min(started_at_ns), max(started_at_ns) FROM calls"
            " UNION ALL SELECT min(started_at_ns), max(started_at_ns) FROM pruned_calls"
        )
        for ns in row
        if ns is not None
    ]
    return (max(first_ns, min(ends)), min(last_ns, max(ends))) if ends else (1, 0)


def _statement(selection: Selection, cuts: Sequence[Stretch]) -> tuple[str, tuple[int | str, ...]]:
    """One SELECT per source and stretch of one offset, in one statement, which sees one snapshot."""
    values: list[int | str] = []
    parts = []
    for cut in cuts:
        # A day is added so that the dividend is never negative; `_group` subtracts it.
        values += [cut.first_ns, cut.last_ns, cut.offset_s + DAY_S]
        number = len(values)
        where = f"started_at_ns >= ?{number - 2} AND started_at_ns <= ?{number - 1}"
        groups = [_GROUP_SQL[name].format(offset=f"?{number}") for name in selection.by]
        if "day" not in selection.by:
            values.pop()
        if selection.team is not None:
            values.append(selection.team)
            where += f" AND team = ?{len(values)}"
        parts += [_select(source, groups, where) for source in _SOURCES]
    return " UNION ALL ".join(parts), tuple(values)


def _select(source: str, groups: Sequence[str], where: str) -> str:
    columns = ", ".join(str(number) for number in range(1, len(groups) + 1))
    return (
        f"SELECT {', '.join([*groups, _SOURCES[source]])} FROM {source} WHERE {where}"  # noqa: S608 (constants only)
        + (f" GROUP BY {columns}" if groups else " HAVING count(*) > 0")
    )


def _merged(selection: Selection, rows: Iterable[Sequence[Any]]) -> list[Total]:
    width = len(selection.by)
    sums: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        figures = list(_figures(row[width:]))
        group = tuple(_group(selection.by, row[:width]))
        known = sums.get(group)
        sums[group] = figures if known is None else [a + b for a, b in zip(known, figures, strict=True)]
    return [
        Total(group=group, **dict(zip((*_NAMES, *_SUMMED), figures, strict=True)))
        for group, figures in sorted(sums.items())
    ]


def _group(by: Sequence[Grouping], values: Sequence[Any]) -> Iterator[str]:
    for name, value in zip(by, values, strict=True):
        yield day_text(int(value) - 1) if name == "day" else str(value)


def _figures(row: Sequence[Any]) -> Iterator[int]:
    counts, sums = row[: len(_NAMES)], row[len(_NAMES) :]
    yield from (int(count) for count in counts)
    yield from (whole(pair) for pair in zip(sums[::2], sums[1::2], strict=True))
