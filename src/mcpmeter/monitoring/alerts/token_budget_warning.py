"""MCPTokenBudgetWarning: most of a budget is spent."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import budget
from mcpmeter.monitoring.alert import Alert, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.alerts._budgets import LIMIT, OF, SEARCH, SOFT, SPENT, WHOSE, checks, limit, spent
from mcpmeter.monitoring.queries import Parameter, Queries, plain

NAME: Final = "MCPTokenBudgetWarning"
PARAMETERS: Final[tuple[Parameter, ...]] = ()


def alert(q: Queries) -> Alert:
    """At `monitoring.budget_soft_share`, or at the budget's own lower soft limit."""
    return Alert(
        name=NAME,
        area="money",
        parameters=PARAMETERS,
        rules=(Rule(expr=_expr(q)),),
        summary=f"{WHOSE} is running low.",
        description=f"{WHOSE} is spent to {{{{ $value | humanizePercentage }}}}. At the limit, its calls are refused.",
        runbook=Runbook(
            means="Most of the budget of the current period is spent. The amount is read from the ledger, so restarts "
            "do not change it.",
            check=checks(q),
            do=(
                "`mcpmeter report --by team --by model` shows the spending. Notify the team.",
                "If the budget will not last, MCPBudgetForecastExceeded fires too.",
                "Raise the limit, top it up, or move the team to a cheaper model.",
            ),
            fault="None: a configured share was reached.",
        ),
        cases=(
            fires("85 of 100 dollars", "10m", {SPENT: "85x20", LIMIT: "100x20"}, Firing(SEARCH, "85%")),
            fires(
                "the budget's own soft limit is lower",
                "10m",
                {SPENT: "55x20", LIMIT: "100x20", SOFT: "50x20"},
                Firing(SEARCH, "55%"),
            ),
            fires(
                "three replicas export the same 81 of 100",
                "10m",
                {on(name, row): text for name in "abc" for row, text in ((SPENT, "81x20"), (LIMIT, "100x20"))},
                Firing(SEARCH, "81%"),
            ),
            quiet(
                "three replicas export the same 40 of 100",
                "10m",
                {on(name, row): text for name in "abc" for row, text in ((SPENT, "40x20"), (LIMIT, "100x20"))},
            ),
            quiet("low traffic: one cent of a dollar", "10m", {SPENT: "0.01x20", LIMIT: "1x20"}),
            quiet("the start of a new month", "10m", {SPENT: "95x5 0x15", LIMIT: "100x20"}),
            quiet("a restart within the month", "10m", {SPENT: "40x5 _ 40x15", LIMIT: "100x5 _ 100x15"}),
            quiet("first scrape", "1m", {SPENT: "0", LIMIT: "100", SOFT: "80"}),
            quiet("no budget is configured", "10m", {}),
            quiet("a limit of 0", "10m", {SPENT: "0x20", LIMIT: "0x20"}),
        ),
    )


def _expr(q: Queries) -> str:
    share = f"{spent(q)} / {limit(q)}"
    own_limit = f"{spent(q)} >= ({q.highest(budget.SOFT_LIMIT, *OF)} > 0)"
    return f"{share} >= {plain(q.options.budget_soft_share)} or ({share} and {own_limit})"
