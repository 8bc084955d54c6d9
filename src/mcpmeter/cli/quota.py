"""`mcpmeter quota`: what providers still allow, asked of a running service."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import click

from mcpmeter.errors import SetupError

if TYPE_CHECKING:
    from http.client import HTTPConnection

    from rich.table import Table

    from mcpmeter.quota.tracker import QuotaReport, QuotaStatus

PATH: Final = "/api/quota"
SECONDS_TO_ANSWER: Final = 5.0
MAX_BYTES: Final = 4 * 1024 * 1024
SOON_SECONDS: Final = 60.0


@click.command("quota")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The running service.")
@click.option("--key", envvar="MCPMETER_KEY", help="A key of the service. Better given in the environment.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with --watch one a line.")
@click.option("--watch", is_flag=True, help="Ask again and again until Ctrl-C.")
@click.option(
    "--every",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    help="Seconds between two questions of --watch.",
)
def command(*, url: str, key: str | None, as_json: bool, watch: bool, every: float) -> None:
    """Show what providers say is left of each quota, and when it runs out at the current rate.

    \b
    Example:
      mcpmeter quota --watch
      mcpmeter quota --json | jq '.quotas[] | select(.exhausted_in_seconds != null)'
    """
    ask = _question(url, key)
    if not watch:
        _print(ask(), as_json=as_json)
        return
    # The group lets Ctrl-C kill at once, which would leave a terminal without its cursor.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _watch(ask, as_json=as_json, every=every)
    except KeyboardInterrupt:
        return


def _watch(ask: Callable[[], QuotaReport], *, as_json: bool, every: float) -> None:
    if as_json or not sys.stdout.isatty():
        while True:
            _print(ask(), as_json=as_json, one_line=True)
            time.sleep(every)
    from rich.live import Live

    with Live(_table(ask()), auto_refresh=False) as live:
        while True:
            live.refresh()
            time.sleep(every)
            live.update(_table(ask()))


def _question(url: str, key: str | None) -> Callable[[], QuotaReport]:
    """What asks the service. Raises SetupError for an address or a key that cannot be used; so does asking."""
    from urllib.parse import urlsplit

    from mcpmeter.providers import base_url_fault

    if fault := base_url_fault(url):
        raise SetupError(f"--url {fault}.", hint="Write it as http://127.0.0.1:8000, and the key as --key.")
    if key and not (key.isascii() and key.isprintable()):
        raise SetupError("The key holds characters that a header cannot carry.", hint="Set MCPMETER_KEY to a mk_… key.")
    parts = urlsplit(url)
    path = parts.path.rstrip("/") + PATH
    headers = {"Accept": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    where = f"{parts.scheme}://{parts.netloc}"
    return lambda: _ask(where, _connection(parts.scheme, parts.hostname or "", parts.port), path, headers)


def _connection(scheme: str, host: str, port: int | None) -> HTTPConnection:
    # No redirects and no proxy of the environment: the key goes to the named host or nowhere.
    from http.client import HTTPConnection, HTTPSConnection

    kind = HTTPSConnection if scheme == "https" else HTTPConnection
    return kind(host, port, timeout=SECONDS_TO_ANSWER)


def _ask(where: str, connection: HTTPConnection, path: str, headers: dict[str, str]) -> QuotaReport:
    from http.client import HTTPException

    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        status, body = answer.status, answer.read(MAX_BYTES)
    except HTTPException:
        raise _no_service_of_ours(where) from None
    except (OSError, UnicodeError) as fault:  # a host name that DNS cannot write is the latter
        why = getattr(fault, "strerror", None) or type(fault).__name__
        raise SetupError(
            f"No service answers at {where} ({why}).", hint="Start it: mcpmeter serve. Or name its address: --url."
        ) from None
    finally:
        connection.close()
    return _read(where, status, body)


def _read(where: str, status: int, body: bytes) -> QuotaReport:
    import msgspec

    from mcpmeter.quota.tracker import QuotaReport

    if status == 401:
        raise SetupError(f"{where} asks for a key, or for another one.", hint="Set MCPMETER_KEY, or give --key.")
    if status == 403:
        raise SetupError(f"{where} refused this host name.", hint="Add it to server.allowed_hosts of the service.")
    if status != 200:
        raise _no_service_of_ours(where, status)
    try:
        return msgspec.json.decode(body, type=QuotaReport)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _no_service_of_ours(where) from None


def _no_service_of_ours(where: str, status: int = 0) -> SetupError:
    told = f" (status {status})" if status else ""
    return SetupError(
        f"What answers at {where} has no quotas to tell{told}.",
        hint="Is it mcpmeter serve, and as new as this command? Name its address: --url.",
    )


def _print(report: QuotaReport, *, as_json: bool, one_line: bool = False) -> None:
    import msgspec

    if as_json:
        text = msgspec.json.encode(report)
        click.echo(text if one_line else msgspec.json.format(text, indent=2))
    elif report.quotas:
        from rich.console import Console

        # A pipe has no width: a wide one keeps each quota on one line.
        Console(width=None if sys.stdout.isatty() else 240).print(_table(report))
    else:
        click.echo("No provider has told of a quota yet. They do with their answers: make a call.", err=True)


def _table(report: QuotaReport) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, caption=f"{report.at:%Y-%m-%d %H:%M:%S} UTC", caption_justify="left")
    for name in ("provider", "credential", "resource"):
        table.add_column(name, overflow="fold")
    for name in ("limit", "remaining", "resets in", "exhausted in"):
        table.add_column(name, justify="right", no_wrap=True)
    for standing in report.quotas:
        figures = [_number(standing.limit), _number(standing.remaining)]
        times = [duration(standing.resets_in_seconds), duration(standing.exhausted_in_seconds)]
        names = (standing.provider, standing.credential, standing.resource)
        table.add_row(*names, *figures, *times, style=_style(standing))
    return table


def _style(standing: QuotaStatus) -> str:
    if standing.exhausted_in_seconds is None:
        return ""
    return "bold red" if standing.exhausted_in_seconds < SOON_SECONDS else "yellow"


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units: `now`, `42s`, `3m 20s`, `2d 4h`; `-` for none."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole < 1:
        return "now" if seconds == 0 else "<1s"
    sizes = ((whole // 86_400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s"))
    first = next(place for place, (value, _) in enumerate(sizes) if value)
    return " ".join(f"{value}{unit}" for value, unit in sizes[first : first + 2] if value)
