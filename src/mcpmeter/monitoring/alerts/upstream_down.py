"""MCPUpstreamDown: a provider is unreachable or returns errors, seen over all replicas."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import upstream
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "MCPUpstreamDown"
RATIO: Final = Parameter("ratio", "0.5", "Share of failed attempts above which a provider counts as down.", most="1")
ATTEMPTS: Final = Parameter("attempts", "10", "Attempts in five minutes below which the share is ignored.")
PARAMETERS: Final = (RATIO, ATTEMPTS)

FAILED: Final = 'outcome=~"server_error|unreachable|timeout|broken|garbage|refused"'
SENT: Final = 'outcome!~"caller_error|abandoned"'
"""Excludes attempts that failed because of the caller, which say nothing about the provider."""

OTHERS: Final = 'provider!="holysheep"'
"""HolySheepRelayDown covers the relay of the guide."""

UP: Final = 'mcp_upstream_up{provider="openai"}'
OK: Final = 'mcp_upstream_attempts_total{outcome="ok",provider="openai"}'
BAD: Final = 'mcp_upstream_attempts_total{outcome="unreachable",provider="openai"}'


def alert(q: Queries) -> Alert:
    """Covers every provider except the guide's relay."""
    return Alert(
        name=NAME,
        area="upstreams",
        parameters=PARAMETERS,
        rules=(Rule(expr=down(q, OTHERS), hold="2m", severity="critical"),),
        summary="The provider {{ $labels.provider }} is down.",
        description="Most calls of {{ $labels.job }} to {{ $labels.provider }} fail, or every replica has its circuit "
        "open or all of its keys refused.",
        runbook=Runbook(
            means="The provider is unreachable, returns server errors, or refuses our keys (401, 402).",
            check=checks(q),
            do=(
                "`refused`: the key is wrong or the account has no credit. Pay, or change the key and reload.",
                "`unreachable`: run `curl -sv BASE_URL` on this machine. Check name resolution, firewall and TLS.",
                "`server_error`, `timeout`: see its status page. Add a second provider for its models: `routes:`.",
                "`garbage`: `base_url` does not point to an API.",
            ),
            fault="The provider or the account.",
        ),
        cases=(
            fires(
                "unreachable",
                "20m",
                {UP: "1x30", OK: "0x30", BAD: "0+12x30"},
                Firing({"provider": "openai"}),
            ),
            fires(
                "the circuit is open on every replica, so that little is sent",
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
            quiet("first scrape of a service with old failures", "1m", {UP: "1", OK: "10", BAD: "900"}),
            quiet("no series yet", "20m", {}),
            quiet(
                "errors of callers",
                "20m",
                {UP: "1x30", OK: "0+6x30", BAD.replace("unreachable", "caller_error"): "0+60x30"},
            ),
        ),
    )


def down(q: Queries, provider: str) -> str:
    """True if all replicas count it as down, or if most attempts over all replicas fail.

    The first condition is needed because an open circuit sends nothing, so that there is no share.
    """
    failed = q.increase(upstream.ATTEMPTS, "5m", "provider", where=(provider, FAILED))
    sent = q.increase(upstream.ATTEMPTS, "5m", "provider", where=(provider, SENT))
    all_down = f"{q.highest(upstream.UP, 'provider', where=(provider,))} == 0"
    return f"{all_down} or ({failed} / {sent} > {q[RATIO]} and {sent} >= {q[ATTEMPTS]})"


def checks(q: Queries) -> tuple[Check, ...]:
    """The queries of the runbook, shared with HolySheepRelayDown."""
    return (
        Check("Attempts by outcome", q.increase(upstream.ATTEMPTS, "5m", "provider", "outcome")),
        Check("Open circuits by replica", f"{q.of(upstream.CIRCUIT_OPEN)} == 1"),
        Check("Retries at other providers", q.rate(upstream.RETRIES, "5m", "provider", "reason")),
    )
