"""Which calls a report is about, and how they are grouped: the SQL that every sum over calls has in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, tzinfo
from typing import Any, Final, Literal, NamedTuple, get_args

from mcpmeter.ledger.queries.days import DAY_S, Stretch, day_text, stretches
from mcpmeter.ledger.queries.reader import Reader
from mcpmeter.ledger.sums import MAX_INT64

Grouping = Literal["team", "project", "model", "provider", "key", "day", "outcome"]
"""What totals may be grouped by; `day` is that of the call's start, in UTC unless a time zone is given."""

GROUPINGS: Final[tuple[Grouping, ...]] = get_args(Grouping)

_GROUP_SQL: Final[dict[Grouping, str]] = {
    "team": "team",
    "project": "project",
    "model": "model",
    "provider": "provider",
    "key": "key_id",
    "day": "(started_at_ns / 1000000000 + {offset}) / 86400",
    "outcome": "CASE WHEN outcome = '' THEN 'open' ELSE outcome END",
}


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


Select = Callable[[Sequence[str], str], Sequence[str]]
"""Makes the SELECTs of one stretch of time from the SQL of its groups and of its condition, which names the column of
the start as `{start}`."""


def statement(reader: Reader, selection: Selection, select: Select) -> tuple[str, tuple[int | str, ...]]:
    """The SELECTs of every stretch of one offset, in one statement, which sees one snapshot; empty if there is none.

    Raises ValueError for an unknown grouping.
    """
    unknown = set(selection.by) - set(GROUPINGS)
    if unknown:
        raise ValueError(f"no grouping {sorted(unknown)}; there are {', '.join(GROUPINGS)}")
    values: list[int | str] = []
    parts: list[str] = []
    for cut in _cuts(reader, selection):
        # A day is added so that the dividend is never negative; `group_of` subtracts it.
        values += [cut.first_ns, cut.last_ns, cut.offset_s + DAY_S]
        number = len(values)
        where = f"{{start}} >= ?{number - 2} AND {{start}} <= ?{number - 1}"
        groups = [_GROUP_SQL[name].format(offset=f"?{number}") for name in selection.by]
        if "day" not in selection.by:
            values.pop()
        if selection.team is not None:
            values.append(selection.team)
            where += f" AND team = ?{len(values)}"
        parts += select(groups, where)
    return " UNION ALL ".join(parts), tuple(values)


def _cuts(reader: Reader, selection: Selection) -> list[Stretch]:
    first_ns = selection.since_ns
    last_ns = MAX_INT64 if selection.until_ns is None else min(selection.until_ns - 1, MAX_INT64)
    zone: tzinfo = UTC
    if "day" in selection.by and selection.zone is not UTC:
        first_ns, last_ns = _narrowed(reader, first_ns, last_ns)
        zone = selection.zone
    return stretches(zone, first_ns, last_ns)


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


def group_of(by: Sequence[Grouping], values: Sequence[Any]) -> tuple[str, ...]:
    """A group's values as a report shows them, from their columns."""
    return tuple(
        day_text(int(value) - 1) if name == "day" else str(value) for name, value in zip(by, values, strict=True)
    )
