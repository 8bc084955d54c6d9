"""MCPQuotaNearlyExhausted: by the provider's own headers, hardly anything is left of a quota."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import quota
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "MCPQuotaNearlyExhausted"
RATIO: Final = Parameter("ratio", "0.1", "Share of a quota that is too little to be left.", most="1")
SECONDS: Final = Parameter("seconds", "600", "Time to exhaustion that is too short, where it comes before the reset.")
PARAMETERS: Final = (RATIO, SECONDS)

_LABELS: Final = ("provider", "credential", "resource")
_WHOSE: Final = 'provider="openai",credential="openai-1",resource="tokens"'
LIMIT: Final = f"mcp_upstream_quota_limit{{{_WHOSE}}}"
LEFT: Final = f"mcp_upstream_quota_remaining{{{_WHOSE}}}"
SOON: Final = f"mcp_upstream_quota_exhaustion_seconds{{{_WHOSE}}}"
TOKENS: Final = {"provider": "openai", "credential": "openai-1", "resource": "tokens"}


def alert(q: Queries) -> Alert:
    """Gauges of what was last reported, so that the lowest of all replicas counts."""
    return Alert(
        name=NAME,
        area="upstreams",
        parameters=PARAMETERS,
        rules=(Rule(expr=_expr(q), hold="5m"),),
        summary="The quota of {{ $labels.resource }} at {{ $labels.provider }} is nearly used up.",
        description="Of {{ $labels.resource }} at {{ $labels.provider }}, credential {{ $labels.credential }}, hardly "
        f"anything is left (less than {float(q[RATIO]):.0%}), or it ends within {q[SECONDS]}s, before its reset.",
        runbook=Runbook(
            means="Soon the provider answers 429. With another key or provider in the route, calls go there.",
            check=(
                Check("What is left, by share", f"{q.of(quota.REMAINING)} / {q.of(quota.LIMIT)}"),
                Check("Seconds until nothing is left", q.of(quota.EXHAUSTION)),
                Check("Seconds until it is whole again", f"{q.of(quota.RESET)} - time()"),
            ),
            do=(
                "`mcpmeter quota --watch` shows it live.",
                "Add a key (`api_keys:`), a provider (`routes:`), or ask the provider for a higher tier.",
                "Find who uses it up: `mcpmeter report --by team --by model`.",
            ),
            fault="Nobody's: there is more traffic than was bought.",
        ),
        cases=(
            fires("a twentieth is left", "20m", {LIMIT: "10000x30", LEFT: "500x30"}, Firing(TOKENS)),
            fires(
                "it runs out in five minutes, before its reset",
                "20m",
                {LIMIT: "10000x30", LEFT: "6000x30", SOON: "300x30"},
                Firing(TOKENS),
            ),
            fires(
                "one of two replicas was told last how little is left",
                "20m",
                {LIMIT: "10000x30", LEFT: "9000x30", on("b", LIMIT): "10000x30", on("b", LEFT): "100x30"},
                Firing(TOKENS),
            ),
            quiet("half is left", "20m", {LIMIT: "10000x30", LEFT: "5000x30"}),
            quiet("low for two minutes, then whole again", "20m", {LIMIT: "10000x30", LEFT: "9000x15 500x2 10000x13"}),
            quiet("a provider that says no limit", "20m", {LIMIT: "0x30", LEFT: "0x30"}),
            quiet("first scrape after a restart: no header was seen yet", "20m", {}),
            quiet("it runs out in hours", "20m", {LIMIT: "10000x30", LEFT: "6000x30", SOON: "7200x30"}),
        ),
    )


def _expr(q: Queries) -> str:
    left = f"min {q.by(*_LABELS)} ({q.of(quota.REMAINING)})"
    soon = f"min {q.by(*_LABELS)} ({q.of(quota.EXHAUSTION)})"
    return f"{left} / ({q.highest(quota.LIMIT, *_LABELS)} > 0) < {q[RATIO]} or {soon} < {q[SECONDS]}"
