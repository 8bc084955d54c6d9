"""`mcpmeter reconcile`: does the provider's bill say what the ledger says?"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mcpmeter.cli._ledger import config_faults_as_usage_errors, ledger_at, ledger_option, unix_ns
from mcpmeter.cli.report import printable, usd

if TYPE_CHECKING:
    from rich.table import Table

    from mcpmeter.ledger.location import Location
    from mcpmeter.pricing import PriceBook
    from mcpmeter.reconcile.lines import Amount, ReconcileItem
    from mcpmeter.reconcile.reading import BillFile
    from mcpmeter.reconcile.run import OnFinding, Options, Result
    from mcpmeter.reconcile.verdict import Tolerance

_TIME = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
_SHARE = re.compile(r"(?P<percent>[0-9]{1,3}(?:\.[0-9]{1,6})?)%|0", re.ASCII)
_USD = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", re.ASCII)
_COLUMNS = (
    "provider", "format", "verdict", "day", "model", "request_id", "call_id", "billed_calls", "ledger_calls",
    "billed_prompt_tokens", "ledger_prompt_tokens", "billed_completion_tokens", "ledger_completion_tokens",
    "billed_usd", "ledger_usd", "difference_usd", "where", "note",
)  # fmt: skip
_SAID = {
    "matched": "matched",
    "price": "cost differs",
    "tokens": "tokens differ",
    "missing_in_ledger": "not in ledger",
    "missing_in_bill": "not in bill",
    "duplicate": "billed twice",
}


def share(_ctx: click.Context, _param: click.Parameter, value: str) -> Decimal:
    """A share written in per cent: `1%`, `0.5%`, `0`. Raises click.BadParameter."""
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
@click.option("--inline", is_flag=True, help="Compare what answers said they cost with the price lists; no bill.")
@click.option("--provider", help="The provider's name in the ledger, where the bill's own is another one.")
@click.option(
    "--format", "format_name", default="auto", show_default=True, help="What the bills are, e.g. openai-costs."
)
@click.option("--mapping", type=click.Path(path_type=Path), help="A TOML file that says what the columns of a CSV are.")
@click.option(
    "--by", type=click.Choice(["id", "day"]), default="id", show_default=True,
    help="id: by request id where the bill has one. day: by model and day only.",
)  # fmt: skip
@click.option("--since", type=_TIME, help="From this instant on (UTC). Default: the start of what the bill names.")
@click.option("--until", type=_TIME, help="Before this instant (UTC). Default: the end of what the bill names.")
@click.option(
    "--tolerance", default="1%", show_default=True, callback=share, help="A share of the bill that may differ."
)
@click.option(
    "--floor-usd", default="0.01", show_default=True, callback=dollars, help="An amount that may differ anyhow."
)
@ledger_option
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path),
    help="The service's configuration, for its ledger, providers and prices; else $MCPMETER_CONFIG or ./mcpmeter.yaml.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(0, 10_000), default=20, show_default=True, help="Differences to show.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path), help="Write every difference to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
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
    """Compare the ledger with bills that providers let you download. Nothing is sent anywhere.

    BILL is a file of OpenAI (usage, costs), Anthropic (usage, costs) or OpenRouter (activity), from the API (JSON) or
    the dashboard (CSV), or any CSV file with a mapping. Several files of one provider and kind are one bill.

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
    place, book = ledger_at(ledger, config_path), _price_book(config_path)
    files = _bills(bills, provider, format_name, mapping)
    with _differences(csv_path) as keep, progress() as told:
        if inline:
            results = reconcile_inline(place, book, options, provider=provider, progress=told, on_finding=keep)
        else:
            results = reconcile(files, place, book, options, progress=told, on_finding=keep)
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
        raise click.UsageError("Give a bill, or --inline for what the answers themselves said; one of the two.")
    if format_name not in {"auto", *formats()}:
        raise click.UsageError(f"No format '{format_name}'. There is: auto, {', '.join(formats())}.")
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
    found: list[tuple[str, BillFile]] = []
    for text in bills:
        named, path = _named(text)
        if any(file.path.samefile(path) for _, file in found if path.exists()):
            raise click.UsageError(f"The bill {path} is given twice.")
        bill = recognise(path, known)
        found.append((named or provider or bill.format.provider, bill))
    return found


def _named(text: str) -> tuple[str, Path]:
    """`PROVIDER=FILE`, or a file, even one with an equals sign in its name."""
    provider, equals, path = text.partition("=")
    if equals and not Path(text).exists():
        return provider, Path(path)
    return "", Path(text)


def _price_book(config_path: Path | None) -> PriceBook:
    from mcpmeter.config import find_file, load, price_book
    from mcpmeter.pricing import PriceBook, PriceSource, bundled_price_lists
    from mcpmeter.providers import load_providers

    if (path := find_file(config_path, os.environ)) is not None:
        with config_faults_as_usage_errors():
            return price_book(load(path, os.environ))
    sources = {
        found.name: PriceSource(found.price_list or None, found.genai_prices_id or None)
        for found in load_providers().values()
    }
    return PriceBook(bundled_price_lists(), sources=sources)


@contextlib.contextmanager
def _differences(path: Path | None) -> Iterator[OnFinding]:
    """Writes each difference to a CSV file as it is found."""
    from mcpmeter.ledger.maintenance.export import formula_safe
    from mcpmeter.reconcile.lines import DIFFERENCES

    if path is None:
        yield lambda result, finding: None
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(_COLUMNS)

        def keep(result: Result, finding: ReconcileItem) -> None:
            if finding.verdict in DIFFERENCES:
                lines.writerow(
                    [formula_safe("" if value is None else value) for value in _record(result, finding).values()]
                )

        yield keep


def _record(result: Result, finding: ReconcileItem) -> dict[str, Any]:
    billed, kept = finding.billed, finding.ledger
    values = (
        result.provider, result.format, finding.verdict, finding.day, finding.model, finding.request_id,
        finding.call_id, _field(billed, "calls"), _field(kept, "calls"), _field(billed, "prompt_tokens"),
        _field(kept, "prompt_tokens"), _field(billed, "completion_tokens"), _field(kept, "completion_tokens"),
        _usd_of(billed), _usd_of(kept), signed_usd(finding.nanousd), result.place(finding), finding.note,
    )  # fmt: skip
    return dict(zip(_COLUMNS, values, strict=True))


def _field(side: Amount | None, name: str) -> Any:
    return None if side is None else getattr(side, name)


def _usd_of(side: Amount | None) -> str | None:
    return None if side is None or side.nanousd is None else signed_usd(side.nanousd)


def signed_usd(nanousd: int) -> str:
    """As `usd`, for amounts that may be negative: `-0.00225`."""
    return f"-{usd(-nanousd)}" if nanousd < 0 else usd(nanousd)


def _report(results: list[Result], options: Options) -> dict[str, Any]:
    return {
        "ok": all(result.is_ok(options.tolerance) for result in results),
        "tolerance": f"{_plain(options.tolerance.share * 100)}%",
        "floor_usd": usd(options.tolerance.floor_nanousd),
        "bills": [_bill_report(result, options.tolerance) for result in results],
        "differences": [_record(result, finding) for result in results for finding in result.tally.largest],
        "differences_total": sum(result.tally.differences for result in results),
    }


def _bill_report(result: Result, tolerance: Tolerance) -> dict[str, Any]:
    from mcpmeter.reconcile.run import instant

    tally, compared = result.tally, result.tally.compared
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
        "calls_not_covered_usd": usd(result.uncovered_nanousd),
        "billed_usd": signed_usd(compared.billed_nanousd) if tally.tells_cost else None,
        "ledger_usd": usd(compared.ledger_nanousd),
        "billed_tokens": compared.billed_tokens if tally.tells_tokens else None,
        "ledger_tokens": compared.ledger_tokens,
        "drift_usd": signed_usd(tally.drift_nanousd) if tally.tells_cost else None,
        "off_usd": usd(tally.off_nanousd) if tally.tells_cost else None,
        "off_tokens": tally.off_tokens if tally.tells_tokens else None,
        "found": {verdict: vars(total) for verdict, total in tally.totals.items() if total.findings},
        "notes": list(_notes(result)),
    }


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"


def _notes(result: Result) -> Iterator[str]:
    """What a reader has to know before he believes the figures."""
    totals = result.tally.totals
    if result.outside:
        yield f"{result.outside:,} lines are before --since or after --until and were not compared."
    if not result.lines:
        yield "Nothing is billed in it."
    if result.uncovered_calls:
        cost = usd(result.uncovered_nanousd)
        yield f"{result.uncovered_calls:,} calls (${cost}) of the ledger are outside the period and not covered."
    if result.calls_beyond_lines:
        yield (
            f"{result.calls_beyond_lines:,} calls are on days before the first line or after the last. The bill "
            "names no period, so calendar months are compared; --since and --until name another one."
        )
    if result.lines_with_id > result.outside and not result.paired_by_id:
        yield "No request id of the bill is in the ledger. Compare by model and day: --by day."
    if totals["free"].findings:
        yield f"{totals['free'].findings:,} calls of no tokens and no cost are in the ledger; no bill has to name them."
    if totals["unlisted"].findings:
        cost = usd(totals["unlisted"].billed_nanousd)
        yield f"{totals['unlisted'].findings:,} calls told their cost (${cost}) and no price list knows their model."


def _print(results: list[Result], options: Options) -> None:
    from rich.console import Console

    # A pipe has no width: a wide one keeps each line on one line.
    console = Console(width=None if sys.stdout.isatty() else 240, highlight=False)
    if not results:
        click.echo("No answer in this period told its cost.", err=True)
        return
    console.print(_summary(results, options))
    for result in results:
        if result.tally.differences:
            console.print()
            console.print(_largest(result))
    for result in results:
        for note in (*result.faults, *_notes(result)):
            click.echo(f"{result.provider} {result.format}: {note}", err=True)


def _summary(results: list[Result], options: Options) -> Table:
    from rich.table import Table

    allowed = (
        f"tolerance {_plain(options.tolerance.share * 100)} % of the bill, or ${usd(options.tolerance.floor_nanousd)}"
    )
    table = Table(box=None, pad_edge=False, caption=allowed, caption_justify="left")
    for name in ("provider", "bill"):
        table.add_column(name, overflow="fold")
    for name in (*_SAID.values(), "billed USD", "ledger USD", "drift USD", "drift", "tokens off"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for result in results:
        table.add_row(*_summary_row(result, options.tolerance))
    return table


def _summary_row(result: Result, tolerance: Tolerance) -> list[str]:
    tally, compared = result.tally, result.tally.compared
    counts = [f"{total.findings:,}" for verdict, total in tally.totals.items() if verdict in _SAID]
    money = ["-", usd(compared.ledger_nanousd), "-", "-"]
    if tally.tells_cost:
        drift = _percent(tally.drift_nanousd, tally.base_nanousd)
        money[0], money[2], money[3] = signed_usd(compared.billed_nanousd), signed_usd(tally.drift_nanousd), drift
    tokens = f"{tally.off_tokens:,}" if tally.tells_tokens else "-"
    verdict = "within" if result.is_ok(tolerance) else "INCOMPLETE" if result.faults else "BEYOND"
    return [printable(result.provider), result.format, *counts, *money, tokens, verdict]


def _percent(part: int, whole: int) -> str:
    return f"{Decimal(100 * part) / whole:+.3f} %" if whole else "-"


def _largest(result: Result) -> Table:
    from rich.table import Table
    from rich.text import Text

    shown = result.tally.largest
    title = f"{printable(result.provider)} {result.format}: {len(shown):,} of {result.tally.differences:,} differences"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for name in ("", "day", "model", "request or call"):
        table.add_column(name, overflow="fold")
    for name in ("billed tokens", "ledger tokens", "billed USD", "ledger USD", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("where, and what is known", overflow="fold")
    for finding in shown:
        names = (finding.model, finding.request_id or finding.call_id)
        about = "; ".join(filter(None, (result.place(finding), finding.note)))
        table.add_row(
            _SAID[finding.verdict], finding.day, *(Text(printable(name)) for name in names),
            _tokens(finding.billed), _tokens(finding.ledger), _usd_of(finding.billed) or "-",
            _usd_of(finding.ledger) or "-", signed_usd(finding.nanousd), Text(printable(about)),
        )  # fmt: skip
    return table


def _tokens(side: Amount | None) -> str:
    if side is None or side.prompt_tokens is None:
        return "-"
    return f"{side.prompt_tokens:,} + {side.completion_tokens or 0:,}"
