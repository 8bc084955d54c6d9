"""MCPErrorRateSpike: the share of failures is far above what it was in the last hour, even if it is still low."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import mcp
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import Parameter, Queries
from mcpmeter.monitoring.recording import OURS

NAME: Final = "MCPErrorRateSpike"
FACTOR: Final = Parameter("factor", "3", "How many times the last hour's share the last five minutes' must be.")
RATIO: Final = Parameter("ratio", "0.01", "Share of failed requests below which no rise matters.", most="1")
FAILURES: Final = Parameter("failures", "10", "Failures in five minutes below which no rise matters.")
PARAMETERS: Final = (FACTOR, RATIO, FAILURES)

OK: Final = 'mcp_requests_total{endpoint="/v1/messages",method="POST",status="200"}'
ERRORS: Final = 'mcp_errors_total{error_type="upstream_timeout",side="upstream"}'


def alert(q: Queries) -> Alert:
    """Five minutes against one hour. A service that is younger than that has nothing to be compared with."""
    return Alert(
        name=NAME,
        area="slo",
        parameters=PARAMETERS,
        rules=(Rule(expr=_expr(q), hold="2m"),),
        summary="Requests of {{ $labels.job }} fail more often than before.",
        description="{{ $value | humanizePercentage }} of the requests of {{ $labels.job }} failed in the last five "
        f"minutes, more than {q[FACTOR]} times the last hour's share.",
        runbook=Runbook(
            means="Something changed within minutes. It may be small yet: MCPHighErrorRate pages when it is not.",
            check=(
                Check("What rose", q.rate(mcp.ERRORS, "5m", "error_type", "side", where=(OURS,))),
                Check("Now", q.recorded("job:mcp_failures:ratio_rate5m")),
                Check("Before", q.recorded("job:mcp_failures:ratio_rate1h")),
            ),
            do=(
                "Compare the beginning with your releases, reloads and the provider's status page.",
                "One provider: let its routes go elsewhere. One error id: look it up in docs/errors.md.",
            ),
            fault="The provider's where side is `upstream`, else ours.",
        ),
        cases=(
            fires(
                "from two in a thousand to five in a hundred",
                "98m",
                {OK: "0+600x120", ERRORS: "0+1.2x90 108+30x20"},
                Firing(shown="5%"),
            ),
            quiet("two in a hundred for hours", "3h", {OK: "0+600x200", ERRORS: "0+12x200"}),
            quiet(
                "low traffic: nothing failed for an hour, then two requests do",
                "98m",
                {OK: "0+1x120", ERRORS: "0x90 0+1x2 2x20"},
            ),
            quiet("a rise that is too small to matter", "98m", {OK: "0+6000x120", ERRORS: "0+1x90 90+20x20"}),
            quiet("first scrape of a service that fails from the start", "10m", {OK: "0+600x20", ERRORS: "0+60x20"}),
            quiet("a restart resets both counters", "98m", {OK: "0+600x90 0+600x30", ERRORS: "0+3x90 0+3x30"}),
            quiet("no error was ever counted", "98m", {OK: "0+600x120"}),
            quiet(
                "one noisy replica of twenty, as noisy as ever",
                "98m",
                {on("rest", OK): "0+5700x120", on("noisy", OK): "0+300x120", on("noisy", ERRORS): "0+300x120"},
            ),
        ),
    )


def _expr(q: Queries) -> str:
    now, before = q.recorded("job:mcp_failures:ratio_rate5m"), q.recorded("job:mcp_failures:ratio_rate1h")
    volume = f"{q.recorded('job:mcp_failures:rate5m')} * {q.seconds('5m')} >= {q[FAILURES]}"
    return f"{now} > {q[FACTOR]} * {before} and {now} > {q[RATIO]} and {volume}"
