"""MCPErrorBudgetBurn: the error budget of 30 days is spent too fast (multi-window, multi-burn-rate)."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Final

from mcpmeter.catalog import mcp
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, Severity, fires, quiet
from mcpmeter.monitoring.queries import Parameter, Queries, plain
from mcpmeter.monitoring.recording import OURS

NAME: Final = "MCPErrorBudgetBurn"
FAILURES: Final = Parameter("failures", "10", "Failures in the long window below which it does not fire.")
PARAMETERS: Final = (FAILURES,)

BURNS: Final[tuple[tuple[str, str, str, str, Severity], ...]] = (
    ("14.4", "1h", "5m", "2m", "critical"),
    ("6", "6h", "30m", "15m", "critical"),
    ("3", "1d", "2h", "1h", "warning"),
    ("1", "3d", "6h", "3h", "warning"),
)
"""Burn rate, long window, short window (the burn still goes on), `for`, severity."""

OK: Final = 'mcp_requests_total{endpoint="/v1/chat/completions",method="POST",status="200"}'
ERRORS: Final = 'mcp_errors_total{error_type="upstream_error",side="upstream"}'


def alert(q: Queries) -> Alert:
    """The four window pairs of the SRE workbook, for the objective of the options."""
    objective = plain(q.options.slo_percent)
    return Alert(
        name=NAME,
        area="slo",
        parameters=PARAMETERS,
        rules=tuple(_rules(q)),
        summary="The error budget of {{ $labels.job }} is burning too fast.",
        description="{{ $value | humanizePercentage }} of the requests of {{ $labels.job }} failed over the last "
        f"{{{{ $labels.window }}}}. At this rate the objective of {objective} % over 30 days is missed.",
        runbook=Runbook(
            means=f"The objective: {objective} % of all requests do not fail on our side or upstream. The failures "
            "allowed for 30 days are used up in 2 days (alert of the window 1h), 5 days (6h), 10 days (1d) or 30 days "
            "(3d).",
            check=(
                Check("Share of failures in each window", '{__name__=~"job:mcp_failures:ratio_rate.+"}'),
                Check(
                    "Most frequent failures",
                    f"topk(5, {q.increase(mcp.ERRORS, '6h', 'error_type', 'side', where=(OURS,))})",
                ),
            ),
            do=(
                "critical: proceed as for MCPHighErrorRate.",
                "warning: find the error type that uses up the budget, and plan a fix within days.",
                "If the provider cannot meet the objective, add a second provider or lower `monitoring.slo_percent`.",
            ),
            fault="Usually the provider; see the second query.",
        ),
        step="4m",
        cases=(
            fires(
                "2 % for eighty minutes",
                "80m",
                {OK: "0+2400x40", ERRORS: "0+48x40"},
                *(Firing({"window": window, "severity": severity}, "2%") for window, severity in _EIGHTY_MINUTES),
            ),
            fires(
                "0.2 % for three days",
                "3d",
                {OK: "0+2400x1080", ERRORS: "0+4.8x1080"},
                Firing({"window": "3d", "severity": "warning"}, "0.2%"),
            ),
            quiet("within the objective for three days", "3d", {OK: "0+2400x1080", ERRORS: "0+1.2x1080"}),
            quiet(
                "low traffic: one of two requests fails, nine times in three days",
                "3d",
                {OK: "0+0.016x1080", ERRORS: "0+0.008x1080"},
            ),
            quiet("ten bad minutes, seven hours ago", "12h", {OK: "0+2400x200", ERRORS: "0x73 0+120x2 240x120"}),
            quiet("a restart resets both counters", "4h", {OK: "0+2400x30 0+2400x60", ERRORS: "0+1.2x30 0+1.2x60"}),
            quiet("first scrape of a service that has failed before", "4m", {OK: "90000", ERRORS: "80000"}),
            quiet("no error was counted yet", "4h", {OK: "0+2400x90"}),
        ),
    )


_EIGHTY_MINUTES: Final = (("1h", "critical"), ("6h", "critical"), ("1d", "warning"))
"""The fourth pair is held for three hours."""


def _rules(q: Queries) -> Iterator[Rule]:
    budget = 1 - q.options.slo_percent / 100
    for factor, long, short, hold, severity in BURNS:
        max_ratio = plain(Decimal(factor) * budget)
        proof, still = (q.recorded(f"job:mcp_failures:ratio_rate{window}") for window in (long, short))
        volume = f"{q.recorded(f'job:mcp_failures:rate{long}')} * {q.seconds(long)} >= {q[FAILURES]}"
        expr = f"{proof} > {max_ratio} and {still} > {max_ratio} and {volume}"
        yield Rule(expr=expr, hold=hold, severity=severity, labels={"window": long})
