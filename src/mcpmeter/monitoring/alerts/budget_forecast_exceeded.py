"""MCPBudgetForecastExceeded: at the current rate a budget is exhausted before its period ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mcpmeter.catalog import budget
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.alerts._budgets import END, EXHAUSTED_AT, LIMIT, OF, SEARCH, SPENT, WHOSE, checks, limit, spent
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "MCPBudgetForecastExceeded"
SHARE: Final = Parameter("share", "0.1", "Share of a budget that must be spent before its trend counts.", most="1")
HOURS: Final = Parameter("hours", "4", "Hours to exhaustion below which it fires regardless of the trend.")
PARAMETERS: Final = (SHARE, HOURS)

BY_TREND: Final = {**SEARCH, "horizon": "before its period ends"}
SOON: Final = {**SEARCH, "horizon": "within hours"}


def alert(q: Queries) -> Alert:
    """The trend to the end of each budget's period, and the service's forecast for the next hours."""
    return Alert(
        name=NAME,
        area="money",
        parameters=PARAMETERS,
        rules=tuple(_rules(q)),
        summary=f"{WHOSE} will be exhausted early.",
        description=f"{WHOSE} will be exhausted {{{{ $labels.horizon }}}} at the rate of the last hours.",
        runbook=Runbook(
            means="There is still time to act. The trends of the last six hours and of the last day must both exceed "
            "the limit, so that office hours alone do not fire it. If the period ends within a day, six hours suffice.",
            check=(*checks(q), Check("US dollars per hour", f"3600 * {_slope(q, '6h')}")),
            do=(
                "Find the usage that rose with `mcpmeter report --by team --by model`. See also MCPCostSpike.",
                "Notify the team: calls are refused when the budget is exhausted.",
                "Raise the limit, or move the largest usage to a cheaper model.",
            ),
            fault="The team's usage, or a limit that is too small.",
        ),
        step="4m",
        cases=(
            fires(
                "thirteen dollars a day, at 60 of 100, ten days before the end",
                "2d",
                {SPENT: "33+0.036x800", LIMIT: "100x800", END: f"{12 * 86400}x800"},
                Firing(BY_TREND),
            ),
            fires(
                "a daily budget, by six hours alone",
                "18h",
                {SPENT: "0+0.26x300", LIMIT: "90x300", END: f"{86400}x300"},
                Firing(BY_TREND),
            ),
            fires(
                "the service forecasts exhaustion of a prepaid budget in two hours",
                "10h",
                {SPENT: "50x200", LIMIT: "100x200", END: "0x200", EXHAUSTED_AT: f"{12 * 3600}x200"},
                Firing(SOON),
            ),
            quiet(
                "the budget just suffices", "2d", {SPENT: "33+0.005x800", LIMIT: "100x800", END: f"{12 * 86400}x800"}
            ),
            quiet(
                "low traffic: an expensive call in the month's first hours",
                "8h",
                {SPENT: "0+0.05x200", LIMIT: "100x200", END: f"{30 * 86400}x200"},
            ),
            quiet(
                "the start of a new month: from 95 down to 0",
                "2d",
                {SPENT: "40+0.08x690 0+0.001x110", LIMIT: "100x800", END: f"{2 * 86400 - 7200}x690 {32 * 86400}x110"},
            ),
            quiet(
                "a restart: the gauge continues at the ledger's value",
                "2d",
                {SPENT: "60x700 _x3 60x97", LIMIT: "100x800", END: f"{12 * 86400}x800"},
            ),
            quiet(
                "office hours: six fast hours in a slow week",
                "2d",
                {SPENT: "50x660 50+0.04x140", LIMIT: "100x800", END: f"{12 * 86400}x800"},
            ),
            quiet("first scrape", "4m", {SPENT: "60", LIMIT: "100", END: f"{12 * 86400}"}),
            quiet(
                "the forecast exhaustion is after the period's end",
                "10h",
                {SPENT: "50x200", LIMIT: "100x200", END: f"{11 * 3600}x200", EXHAUSTED_AT: f"{12 * 3600}x200"},
            ),
            quiet(
                "nothing is spent",
                "10h",
                {SPENT: "50x200", LIMIT: "100x200", END: f"{86400}x200", EXHAUSTED_AT: "0x200"},
            ),
            quiet("no budget is configured", "10h", {}),
            quiet(
                "one replica has just started",
                "2d",
                {
                    on("old", SPENT): "60x800",
                    on("new", SPENT): "_x718 60x80",
                    LIMIT: "100x800",
                    END: f"{12 * 86400}x800",
                },
            ),
        ),
    )


def _rules(q: Queries) -> Iterator[Rule]:
    end = f"({q.highest(budget.PERIOD_END, *OF)} > 0)"
    projected = {
        window: f"({spent(q)} + {_slope(q, window)} * ({end} - time()) > {limit(q)})" for window in ("6h", "1d")
    }
    both = f"({projected['1d']} or {end} - time() < {q.seconds('1d')})"
    enough = f"{spent(q)} >= {q[SHARE]} * {limit(q)}"
    turned = f"max {q.by(*OF)} (resets({q.of(budget.SPENT)}[{q.span('6h')}])) > 0"
    trend = f"{projected['6h']} and {both} and {enough} unless {turned}"
    yield Rule(expr=trend, hold="30m", labels={"horizon": BY_TREND["horizon"]})
    exhausted_at = f"({q.highest(budget.EXHAUSTION, *OF)} > 0)"
    ends_first = f"{exhausted_at} >= {end}"
    soon = f"{exhausted_at} - time() < {q[HOURS]} * 3600 and {spent(q)} < {limit(q)} unless {ends_first}"
    yield Rule(expr=soon, hold="15m", labels={"horizon": SOON["horizon"]})


def _slope(q: Queries, window: str) -> str:
    """US dollars per second."""
    return f"max {q.by(*OF)} (deriv({q.of(budget.SPENT)}[{q.span(window)}]))"
