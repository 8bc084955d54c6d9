"""`mcpmeter check`: validate the configuration and print what would run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import click

from mcpmeter.cli._options import config_option, json_option
from mcpmeter.cli._tables import printable
from mcpmeter.errors import ConfigInvalid, LedgerNotUsable, MissingDependency

if TYPE_CHECKING:
    from mcpmeter.config import Settings
    from mcpmeter.config.relay import RouteSettings
    from mcpmeter.ledger.location import Location
    from mcpmeter.live_check import CheckResult
    from mcpmeter.routing.routes import Upstream

COLUMN: Final = 14
RECENT_DAYS: Final = 7
MAX_NAMED: Final = 10
"""Unpriced items in a warning."""


@click.command()
@config_option
@json_option("Print one JSON object; with --live, one per check and line.")
@click.option("--live", is_flag=True, help="Also check the running deployment.")
@click.option("--service", metavar="URL", help="With --live: the running service. Default: as configured.")
@click.option("--prometheus", metavar="URL", default="", help="With --live: the Prometheus that scrapes it.")
@click.option("--alertmanager", metavar="URL", default="", help="With --live: the Alertmanager; receives a test alert.")
@click.option("--grafana", metavar="URL", default="", help="With --live: Grafana; its token is in $GRAFANA_TOKEN.")
def command(
    *,
    config_path: Path | None,
    as_json: bool,
    live: bool,
    service: str | None,
    prometheus: str,
    alertmanager: str,
    grafana: str,
) -> int:
    """Validate the configuration and print what would run. Keys are never printed.

    With --live also check the deployment: ledger, service, metrics, clock, providers and their keys, Prometheus and its
    rules, a test alert through Alertmanager, dashboards. Each check prints one line and, if it fails, what to do.

    \b
    Exit code 0: the configuration is valid and every check passed; 1: it is not, or a check failed.
    Example:
      mcpmeter check --config mcpmeter.yaml
      mcpmeter check --json | jq .problems
      mcpmeter check --live --prometheus http://127.0.0.1:9090 --alertmanager http://127.0.0.1:9093
    """
    from mcpmeter.config import find_file, load

    if not live and (service or prometheus or alertmanager or grafana):
        raise click.UsageError("--service, --prometheus, --alertmanager and --grafana need --live.")
    if live:
        parts = {"prometheus": prometheus, "alertmanager": alertmanager, "grafana": grafana}
        return _check_live(load(find_file(config_path, os.environ), os.environ), service, parts, as_json=as_json)
    try:
        settings = load(find_file(config_path, os.environ), os.environ)
        plan = _plan(settings)
    except ConfigInvalid as fault:
        plan = {"ok": False, "problems": str(fault).splitlines()}
    if as_json:
        click.echo(json.dumps(plan, indent=2, ensure_ascii=True))
    else:
        _print_plan(plan)
    return 0 if plan["ok"] else 1


def _check_live(settings: Settings, service: str | None, parts: dict[str, str], *, as_json: bool) -> int:
    import asyncio

    from mcpmeter.config import listeners
    from mcpmeter.live_check import Addresses, check_live

    base = (service or _local_url(settings.server.host, settings.server.port)).rstrip("/")
    listener = next(found for found in listeners(settings) if found.has_metrics)
    metrics = base if listener.section == "server" else _local_url(listener.host, listener.port)
    others = {name: url.rstrip("/") for name, url in parts.items()}
    token = os.environ.get("GRAFANA_TOKEN", "")
    addresses = Addresses(service=base, metrics=metrics, grafana_token=token, **others)

    async def run() -> bool:
        failed = False
        click.echo(f"{'ok':<12} configuration: {settings.source} is valid" if not as_json else "", nl=not as_json)
        async for result in check_live(settings, addresses):
            failed = failed or result.state == "failed"
            _print_result(result, as_json)
        return failed

    return 1 if asyncio.run(run()) else 0


def _print_result(result: CheckResult, as_json: bool) -> None:
    import msgspec

    if as_json:
        click.echo(msgspec.json.encode(result).decode())
        return
    click.echo(f"{result.state:<12} {result.check}: {result.says}")
    if result.todo:
        click.echo(f"{'':<12} -> {result.todo}")


def _local_url(host: str, port: int) -> str:
    """The listener's URL from this machine, also if it listens on every address."""
    every = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "[::]": "[::1]"}  # noqa: S104 (compared, not bound)
    return _address(every.get(host, host), port)


def _plan(settings: Settings) -> dict[str, Any]:
    from mcpmeter.config import price_book

    price_book(settings)
    upstreams = settings.upstreams()
    ledger, keys, unreadable = _ledger(settings)
    problems = [*unreadable, *_pending_problems(settings, unreadable), *_open_binds(settings, bool(keys))]
    return {
        "ok": not problems,
        "source": settings.source,
        "listens": _address(settings.server.host, settings.server.port),
        "metrics": _metrics_address(settings),
        "providers": [_provider(upstream) for upstream in upstreams],
        "default_provider": settings.relay.default_provider or upstreams[0].name,
        "default_model": settings.relay.default_model,
        "routes": [_route(route) for route in settings.routes],
        "aliases": dict(settings.aliases),
        "teams": [team.name for team in settings.teams],
        "keys": keys,
        "ledger": ledger,
        "price_lists": _price_lists(settings),
        "warnings": [*_warnings(settings, upstreams), *(_unpriced(settings) if ledger["exists"] else ())],
        "problems": problems,
    }


def _provider(upstream: Upstream) -> dict[str, Any]:
    return {
        "name": upstream.name,
        "base_url": upstream.provider.base_url,
        "key": _key_count(upstream),
        "models": [*upstream.models, *upstream.provider.models],
        "prices": _priced_by(upstream),
    }


def _key_count(upstream: Upstream) -> str:
    if not upstream.api_key:
        return "none"
    count = len(upstream.credentials)
    return "present" if count == 1 else f"{count} present, in turn"


def _route(route: RouteSettings) -> dict[str, Any]:
    return {
        "models": list(route.models),
        "mode": route.mode,
        "upstreams": [entry.name for entry in route.upstreams],
    }


def _priced_by(upstream: Upstream) -> list[str]:
    ids = upstream.provider.genai_prices_id
    return [name for name in (upstream.provider.price_list, f"genai-prices: {ids}" if ids else "") if name]


def _price_lists(settings: Settings) -> list[str]:
    from mcpmeter.pricing import bundled_price_lists

    return [*(bundled.name for bundled in bundled_price_lists()), *(str(path) for path in settings.pricing.files)]


def _address(host: str, port: int) -> str:
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{name}:{port or '<a free port>'}"


def _metrics_address(settings: Settings) -> str:
    from mcpmeter.config import listeners

    listener = next(found for found in listeners(settings) if found.has_metrics)
    return f"{_address(listener.host, listener.port)}/metrics"


def _ledger(settings: Settings) -> tuple[dict[str, Any], list[dict[str, str]], list[str]]:
    """The ledger, the keys of configuration and ledger, and the problems with the ledger."""
    from mcpmeter.ledger.queries.reader import has_tables

    location = settings.ledger.location
    keys = [{"name": key.name, "team": key.team, "from": "configuration"} for key in settings.keys]
    problems = list(_write_problems(location)) if isinstance(location, Path) else []
    is_ledger = False
    try:
        is_ledger = has_tables(location)
        keys += _ledger_keys(location) if is_ledger else []
    except (LedgerNotUsable, MissingDependency) as fault:
        problems.insert(0, str(fault))
    exists = is_ledger or (isinstance(location, Path) and location.exists())
    return {"path": str(location), "exists": exists, "writable": not problems}, keys, problems


def _ledger_keys(location: Location) -> list[dict[str, str]]:
    from mcpmeter.ledger.queries.keys import list_keys

    keys = [key for key in list_keys(location) if key.revoked_at_ns is None]
    return [{"name": key.name, "team": key.team, "from": "ledger"} for key in keys]


def _write_problems(ledger: Path) -> Iterator[str]:
    """Inspects permissions only: `check` must leave no file behind."""
    hint = "Grant this user write permission, or set 'ledger.path' to another file."
    if ledger.is_dir():
        yield f"The ledger {ledger} is a folder. Set 'ledger.path' to a file in it."
    elif ledger.exists() and not os.access(ledger, os.R_OK | os.W_OK):
        yield f"The ledger {ledger} cannot be written. {hint}"
    elif not _takes_files(ledger.parent):
        yield f"The ledger's folder {ledger.parent} cannot be written. {hint}"


def _pending_problems(settings: Settings, known: Collection[str]) -> Iterator[str]:
    """The problem with the folder of the pending file, unless the ledger's own folder is `known` to have one."""
    from mcpmeter.ledger.pending import pending_place

    location, folder = settings.ledger.location, settings.ledger.pending_path
    if known and folder is None and isinstance(location, Path):
        return
    place = pending_place(location, folder)
    usable = os.access(place.folder / f"{place.stem}.pending", os.R_OK | os.W_OK)
    if not usable and not _takes_files(place.folder):
        hint = "Grant this user write permission, or set 'ledger.pending_path' to another folder."
        yield f"The folder of the pending file {place.folder} cannot be written. {hint}"


def _takes_files(folder: Path) -> bool:
    """Whether this user may create a file in the folder, and the folder itself if it does not exist."""
    existing = next(found for found in (folder.absolute(), *folder.absolute().parents) if found.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _open_binds(settings: Settings, have_keys: bool) -> Iterator[str]:
    from mcpmeter.config import refuse_open_bind

    try:
        refuse_open_bind(settings, have_keys)
    except ConfigInvalid as fault:
        yield from str(fault).splitlines()


def _warnings(settings: Settings, upstreams: tuple[Upstream, ...]) -> Iterator[str]:
    from mcpmeter.config import is_loopback

    model = settings.relay.default_model
    plan = settings.routing(upstreams).plan(model)
    first = plan.first
    if len(plan.routes) == 1 and first.model == model and not first.upstream.serves(model):
        yield (
            f"No provider lists the default model '{model}'; its calls would be sent to '{first.upstream.name}'. "
            "Set relay.default_model."
        )
    if settings.ledger.synchronous == "normal":
        yield "'ledger.synchronous' is 'normal': a power loss loses the last moments' rows. See docs/ledger.md."
    for upstream in upstreams:
        address = urlsplit(upstream.provider.base_url)
        if address.scheme == "http" and upstream.api_key and not is_loopback(address.hostname or ""):
            yield f"The key of '{upstream.name}' would cross the network in clear text. Use an https:// base_url."
        if not _priced_by(upstream):
            yield f"'{upstream.name}' has no prices, so its calls count as unpriced. Set its price_list."


def _unpriced(settings: Settings) -> Iterator[str]:
    """The items of recent calls that have no price: what the provider bills for them is in no cost."""
    from mcpmeter.ledger.queries.reader import open_reader
    from mcpmeter.ledger.queries.selection import Selection
    from mcpmeter.usage.items import unpriced_in

    since_ns = time.time_ns() - RECENT_DAYS * 86_400 * 10**9
    try:
        with open_reader(settings.ledger.location) as reader:
            items = unpriced_in(reader, Selection(since_ns=since_ns))
    except (LedgerNotUsable, MissingDependency):
        return  # said among the problems
    if items:
        named = ", ".join(f"{printable(item.item)} ({item.occurrences:,})" for item in items[:MAX_NAMED])
        more = f" and {len(items) - MAX_NAMED} more" if len(items) > MAX_NAMED else ""
        yield (
            f"Calls of the last {RECENT_DAYS} days have items without a price: {named}{more}. "
            "Add their prices to a price list, pricing.files."
        )


def _print_plan(plan: dict[str, Any]) -> None:
    if "source" in plan:
        _print_parts(plan)
    for warning in plan.get("warnings", ()):
        click.echo(f"warning: {warning}", err=True)
    for problem in plan["problems"]:
        click.echo(f"mcpmeter: {problem}", err=True)
    if plan["ok"]:
        click.echo("The configuration is valid. Start it: mcpmeter serve")


def _print_parts(plan: dict[str, Any]) -> None:
    _line("Configuration", plan["source"])
    _line("Listens on", plan["listens"])
    _line("Metrics", plan["metrics"])
    for index, provider in enumerate(plan["providers"]):
        _line(
            "" if index else "Providers",
            f"{index + 1}. {provider['name']}  {provider['base_url']}  key: {provider['key']}",
        )
        _line("", f"   models: {', '.join(provider['models']) or 'those that no other provider lists'}")
        _line("", f"   prices: {', '.join(provider['prices']) or 'none'}")
    for index, route in enumerate(plan["routes"]):
        upstreams = f"{' then ' if route['mode'] == 'ordered' else ' or '}".join(route["upstreams"])
        _line("" if index else "Routes", f"{', '.join(route['models'])}: {upstreams}")
    for index, (alias, target) in enumerate(plan["aliases"].items()):
        _line("" if index else "Aliases", f"{alias}: {target}")
    _line("Default", f"model {plan['default_model']}, provider {plan['default_provider']}")
    _line("Teams", ", ".join(plan["teams"]) or "any")
    keys = ", ".join(f"{key['name']} ({key['team']}, {key['from']})" for key in plan["keys"])
    _line("Keys", keys or "none: every client that can connect may call")
    _line("Ledger", f"{plan['ledger']['path']} ({'writable' if plan['ledger']['writable'] else 'NOT writable'})")
    _line("Price lists", ", ".join(plan["price_lists"]))


def _line(name: str, text: str) -> None:
    click.echo(f"{name:<{COLUMN}} {text}")
