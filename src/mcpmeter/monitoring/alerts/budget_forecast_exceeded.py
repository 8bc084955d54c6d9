"""MCPBudgetForecastExceeded: at the present pace a budget is gone before its period ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mcpmeter.catalog import budget
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.alerts._budgets import END, GONE, LIMIT, OF, SEARCH, SPENT, WHOSE, checks, limit, spent
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "MCPBudgetForecastExceeded"
SHARE: Final = Parameter("share", "0.1", "Share of a budget that must be spent before its trend counts.", most="1")
HOURS: Final = Parameter("hours", "4", "Hours to exhaustion that are too few, whatever the trend.")
PARAMETERS: Final = (SHARE, HOURS)

BY_TREND: Final = {**SEARCH, "horizon": "before its period ends"}
SOON: Final = {**SEARCH, "horizon": "within hours"}


def alert(q: Queries) -> Alert:
    """A trend for each budget's own period, and the service's own forecast for what comes soon."""
    return Alert(
        name=NAME,
        area="money",
        parameters=PARAMETERS,
        rules=tuple(_rules(q)),
        summary=f"{WHOSE} will not last.",
        description=f"{WHOSE} will be exhausted {{{{ $labels.horizon }}}} if it is spent as in the last hours.",
        runbook=Runbook(
            means="There is time left to act. The trends of the last six hours and of the last day must agree, so that "
            "office hours alone do not raise it; where the period ends within a day, six hours are enough.",
            check=(*checks(q), Check("US dollars an hour", f"3600 * {_slope(q, '6h')}")),
            do=(
                "`mcpmeter report --by team --by model`: what rose? MCPCostSpike may know as well.",
                "Tell the team now; calls are refused when nothing is left.",
                "Raise the limit, or move the largest use to a cheaper model.",
            ),
            fault="The team's, or a budget that was set too small.",
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
                "the service says that it is gone in two hours, a prepaid one",
                "10h",
                {SPENT: "50x200", LIMIT: "100x200", END: "0x200", GONE: f"{12 * 3600}x200"},
                Firing(SOON),
            ),
            quiet("it will just do", "2d", {SPENT: "33+0.005x800", LIMIT: "100x800", END: f"{12 * 86400}x800"}),
            quiet(
                "low traffic: a dear call in the month's first hours",
                "8h",
                {SPENT: "0+0.05x200", LIMIT: "100x200", END: f"{30 * 86400}x200"},
            ),
            quiet(
                "the month's turn: down from 95 to nothing",
                "2d",
                {SPENT: "40+0.08x690 0+0.001x110", LIMIT: "100x800", END: f"{2 * 86400 - 7200}x690 {32 * 86400}x110"},
            ),
            quiet(
                "a restart: a replica's gauge begins where the ledger stands",
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
                "the service says: exhausted, but after the period's end",
                "10h",
                {SPENT: "50x200", LIMIT: "100x200", END: f"{11 * 3600}x200", GONE: f"{12 * 3600}x200"},
            ),
            quiet("nothing burns", "10h", {SPENT: "50x200", LIMIT: "100x200", END: f"{86400}x200", GONE: "0x200"}),
            quiet("no budget is configured", "10h", {}),
            quiet(
                "one replica has just begun",
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
    gone = f"({q.highest(budget.EXHAUSTION, *OF)} > 0)"
    ends_first = f"{gone} >= {end}"
    soon = f"{gone} - time() < {q[HOURS]} * 3600 and {spent(q)} < {limit(q)} unless {ends_first}"
    yield Rule(expr=soon, hold="15m", labels={"horizon": SOON["horizon"]})


def _slope(q: Queries, window: str) -> str:
    """US dollars a second."""
    return f"max {q.by(*OF)} (deriv({q.of(budget.SPENT)}[{q.span(window)}]))"
