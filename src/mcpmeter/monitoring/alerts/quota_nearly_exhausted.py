"""MCPQuotaNearlyExhausted: a quota is nearly used up according to the provider's headers."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import quota
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "MCPQuotaNearlyExhausted"
RATIO: Final = Parameter("ratio", "0.1", "Remaining share of a quota below which it fires.", most="1")
SECONDS: Final = Parameter(
    "seconds", "600", "Seconds to exhaustion below which it fires, if the quota does not reset first."
)
PARAMETERS: Final = (RATIO, SECONDS)

_LABELS: Final = ("provider", "credential", "resource")
_WHOSE: Final = 'provider="openai",credential="openai-1",resource="tokens"'
LIMIT: Final = f"mcp_upstream_quota_limit{{{_WHOSE}}}"
LEFT: Final = f"mcp_upstream_quota_remaining{{{_WHOSE}}}"
SOON: Final = f"mcp_upstream_quota_exhaustion_seconds{{{_WHOSE}}}"
TOKENS: Final = {"provider": "openai", "credential": "openai-1", "resource": "tokens"}


def alert(q: Queries) -> Alert:
    """The gauges hold the last reported values, so the minimum over replicas counts."""
    return Alert(
        name=NAME,
        area="upstreams",
        parameters=PARAMETERS,
        rules=(Rule(expr=_expr(q), hold="5m"),),
        summary="The quota of {{ $labels.resource }} at {{ $labels.provider }} is nearly used up.",
        description="At {{ $labels.provider }} (key {{ $labels.credential }}), the quota of {{ $labels.resource }} "
        f"is below {float(q[RATIO]):.0%}, or will be exhausted within {q[SECONDS]}s, before its reset.",
        runbook=Runbook(
            means="The provider will soon return 429. Calls then go to other keys or providers of the route.",
            check=(
                Check("Remaining share", f"{q.of(quota.REMAINING)} / {q.of(quota.LIMIT)}"),
                Check("Seconds until exhaustion", q.of(quota.EXHAUSTION)),
                Check("Seconds until the reset", f"{q.of(quota.RESET)} - time()"),
            ),
            do=(
                "`mcpmeter quota --watch` shows the quotas live.",
                "Add a key (`api_keys:`) or a provider (`routes:`), or get a higher tier from the provider.",
                "Find the largest users: `mcpmeter report --by team --by model`.",
            ),
            fault="Traffic exceeds the purchased quota.",
        ),
        cases=(
            fires("5 % is left", "20m", {LIMIT: "10000x30", LEFT: "500x30"}, Firing(TOKENS)),
            fires(
                "exhausted in five minutes, before the reset",
                "20m",
                {LIMIT: "10000x30", LEFT: "6000x30", SOON: "300x30"},
                Firing(TOKENS),
            ),
            fires(
                "only one of two replicas has seen the low value",
                "20m",
                {LIMIT: "10000x30", LEFT: "9000x30", on("b", LIMIT): "10000x30", on("b", LEFT): "100x30"},
                Firing(TOKENS),
            ),
            quiet("half is left", "20m", {LIMIT: "10000x30", LEFT: "5000x30"}),
            quiet("low for two minutes, then full again", "20m", {LIMIT: "10000x30", LEFT: "9000x15 500x2 10000x13"}),
            quiet("a provider without a limit", "20m", {LIMIT: "0x30", LEFT: "0x30"}),
            quiet("first scrape after a restart: no header seen yet", "20m", {}),
            quiet("exhausted in hours", "20m", {LIMIT: "10000x30", LEFT: "6000x30", SOON: "7200x30"}),
        ),
    )


def _expr(q: Queries) -> str:
    left = f"min {q.by(*_LABELS)} ({q.of(quota.REMAINING)})"
    soon = f"min {q.by(*_LABELS)} ({q.of(quota.EXHAUSTION)})"
    return f"{left} / ({q.highest(quota.LIMIT, *_LABELS)} > 0) < {q[RATIO]} or {soon} < {q[SECONDS]}"
