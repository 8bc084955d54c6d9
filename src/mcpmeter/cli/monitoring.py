"""`mcpmeter monitoring`: write rules, routes and dashboards, made from the catalog and the configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import click

from mcpmeter.errors import SetupError


@click.group(name="monitoring")
def command() -> None:
    """Write Prometheus rules, alerts, routes and dashboards.

    \b
    Example:
      mcpmeter monitoring write deploy
    """


@command.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="The file with `monitoring:`; else $MCPMETER_CONFIG or ./mcpmeter.yaml. Nothing else in it is read.",
)
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 where DIR is not what would be written.")
def write(folder: Path, config_path: Path | None, check: bool) -> int:
    """Write everything that monitors mcpmeter into DIR.

    Files of the same name are replaced, others are left alone.

    \b
    Example:
      mcpmeter monitoring write deploy --config mcpmeter.yaml
      mcpmeter monitoring write deploy --check     # in CI: is what is committed up to date?
    """
    from mcpmeter.config import find_file, load_monitoring
    from mcpmeter.monitoring import files

    made = files(load_monitoring(find_file(config_path, os.environ), os.environ))
    changed = [path for path, content in made.items() if _content(folder / path) != content]
    if check:
        return _compared(folder, changed)
    _write(folder, {path: made[path] for path in changed})
    click.echo(f"{folder}: {len(made)} files, {len(changed)} of them new or changed.")
    return 0


def _content(path: Path) -> str | None:
    try:
        return path.read_bytes().decode()
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return None


def _compared(folder: Path, changed: list[str]) -> int:
    for path in changed:
        click.echo(f"{folder / path}: {'differs' if (folder / path).exists() else 'is missing'}", err=True)
    if changed:
        click.echo(f"mcpmeter: {len(changed)} files are out of date. Run: mcpmeter monitoring write {folder}", err=True)
    else:
        click.echo(f"{folder}: up to date.")
    return 1 if changed else 0


def _write(folder: Path, made: Mapping[str, str]) -> None:
    for path, content in made.items():
        place = folder / path
        if place.is_dir():
            raise SetupError(f"{place} is a folder and would be a file.", hint="Move it away, or choose another DIR.")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode())
