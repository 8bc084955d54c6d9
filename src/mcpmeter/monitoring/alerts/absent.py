"""MCPAbsent: no replica shows any metric of mcpmeter, so that every other alert is blind."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import mcp
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "MCPAbsent"
PARAMETERS: Final[tuple[Parameter, ...]] = ()

ACTIVE: Final = "mcp_active_requests"


def alert(q: Queries) -> Alert:
    """One rule a job, since `absent` of several jobs is silent as long as one is there."""
    return Alert(
        name=NAME,
        area="meter",
        parameters=PARAMETERS,
        rules=tuple(
            Rule(expr=f"absent({q.of_job(job, mcp.ACTIVE_REQUESTS)})", hold="5m", severity="critical")
            for job in q.options.jobs
        ),
        summary="Nothing is scraped from {{ $labels.job }}.",
        description="Prometheus has no target of the job {{ $labels.job }} that shows metrics of mcpmeter. No other "
        "alert of that job can fire.",
        runbook=Runbook(
            means="The job is missing in prometheus.yml, service discovery finds nothing, the path is wrong, or all "
            "replicas are down (then MCPTargetDown fires as well).",
            check=(
                Check("Is there a target", q.recorded("up")),
                Check("What does it show", f"count by (__name__) ({{{q.matching()}}})"),
            ),
            do=(
                "No target: compare `scrape_configs` with `mcpmeter monitoring write --check`, and the job's name with "
                "`monitoring.jobs`.",
                "A target without metrics: is it mcpmeter that answers on this port and path?",
            ),
            fault="The configuration of Prometheus, mostly after a change of it.",
        ),
        cases=(
            fires("the job was taken out of prometheus.yml", "20m", {ACTIVE: "1x5 stale"}),
            fires("there never was a target", "20m", {}),
            fires("a target answers without metrics of ours", "20m", {"up": "1x30"}, Firing()),
            quiet("all is well", "20m", {ACTIVE: "0x30"}),
            quiet("a restart of two minutes", "20m", {ACTIVE: "0x10 _ _ 0x20"}),
            quiet("first scrape", "1m", {ACTIVE: "0"}),
            quiet("one replica of two is gone", "20m", {on("a", ACTIVE): "1x5 stale", on("b", ACTIVE): "1x30"}),
        ),
    )
