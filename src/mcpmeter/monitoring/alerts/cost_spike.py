"""MCPCostSpike: a team spends far more than in the same hour yesterday and a week ago."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import money
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "MCPCostSpike"
FACTOR: Final = Parameter("factor", "3", "Multiple of the same hour yesterday and a week ago that fires.")
USD: Final = Parameter("usd", "5", "US dollars per hour below which it does not fire.")
PARAMETERS: Final = (FACTOR, USD)

COST: Final = 'mcp_cost_usd_total{model="gpt-4.1",team="search",provider="openai",source="listed"}'
RECORDED: Final = "job_team:mcp_cost_usd:increase1h"


def alert(q: Queries) -> Alert:
    """Compares with the same hour, since every office day exceeds a mean over days."""
    return Alert(
        name=NAME,
        area="money",
        parameters=PARAMETERS,
        rules=(Rule(expr=_expr(q), hold="10m"),),
        summary="Spending of team {{ $labels.team }} has risen sharply.",
        description='Team {{ $labels.team }} spent {{ $value | printf "%.2f" }} USD in the last hour, more than '
        f"{q[FACTOR]} times its spending in the same hour yesterday and a week ago.",
        runbook=Runbook(
            means="A new job, a loop, a more expensive model or a leaked key. On a team's first day it does not fire, "
            "since there is nothing to compare with; use a budget. In the first week it compares with yesterday only.",
            check=(
                Check("By model and provider", q.increase(money.COST, "1h", "team", "model", "provider")),
                Check("This hour", q.recorded(RECORDED)),
                Check("Yesterday", f"{q.recorded(RECORDED)} offset {q.span('1d')}"),
            ),
            do=(
                "`mcpmeter report --by team --by model` and `--by key` show the caller. Ask the team.",
                "An unknown caller: `mcpmeter keys revoke ID` takes effect within a second.",
                "Intended spending: silence the alert for a day. Tomorrow it compares with today.",
            ),
            fault="The team, or a leaked key.",
        ),
        step="4m",
        cases=(
            fires(
                "from one dollar per hour to twenty",
                "8d",
                {COST: "0+0.0625x2850 178.125+1.25x30"},
                Firing({"team": "search"}, "18.75"),
            ),
            quiet("flat spend of a series that is two days old", "2d", {COST: "0+2x720"}),
            quiet("flat spend of a series that is hours old", "4h", {COST: "0+2x60"}),
            quiet("every office day, also after a weekend", "7d10h", {COST: _office_days()}),
            quiet("low traffic: from a cent to three dollars", "8d", {COST: "0+0.001x2850 2.85+0.2x30"}),
            quiet("a restart resets the counter", "8d", {COST: "0+1x2865 0+1x15"}),
            quiet("first scrape of a service that has spent before", "4m", {COST: "9000"}),
            quiet("nothing was spent", "1d", {}),
            quiet("a replica is replaced", "2d", {on("old", COST): "0+1x700 stale", on("new", COST): "_x701 0+1x30"}),
        ),
    )


def _office_days() -> str:
    """Eight days that begin on a Monday: ten dollars per hour from 8:00 to 18:00, except on Saturday and Sunday."""
    values, spent = [], 0.0
    for day in range(8):
        rate = 0.0 if day in (5, 6) else 0.625
        values += [f"{spent:g}x119", f"{spent:g}+{rate:g}x149", f"{spent + 149 * rate:g}x89"]
        spent += 149 * rate
    return " ".join(values)


def _expr(q: Queries) -> str:
    spent = q.recorded(RECORDED)
    yesterday, last_week = (f"{q[FACTOR]} * {spent} offset {q.span(age)}" for age in ("1d", "7d"))
    return f"({spent} > {q[USD]} and {spent} > {yesterday}) unless {spent} <= {last_week}"
