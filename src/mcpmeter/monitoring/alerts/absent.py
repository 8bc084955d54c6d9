"""MCPAbsent: no replica exports metrics of mcpmeter, so that no other alert can fire."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import mcp
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "MCPAbsent"
PARAMETERS: Final[tuple[Parameter, ...]] = ()

ACTIVE: Final = "mcp_active_requests"


def alert(q: Queries) -> Alert:
    """One rule per job, since `absent` over several jobs is silent while one of them exists."""
    return Alert(
        name=NAME,
        area="meter",
        parameters=PARAMETERS,
        rules=tuple(
            Rule(expr=f"absent({q.of_job(job, mcp.ACTIVE_REQUESTS)})", hold="5m", severity="critical")
            for job in q.options.jobs
        ),
        summary="No metrics are scraped from {{ $labels.job }}.",
        description="Prometheus has no target of the job {{ $labels.job }} that exports metrics of mcpmeter. No "
        "other alert of this job can fire.",
        runbook=Runbook(
            means="The job is missing in prometheus.yml, service discovery finds no target, the path is wrong, or all "
            "replicas are down. In the last case MCPTargetDown fires too.",
            check=(
                Check("Targets of the job", q.recorded("up")),
                Check("Metrics they export", f"count by (__name__) ({{{q.matching()}}})"),
            ),
            do=(
                "No target: compare `scrape_configs` with `mcpmeter monitoring write --check`, and the job's name with "
                "`monitoring.jobs`.",
                "A target without metrics: check that mcpmeter serves this port and path.",
            ),
            fault="The configuration of Prometheus, often after a change.",
        ),
        cases=(
            fires("the job was removed from prometheus.yml", "20m", {ACTIVE: "1x5 stale"}),
            fires("no target ever existed", "20m", {}),
            fires("a target exports no metrics of mcpmeter", "20m", {"up": "1x30"}, Firing()),
            quiet("normal operation", "20m", {ACTIVE: "0x30"}),
            quiet("a restart of two minutes", "20m", {ACTIVE: "0x10 _ _ 0x20"}),
            quiet("first scrape", "1m", {ACTIVE: "0"}),
            quiet("one replica of two is removed", "20m", {on("a", ACTIVE): "1x5 stale", on("b", ACTIVE): "1x30"}),
        ),
    )
