"""MCPHighErrorRate: too many requests fail, at a volume that makes the share meaningful."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import mcp
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import WATCHING, Parameter, Queries
from mcpmeter.monitoring.recording import OURS

NAME: Final = "MCPHighErrorRate"
RATIO: Final = Parameter("ratio", "0.05", "Accepted share of requests that fail on our side or upstream.", most="1")
REQUESTS: Final = Parameter("requests", "20", "Requests in five minutes below which it does not fire.")
PARAMETERS: Final = (RATIO, REQUESTS)

OK: Final = 'mcp_requests_total{endpoint="/v1/chat/completions",method="POST",status="200"}'
BAD: Final = 'mcp_requests_total{endpoint="/v1/chat/completions",method="POST",status="502"}'
ERRORS: Final = 'mcp_errors_total{error_type="upstream_error",side="upstream"}'


def alert(q: Queries) -> Alert:
    """Divides sums: series with different labels would never match."""
    return Alert(
        name=NAME,
        area="slo",
        parameters=PARAMETERS,
        rules=(Rule(expr=_expr(q), hold="5m", severity="critical"),),
        summary="Too many requests of {{ $labels.job }} fail.",
        description="{{ $value | humanizePercentage }} of the requests of {{ $labels.job }} failed in the last five "
        f"minutes, on our side or upstream. The threshold is {float(q[RATIO]):.3g}.",
        runbook=Runbook(
            means="Callers get errors that they did not cause. Errors of callers (side `client`) are not counted.",
            check=(
                Check("Failures by type and side", q.increase(mcp.ERRORS, "5m", "error_type", "side", where=(OURS,))),
                Check(
                    "Most affected endpoints",
                    f"topk(5, {q.increase(mcp.REQUESTS, '5m', 'endpoint', 'status', where=(WATCHING,))})",
                ),
                Check("Share of failures", q.recorded("job:mcp_failures:ratio_rate5m")),
            ),
            do=(
                "Side `upstream`: find the provider with the queries of MCPUpstreamDown. Remove it from the routes, or "
                "add a second provider for its models (`routes:` in mcpmeter.yaml).",
                "Side `server`: search the service's log for the error id, and check MCPLedgerFailing.",
                "It started with a release or a reload: roll back.",
            ),
            fault="The provider if the side is `upstream`, else mcpmeter.",
        ),
        cases=(
            fires(
                "a tenth of the requests fails",
                "20m",
                {OK: "0+54x30", BAD: "0+6x30", ERRORS: "0+6x30"},
                Firing(shown="10%"),
            ),
            fires(
                "every request fails on one replica of three",
                "20m",
                {
                    on("a", OK): "0+60x30",
                    on("b", OK): "0+60x30",
                    on("c", BAD): "0+60x30",
                    on("c", ERRORS): "0+60x30",
                },
                Firing(shown="33.33%"),
            ),
            quiet("low traffic: three of four requests fail", "20m", {OK: "0+0.25x30", ERRORS: "0+0.75x30"}),
            quiet("errors of callers", "20m", {OK: "0+60x30", ERRORS.replace("upstream", "client"): "0+30x30"}),
            quiet("a fault of one minute", "20m", {OK: "0+60x30", ERRORS: "0x13 30x30"}),
            quiet("a restart resets both counters", "20m", {OK: "0+60x15 0+60x15", ERRORS: "0+1x15 0+1x15"}),
            quiet("first scrape of a service that has failed before", "2m", {OK: "5000", ERRORS: "4000"}),
            quiet("no error was counted yet", "20m", {OK: "0+60x30"}),
            quiet("no requests", "20m", {OK: "7x30", ERRORS: "7x30"}),
            quiet(
                "one noisy replica of twenty",
                "20m",
                {
                    on("rest", OK): "0+1140x30",
                    on("noisy", OK): "0+30x30",
                    on("noisy", ERRORS): "0+30x30",
                },
            ),
        ),
    )


def _expr(q: Queries) -> str:
    ratio = q.recorded("job:mcp_failures:ratio_rate5m")
    volume = f"{q.recorded('job:mcp_requests:rate5m')} * {q.seconds('5m')} >= {q[REQUESTS]}"
    return f"{ratio} > {q[RATIO]} and {volume}"
