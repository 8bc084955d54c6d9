"""`mcpmeter ledger`: maintenance of the ledger: verify, export, prune, back up, recover."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcpmeter.cli._options import config_option, json_option, ledger_at, ledger_option, unix_ns
from mcpmeter.errors import LedgerNotUsable

if TYPE_CHECKING:
    from mcpmeter.ledger.location import Location

_DAY = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
_NEW_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(name="ledger")
def command() -> None:
    """Maintain the ledger. Every command but recover may run while a service writes to it.

    \b
    Example:
      mcpmeter ledger verify
      mcpmeter ledger backup /backups/ledger-$(date +%F).db
      mcpmeter ledger prune --before 2026-01-01
    """


@command.command()
@config_option
@ledger_option
@json_option()
def verify(config_path: Path | None, ledger: Location | None, as_json: bool) -> int:
    """Check the file, every row, the sums by every grouping and the balances. Exit code 1: a fault was found.

    \b
    Example:
      mcpmeter ledger verify && mcpmeter ledger backup /backups/ledger.db
    """
    import msgspec

    from mcpmeter.ledger.maintenance import verify
    from mcpmeter.money import usd_text

    location = ledger_at(ledger, config_path)
    verdict = verify.verify(location)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(verdict), indent=2))
    else:
        for fault in verdict.wrong:
            click.echo(fault)
        click.echo(
            f"{location}: {verdict.calls} settled calls ({verdict.pruned_calls} of them kept as sums), "
            f"{verdict.open_calls} open, {verdict.balances} balances, ${usd_text(verdict.cost_nanousd)}. "
            + (f"{len(verdict.wrong)} faults." if verdict.wrong else "The ledger is consistent."),
            err=True,
        )
    return 1 if verdict.wrong else 0


@command.command()
@click.argument("file", type=_NEW_FILE)
@config_option
@ledger_option
def backup(file: Path, config_path: Path | None, ledger: Location | None) -> None:
    """Copy the ledger into a new FILE and check the copy. A service may keep writing to the ledger.

    To restore it, stop the service, replace the ledger's file with the copy and delete its -wal and -shm files. For a
    ledger on PostgreSQL use pg_dump.

    \b
    Example:
      mcpmeter ledger backup /backups/ledger-$(date +%F).db
    """
    from mcpmeter.ledger.maintenance import backup

    size = backup.backup(_file_of(ledger, config_path), file)
    click.echo(f"{file}: {size:,} bytes, complete, readable by its owner only.", err=True)


@command.command()
@click.argument("damaged", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("file", type=_NEW_FILE)
@json_option("Print a JSON array with one object per table.")
def recover(damaged: Path, file: Path, as_json: bool) -> int:
    """Copy the readable rows of a DAMAGED ledger into a new FILE. The damaged ledger is never changed.

    Stop the service first. Exit code 1: rows were lost, or it is unknown whether rows were lost.

    \b
    Example:
      mcpmeter ledger recover ledger.db recovered.db && mcpmeter ledger verify --ledger recovered.db
    """
    import msgspec

    from mcpmeter.ledger.maintenance import recover

    tables = recover.recover(damaged, file)
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(table) for table in tables], indent=2))
    else:
        for table in tables:
            lost = "an unknown number" if table.lost is None else f"{table.lost:,}"
            refused = f", {table.refused:,} were no rows of a ledger" if table.refused else ""
            click.echo(f"{table.table}: {table.kept:,} rows kept, {lost} lost{refused}")
        click.echo(f"{file} is the new ledger; {damaged} is unchanged. To use it: mv {file} {damaged}", err=True)
    return 0 if all(table.lost == 0 for table in tables) else 1


@command.command()
@click.option(
    "--csv", "csv_file", type=click.Path(path_type=Path, allow_dash=True), help="Write CSV to this file; - prints."
)
@click.option("--parquet", "parquet_file", type=_NEW_FILE, help="Parquet file; needs mcpmeter[parquet].")
@click.option("--since", type=_DAY, help="Calls started at or after this instant (UTC).")
@click.option("--until", type=_DAY, help="Calls started before this instant (UTC).")
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
    """Export every call as a row of CSV or Parquet. Amounts are in whole nano-dollars, instants are UTC.

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
@click.option("--yes", is_flag=True, help="Do it. Without this option only the effect is printed.")
@config_option
@ledger_option
def prune(before: datetime, yes: bool, config_path: Path | None, ledger: Location | None) -> None:
    """Replace old settled calls by exact sums, which keeps the ledger small and every report exact.

    The sums are per quarter of an hour, team, project, key, provider, model, outcome and source. The single calls are
    deleted with their ids, durations and errors. Calls of the last two days and open calls are not touched.

    \b
    Example:
      mcpmeter ledger export --parquet 2025.parquet --until 2026-01-01
      mcpmeter ledger prune --before 2026-01-01 --yes
    """
    from mcpmeter.cli._actor import this_user
    from mcpmeter.ledger.maintenance import prune

    location, before_ns = ledger_at(ledger, config_path), unix_ns(before) or 0
    old = prune.prunable(location, before_ns)
    if not old.calls:
        click.echo("The ledger has no settled calls before this instant.", err=True)
    elif not yes:
        days = " to ".join(f"{datetime.fromtimestamp(ns // 10**9, UTC):%Y-%m-%d}" for ns in (old.first_ns, old.last_ns))
        click.echo(
            f"{old.calls:,} calls ({days}) would become sums. Nothing was changed; add --yes to do it.", err=True
        )
    else:
        pruned = prune.prune(location, before_ns, time.time_ns(), this_user())
        click.echo(f"{pruned:,} calls are kept as sums now. New calls reuse the file's free pages.", err=True)


def _file_of(ledger: Location | None, config_path: Path | None) -> Path:
    location = ledger_at(ledger, config_path)
    if isinstance(location, Path):
        return location
    raise LedgerNotUsable(
        "The ledger is on PostgreSQL, which has its own tool for backups.",
        hint="Run: pg_dump --format=custom --schema=mcpmeter --file=FILE and the ledger's address.",
    )
