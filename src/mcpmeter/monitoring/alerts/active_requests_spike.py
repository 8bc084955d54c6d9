"""MCPActiveRequestsSpike: far more requests are being answered at once than in the hour before."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import mcp
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import WATCHING, Parameter, Queries

NAME: Final = "MCPActiveRequestsSpike"
FACTOR: Final = Parameter("factor", "3", "How many times the hour before.")
REQUESTS: Final = Parameter("requests", "100", "Requests under way, over all replicas, below which nothing is said.")
PARAMETERS: Final = (FACTOR, REQUESTS)

ACTIVE: Final = "mcp_active_requests"
RECORDED: Final = "job:mcp_active_requests:sum"


def alert(q: Queries) -> Alert:
    """On the recorded sum over replicas, so that a replaced replica takes its history along."""
    return Alert(
        name=NAME,
        area="slo",
        parameters=PARAMETERS,
        rules=(Rule(expr=_expr(q), hold="5m"),),
        summary="Requests pile up in {{ $labels.job }}.",
        description="{{ $value | humanize }} requests are under way in {{ $labels.job }}, more than "
        f"{q[FACTOR]} times the hour before.",
        runbook=Runbook(
            means="More comes in than goes out: more callers, or slower answers. When connections to providers run out "
            "(`relay.timeouts.max_connections`), calls are refused.",
            check=(
                Check("By replica", q.of(mcp.ACTIVE_REQUESTS)),
                Check("Do more ask", q.rate(mcp.REQUESTS, "5m", "endpoint", where=(WATCHING,))),
                Check("Or are answers slower", q.recorded(f"job_endpoint:{mcp.REQUEST_DURATION.name}:p95_rate5m")),
            ),
            do=(
                "Slower answers: go on with MCPLatencyDegraded.",
                "More callers: `mcpmeter report --by team` says whose; start more replicas or limit the team.",
                "One replica alone: take it out of the load balancer and look at its log.",
            ),
            fault="The callers' or the provider's.",
        ),
        cases=(
            fires("from 20 to 400", "100m", {ACTIVE: "20x85 400x30"}, Firing(shown="400")),
            quiet("low traffic: from 2 to 60", "100m", {ACTIVE: "2x85 60x30"}),
            quiet("busy as always", "100m", {ACTIVE: "400x120"}),
            quiet("first scrape of a busy service", "20m", {ACTIVE: "400x30"}),
            quiet("a restart: down to nothing and up again", "100m", {ACTIVE: "400x80 0 400x30"}),
            quiet(
                "a replica is replaced by another",
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
