"""MCPErrorRateSpike: the share of failures is far above that of the last hour, even if it is still low."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import mcp
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import Parameter, Queries
from mcpmeter.monitoring.recording import OURS

NAME: Final = "MCPErrorRateSpike"
FACTOR: Final = Parameter(
    "factor", "3", "Multiple of the last hour's share that the share of the last five minutes must exceed."
)
RATIO: Final = Parameter("ratio", "0.01", "Share of failed requests below which it does not fire.", most="1")
FAILURES: Final = Parameter("failures", "10", "Failures in five minutes below which it does not fire.")
PARAMETERS: Final = (FACTOR, RATIO, FAILURES)

OK: Final = 'mcp_requests_total{endpoint="/v1/messages",method="POST",status="200"}'
ERRORS: Final = 'mcp_errors_total{error_type="upstream_timeout",side="upstream"}'


def alert(q: Queries) -> Alert:
    """Compares five minutes with one hour. A younger service has nothing to compare with."""
    return Alert(
        name=NAME,
        area="slo",
        parameters=PARAMETERS,
        rules=(Rule(expr=_expr(q), hold="2m"),),
        summary="Requests of {{ $labels.job }} fail more often than before.",
        description="{{ $value | humanizePercentage }} of the requests of {{ $labels.job }} failed in the last five "
        f"minutes, more than {q[FACTOR]} times the last hour's share.",
        runbook=Runbook(
            means="Something changed minutes ago. The share may still be small. If it is high, MCPHighErrorRate pages.",
            check=(
                Check("Failures by type and side", q.rate(mcp.ERRORS, "5m", "error_type", "side", where=(OURS,))),
                Check("Share now", q.recorded("job:mcp_failures:ratio_rate5m")),
                Check("Share in the last hour", q.recorded("job:mcp_failures:ratio_rate1h")),
            ),
            do=(
                "Compare the start time with your releases, reloads and the provider's status page.",
                "A single provider: route its models elsewhere. A single error id: look it up in docs/errors.md.",
            ),
            fault="The provider if the side is `upstream`, else mcpmeter.",
        ),
        cases=(
            fires(
                "from 0.2 % to 5 %",
                "98m",
                {OK: "0+600x120", ERRORS: "0+1.2x90 108+30x20"},
                Firing(shown="5%"),
            ),
            quiet("2 % for hours", "3h", {OK: "0+600x200", ERRORS: "0+12x200"}),
            quiet(
                "low traffic: no failure for an hour, then two",
                "98m",
                {OK: "0+1x120", ERRORS: "0x90 0+1x2 2x20"},
            ),
            quiet("a rise below the minimum share", "98m", {OK: "0+6000x120", ERRORS: "0+1x90 90+20x20"}),
            quiet("first scrape of a service that fails from the start", "10m", {OK: "0+600x20", ERRORS: "0+60x20"}),
            quiet("a restart resets both counters", "98m", {OK: "0+600x90 0+600x30", ERRORS: "0+3x90 0+3x30"}),
            quiet("no error was counted yet", "98m", {OK: "0+600x120"}),
            quiet(
                "one noisy replica of twenty, always as noisy",
                "98m",
                {on("rest", OK): "0+5700x120", on("noisy", OK): "0+300x120", on("noisy", ERRORS): "0+300x120"},
            ),
        ),
    )


def _expr(q: Queries) -> str:
    now, before = q.recorded("job:mcp_failures:ratio_rate5m"), q.recorded("job:mcp_failures:ratio_rate1h")
    volume = f"{q.recorded('job:mcp_failures:rate5m')} * {q.seconds('5m')} >= {q[FAILURES]}"
    return f"{now} > {q[FACTOR]} * {before} and {now} > {q[RATIO]} and {volume}"
