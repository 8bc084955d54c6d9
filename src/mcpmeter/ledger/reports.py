"""Sums for reports, read from a ledger that a service may be writing to. Every amount is an exact integer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, get_args

import msgspec

from mcpmeter.ledger.location import Location
from mcpmeter.ledger.reading import Reader, open_reader
from mcpmeter.ledger.rows import SELECT_ROWS_SQL, row_of
from mcpmeter.records import LedgerRow

Grouping = Literal["team", "model", "provider", "key", "day", "outcome"]
"""What totals may be grouped by; `day` is UTC, by the start of the call."""

GROUPINGS: Final[tuple[Grouping, ...]] = get_args(Grouping)


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
    reported_cost_nanousd: int
    """What the providers said, for the calls where they said it."""
    reported_cost_calls: int


_COLUMNS: Final[dict[Grouping, str]] = {
    "team": "team",
    "model": "model",
    "provider": "provider",
    "key": "key_id",
    "outcome": "CASE state WHEN 'open' THEN 'open' ELSE outcome END",
}
_COUNTED: Final = {
    "calls": "state = 'settled'",
    "open_calls": "state = 'open'",
    "reported_calls": "token_source = 'reported'",
    "estimated_calls": "token_source = 'estimated'",
    "partial_calls": "token_source = 'partial'",
    "missing_calls": "token_source = 'missing'",
    "unpriced_calls": "cost_source = 'unpriced'",
    "reported_cost_calls": "reported_cost_nanousd IS NOT NULL",
}
_SUMMED: Final = (
    "prompt_tokens",
    "completion_tokens",
    "cached_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "audio_tokens",
    "cost_nanousd",
    "reported_cost_nanousd",
)
# Summed as two halves, because a sum beyond 64 bits is an error in SQLite and must not take the whole report with it.
_SUMS_SQL: Final = ", ".join(
    [f"count(*) FILTER (WHERE {condition})" for condition in _COUNTED.values()]
    + [f"coalesce(sum({name} >> 32), 0), coalesce(sum({name} & 4294967295), 0)" for name in _SUMMED]
)


def totals(
    ledger: Location, *, by: Sequence[Grouping], since_ns: int | None = None, until_ns: int | None = None
) -> list[Total]:
    """Sums of all calls started in [since, until), one for each group that has any, ordered by group.

    With an empty `by` there is one total, or none if there are no calls. Raises `LedgerNotUsable`.
    """
    unknown = set(by) - set(GROUPINGS)
    if unknown:
        raise ValueError(f"no grouping {sorted(unknown)}; there are {', '.join(GROUPINGS)}")
    with open_reader(ledger) as reader:
        return [_total(row, len(by)) for row in reader.rows(_totals_sql(by, reader), (since_ns, until_ns))]


def find_call(ledger: Location, call_id: str) -> LedgerRow | None:
    """The row of one call, or None. Raises `LedgerNotUsable`."""
    with open_reader(ledger) as reader:
        return next((row_of(row) for row in reader.rows(f"{SELECT_ROWS_SQL} WHERE id = ?", (call_id,))), None)


def _totals_sql(by: Sequence[Grouping], reader: Reader) -> str:
    groups = [reader.day("started_at_ns") if name == "day" else _COLUMNS[name] for name in by]
    places = ", ".join(str(place) for place in range(1, len(groups) + 1))
    return (
        f"SELECT {', '.join([*groups, _SUMS_SQL])} FROM calls "  # noqa: S608 (constants only)
        "WHERE started_at_ns >= coalesce(?1, 0) AND (?2 IS NULL OR started_at_ns < ?2)"
        + (f" GROUP BY {places} ORDER BY {places}" if groups else " HAVING count(*) > 0")
    )


def _total(row: tuple[str | int | None, ...], groups: int) -> Total:
    counts, halves = row[groups : groups + len(_COUNTED)], row[groups + len(_COUNTED) :]
    sums = [(int(high or 0) << 32) + int(low or 0) for high, low in zip(halves[::2], halves[1::2], strict=True)]
    return msgspec.convert(
        {
            "group": tuple(str(value) for value in row[:groups]),
            **dict(zip(_COUNTED, counts, strict=True)),
            **dict(zip(_SUMMED, sums, strict=True)),
        },
        Total,
    )
