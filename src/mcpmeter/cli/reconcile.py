"""`mcpmeter reconcile`: compares the ledger with providers' bills."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcpmeter.cli._options import (
    config_faults_as_usage_errors,
    config_option_for,
    json_option,
    ledger_at,
    ledger_option,
    unix_ns,
)
from mcpmeter.cli._tables import console, printable
from mcpmeter.cli.models import built_in_sources
from mcpmeter.money import usd_text

if TYPE_CHECKING:
    from rich.table import Table

    from mcpmeter.ledger.location import Location
    from mcpmeter.pricing import PriceBook
    from mcpmeter.reconcile.lines import Amount, ReconcileItem
    from mcpmeter.reconcile.reading import BillFile
    from mcpmeter.reconcile.run import OnItem, Options, Result
    from mcpmeter.reconcile.verdict import Tolerance

_TIME = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
_SHARE = re.compile(r"(?P<percent>[0-9]{1,3}(?:\.[0-9]{1,6})?)%|0", re.ASCII)
_USD = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", re.ASCII)
_COLUMNS = (
    "provider", "format", "verdict", "day", "model", "request_id", "call_id", "billed_calls", "ledger_calls",
    "billed_prompt_tokens", "ledger_prompt_tokens", "billed_completion_tokens", "ledger_completion_tokens",
    "billed_usd", "ledger_usd", "difference_usd", "where", "note",
)  # fmt: skip
_HEADINGS = {
    "matched": "matched",
    "price": "cost differs",
    "tokens": "tokens differ",
    "missing_in_ledger": "not in ledger",
    "missing_in_bill": "not in bill",
    "duplicate": "billed twice",
}


def share(_ctx: click.Context, _param: click.Parameter, value: str) -> Decimal:
    """A share in per cent: `1%`, `0.5%`, `0`. Raises click.BadParameter."""
    found = _SHARE.fullmatch(value.strip())
    if found is None:
        raise click.BadParameter(f"{value[:40]!r} is no share. Write for example 1%, 0.25% or 0.")
    return Decimal(found["percent"] or "0") / 100


def dollars(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    """US dollars as nano-dollars. Raises click.BadParameter."""
    if _USD.fullmatch(value.strip()) is None:
        raise click.BadParameter(f"{value[:40]!r} is no amount. Write for example 0.01.")
    return int(Decimal(value) * 10**9)


@click.command(name="reconcile")
@click.argument("bills", nargs=-1, metavar="[[PROVIDER=]BILL]...")
@click.option("--inline", is_flag=True, help="Instead of a bill compare the costs that responses reported.")
@click.option("--provider", help="The provider's name in the ledger, if it differs from the bill's.")
@click.option("--format", "format_name", default="auto", show_default=True, help="Format of the bills: openai-costs.")
@click.option("--mapping", type=click.Path(path_type=Path), help="A TOML file that names the columns of a CSV file.")
@click.option(
    "--by", type=click.Choice(["id", "day"]), default="id", show_default=True,
    help="id: by request id if the bill has one. day: by model and day only.",
)  # fmt: skip
@click.option("--since", type=_TIME, help="From this instant on (UTC). Default: the start of the bill's period.")
@click.option("--until", type=_TIME, help="Before this instant (UTC). Default: the end of the bill's period.")
@click.option("--tolerance", default="1%", show_default=True, callback=share, help="Share of the bill that may differ.")
@click.option("--floor-usd", default="0.01", show_default=True, callback=dollars, help="Amount that may always differ.")
@ledger_option
@config_option_for(
    "The service's configuration, for its ledger, providers and prices; default: $MCPMETER_CONFIG, else "
    "./mcpmeter.yaml."
)
@click.option("--limit", type=click.IntRange(0, 10_000), default=20, show_default=True, help="Differences to show.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write every difference to this file.")
@json_option()
def command(
    *,
    bills: tuple[str, ...],
    inline: bool,
    provider: str | None,
    format_name: str,
    mapping: Path | None,
    by: str,
    since: datetime | None,
    until: datetime | None,
    tolerance: Decimal,
    floor_usd: int,
    ledger: Location | None,
    config_path: Path | None,
    limit: int,
    csv_path: Path | None,
    as_json: bool,
) -> int:
    """Compare the ledger with bills downloaded from providers. Nothing is sent anywhere.

    BILL is a file of OpenAI (usage, costs), Anthropic (usage, costs) or OpenRouter (activity), from the API (JSON) or
    the dashboard (CSV), or any CSV file with a mapping. Several files of one provider and format are one bill.

    \b
    Exit code 0: within the tolerance; 1: beyond it, or a bill is incomplete or cannot be read.
    Example:
      mcpmeter reconcile openai-costs.csv openai-usage.csv
      mcpmeter reconcile holysheep=bill.csv --mapping holysheep.toml --csv differences.csv
      mcpmeter reconcile --inline --tolerance 0.5%
    """
    from mcpmeter.cli._progress import progress
    from mcpmeter.reconcile.run import Options, reconcile, reconcile_inline
    from mcpmeter.reconcile.verdict import Tolerance

    _refuse_misuse(bills, inline=inline, mapping=mapping, format_name=format_name, since=since, until=until)
    allowed = Tolerance(tolerance, floor_usd)
    options = Options(unix_ns(since), unix_ns(until), by == "day", allowed, limit)
    location, book = ledger_at(ledger, config_path), _price_book(config_path)
    files = _bills(bills, provider, format_name, mapping)
    with _csv_writer(csv_path) as write, progress() as update:
        if inline:
            results = reconcile_inline(location, book, options, provider=provider, progress=update, on_item=write)
        else:
            results = reconcile(files, location, book, options, progress=update, on_item=write)
    if as_json:
        click.echo(json.dumps(_report(results, options), indent=2))
    else:
        _print(results, options)
    return 0 if all(result.is_ok(allowed) for result in results) else 1


def _refuse_misuse(
    bills: tuple[str, ...],
    *,
    inline: bool,
    mapping: Path | None,
    format_name: str,
    since: datetime | None,
    until: datetime | None,
) -> None:
    from mcpmeter.reconcile.bills import formats

    if bool(bills) == inline:
        raise click.UsageError("Give either a bill, or --inline for the costs that responses reported.")
    if format_name not in {"auto", *formats()}:
        raise click.UsageError(f"No format '{format_name}'. Formats: auto, {', '.join(formats())}.")
    if mapping is not None and format_name != "auto":
        raise click.UsageError("Choose one of --mapping and --format.")
    if since and until and since >= until:
        raise click.UsageError("--since must be before --until.")


def _bills(
    bills: tuple[str, ...], provider: str | None, format_name: str, mapping: Path | None
) -> list[tuple[str, BillFile]]:
    from mcpmeter.reconcile.bills import formats
    from mcpmeter.reconcile.bills.generic import load_mapping, mapped_format
    from mcpmeter.reconcile.reading import recognise

    known = dict(formats())
    if mapping is not None:
        known = {"mapped": mapped_format(load_mapping(mapping), mapping)}
    elif format_name != "auto":
        known = {format_name: known[format_name]}
    files: list[tuple[str, BillFile]] = []
    for text in bills:
        named, path = _split(text)
        if any(file.path.samefile(path) for _, file in files if path.exists()):
            raise click.UsageError(f"The bill {path} is given twice.")
        bill = recognise(path, known)
        files.append((named or provider or bill.format.provider, bill))
    return files


def _split(text: str) -> tuple[str, Path]:
    """The parts of `PROVIDER=FILE`, or a file, whose name may contain an equals sign."""
    provider, equals, path = text.partition("=")
    if equals and not Path(text).exists():
        return provider, Path(path)
    return "", Path(text)


def _price_book(config_path: Path | None) -> PriceBook:
    from mcpmeter.config import find_file, load, price_book
    from mcpmeter.pricing import PriceBook, bundled_price_lists

    if (path := find_file(config_path, os.environ)) is not None:
        with config_faults_as_usage_errors():
            return price_book(load(path, os.environ))
    return PriceBook(bundled_price_lists(), sources=built_in_sources())


@contextlib.contextmanager
def _csv_writer(path: Path | None) -> Iterator[OnItem]:
    """Writes each difference to a CSV file as it is found."""
    from mcpmeter.ledger.maintenance.export import formula_safe
    from mcpmeter.reconcile.lines import DIFFERENCES

    if path is None:
        yield lambda result, item: None
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(_COLUMNS)

        def write(result: Result, item: ReconcileItem) -> None:
            if item.verdict in DIFFERENCES:
                values = _record(result, item).values()
                lines.writerow([formula_safe("" if value is None else value) for value in values])

        yield write


def _record(result: Result, item: ReconcileItem) -> dict[str, Any]:
    billed, recorded = item.billed, item.ledger
    values = (
        result.provider, result.format, item.verdict, item.day, item.model, item.request_id, item.call_id,
        _field(billed, "calls"), _field(recorded, "calls"), _field(billed, "prompt_tokens"),
        _field(recorded, "prompt_tokens"), _field(billed, "completion_tokens"), _field(recorded, "completion_tokens"),
        _usd_of(billed), _usd_of(recorded), usd_text(item.nanousd), result.location(item), item.note,
    )  # fmt: skip
    return dict(zip(_COLUMNS, values, strict=True))


def _field(side: Amount | None, name: str) -> Any:
    return None if side is None else getattr(side, name)


def _usd_of(side: Amount | None) -> str | None:
    return None if side is None or side.nanousd is None else usd_text(side.nanousd)


def _report(results: list[Result], options: Options) -> dict[str, Any]:
    return {
        "ok": all(result.is_ok(options.tolerance) for result in results),
        "tolerance": f"{_plain(options.tolerance.share * 100)}%",
        "floor_usd": usd_text(options.tolerance.floor_nanousd),
        "bills": [_bill_report(result, options.tolerance) for result in results],
        "differences": [_record(result, item) for result in results for item in result.totals.largest],
        "differences_total": sum(result.totals.differences for result in results),
    }


def _bill_report(result: Result, tolerance: Tolerance) -> dict[str, Any]:
    from mcpmeter.reconcile.run import instant

    totals, compared = result.totals, result.totals.compared
    return {
        "provider": result.provider,
        "format": result.format,
        "files": [str(file.path) for file in result.files],
        "since": instant(result.since_ns),
        "until": instant(result.until_ns),
        "ok": result.is_ok(tolerance),
        "faults": result.faults,
        "lines": result.lines,
        "lines_outside": result.outside,
        "calls_not_covered": result.uncovered_calls,
        "calls_not_covered_usd": usd_text(result.uncovered_nanousd),
        "billed_usd": usd_text(compared.billed_nanousd) if totals.has_cost else None,
        "ledger_usd": usd_text(compared.ledger_nanousd),
        "billed_tokens": compared.billed_tokens if totals.has_tokens else None,
        "ledger_tokens": compared.ledger_tokens,
        "drift_usd": usd_text(totals.drift_nanousd) if totals.has_cost else None,
        "off_usd": usd_text(totals.off_nanousd) if totals.has_cost else None,
        "off_tokens": totals.off_tokens if totals.has_tokens else None,
        "found": {verdict: vars(total) for verdict, total in totals.by_verdict.items() if total.findings},
        "notes": list(_notes(result)),
    }


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"


def _notes(result: Result) -> Iterator[str]:
    """Limits of the comparison that the figures do not show."""
    free, unlisted = result.totals.by_verdict["free"], result.totals.by_verdict["unlisted"]
    if result.outside:
        yield f"{result.outside:,} lines are before --since or after --until and were not compared."
    if not result.lines:
        yield "Nothing is billed in it."
    if result.uncovered_calls:
        cost = usd_text(result.uncovered_nanousd)
        yield f"{result.uncovered_calls:,} calls (${cost}) of the ledger are outside the period and not covered."
    if result.calls_beyond_lines:
        yield (
            f"{result.calls_beyond_lines:,} calls are on days before the first line or after the last. The bill "
            "names no period, so calendar months are compared; set another period with --since and --until."
        )
    if result.lines_with_id > result.outside and not result.paired_by_id:
        yield "No request id of the bill is in the ledger. Compare by model and day: --by day."
    if free.findings:
        yield f"{free.findings:,} calls without tokens and cost are in the ledger; bills need not contain them."
    if unlisted.findings:
        cost = usd_text(unlisted.billed_nanousd)
        yield f"{unlisted.findings:,} calls reported their cost (${cost}), but no price list has their model."


def _print(results: list[Result], options: Options) -> None:
    if not results:
        click.echo("No response in this period reported its cost.", err=True)
        return
    screen = console()
    screen.print(_summary(results, options))
    for result in results:
        if result.totals.differences:
            screen.print()
            screen.print(_largest(result))
    for result in results:
        for note in (*result.faults, *_notes(result)):
            click.echo(f"{result.provider} {result.format}: {note}", err=True)


def _summary(results: list[Result], options: Options) -> Table:
    from rich.table import Table

    share, floor = _plain(options.tolerance.share * 100), usd_text(options.tolerance.floor_nanousd)
    caption = f"tolerance {share} % of the bill, or ${floor}"
    table = Table(box=None, pad_edge=False, caption=caption, caption_justify="left")
    for name in ("provider", "bill"):
        table.add_column(name, overflow="fold")
    for name in (*_HEADINGS.values(), "billed USD", "ledger USD", "drift USD", "drift", "tokens off"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for result in results:
        table.add_row(*_summary_row(result, options.tolerance))
    return table


def _summary_row(result: Result, tolerance: Tolerance) -> list[str]:
    totals, compared = result.totals, result.totals.compared
    counts = [f"{total.findings:,}" for verdict, total in totals.by_verdict.items() if verdict in _HEADINGS]
    money = ["-", usd_text(compared.ledger_nanousd), "-", "-"]
    if totals.has_cost:
        drift = _percent(totals.drift_nanousd, totals.base_nanousd)
        money[0], money[2], money[3] = usd_text(compared.billed_nanousd), usd_text(totals.drift_nanousd), drift
    tokens = f"{totals.off_tokens:,}" if totals.has_tokens else "-"
    verdict = "within" if result.is_ok(tolerance) else "INCOMPLETE" if result.faults else "BEYOND"
    return [printable(result.provider), result.format, *counts, *money, tokens, verdict]


def _percent(part: int, whole: int) -> str:
    return f"{Decimal(100 * part) / whole:+.3f} %" if whole else "-"


def _largest(result: Result) -> Table:
    from rich.table import Table
    from rich.text import Text

    shown = result.totals.largest
    title = f"{printable(result.provider)} {result.format}: {len(shown):,} of {result.totals.differences:,} differences"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for name in ("", "day", "model", "request or call"):
        table.add_column(name, overflow="fold")
    for name in ("billed tokens", "ledger tokens", "billed USD", "ledger USD", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("line and note", overflow="fold")
    for item in shown:
        names = (item.model, item.request_id or item.call_id)
        notes = "; ".join(filter(None, (result.location(item), item.note)))
        table.add_row(
            _HEADINGS[item.verdict], item.day, *(Text(printable(name)) for name in names),
            _tokens(item.billed), _tokens(item.ledger), _usd_of(item.billed) or "-",
            _usd_of(item.ledger) or "-", usd_text(item.nanousd), Text(printable(notes)),
        )  # fmt: skip
    return table


def _tokens(side: Amount | None) -> str:
    if side is None or side.prompt_tokens is None:
        return "-"
    return f"{side.prompt_tokens:,} + {side.completion_tokens or 0:,}"
