"""`mcpmeter report`: who used what, and what it cost, from the ledger; and the month's charge-back statement."""

from __future__ import annotations

import csv
import io
import os
import re
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mcpmeter.cli._ledger import config_faults_as_usage_errors, ledger_at, ledger_option
from mcpmeter.cli.cost import exchange_rate
from mcpmeter.errors import InvalidRequest

if TYPE_CHECKING:
    from mcpmeter.ledger.location import Location
    from mcpmeter.usage import Currency, Span, UsageReport, UsageRow

_Command = TypeVar("_Command", bound=Callable[..., Any])

_TABLE_COLUMNS = {
    "calls": "calls",
    "prompt_tokens": "prompt",
    "completion_tokens": "completion",
    "estimated_calls": "estimated",
    "partial_calls": "partial",
    "missing_calls": "missing",
    "unpriced_calls": "unpriced",
    "fallback_calls": "fallback",
    "open_calls": "open",
}
_WRITTEN = click.Path(path_type=Path, dir_okay=False)


def _currency_options(command: _Command) -> _Command:
    options = (
        click.option(
            "--config",
            "config_path",
            type=click.Path(path_type=Path),
            help="The service's configuration, for its ledger and its pricing.currency. The ledger is also taken from "
            "$MCPMETER_CONFIG or ./mcpmeter.yaml.",
        ),
        click.option("--currency", metavar="CODE", help="Show amounts in this currency too. Needs --rate."),
        click.option("--rate", callback=exchange_rate, metavar="NUMBER", help="Units of --currency for one US dollar."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(name="report", invoke_without_command=True)
@click.option(
    "--by",
    multiple=True,
    default=("team", "model"),
    show_default=True,
    type=click.Choice(["team", "project", "model", "provider", "key", "day", "outcome"]),
    help="Group by this; may be given several times.",
)
@click.option("--since", default="", metavar="INSTANT", help="Calls started from this day or instant on.")
@click.option("--until", default="", metavar="INSTANT", help="Calls started before this one; itself not included.")
@click.option("--month", default="", metavar="YYYY-MM", help="Calls of this month.")
@click.option("--last", default="", metavar="TIME", help="Calls of the last hours, days or weeks: 24h, 7d, 4w.")
@click.option("--time-zone", default="UTC", show_default=True, help="Whose days and months, such as Europe/Berlin.")
@click.option("--team", help="Only this team's calls.")
@_currency_options
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV with a heading line.")
@click.pass_context
def command(context: click.Context, /, *, as_json: bool, as_csv: bool, **asked: Any) -> None:
    """Sum up calls, tokens and cost from the ledger. It may be read while a service writes to it.

    Dollars are exact; an amount in a second currency is rounded half to even at nine decimals. Unpriced calls cost
    nothing here: they are counted, and so are those that budgets count at the fallback price.

    \b
    Example:
      mcpmeter report --by team --by model --since 2026-11-01 --until 2026-12-01
      mcpmeter report --by day --last 7d --time-zone Europe/Berlin --csv > days.csv
      mcpmeter report statement --month 2026-11 --html november.html
    """
    if context.invoked_subcommand is not None:
        return
    if as_json and as_csv:
        raise click.UsageError("Choose one of --json and --csv.")
    report = _report(**asked)
    if as_json:
        _print_json(report)
    elif as_csv:
        click.echo(_csv(report), nl=False)
    elif report.rows:
        _print_table(report)
    else:
        click.echo("The ledger has no calls in this period.", err=True)


@command.command()
@click.option("--month", required=True, metavar="YYYY-MM", help="The month to charge back.")
@click.option("--team", help="Only this team; all of them unless given.")
@click.option("--html", "html_file", type=_WRITTEN, help="Write the page to print into this file.")
@click.option("--csv", "csv_file", type=_WRITTEN, help="Write the lines into this file.")
@click.option("--time-zone", default="UTC", show_default=True, help="Whose month, such as Europe/Berlin.")
@_currency_options
@ledger_option
def statement(
    *,
    month: str,
    team: str | None,
    html_file: Path | None,
    csv_file: Path | None,
    time_zone: str,
    config_path: Path | None,
    currency: str | None,
    rate: Decimal | None,
    ledger: Location | None,
) -> None:
    """Write a month's charge-back statement: by team, project and model, adding up exactly to the ledger's total.

    Dollars are shown in full. In a second currency the total is rounded to its hundredth, half to even, and the lines
    by largest remainder, so that they add up to it. Calls in doubt are counted in a note.

    \b
    Example:
      mcpmeter report statement --month 2026-11 --html november.html --csv november.csv
      mcpmeter report statement --month 2026-11 --team search --currency EUR --rate 0.92 --html search.html
    """
    from mcpmeter.usage.report import usd_text
    from mcpmeter.usage.statement import statement as made
    from mcpmeter.usage.statement_files import statement_csv, statement_html

    if html_file is None and csv_file is None:
        raise click.UsageError("Name a file: --html, --csv or both.")
    span = _asked_rightly(lambda: _span("", "", month, "", time_zone))
    shown = _currency(config_path, currency, rate)
    found = made(
        ledger_at(ledger, config_path), title=f"AI usage {month}", span=span, zone=time_zone, team=team, currency=shown
    )
    for file, text in ((html_file, statement_html), (csv_file, statement_csv)):
        if file is not None:
            file.write_text(text(found), encoding="utf-8")
    click.echo(
        f"{len(found.lines)} lines, {found.total.calls:,} calls, ${usd_text(found.total.cost_nanousd)}.", err=True
    )


def usd(nanousd: int) -> str:
    """Nano-dollars as dollars, exact, with at least two decimals: `0.00225`, `12.00`."""
    whole, nanos = divmod(nanousd, 10**9)
    decimals = f"{nanos:09d}".rstrip("0")
    return f"{whole}.{decimals:0<2}"


def _report(
    *,
    by: tuple[str, ...],
    since: str,
    until: str,
    month: str,
    last: str,
    time_zone: str,
    team: str | None,
    config_path: Path | None,
    currency: str | None,
    rate: Decimal | None,
    ledger: Location | None,
) -> UsageReport:
    from mcpmeter.usage import UsageQuery, grouping, usage_report

    query = UsageQuery(
        by=tuple(grouping(name) for name in by),
        span=_asked_rightly(lambda: _span(since, until, month, last, time_zone)),
        zone=time_zone,
        team=team,
        currency=_currency(config_path, currency, rate),
    )
    return usage_report(ledger_at(ledger, config_path), query)


def _span(since: str, until: str, month: str, last: str, zone: str) -> Span:
    from mcpmeter.usage import span_of, time_zone

    return span_of(since=since, until=until, month=month, last=last, zone=time_zone(zone), now_ns=time.time_ns())


def _asked_rightly(ask: Callable[[], Span]) -> Span:
    try:
        return ask()
    except InvalidRequest as wrong:
        raise click.UsageError(str(wrong)) from None


def _currency(config_path: Path | None, code: str | None, rate: Decimal | None) -> Currency | None:
    from mcpmeter.usage import Currency

    if (code is None) != (rate is None):
        raise click.UsageError("--currency and --rate go together, for example: --currency CNY --rate 7.1")
    if code is not None and rate is not None:
        if not re.fullmatch(r"[A-Z]{3}", code):
            raise click.UsageError("--currency takes a code of three capital letters, for example CNY.")
        return Currency(code, rate)
    if config_path is None:
        return None
    from mcpmeter.config import load_sections

    with config_faults_as_usage_errors():
        configured = load_sections(config_path, os.environ, "pricing").pricing.currency
    return Currency(configured.code, configured.rate) if configured else None


def _print_json(report: UsageReport) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())


def _record(row: UsageRow) -> dict[str, Any]:
    import msgspec

    record: dict[str, Any] = msgspec.to_builtins(row)
    return record


def _csv(report: UsageReport) -> str:
    from mcpmeter.ledger.maintenance.export import formula_safe

    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    # The total has no groups, and all the rest.
    lines.writerow([*report.by, *_record(report.total)])
    for row in report.rows:
        record = _record(row)
        lines.writerow([formula_safe(record.pop(name)) for name in report.by] + list(record.values()))
    return text.getvalue()


def _print_table(report: UsageReport) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_footer=True)
    for place, grouping in enumerate(report.by):
        table.add_column(grouping, footer="total" if place == 0 else "", overflow="fold")
    for name, heading in _TABLE_COLUMNS.items():
        table.add_column(heading, footer=f"{getattr(report.total, name):,}", justify="right", no_wrap=True)
    for heading, name in _amounts(report).items():
        table.add_column(heading, footer=getattr(report.total, name), justify="right", no_wrap=True)
    for row in report.rows:
        groups = [Text(printable(getattr(row, name))) for name in report.by]
        figures = [f"{getattr(row, name):,}" for name in _TABLE_COLUMNS]
        table.add_row(*groups, *figures, *(getattr(row, name) for name in _amounts(report).values()))
    # A pipe has no width: a wide one keeps each group on one line.
    Console(width=None if sys.stdout.isatty() else 240).print(table)


def _amounts(report: UsageReport) -> dict[str, str]:
    """Columns of money. What budgets count unpriced calls as is no cost, and stands apart."""
    columns = {"fallback USD": "fallback_cost_usd"} if report.total.fallback_calls else {}
    columns |= {report.currency: "cost_in_currency"} if report.currency else {}
    return {**columns, "USD": "cost_usd"}


def printable(value: str) -> str:
    """A name as it goes to a terminal."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in value) or "-"
