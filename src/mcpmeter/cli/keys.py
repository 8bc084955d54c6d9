"""`mcpmeter keys`: create, list and revoke callers' keys, while a service runs on the same ledger or not."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from mcpmeter.errors import SetupError
from mcpmeter.records import Key

_TAKEN_UP = "A service that runs on this ledger takes it up within seconds."


def _ledger_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--ledger",
        type=click.Path(path_type=Path),
        help="The ledger's file. Default: $MCPMETER_LEDGER, or ~/.local/state/mcpmeter/ledger.db.",
    )(function)


@click.group(name="keys")
def command() -> None:
    """Create, list and revoke the keys by which callers are known.

    \b
    Example:
      mcpmeter keys create --name notebook --team research
      mcpmeter keys list
      mcpmeter keys revoke key_0123456789ab
    """


@command.command()
@click.option("--name", required=True, help="What the key is for.")
@click.option("--team", required=True, help="Who pays: the team on every row and counter.")
@_ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def create(name: str, team: str, ledger: Path | None, as_json: bool) -> None:
    """Create a key and show it once; the ledger keeps only its SHA-256.

    The key alone goes to standard output, all else to standard error.

    \b
    Example:
      KEY=$(mcpmeter keys create --name notebook --team research)
    """
    from mcpmeter.access.keys import new_key
    from mcpmeter.ledger.keys import add_key

    secret, key = new_key(name, team, time.time_ns())
    add_key(_path(ledger), key)
    if as_json:
        click.echo(json.dumps({"key": secret, **_shown(key)}))
        return
    click.echo(secret)
    click.echo(f"Created {key.id} for team {team}. It is shown only now. {_TAKEN_UP}", err=True)


@command.command("list")
@_ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def list_(ledger: Path | None, as_json: bool) -> None:
    """List all keys, revoked ones too. A key itself is never shown again.

    \b
    Example:
      mcpmeter keys list --json | jq -r '.[] | select(.revoked_at == null) | .id'
    """
    from mcpmeter.ledger.keys import list_keys

    keys = [_shown(key) for key in list_keys(_path(ledger))]
    if as_json:
        click.echo(json.dumps(keys, indent=2))
    elif keys:
        _print_table(keys)
    else:
        click.echo("There are no keys. Make one: mcpmeter keys create --name N --team T", err=True)


@command.command()
@click.argument("key_id", metavar="ID")
@_ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print the key's record as a JSON object.")
def revoke(key_id: str, ledger: Path | None, as_json: bool) -> None:
    """Revoke the key with this ID. Its calls stay in the ledger.

    \b
    Example:
      mcpmeter keys revoke key_0123456789ab
    """
    from mcpmeter.ledger.keys import revoke_key

    path = _path(ledger)
    key = revoke_key(path, key_id, time.time_ns())
    if key is None:
        raise SetupError(
            f"The ledger {path} has no key with the ID {key_id!a}.",
            hint="Run: mcpmeter keys list (IDs begin with key_)",
        )
    if as_json:
        click.echo(json.dumps(_shown(key)))
    else:
        click.echo(f"Revoked {key.id} ({key.name}, team {key.team}). {_TAKEN_UP}")


def _path(option: Path | None) -> Path:
    from mcpmeter.ledger.sqlite import default_ledger_path

    return option or default_ledger_path()


def _shown(key: Key) -> dict[str, str | None]:
    return {
        "id": key.id,
        "name": key.name,
        "team": key.team,
        "prefix": key.prefix,
        "created_at": _instant(key.created_at_ns),
        "revoked_at": _instant(key.revoked_at_ns),
    }


def _instant(unix_ns: int | None) -> str | None:
    if unix_ns is None:
        return None
    return datetime.fromtimestamp(unix_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _print_table(keys: list[dict[str, str | None]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in keys[0]:
        table.add_column(column, overflow="fold")
    for key in keys:
        table.add_row(*(Text(value or "-") for value in key.values()))
    # A pipe has no width: a wide one keeps each key on one line.
    Console(width=None if sys.stdout.isatty() else 240).print(table)
