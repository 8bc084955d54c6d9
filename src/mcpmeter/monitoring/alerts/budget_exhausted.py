"""MCPBudgetExhausted: a budget is exhausted and its calls are refused."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import budget
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.alerts._budgets import LIMIT, OF, REFUSED, SEARCH, SPENT, WHOSE, checks, limit, spent
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "MCPBudgetExhausted"
REFUSALS: Final = Parameter("refusals", "1", "Refused calls in ten minutes from which a budget counts as exhausted.")
PARAMETERS: Final = (REFUSALS,)


def alert(q: Queries) -> Alert:
    """Spent to the limit, or already refusing calls, since reservations count before they are spent."""
    refused = q.increase(budget.REFUSALS, "10m", *OF)
    expr = f"{spent(q)} >= {limit(q)} or {refused} >= {q[REFUSALS]}"
    return Alert(
        name=NAME,
        area="money",
        parameters=PARAMETERS,
        rules=(Rule(expr=expr, severity="critical"),),
        summary=f"{WHOSE} is exhausted.",
        description=f"{WHOSE} is spent or reserved to its limit. Its calls are refused (402), unless "
        "it is a soft budget (`hard: false`).",
        runbook=Runbook(
            means="Calls of the team are refused until the next period starts or the budget is raised.",
            check=(Check("Refused calls", refused), *checks(q)),
            do=(
                "Ask the owner of the team's budget. Raise the limit and reload, or top it up.",
                "Look for a loop or a leaked key with `mcpmeter report --by key`. Revoke a leaked key first.",
            ),
            fault="The team's usage, or a limit that is too small.",
        ),
        cases=(
            fires("100 of 100 dollars", "10m", {SPENT: "100.2x20", LIMIT: "100x20"}, Firing(SEARCH)),
            fires(
                "96 spent, the rest reserved, calls refused",
                "20m",
                {SPENT: "96x30", LIMIT: "100x30", REFUSED: "0x12 0+3x18"},
                Firing(SEARCH),
            ),
            quiet("99 of 100 dollars", "10m", {SPENT: "99x20", LIMIT: "100x20", REFUSED: "0x20"}),
            quiet("low traffic: a limit of one cent, unspent", "10m", {SPENT: "0x20", LIMIT: "0.01x20"}),
            quiet("the start of a new month", "30m", {SPENT: "101x10 0x30", LIMIT: "100x40", REFUSED: "0+1x10 9x30"}),
            quiet("a restart resets the refusals", "40m", {SPENT: "5x50", LIMIT: "100x50", REFUSED: "90x20 0x30"}),
            quiet("first scrape of a service that has refused before", "1m", {SPENT: "5", LIMIT: "100", REFUSED: "90"}),
            quiet("no budget is configured", "10m", {}),
            quiet(
                "two replicas export the same 60 of 100",
                "10m",
                {on(name, row): text for name in "ab" for row, text in ((SPENT, "60x20"), (LIMIT, "100x20"))},
            ),
        ),
    )
