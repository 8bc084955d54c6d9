"""MCPHighErrorRate: more requests fail than anybody should have to bear, and enough of them to mean something."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import mcp
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import WATCHING, Parameter, Queries
from mcpmeter.monitoring.recording import OURS

NAME: Final = "MCPHighErrorRate"
RATIO: Final = Parameter("ratio", "0.05", "Share of requests that may fail on our side or upstream.", most="1")
REQUESTS: Final = Parameter("requests", "20", "Requests in five minutes below which no share is worth a page.")
PARAMETERS: Final = (RATIO, REQUESTS)

OK: Final = 'mcp_requests_total{endpoint="/v1/chat/completions",method="POST",status="200"}'
BAD: Final = 'mcp_requests_total{endpoint="/v1/chat/completions",method="POST",status="502"}'
ERRORS: Final = 'mcp_errors_total{error_type="upstream_error",side="upstream"}'


def alert(q: Queries) -> Alert:
    """Fires on the ratio of sums; a ratio of series with different labels would never match."""
    return Alert(
        name=NAME,
        area="slo",
        parameters=PARAMETERS,
        rules=(Rule(expr=_expr(q), hold="5m", severity="critical"),),
        summary="Too many requests of {{ $labels.job }} fail.",
        description="{{ $value | humanizePercentage }} of the requests of {{ $labels.job }} failed in the last five "
        f"minutes, on our side or upstream; more than {float(q[RATIO]):.3g} of all is too many.",
        runbook=Runbook(
            means="Callers get errors that they did not cause. Mistakes of callers (side `client`) are not counted.",
            check=(
                Check(
                    "What fails, and on whose side", q.increase(mcp.ERRORS, "5m", "error_type", "side", where=(OURS,))
                ),
                Check("Where", f"topk(5, {q.increase(mcp.REQUESTS, '5m', 'endpoint', 'status', where=(WATCHING,))})"),
                Check("Since when", q.recorded("job:mcp_failures:ratio_rate5m")),
            ),
            do=(
                "Side `upstream`: see which provider by MCPUpstreamDown's queries; take it out of the routes, or give "
                "its models a second provider (`routes:` in mcpmeter.yaml).",
                "Side `server`: look into the service's log for the error's id, and at MCPLedgerFailing.",
                "It began with a release or a reload: go back.",
            ),
            fault="The provider's where side is `upstream`, else ours.",
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
            quiet("callers' own mistakes", "20m", {OK: "0+60x30", ERRORS.replace("upstream", "client"): "0+30x30"}),
            quiet("a fault of one minute", "20m", {OK: "0+60x30", ERRORS: "0x13 30x30"}),
            quiet("a restart resets both counters", "20m", {OK: "0+60x15 0+60x15", ERRORS: "0+1x15 0+1x15"}),
            quiet("first scrape of a service that has failed before", "2m", {OK: "5000", ERRORS: "4000"}),
            quiet("no error was ever counted", "20m", {OK: "0+60x30"}),
            quiet("nothing is asked", "20m", {OK: "7x30", ERRORS: "7x30"}),
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
