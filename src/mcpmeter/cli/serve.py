"""`mcpmeter serve`: the metered relay."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mcpmeter.cli._options import config_option_for, ledger_option

if TYPE_CHECKING:
    from mcpmeter.config import Settings
    from mcpmeter.ledger.location import Location
    from mcpmeter.service import Service


@click.command()
@config_option_for("The configuration; default: $MCPMETER_CONFIG, else ./mcpmeter.yaml, else the environment alone.")
@click.option("--host", help="Address to listen on, instead of server.host.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port, instead of server.port; 0 picks a free one.")
@ledger_option
def command(config_path: Path | None, host: str | None, port: int | None, ledger: Location | None) -> None:
    """Run the metered relay: OpenAI's API at /v1, an MCP server at /mcp, metrics at /metrics.

    Without a configuration every provider whose key is in the environment is enabled.

    \b
    Example:
      OPENAI_API_KEY=… mcpmeter serve
      mcpmeter serve --config mcpmeter.yaml --port 9000
    """
    from mcpmeter.config import find_file, load

    log_to_stderr()
    path = find_file(config_path, os.environ)

    def settings() -> Settings:
        return with_options(load(path, os.environ), host=host, port=port, ledger=ledger)

    settings()  # reports faults before the slower import of the service
    from mcpmeter.cli._event_loop import run
    from mcpmeter.service import Service, bind, raise_descriptor_limit, serve

    raise_descriptor_limit()
    service = Service(settings)
    listener = bind(service.settings.server.host, service.settings.server.port)
    run(serve(service, listener, _print_addresses))


def with_options(settings: Settings, *, host: str | None, port: int | None, ledger: Location | None) -> Settings:
    """The settings, overridden by the command line."""
    server = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    update: dict[str, object] = {"server": settings.server.model_copy(update=server)}
    if ledger is not None:
        update["ledger"] = settings.ledger.at(ledger)
    return settings.model_copy(update=update)


def log_to_stderr() -> None:
    """Logs one line per message, without times: systemd and container runtimes add them."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("mcpmeter").setLevel(logging.INFO)
    # Both warn about every malformed request, so any client could fill the disk.
    for name in ("uvicorn", "mcp"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _print_addresses(service: Service, address: str) -> None:
    providers = ", ".join(upstream.name for upstream in service.settings.upstreams())
    click.echo(f"mcpmeter {service.version} relays to {providers}; settings from {service.settings.source}.")
    click.echo(f"  OpenAI SDKs  {address}/v1")
    click.echo(f"  MCP clients  {address}/mcp")
    addresses = service.addresses
    click.echo(f"  Prometheus   {addresses.get('metrics') or addresses.get('server.admin') or address}/metrics")
    if "server.admin" in addresses:
        click.echo(f"  Admin        {addresses['server.admin']}/api/keys")
    click.echo(f"  Ledger       {service.ledger_path}")
