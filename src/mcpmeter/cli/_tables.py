"""Tables for terminals and pipes."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """A console as wide as the terminal; 240 columns in a pipe, which has no width, so that no row wraps."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 240, highlight=False)


def print_rows(rows: Sequence[Mapping[str, Any]], right: Collection[str] = ()) -> None:
    """Prints rows with equal keys as a table; columns in `right` are right-aligned."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in rows[0]:
        table.add_column(column, overflow="fold", justify="right" if column in right else "left")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    console().print(table)


def _cell(value: object) -> str:
    return ", ".join(value) if isinstance(value, list | tuple) else str(value or "-")


def printable(value: str) -> str:
    """A name without control characters; `-` for an empty one."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in value) or "-"


def plain(usd: Decimal | None) -> str:
    """An amount with all its decimals and at least two; empty for none."""
    from mcpmeter.money import plain_usd

    return "" if usd is None else plain_usd(usd)
