"""Exact sums in SQL on both engines: SQLite raises an error if a sum exceeds 64 bits, so it is summed in two halves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

MAX_INT64: Final = 2**63 - 1


def halves(*columns: str) -> str:
    """SQL for the sum of columns as two columns, the high and the low 32 bits; `whole` puts them together."""
    high = " + ".join(f"(({column}) >> 32)" for column in columns)
    low = " + ".join(f"(({column}) & 4294967295)" for column in columns)
    return f"coalesce(sum({high}), 0), coalesce(sum({low}), 0)"


def whole(row: Sequence[Any]) -> int:
    """The sum from its two halves."""
    high, low = row
    return (int(high) << 32) + int(low)


def whole_of(rows: Iterable[Sequence[Any]]) -> int:
    """The sum over several rows of halves."""
    return sum(whole(row) for row in rows)
