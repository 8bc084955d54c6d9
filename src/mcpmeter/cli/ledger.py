"""`mcpmeter ledger`: look after the ledger: verify, export, prune, back up, recover."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcpmeter.cli._ledger import config_option, ledger_at, ledger_option, unix_ns
from mcpmeter.errors import LedgerNotUsable

if TYPE_CHECKING:
    from mcpmeter.ledger.location import Location

_DAY = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
_NEW_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(name="ledger")
def command() -> None:
    """Look after the ledger. All but recover work while a service writes to it.

    \b
    Example:
      mcpmeter ledger verify
      mcpmeter ledger backup /backups/ledger-$(date +%F).db
      mcpmeter ledger prune --before 2026-01-01
    """


@command.command()
@config_option
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(config_path: Path | None, ledger: Location | None, as_json: bool) -> int:
    """Check the file, every row, the sums by every grouping and the balances; exit 1 with what is wrong.

    \b
    Example:
      mcpmeter ledger verify && mcpmeter ledger backup /backups/ledger.db
    """
    import msgspec

    from mcpmeter.cli.report import usd
    from mcpmeter.ledger.maintenance import verify as verifying

    path = ledger_at(ledger, config_path)
    verdict = verifying.verify(path)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(verdict), indent=2))
    else:
        for fault in verdict.wrong:
            click.echo(fault)
        click.echo(
            f"{path}: {verdict.calls} settled calls (of them {verdict.pruned_calls} kept as sums), "
            f"{verdict.open_calls} open, {verdict.balances} balances, ${usd(verdict.cost_nanousd)}. "
            + (f"{len(verdict.wrong)} things are wrong." if verdict.wrong else "All of it is consistent."),
            err=True,
        )
    return 1 if verdict.wrong else 0


@command.command()
@click.argument("file", type=_NEW_FILE)
@config_option
@ledger_option
def backup(file: Path, config_path: Path | None, ledger: Location | None) -> None:
    """Copy the ledger into a new FILE, while a service writes to it or not, and check the copy.

    To restore it, stop the service and put the copy in the ledger's place, without the -wal and -shm beside that. What
    backs up a ledger on PostgreSQL is pg_dump.

    \b
    Example:
      mcpmeter ledger backup /backups/ledger-$(date +%F).db
    """
    from mcpmeter.ledger.maintenance import backup as backing_up

    size = backing_up.backup(_file_of(ledger, config_path), file)
    click.echo(f"{file}: {size:,} bytes, whole, readable by its owner only.", err=True)


@command.command()
@click.argument("damaged", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("file", type=_NEW_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array, an object for each table.")
def recover(damaged: Path, file: Path, as_json: bool) -> int:
    """Write what can be read of a DAMAGED ledger into a new FILE. The damaged one is never changed.

    Stop the service first. Exit 1 if rows were lost, or nobody can say whether.

    \b
    Example:
      mcpmeter ledger recover ledger.db recovered.db && mcpmeter ledger verify --ledger recovered.db
    """
    import msgspec

    from mcpmeter.ledger.maintenance import recover as recovery

    tables = recovery.recover(damaged, file)
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(table) for table in tables], indent=2))
    else:
        for table in tables:
            lost = "an unknown number" if table.lost is None else f"{table.lost:,}"
            refused = f", {table.refused:,} were no rows of a ledger" if table.refused else ""
            click.echo(f"{table.table}: {table.kept:,} rows kept, {lost} lost{refused}")
        click.echo(f"{file} is the new ledger; {damaged} is as it was. Put it in place: mv {file} {damaged}", err=True)
    return 0 if all(table.lost == 0 for table in tables) else 1


@command.command()
@click.option("--csv", "csv_file", type=click.Path(path_type=Path, allow_dash=True), help="Into this file; - to print.")
@click.option("--parquet", "parquet_file", type=_NEW_FILE, help="Into this file. Needs: pip install mcpmeter[parquet]")
@click.option("--since", type=_DAY, help="Calls started from this instant on (UTC).")
@click.option("--until", type=_DAY, help="Calls started before this instant (UTC); itself not included.")
@config_option
@ledger_option
def export(
    *,
    csv_file: Path | None,
    parquet_file: Path | None,
    since: datetime | None,
    until: datetime | None,
    config_path: Path | None,
    ledger: Location | None,
) -> None:
    """Write every call as a row of CSV or Parquet. Money is in whole nano-dollars, instants are UTC.

    \b
    Example:
      mcpmeter ledger export --parquet november.parquet --since 2026-11-01 --until 2026-12-01
      mcpmeter ledger export --csv - | head
    """
    from mcpmeter.ledger.maintenance.export import batches, write_csv, write_parquet
    from mcpmeter.ledger.queries.reader import open_reader

    if (csv_file is None) == (parquet_file is None):
        raise click.UsageError("Choose one of --csv and --parquet.")
    with open_reader(ledger_at(ledger, config_path)) as reader:
        rows = batches(reader, unix_ns(since) or 0, unix_ns(until))
        if parquet_file is not None:
            count = write_parquet(rows, parquet_file)
        elif str(csv_file) == "-":
            count = write_csv(rows, sys.stdout)
        else:
            with Path(str(csv_file)).open("w", encoding="utf-8", newline="") as file:
                count = write_csv(rows, file)
    click.echo(f"{count:,} calls written.", err=True)


@command.command()
@click.option("--before", required=True, type=_DAY, help="Calls started before this instant (UTC).")
@click.option("--yes", is_flag=True, help="Do it; without this it is only said what would be done.")
@config_option
@ledger_option
def prune(before: datetime, yes: bool, config_path: Path | None, ledger: Location | None) -> None:
    """Turn old settled calls into exact sums, so that the ledger stays small and every report stays true.

    Kept are the sums of each quarter of an hour, team, project, key, provider, model, outcome and source; gone are the
    single calls: their ids, durations and errors. Calls of the last two days, and open ones, are not touched.

    \b
    Example:
      mcpmeter ledger export --parquet 2025.parquet --until 2026-01-01
      mcpmeter ledger prune --before 2026-01-01 --yes
    """
    from mcpmeter.ledger.maintenance import prune as pruning

    path, before_ns = ledger_at(ledger, config_path), unix_ns(before) or 0
    found = pruning.prunable(path, before_ns)
    if not found.calls:
        click.echo("The ledger has no settled calls from before that.", err=True)
    elif not yes:
        days = " to ".join(
            f"{datetime.fromtimestamp(ns // 10**9, UTC):%Y-%m-%d}" for ns in (found.first_ns, found.last_ns)
        )
        click.echo(
            f"{found.calls:,} calls ({days}) would become sums. Nothing was changed; add --yes to do it.", err=True
        )
    else:
        pruned = pruning.prune(path, before_ns, time.time_ns())
        click.echo(
            f"{pruned:,} calls are kept as sums now. The file's free pages are used by the next calls.", err=True
        )


def _file_of(ledger: Location | None, config_path: Path | None) -> Path:
    place = ledger_at(ledger, config_path)
    if isinstance(place, Path):
        return place
    raise LedgerNotUsable(
        "The ledger is on PostgreSQL, which has its own tool for this.",
        hint="Run: pg_dump --format=custom --schema=mcpmeter --file=FILE and the ledger's address.",
    )
