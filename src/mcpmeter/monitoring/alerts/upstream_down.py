"""MCPUpstreamDown: a provider does not answer, or answers with errors, as all replicas together see it."""

from __future__ import annotations

from typing import Final

from mcpmeter.monitoring.alert import Alert, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.alerts import _upstreams
from mcpmeter.monitoring.queries import Queries

NAME: Final = "MCPUpstreamDown"
PARAMETERS: Final = _upstreams.PARAMETERS
OTHERS: Final = 'provider!="holysheep"'
"""The relay of the guide has an alert of its own, with its own name."""

UP: Final = 'mcp_upstream_up{provider="openai"}'
OK: Final = 'mcp_upstream_attempts_total{outcome="ok",provider="openai"}'
BAD: Final = 'mcp_upstream_attempts_total{outcome="unreachable",provider="openai"}'


def alert(q: Queries) -> Alert:
    """For every provider but the guide's relay."""
    return Alert(
        name=NAME,
        area="upstreams",
        parameters=PARAMETERS,
        rules=(Rule(expr=_upstreams.down(q, OTHERS), hold="2m", severity="critical"),),
        summary="The provider {{ $labels.provider }} is down.",
        description="Most calls of {{ $labels.job }} to {{ $labels.provider }} fail, or every replica has opened its "
        "circuit or had all of its keys refused.",
        runbook=Runbook(
            means="The provider is unreachable, answers with errors of its own, or refuses our keys (401, 402).",
            check=_upstreams.checks(q),
            do=(
                "`refused`: the key is wrong or the account is empty. Pay, or change the key and reload.",
                "`unreachable`: can this machine reach it? `curl -sv BASE_URL`; name resolution, firewall, TLS.",
                "`server_error`, `timeout`: see its status page. Give its models a second provider: `routes:`.",
                "`garbage`: `base_url` names something that is no API.",
            ),
            fault="The provider's, or the account's.",
        ),
        cases=(
            fires(
                "unreachable",
                "20m",
                {UP: "1x30", OK: "0x30", BAD: "0+12x30"},
                Firing({"provider": "openai"}),
            ),
            fires(
                "the circuit is open on every replica, so that hardly anything is sent",
                "20m",
                {on("a", UP): "0x30", on("b", UP): "0x30", OK: "90x30", BAD: "9x30"},
                Firing({"provider": "openai"}),
            ),
            quiet("one error among thousands", "20m", {UP: "1x30", OK: "0+300x30", BAD: "0x10 1x20"}),
            quiet("low traffic: one of one attempt fails", "20m", {UP: "1x30", OK: "0x30", BAD: "0x18 1x12"}),
            quiet(
                "the circuit is open on one noisy replica of three",
                "20m",
                {on("a", UP): "0x30", on("b", UP): "1x30", on("c", UP): "1x30", OK: "0+90x30"},
            ),
            quiet("a restart resets the counters", "20m", {UP: "1x30", OK: "0+60x15 0+60x15", BAD: "0+1x15 0+1x15"}),
            quiet("first scrape of a service with a bad past", "1m", {UP: "1", OK: "10", BAD: "900"}),
            quiet("no series yet", "20m", {}),
            quiet(
                "callers' own mistakes",
                "20m",
                {UP: "1x30", OK: "0+6x30", BAD.replace("unreachable", "caller_error"): "0+60x30"},
            ),
        ),
    )
