"""`mcpmeter quota`: the providers' remaining quotas, from a running service."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import click

from mcpmeter.cli._options import json_option
from mcpmeter.cli._tables import console
from mcpmeter.errors import SetupError

if TYPE_CHECKING:
    from http.client import HTTPConnection

    from rich.table import Table

    from mcpmeter.quota.tracker import QuotaReport, QuotaStatus

PATH: Final = "/api/quota"
TIMEOUT_SECONDS: Final = 5.0
MAX_BYTES: Final = 4 * 1024 * 1024
SOON_SECONDS: Final = 60.0


@click.command("quota")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The running service.")
@click.option("--key", envvar="MCPMETER_KEY", help="A key of the service. Prefer $MCPMETER_KEY.")
@json_option("Print one JSON object, with --watch one per line.")
@click.option("--watch", is_flag=True, help="Refresh until Ctrl-C.")
@click.option(
    "--every",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    help="Refresh interval of --watch, in seconds.",
)
def command(*, url: str, key: str | None, as_json: bool, watch: bool, every: float) -> None:
    """Show what providers report as left of each quota, and when it runs out at the current rate.

    \b
    Example:
      mcpmeter quota --watch
      mcpmeter quota --json | jq '.quotas[] | select(.exhausted_in_seconds != null)'
    """
    fetch = _fetcher(url, key)
    if not watch:
        _print(fetch(), as_json=as_json)
        return
    # main() lets Ctrl-C kill at once, which would leave the terminal without a cursor.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _watch(fetch, as_json=as_json, every=every)
    except KeyboardInterrupt:
        return


def _watch(fetch: Callable[[], QuotaReport], *, as_json: bool, every: float) -> None:
    if as_json or not sys.stdout.isatty():
        while True:
            _print(fetch(), as_json=as_json, one_line=True)
            time.sleep(every)
    from rich.live import Live

    with Live(_table(fetch()), auto_refresh=False) as live:
        while True:
            live.refresh()
            time.sleep(every)
            live.update(_table(fetch()))


def _fetcher(url: str, key: str | None) -> Callable[[], QuotaReport]:
    """A function that fetches the report. Both raise SetupError, this one for an invalid address or key."""
    from urllib.parse import urlsplit

    from mcpmeter.providers import base_url_fault

    if fault := base_url_fault(url):
        raise SetupError(f"--url {fault}.", hint="Write it as http://127.0.0.1:8000, and the key as --key.")
    if key and not (key.isascii() and key.isprintable()):
        raise SetupError("The key contains characters that no header can.", hint="Set MCPMETER_KEY to a mk_… key.")
    parts = urlsplit(url)
    path = parts.path.rstrip("/") + PATH
    headers = {"Accept": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    base = f"{parts.scheme}://{parts.netloc}"
    return lambda: _fetch(base, _connection(parts.scheme, parts.hostname or "", parts.port), path, headers)


def _connection(scheme: str, host: str, port: int | None) -> HTTPConnection:
    # Without redirects and proxies of the environment, so that the key is sent to the named host only.
    from http.client import HTTPConnection, HTTPSConnection

    kind = HTTPSConnection if scheme == "https" else HTTPConnection
    return kind(host, port, timeout=TIMEOUT_SECONDS)


def _fetch(base: str, connection: HTTPConnection, path: str, headers: dict[str, str]) -> QuotaReport:
    from http.client import HTTPException

    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        status, body = response.status, response.read(MAX_BYTES)
    except HTTPException:
        raise _not_mcpmeter(base) from None
    except (OSError, UnicodeError) as fault:  # UnicodeError: a host name that DNS cannot encode
        reason = getattr(fault, "strerror", None) or type(fault).__name__
        raise SetupError(
            f"No service responds at {base} ({reason}).", hint="Start it: mcpmeter serve. Or set its address: --url."
        ) from None
    finally:
        connection.close()
    return _decode(base, status, body)


def _decode(base: str, status: int, body: bytes) -> QuotaReport:
    import msgspec

    from mcpmeter.quota.tracker import QuotaReport

    if status == 401:
        raise SetupError(f"{base} requires a key, or another one.", hint="Set MCPMETER_KEY, or give --key.")
    if status == 403:
        raise SetupError(f"{base} refused this host name.", hint="Add it to server.allowed_hosts of the service.")
    if status != 200:
        raise _not_mcpmeter(base, status)
    try:
        return msgspec.json.decode(body, type=QuotaReport)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _not_mcpmeter(base) from None


def _not_mcpmeter(base: str, status: int = 0) -> SetupError:
    reported = f" (status {status})" if status else ""
    return SetupError(
        f"The service at {base} reports no quotas{reported}.",
        hint="Is it mcpmeter serve, in this version or a later one? Set its address: --url.",
    )


def _print(report: QuotaReport, *, as_json: bool, one_line: bool = False) -> None:
    import msgspec

    if as_json:
        text = msgspec.json.encode(report)
        click.echo(text if one_line else msgspec.json.format(text, indent=2))
    elif report.quotas:
        console().print(_table(report))
    else:
        click.echo("No provider has reported a quota yet. Responses report them: make a call.", err=True)


def _table(report: QuotaReport) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, caption=f"{report.at:%Y-%m-%d %H:%M:%S} UTC", caption_justify="left")
    for name in ("provider", "credential", "resource"):
        table.add_column(name, overflow="fold")
    for name in ("limit", "remaining", "resets in", "exhausted in"):
        table.add_column(name, justify="right", no_wrap=True)
    for quota in report.quotas:
        figures = [_number(quota.limit), _number(quota.remaining)]
        times = [duration(quota.resets_in_seconds), duration(quota.exhausted_in_seconds)]
        table.add_row(quota.provider, quota.credential, quota.resource, *figures, *times, style=_style(quota))
    return table


def _style(quota: QuotaStatus) -> str:
    if quota.exhausted_in_seconds is None:
        return ""
    return "bold red" if quota.exhausted_in_seconds < SOON_SECONDS else "yellow"


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
    first = next(index for index, (value, _) in enumerate(sizes) if value)
    return " ".join(f"{value}{unit}" for value, unit in sizes[first : first + 2] if value)
