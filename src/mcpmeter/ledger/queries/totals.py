"""Sums for reports, read from a ledger that a service may be writing to. Every amount is an exact integer.

Calls that were pruned are kept as sums (`pruned_calls`); one statement reads both, so that a call is never counted
twice, nor missed, while it is being pruned.
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
from mcpmeter.records import LedgerRow

Grouping = Literal["team", "project", "model", "provider", "key", "day", "outcome"]
"""What totals may be grouped by; `day` is by the start of the call, in UTC unless another time zone is asked for."""

GROUPINGS: Final[tuple[Grouping, ...]] = get_args(Grouping)
LATEST_NS: Final = 2**63 - 1


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of one group. Tokens and cost are those of settled calls; a call is of the period it started in."""

    group: tuple[str, ...]
    """Values in the order of `by`."""
    calls: int
    """Settled calls."""
    open_calls: int
    """Not settled yet: under way, or to be recovered at the next start of the service."""
    prompt_tokens: int
    completion_tokens: int
    cached_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    audio_tokens: int
    reported_calls: int
    """Settled calls by where their tokens came from; what is missing to `calls` reached no model."""
    estimated_calls: int
    partial_calls: int
    missing_calls: int
    unpriced_calls: int
    cost_nanousd: int
    listed_cost_nanousd: int
    """The part of the cost that is from dated price lists; the rest is what providers said."""
    reported_cost_nanousd: int
    """What the providers said, for the calls where they said it."""
    reported_cost_calls: int
    fallback_calls: int = 0
    """Unpriced calls that budgets count by the configured fallback price."""
    fallback_cost_nanousd: int = 0
    """What they count it as; it is no cost and in no sum of costs."""


class Selection(NamedTuple):
    """Which calls, and by what they are summed up."""

    by: tuple[Grouping, ...] = ()
    since_ns: int = 0
    until_ns: int | None = None
    """Not included; None: no end."""
    team: str | None = None
    """Only this team's calls."""
    zone: tzinfo = UTC
    """Whose days `day` means."""


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
_COUNTED_APART: Final = {
    "reported_cost_calls": "reported_cost_nanousd IS NOT NULL",
    "fallback_calls": "fallback_cost_nanousd > 0",
}
"""Counts that a kept sum has a column for, as its source is no part of its group."""

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
_NAMES: Final = (*_COUNTED, *_COUNTED_APART)
# Summed as two halves, because a sum beyond 64 bits is an error in SQLite and must not take the whole report with it.
_HALVES: Final = [
    f"coalesce(sum(({sql}) >> 32), 0), coalesce(sum(({sql}) & 4294967295), 0)" for sql in _SUMMED.values()
]
_FROM_CALLS: Final = ", ".join(
    [f"count(*) FILTER (WHERE {condition})" for condition in (_COUNTED | _COUNTED_APART).values()] + _HALVES
)
_FROM_PRUNED: Final = ", ".join(
    [f"coalesce(sum(calls) FILTER (WHERE {condition}), 0)" for condition in _COUNTED.values()]
    + [f"coalesce(sum({name}), 0)" for name in _COUNTED_APART]
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
    """The same with all that can be selected. Raises `LedgerNotUsable`."""
    with open_reader(ledger) as reader:
        return select_in(reader, selection)


def select_in(reader: Reader, selection: Selection) -> list[Total]:
    """The same from an open ledger."""
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
    return LATEST_NS if selection.until_ns is None else min(selection.until_ns - 1, LATEST_NS)


def _narrowed(reader: Reader, first_ns: int, last_ns: int) -> tuple[int, int]:
    """To where there are calls: a zone's changes are looked for day by day."""
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
    """One SELECT for each source and each stretch of one offset, all in one statement, which sees one state."""
    values: list[int | str] = []
    parts = []
    for cut in cuts:
        # A day more, so that what is divided is never negative; `_group` takes it off.
        values += [cut.first_ns, cut.last_ns, cut.offset_s + DAY_S]
        place = len(values)
        where = f"started_at_ns >= ?{place - 2} AND started_at_ns <= ?{place - 1}"
        groups = [_GROUP_SQL[name].format(offset=f"?{place}") for name in selection.by]
        if "day" not in selection.by:
            values.pop()
        if selection.team is not None:
            values.append(selection.team)
            where += f" AND team = ?{len(values)}"
        parts += [_select(source, groups, where) for source in _SOURCES]
    return " UNION ALL ".join(parts), tuple(values)


def _select(source: str, groups: Sequence[str], where: str) -> str:
    places = ", ".join(str(place) for place in range(1, len(groups) + 1))
    return (
        f"SELECT {', '.join([*groups, _SOURCES[source]])} FROM {source} WHERE {where}"  # noqa: S608 (constants only)
        + (f" GROUP BY {places}" if groups else " HAVING count(*) > 0")
    )


def _merged(selection: Selection, rows: Iterable[Sequence[Any]]) -> list[Total]:
    places = len(selection.by)
    sums: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        figures = list(_figures(row[places:]))
        group = tuple(_group(selection.by, row[:places]))
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
    counts, halves = row[: len(_NAMES)], row[len(_NAMES) :]
    yield from (int(count) for count in counts)
    yield from ((int(high) << 32) + int(low) for high, low in zip(halves[::2], halves[1::2], strict=True))
