"""`mcpmeter demo`: the service with a simulated provider; needs no key, network or other program."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mcpmeter.demo.demo import DemoStarted
    from mcpmeter.demo.webhook_receiver import Notice


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 picks a free one."
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Name or address by which others call it, if --host is not loopback. Default: this machine's host name.",
)
@click.option(
    "--stack",
    is_flag=True,
    help="Also start Prometheus, and Alertmanager if it is installed, with our rules sped up thirty times.",
)
@click.option(
    "--calls-per-second",
    default=4.0,
    show_default=True,
    type=click.FloatRange(0.1, 50),
    help="Rate of the generated traffic.",
)
@click.option("--seed", default=1, show_default=True, help="The same seed gives the same traffic.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the ledger in this folder. Default: a temporary one.",
)
def command(
    *,
    host: str,
    port: int,
    allowed_hosts: tuple[str, ...],
    stack: bool,
    calls_per_second: float,
    seed: int,
    folder: Path | None,
) -> None:
    """Run the service with a simulated provider that costs nothing and generated traffic of three teams.

    \b
    Example:
      mcpmeter demo
      mcpmeter demo --stack --port 9000
    """
    from mcpmeter.cli._event_loop import run
    from mcpmeter.cli.serve import log_to_stderr
    from mcpmeter.demo.demo import DemoOptions, run_demo
    from mcpmeter.http.origins import authority_of
    from mcpmeter.service import raise_descriptor_limit

    if any(authority_of(name) is None for name in allowed_hosts):
        raise click.BadParameter(
            "give a host name or address, an IPv6 address in brackets", param_hint="--allowed-host"
        )
    raise_descriptor_limit()
    log_to_stderr()
    with tempfile.TemporaryDirectory(prefix="mcpmeter-demo-") as temporary:
        options = DemoOptions(host, port, folder or Path(temporary), stack, calls_per_second, seed, allowed_hosts)
        counts = run(run_demo(options, _print_addresses, _print_notice))
    click.echo(f"\nStopped. {counts.sent} calls were made, {counts.ok} of them completed.")


def _print_addresses(demo: DemoStarted) -> None:
    key = f" -H 'Authorization: Bearer {demo.key}'" if demo.key_needed else ""
    click.echo("mcpmeter demo: a metered relay on a simulated provider, with traffic of three teams.\n")
    click.echo(f"  Metrics      {demo.address}/metrics")
    click.echo(f"  Start page   {demo.address}/")
    click.echo(f"  OpenAI SDKs  base_url={demo.address}/v1")
    click.echo(f"  MCP clients  {demo.address}/mcp")
    if demo.stack:
        graph = "graph?g0.expr=sum%20by%20(team)%20(mcp_cost_usd_total)"
        click.echo(f"  Prometheus   {demo.stack.prometheus}/{graph}")
        click.echo(f"  Alerts       {demo.stack.prometheus}/alerts")
        missing = "is not installed: apt-get install prometheus-alertmanager"
        click.echo(f"  Alertmanager {demo.stack.alertmanager or missing}")
    click.echo(f"  Ledger       {sys.argv[0]} report --ledger {demo.ledger} --by team --by model")
    click.echo(
        f"\nTry it:\n  curl {demo.address}/v1/chat/completions{key} \\\n"
        """    -d '{"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}]}'\n"""
        f"""  curl -s {demo.address}/metrics | grep '^mcp_cost_usd_total'\n"""
    )
    click.echo("Stop it with Ctrl-C.")


def _print_notice(receiver: str, notice: Notice) -> None:
    """Prints what Alertmanager sends. Watchdog only proves that notifications arrive."""
    if notice.labels.get("alertname") == "Watchdog":
        return
    state = "over" if notice.status == "resolved" else "ALERT"
    name, summary = notice.labels.get("alertname", ""), notice.annotations.get("summary", "")
    click.echo(f"{state:<6} {name} ({receiver}): {notice.annotations.get('description') or summary}")
