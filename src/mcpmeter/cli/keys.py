"""`mcpmeter keys`: create, list, rotate and revoke callers' keys. A service may run on the same ledger."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcpmeter.access.key_view import instant, shown
from mcpmeter.cli._options import config_option, json_option, ledger_at, ledger_option
from mcpmeter.cli._tables import print_rows
from mcpmeter.errors import SetupError
from mcpmeter.pricing.calendars import unix_ns
from mcpmeter.records import Key, Role

if TYPE_CHECKING:
    from mcpmeter.ledger.location import Location

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_APPLIED = "A service on this ledger applies it within seconds."


class Lifetime(click.ParamType[int]):
    """A duration from now (`90d`), a date or an instant. Converted to Unix nanoseconds."""

    name = "when"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Called by click with the option's text."""
        if isinstance(value, int):
            return value
        if found := re.fullmatch(r"([0-9]{1,6})([smhdw])", str(value)):
            return time.time_ns() + int(found[1]) * _SECONDS[found[2]] * 10**9
        try:
            when = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!a} is neither a duration (90d, 12h), a date, nor an instant (RFC 3339).", param, ctx)
        return unix_ns(when if when.tzinfo else when.replace(tzinfo=UTC))


@click.group(name="keys")
def command() -> None:
    """Create, list, rotate and revoke the keys that identify callers.

    \b
    Example:
      mcpmeter keys create --name notebook --team research --expires 90d --model 'gpt-4.1*'
      mcpmeter keys list
      mcpmeter keys rotate key_0123456789ab --grace 24h
      mcpmeter keys revoke key_0123456789ab
    """


@command.command()
@click.option("--name", required=True, help="The key's name in lists and logs.")
@click.option("--team", required=True, help="The team that its calls are charged to.")
@click.option("--project", default="", help="The team's project that its calls are for.")
@click.option(
    "--role",
    type=click.Choice(["caller", "admin"]),
    default="caller",
    show_default=True,
    help="An admin may also use the whole management API.",
)
@click.option("--model", "models", multiple=True, help="A model it may call, name or glob; repeatable. Default: all.")
@click.option("--requests-per-minute", type=click.IntRange(min=1), help="Maximum calls per clock minute.")
@click.option("--tokens-per-minute", type=click.IntRange(min=1), help="Maximum tokens per clock minute, of both kinds.")
@click.option("--expires", type=Lifetime(), help="When it expires: 90d, 12h, a date, or an instant (RFC 3339).")
@config_option
@ledger_option
@json_option()
def create(
    *,
    name: str,
    team: str,
    project: str,
    role: Role,
    models: tuple[str, ...],
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    expires: int | None,
    config_path: Path | None,
    ledger: Location | None,
    as_json: bool,
) -> None:
    """Create a key and print it once; the ledger stores only its SHA-256.

    Standard output contains only the key; everything else is printed to standard error.

    \b
    Example:
      KEY=$(mcpmeter keys create --name notebook --team research)
      mcpmeter keys create --name ops --team platform --role admin --expires 2027-01-01
    """
    from mcpmeter.access.keys import KeyLimits, new_key
    from mcpmeter.cli._actor import this_user
    from mcpmeter.ledger.queries.keys import add_key

    limits = KeyLimits(
        project=project,
        role=role,
        models=models,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        expires_at_ns=expires,
    )
    secret, key = new_key(name, team, time.time_ns(), limits)
    add_key(ledger_at(ledger, config_path), key, this_user())
    _show_secret(secret, key, as_json, f"Created {key.id} for team {team}.")


def _show_secret(secret: str, key: Key, as_json: bool, done: str) -> None:
    if as_json:
        click.echo(json.dumps({"key": secret, **shown(key)}))
        return
    click.echo(secret)
    click.echo(f"{done} The key is shown only once. {_APPLIED}", err=True)


@command.command("list")
@config_option
@ledger_option
@json_option("Print a JSON array.")
def list_(config_path: Path | None, ledger: Location | None, as_json: bool) -> None:
    """List all keys, including revoked ones. The secrets are not shown again.

    \b
    Example:
      mcpmeter keys list --json | jq -r '.[] | select(.revoked_at == null) | .id'
    """
    from mcpmeter.ledger.queries.keys import list_keys

    keys = [shown(key) for key in list_keys(ledger_at(ledger, config_path))]
    if as_json:
        click.echo(json.dumps(keys, indent=2))
    elif keys:
        filled = [name for name in keys[0] if any(key[name] for key in keys)]
        print_rows([{name: key[name] for name in filled} for key in keys])
    else:
        click.echo("There are no keys. Create one: mcpmeter keys create --name N --team T", err=True)


@command.command()
@click.argument("key_id", metavar="ID")
@config_option
@ledger_option
@json_option("Print the key's record as a JSON object.")
def revoke(key_id: str, config_path: Path | None, ledger: Location | None, as_json: bool) -> None:
    """Revoke the key with this ID. Its calls stay in the ledger.

    \b
    Example:
      mcpmeter keys revoke key_0123456789ab
    """
    from mcpmeter.cli._actor import this_user
    from mcpmeter.ledger.queries.keys import revoke_key

    location = ledger_at(ledger, config_path)
    key = revoke_key(location, key_id, time.time_ns(), this_user())
    if key is None:
        raise _no_such_key(location, key_id)
    if as_json:
        click.echo(json.dumps(shown(key)))
    else:
        click.echo(f"Revoked {key.id} ({key.name}, team {key.team}). {_APPLIED}")


@command.command()
@click.argument("key_id", metavar="ID")
@click.option(
    "--grace",
    type=Lifetime(),
    default="0s",
    show_default=True,
    help="How long the previous secret stays valid: 24h, 7d.",
)
@config_option
@ledger_option
@json_option()
def rotate(key_id: str, grace: int, config_path: Path | None, ledger: Location | None, as_json: bool) -> None:
    """Give the key with this ID a new secret, printed once. Its name, team, limits and calls stay.

    \b
    Example:
      KEY=$(mcpmeter keys rotate key_0123456789ab --grace 24h)
    """
    from mcpmeter.access.keys import rotated
    from mcpmeter.cli._actor import this_user
    from mcpmeter.ledger.queries.keys import rotate_key

    now_ns = time.time_ns()
    secrets: list[str] = []

    def with_new_secret(key: Key) -> Key:
        secret, new = rotated(key, now_ns, max(grace - now_ns, 0))
        secrets.append(secret)
        return new

    location = ledger_at(ledger, config_path)
    key = rotate_key(location, key_id, with_new_secret, this_user())
    if key is None:
        raise _no_such_key(location, key_id)
    until = f" The previous one is valid until {instant(key.previous_until_ns)}." if key.previous_until_ns else ""
    _show_secret(secrets[-1], key, as_json, f"Rotated {key.id} ({key.name}, team {key.team}).{until}")


def _no_such_key(ledger: Location, key_id: str) -> SetupError:
    return SetupError(
        f"The ledger {ledger} has no key with the ID {key_id!a}.", hint="Run: mcpmeter keys list (IDs begin with key_)"
    )
