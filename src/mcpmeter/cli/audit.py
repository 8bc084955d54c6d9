"""`mcpmeter audit`: the administrative acts that the ledger keeps. A service may run on the same ledger."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from mcpmeter.cli._options import config_option, json_option, ledger_at, ledger_option
from mcpmeter.cli._tables import print_rows
from mcpmeter.errors import InvalidRequest
from mcpmeter.records import AuditAction, AuditEntry

if TYPE_CHECKING:
    from mcpmeter.ledger.location import Location


@click.command(name="audit")
@click.option("--since", default="", metavar="INSTANT", help="Acts at or after this day or instant.")
@click.option("--until", default="", metavar="INSTANT", help="Acts before this day or instant.")
@click.option("--last", default="", metavar="TIME", help="Acts of the last hours, days or weeks: 24h, 7d, 4w.")
@click.option("--time-zone", default="UTC", show_default=True, help="Time zone of days: Europe/Berlin.")
@click.option("--action", type=click.Choice(get_args(AuditAction)), help="Only this kind of act.")
@click.option("--actor", default="", help="Only this key's ID, user or origin: key_0123456789ab, alice, signal.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="At most so many, the newest."
)
@config_option
@ledger_option
@json_option()
def command(
    *,
    since: str,
    until: str,
    last: str,
    time_zone: str,
    action: str | None,
    actor: str,
    limit: int,
    config_path: Path | None,
    ledger: Location | None,
    as_json: bool,
) -> None:
    """List administrative acts, newest last: when, by whose key or user, from which address, what changed.

    Recorded are keys created, rotated and revoked, top-ups, reloads of the configuration, prunes of the ledger, and
    such acts that were refused to a key that is not an admin's.

    \b
    Example:
      mcpmeter audit --last 7d
      mcpmeter audit --action key.revoke --since 2026-11-01 --json | jq -r '.entries[] | .subject'
    """
    from mcpmeter.ledger.queries.audit import AuditQuery, read_audit
    from mcpmeter.usage import span_of
    from mcpmeter.usage import time_zone as zone_of

    try:
        span = span_of(since=since, until=until, last=last, zone=zone_of(time_zone), now_ns=time.time_ns())
    except InvalidRequest as invalid:
        raise click.UsageError(str(invalid)) from None
    query = AuditQuery(
        since_ns=span.since_ns, until_ns=span.until_ns, action=action or "", actor=actor.strip(), limit=limit
    )
    page = read_audit(ledger_at(ledger, config_path), query)
    if as_json:
        shown = [_record(entry) for entry in page.entries]
        click.echo(json.dumps({"entries": shown, "left_out": page.left_out}, indent=2))
        return
    if page.entries:
        print_rows([_row(entry) for entry in page.entries])
    else:
        click.echo("The audit has no such acts.", err=True)
    if page.left_out:
        click.echo(f"{page.left_out:,} older ones are left out; raise --limit.", err=True)


def _record(entry: AuditEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "at": _instant(entry.at_ns, "milliseconds"),
        "actor": entry.actor,
        "source": entry.source,
        "action": entry.action,
        "subject": entry.subject,
        "outcome": entry.outcome,
        "change": _decoded(entry.change),
    }


def _row(entry: AuditEntry) -> dict[str, str]:
    return {
        "at": _instant(entry.at_ns, "seconds"),
        "action": entry.action if entry.outcome == "done" else f"{entry.action} ({entry.outcome})",
        "subject": entry.subject,
        "by": entry.actor,
        "from": entry.source,
        "change": ", ".join(f"{name} {_change(value)}" for name, value in _decoded(entry.change).items()),
    }


def _decoded(change: str) -> dict[str, Any]:
    try:
        decoded = json.loads(change)
    except ValueError:
        decoded = None
    return decoded if isinstance(decoded, dict) else {"unreadable": change}


def _instant(unix_ns: int, timespec: str) -> str:
    at = datetime.fromtimestamp(unix_ns // 10**9, UTC).replace(microsecond=unix_ns % 10**9 // 1000)
    return at.isoformat(timespec=timespec).replace("+00:00", "Z")


def _change(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_change(item)}" for name, item in value.items()) + ")"
    if isinstance(value, list) and len(value) == 2:
        before, after = (_text(side) for side in value)
        return f"{before} → {after}"
    return _text(value)


def _text(value: object) -> str:
    if value in (None, "", []):
        return "-"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
