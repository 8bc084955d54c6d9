"""HolySheepRelayDown: MCPUpstreamDown for the guide's relay, under the name the guide uses."""

from __future__ import annotations

from typing import Final

from mcpmeter.monitoring.alert import Alert, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.alerts import upstream_down
from mcpmeter.monitoring.queries import Queries

NAME: Final = "HolySheepRelayDown"
PARAMETERS: Final = upstream_down.PARAMETERS
RELAY: Final = 'provider="holysheep"'

UP: Final = 'mcp_upstream_up{provider="holysheep"}'
OK: Final = 'mcp_upstream_attempts_total{outcome="ok",provider="holysheep"}'
BAD: Final = 'mcp_upstream_attempts_total{outcome="server_error",provider="holysheep"}'
UNREACHABLE: Final = 'mcp_upstream_attempts_total{outcome="unreachable",provider="holysheep"}'


def alert(q: Queries) -> Alert:
    """A ratio with a minimum volume, so that a single error does not page."""
    return Alert(
        name=NAME,
        area="upstreams",
        parameters=PARAMETERS,
        rules=(Rule(expr=upstream_down.down(q, RELAY), hold="2m", severity="critical"),),
        summary="The HolySheep relay is down.",
        description="Most calls of {{ $labels.job }} to {{ $labels.provider }} fail, or every replica has its circuit "
        "open or all of its keys refused.",
        runbook=Runbook(
            means="The relay at api.holysheep.ai is unreachable, returns server errors, or refuses our key.",
            check=upstream_down.checks(q),
            do=(
                "`refused`: check HOLYSHEEP_API_KEY and the credit of the account.",
                "`unreachable`: run `curl -sv https://api.holysheep.ai/v1/models` on this machine.",
                "`server_error`, `timeout`: route its models elsewhere (`routes:`), then contact the relay's support.",
            ),
            fault="The relay or the account.",
        ),
        cases=(
            fires(
                "it returns 503", "20m", {UP: "1x30", OK: "0+2x30", BAD: "0+12x30"}, Firing({"provider": "holysheep"})
            ),
            fires(
                "it is unreachable",
                "20m",
                {UP: "0x30", OK: "50x30", UNREACHABLE: "0+1x30"},
                Firing({"provider": "holysheep"}),
            ),
            quiet("one upstream error among thousands", "20m", {UP: "1x30", OK: "0+500x30", BAD: "0x15 1x15"}),
            quiet("low traffic: two of two attempts fail", "20m", {UP: "1x30", OK: "0x30", BAD: "0x18 2x12"}),
            quiet("another provider is down", "20m", {UP: "1x30", UP.replace("holysheep", "openai"): "0x30"}),
            quiet("its circuit is open on one noisy replica", "20m", {on("a", UP): "0x30", on("b", UP): "1x30"}),
            quiet("a restart resets the counters", "20m", {UP: "1x30", OK: "0+60x15 0+60x15", BAD: "0+1x15 0+1x15"}),
            quiet("this provider is not configured", "20m", {}),
        ),
    )
