"""`mcpmeter report`: usage and cost from the ledger, and the month's charge-back statement."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mcpmeter.cli._options import (
    check_currency,
    config_faults_as_usage_errors,
    config_option_for,
    currency_options,
    json_option,
    ledger_at,
    ledger_option,
)
from mcpmeter.cli._tables import console, print_rows, printable
from mcpmeter.errors import InvalidRequest

if TYPE_CHECKING:
    from mcpmeter.ledger.location import Location
    from mcpmeter.usage import Currency, Span, UsageReport, UsageRow
    from mcpmeter.usage.items import ItemRow

_TABLE_COLUMNS = {
    "calls": "calls",
    "prompt_tokens": "prompt",
    "completion_tokens": "completion",
    "estimated_calls": "estimated",
    "partial_calls": "partial",
    "missing_calls": "missing",
    "unpriced_calls": "unpriced",
    "unpriced_items": "unpriced items",
    "fallback_calls": "fallback",
    "open_calls": "open",
}
_Command = TypeVar("_Command", bound=Callable[..., Any])
_OUTPUT_FILE = click.Path(path_type=Path, dir_okay=False)
_config_option = config_option_for(
    "The service's configuration, for its ledger and its pricing.currency. Without this option only the ledger is "
    "taken from $MCPMETER_CONFIG or ./mcpmeter.yaml."
)


def _selection_options(*by: str) -> Callable[[_Command], _Command]:
    """The options that choose and group calls; `by` are the groupings without an option."""
    options = (
        click.option(
            "--by",
            multiple=True,
            default=by,
            show_default=bool(by),
            type=click.Choice(["team", "project", "model", "provider", "key", "day", "outcome"]),
            help="Group by this; repeatable.",
        ),
        click.option("--since", default="", metavar="INSTANT", help="Calls started at or after this day or instant."),
        click.option("--until", default="", metavar="INSTANT", help="Calls started before this day or instant."),
        click.option("--month", default="", metavar="YYYY-MM", help="Calls of this month."),
        click.option("--last", default="", metavar="TIME", help="Calls of the last hours, days or weeks: 24h, 7d, 4w."),
        click.option(
            "--time-zone", default="UTC", show_default=True, help="Time zone of days and months: Europe/Berlin."
        ),
        click.option("--team", help="Only this team's calls."),
    )

    def add(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.group(name="report", invoke_without_command=True)
@_selection_options("team", "model")
@_config_option
@currency_options
@ledger_option
@json_option()
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV with a header line.")
@click.pass_context
def command(context: click.Context, /, *, as_json: bool, as_csv: bool, **query: Any) -> None:
    """Sum up calls, tokens and cost from the ledger. A service may keep writing to it.

    US dollars are exact; amounts in a second currency are rounded half to even at nine decimals. Unpriced calls are
    counted but cost nothing here; those that budgets count at the fallback price are counted as well. Items without a
    price, in calls that have one, are counted and named below the table.

    \b
    Example:
      mcpmeter report --by team --by model --since 2026-11-01 --until 2026-12-01
      mcpmeter report --by day --last 7d --time-zone Europe/Berlin --csv > days.csv
      mcpmeter report items --last 7d
      mcpmeter report statement --month 2026-11 --html november.html
    """
    if context.invoked_subcommand is not None:
        return
    if as_json and as_csv:
        raise click.UsageError("Choose one of --json and --csv.")
    report = _report(**query)
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
@click.option("--team", help="Only this team; default: all teams.")
@click.option("--html", "html_file", type=_OUTPUT_FILE, help="Write a printable page to this file.")
@click.option("--csv", "csv_file", type=_OUTPUT_FILE, help="Write the lines to this file.")
@click.option("--time-zone", default="UTC", show_default=True, help="Time zone of the month: Europe/Berlin.")
@_config_option
@currency_options
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
    """Write a month's charge-back statement by team, project and model. It adds up exactly to the ledger's total.

    US dollars are exact. In a second currency the total is rounded to its hundredth, half to even, and the lines by
    largest remainder, so that they add up to it. A note counts estimated, partial, missing and unpriced calls.

    \b
    Example:
      mcpmeter report statement --month 2026-11 --html november.html --csv november.csv
      mcpmeter report statement --month 2026-11 --team search --currency EUR --rate 0.92 --html search.html
    """
    from mcpmeter.money import usd_text
    from mcpmeter.usage.statement import statement_of
    from mcpmeter.usage.statement_files import statement_csv, statement_html

    if html_file is None and csv_file is None:
        raise click.UsageError("Name a file: --html, --csv or both.")
    made = statement_of(
        ledger_at(ledger, config_path),
        title=f"AI usage {month}",
        span=_span(month=month, zone=time_zone),
        zone=time_zone,
        team=team,
        currency=_currency(config_path, currency, rate),
    )
    for file, text in ((html_file, statement_html), (csv_file, statement_csv)):
        if file is not None:
            file.write_text(text(made), encoding="utf-8")
    click.echo(f"{len(made.lines)} lines, {made.total.calls:,} calls, ${usd_text(made.total.cost_nanousd)}.", err=True)


@command.command()
@_selection_options()
@_config_option
@ledger_option
@json_option()
def items(
    *,
    by: tuple[str, ...],
    since: str,
    until: str,
    month: str,
    last: str,
    time_zone: str,
    team: str | None,
    config_path: Path | None,
    ledger: Location | None,
    as_json: bool,
) -> None:
    """Sum up what calls were billed by: tokens by kind, caches, searches, sessions, and what has no price.

    Calls of plain prompt and completion have no lines; their cost is the item `plain`. The rows add up to the cost of
    the report over the same period.

    \b
    Example:
      mcpmeter report items --last 7d
      mcpmeter report items --by model --month 2026-11 --json | jq '.rows[] | select(.unpriced_lines > 0)'
    """
    import msgspec

    from mcpmeter.usage import grouping
    from mcpmeter.usage.items import item_report

    report = item_report(
        ledger_at(ledger, config_path),
        by=tuple(grouping(name) for name in by),
        span=_span(since=since, until=until, month=month, last=last, zone=time_zone),
        zone=time_zone,
        team=team,
    )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    elif report.rows:
        rows = [_item_row(report.by, row) for row in report.rows]
        print_rows(rows, right=("quantity", "lines", "unpriced", "USD"))
        click.echo(f"Total: ${report.total_usd}")
    else:
        click.echo("The ledger has no costs in this period.", err=True)


def _item_row(by: Sequence[str], row: ItemRow) -> dict[str, str]:
    return {
        **{name: printable(getattr(row, name)) for name in by},
        "item": printable(row.item),
        "component": row.component or "",
        "quantity": f"{row.quantity:,}",
        "unit": row.unit,
        "lines": f"{row.lines:,}",
        "unpriced": f"{row.unpriced_lines:,}",
        "USD": row.cost_usd,
    }


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
        span=_span(since=since, until=until, month=month, last=last, zone=time_zone),
        zone=time_zone,
        team=team,
        currency=_currency(config_path, currency, rate),
    )
    return usage_report(ledger_at(ledger, config_path), query)


def _span(*, zone: str, **period: str) -> Span:
    from mcpmeter.usage import span_of, time_zone

    try:
        return span_of(**period, zone=time_zone(zone), now_ns=time.time_ns())
    except InvalidRequest as invalid:
        raise click.UsageError(str(invalid)) from None


def _currency(config_path: Path | None, code: str | None, rate: Decimal | None) -> Currency | None:
    from mcpmeter.usage import Currency

    check_currency(code, rate)
    if code is not None and rate is not None:
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
    # The total has every column but the groups.
    lines.writerow([*report.by, *_record(report.total)])
    for row in report.rows:
        record = _record(row)
        lines.writerow([formula_safe(record.pop(name)) for name in report.by] + list(record.values()))
    return text.getvalue()


def _print_table(report: UsageReport) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_footer=True)
    for index, grouping in enumerate(report.by):
        table.add_column(grouping, footer="total" if index == 0 else "", overflow="fold")
    for name, heading in _TABLE_COLUMNS.items():
        table.add_column(heading, footer=f"{getattr(report.total, name):,}", justify="right", no_wrap=True)
    for heading, name in _amounts(report).items():
        table.add_column(heading, footer=getattr(report.total, name), justify="right", no_wrap=True)
    for row in report.rows:
        groups = [Text(printable(getattr(row, name))) for name in report.by]
        figures = [f"{getattr(row, name):,}" for name in _TABLE_COLUMNS]
        table.add_row(*groups, *figures, *(getattr(row, name) for name in _amounts(report).values()))
    console().print(table)
    for item in report.unpriced_items:
        click.echo(f"No price: {printable(item.item)}, {item.quantity:,} in {item.occurrences:,} lines.", err=True)


def _amounts(report: UsageReport) -> dict[str, str]:
    """Columns of amounts. The fallback price of unpriced calls has its own, because it is not part of the cost."""
    columns = {"fallback USD": "fallback_cost_usd"} if report.total.fallback_calls else {}
    columns |= {report.currency: "cost_in_currency"} if report.currency else {}
    return {**columns, "USD": "cost_usd"}
