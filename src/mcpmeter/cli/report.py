"""`mcpmeter report`: who used what, and what it cost, from the ledger."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from mcpmeter.cli._ledger import ledger_at, ledger_option

if TYPE_CHECKING:
    from mcpmeter.ledger.location import Location
    from mcpmeter.ledger.reports import Grouping, Total

_DAY = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
_LARGEST_NS = 2**63 - 1
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_TABLE_COLUMNS = {
    "calls": "calls",
    "prompt_tokens": "prompt",
    "completion_tokens": "completion",
    "estimated_calls": "estimated",
    "partial_calls": "partial",
    "missing_calls": "missing",
    "unpriced_calls": "unpriced",
    "open_calls": "open",
}


@click.command(name="report")
@click.option(
    "--by",
    multiple=True,
    default=("team", "model"),
    show_default=True,
    type=click.Choice(["team", "model", "provider", "key", "day", "outcome"]),
    help="Group by this; may be given several times.",
)
@click.option("--since", type=_DAY, help="Calls started from this instant on (UTC).")
@click.option("--until", type=_DAY, help="Calls started before this instant (UTC); itself not included.")
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV with a heading line.")
def command(
    *,
    by: tuple[Grouping, ...],
    since: datetime | None,
    until: datetime | None,
    ledger: Location | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Sum up calls, tokens and cost from the ledger. It may be read while a service writes to it.

    \b
    Example:
      mcpmeter report --by team --by model --since 2026-11-01 --until 2026-12-01
      mcpmeter report --by day --csv > days.csv
    """
    from mcpmeter.ledger.reports import totals

    if as_json and as_csv:
        raise click.UsageError("Choose one of --json and --csv.")
    if since and until and since >= until:
        raise click.UsageError("--since must be before --until.")
    groupings = tuple(dict.fromkeys(by))
    rows = totals(ledger_at(ledger), by=groupings, since_ns=unix_ns(since), until_ns=unix_ns(until))
    if as_json:
        period = {"since": _utc(since), "until": _utc(until)}
        click.echo(json.dumps({**period, "by": groupings, "rows": [_record(groupings, row) for row in rows]}, indent=2))
    elif as_csv:
        click.echo(_csv(groupings, rows), nl=False)
    elif rows:
        _print_table(groupings, rows)
    else:
        click.echo("The ledger has no calls in this period.", err=True)


def usd(nanousd: int) -> str:
    """Nano-dollars as dollars, exact, with at least two decimals: `0.00225`, `12.00`."""
    whole, nanos = divmod(nanousd, 10**9)
    decimals = f"{nanos:09d}".rstrip("0")
    return f"{whole}.{decimals:0<2}"


def _record(by: Sequence[str], row: Total) -> dict[str, Any]:
    import msgspec

    figures = msgspec.structs.asdict(row)
    group = figures.pop("group")
    return {
        **dict(zip(by, group, strict=True)),
        **figures,
        "cost_usd": usd(row.cost_nanousd),
        "reported_cost_usd": usd(row.reported_cost_nanousd),
    }


def _csv(by: Sequence[str], rows: Sequence[Total]) -> str:
    from mcpmeter.ledger.reports import Total

    figures = [name for name in Total.__struct_fields__ if name != "group"]
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([*by, *figures, "cost_usd", "reported_cost_usd"])
    for row in rows:
        lines.writerow([cell(value) for value in _record(by, row).values()])
    return text.getvalue()


def cell(value: object) -> object:
    """A value as it goes into CSV."""
    # A model's name comes from the caller; a spreadsheet must not run it as a formula.
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def _print_table(by: Sequence[str], rows: Sequence[Total]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_footer=True)
    for place, name in enumerate(by):
        table.add_column(name, footer="total" if place == 0 else "", overflow="fold")
    for name, heading in _TABLE_COLUMNS.items():
        table.add_column(heading, footer=f"{sum(getattr(row, name) for row in rows):,}", justify="right", no_wrap=True)
    table.add_column("USD", footer=usd(sum(row.cost_nanousd for row in rows)), justify="right", no_wrap=True)
    for row in rows:
        figures = [f"{getattr(row, name):,}" for name in _TABLE_COLUMNS]
        table.add_row(*(Text(printable(value)) for value in row.group), *figures, usd(row.cost_nanousd))
    # A pipe has no width: a wide one keeps each group on one line.
    Console(width=None if sys.stdout.isatty() else 240).print(table)


def printable(value: str) -> str:
    """A name as it goes to a terminal."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in value) or "-"


def unix_ns(instant: datetime | None) -> int | None:
    """An instant that was typed (UTC) as Unix ns, held to what the ledger can hold."""
    if instant is None:
        return None
    return max(0, min(int(instant.replace(tzinfo=UTC).timestamp()) * 10**9, _LARGEST_NS))


def _utc(instant: datetime | None) -> str | None:
    return None if instant is None else instant.strftime("%Y-%m-%dT%H:%M:%SZ")
