"""MCPActiveRequestsSpike: far more requests are in progress than in the hour before."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import mcp
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import WATCHING, Parameter, Queries

NAME: Final = "MCPActiveRequestsSpike"
FACTOR: Final = Parameter("factor", "3", "Multiple of the hour before that fires.")
REQUESTS: Final = Parameter("requests", "100", "Requests in progress, over all replicas, below which it does not fire.")
PARAMETERS: Final = (FACTOR, REQUESTS)

ACTIVE: Final = "mcp_active_requests"
RECORDED: Final = "job:mcp_active_requests:sum"


def alert(q: Queries) -> Alert:
    """Uses the recorded sum over replicas, so that replacing a replica keeps the history."""
    return Alert(
        name=NAME,
        area="slo",
        parameters=PARAMETERS,
        rules=(Rule(expr=_expr(q), hold="5m"),),
        summary="Requests are piling up in {{ $labels.job }}.",
        description="{{ $value | humanize }} requests are in progress in {{ $labels.job }}, more than "
        f"{q[FACTOR]} times the hour before.",
        runbook=Runbook(
            means="More requests arrive than complete: there are more callers, or responses are slower. If the "
            "connections to providers or calls run out (`mcp_limit_reached_total`), calls are refused.",
            check=(
                Check("By replica", q.of(mcp.ACTIVE_REQUESTS)),
                Check("Request rate", q.rate(mcp.REQUESTS, "5m", "endpoint", where=(WATCHING,))),
                Check("Response times", q.recorded(f"job_endpoint:{mcp.REQUEST_DURATION.name}:p95_rate5m")),
            ),
            do=(
                "Slower responses: continue with MCPLatencyDegraded.",
                "More callers: `mcpmeter report --by team` shows the team. Start more replicas or limit the team.",
                "A single replica: remove it from the load balancer and read its log.",
            ),
            fault="The callers or the provider.",
        ),
        cases=(
            fires("from 20 to 400", "100m", {ACTIVE: "20x85 400x30"}, Firing(shown="400")),
            quiet("low traffic: from 2 to 60", "100m", {ACTIVE: "2x85 60x30"}),
            quiet("a constant high load", "100m", {ACTIVE: "400x120"}),
            quiet("first scrape of a busy service", "20m", {ACTIVE: "400x30"}),
            quiet("a restart: down to 0 and up again", "100m", {ACTIVE: "400x80 0 400x30"}),
            quiet(
                "a replica is replaced",
                "100m",
                {on("old", ACTIVE): "400x80 stale", on("new", ACTIVE): "_x81 400x30"},
            ),
            quiet("the metric is missing", "100m", {}),
            quiet(
                "one noisy replica of five",
                "100m",
                {on("rest", ACTIVE): "200x120", on("noisy", ACTIVE): "50x85 250x30"},
            ),
        ),
    )


def _expr(q: Queries) -> str:
    now = q.recorded(RECORDED)
    before = f"avg_over_time({now}[{q.span('1h')}] offset {q.span('10m')})"
    return f"{now} > {q[REQUESTS]} and {now} > {q[FACTOR]} * {before}"
