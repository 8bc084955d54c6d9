"""Shared by the three alerts on budgets. Every replica exports the same gauges, so expressions take the maximum."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import budget
from mcpmeter.monitoring.alert import Check
from mcpmeter.monitoring.queries import Queries

OF: Final = ("team", "budget")
WHOSE: Final = "The budget {{ $labels.budget }}{{ with $labels.team }} of team {{ . }}{{ end }}"

_LABELS: Final = 'team="search",budget="month"'
SPENT: Final = f"mcp_budget_spent_usd{{{_LABELS}}}"
LIMIT: Final = f"mcp_budget_limit_usd{{{_LABELS}}}"
SOFT: Final = f"mcp_budget_soft_limit_usd{{{_LABELS}}}"
END: Final = f"mcp_budget_period_end_timestamp_seconds{{{_LABELS}}}"
EXHAUSTED_AT: Final = f"mcp_budget_exhaustion_timestamp_seconds{{{_LABELS}}}"
REFUSED: Final = f"mcp_budget_refusals_total{{{_LABELS}}}"
SEARCH: Final = {"team": "search", "budget": "month"}


def spent(q: Queries) -> str:
    """US dollars spent in the current period."""
    return q.highest(budget.SPENT, *OF)


def limit(q: Queries) -> str:
    """The limits above 0: a limit of 0 blocks a team on purpose."""
    return f"({q.highest(budget.LIMIT, *OF)} > 0)"


def checks(q: Queries) -> tuple[Check, ...]:
    """The queries of the three runbooks."""
    return (
        Check("Share of the budget spent", f"{spent(q)} / {limit(q)}"),
        Check("Reserved for calls in flight", q.highest(budget.RESERVED, *OF)),
        Check(
            "Hours until the budget is exhausted", f"({q.highest(budget.EXHAUSTION, *OF)} > 0) / 3600 - time() / 3600"
        ),
    )
