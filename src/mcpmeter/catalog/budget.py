"""State of the budgets in their current period, read from the ledger.

All replicas export the same values, so queries aggregate with `max`.
"""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import labels
from mcpmeter.catalog.spec import NANO, Label, Metric

TEAM: Final = Label("team", allowlist="budget_team")
"""Separate from the label of calling teams: a budget over all teams has an empty value."""
BUDGET: Final = Label("budget", allowlist="budget")
_BUDGET: Final = (TEAM, BUDGET)

SPENT: Final = Metric(
    "mcp_budget_spent_usd",
    "gauge",
    "Cost of settled calls in the budget's current period. Calls without a price count by the fallback price.",
    _BUDGET,
    unit="usd",
    scale=NANO,
)
RESERVED: Final = Metric(
    "mcp_budget_reserved_usd",
    "gauge",
    "Maximum cost of calls in flight, reserved until they are settled.",
    _BUDGET,
    unit="usd",
    scale=NANO,
)
LIMIT: Final = Metric(
    "mcp_budget_limit_usd",
    "gauge",
    "Limit of the budget, including top-ups.",
    _BUDGET,
    unit="usd",
    scale=NANO,
)
SOFT_LIMIT: Final = Metric(
    "mcp_budget_soft_limit_usd",
    "gauge",
    "Lowest spent amount at which the budget counts as running low.",
    _BUDGET,
    unit="usd",
    scale=NANO,
)
PERIOD_END: Final = Metric(
    "mcp_budget_period_end_timestamp_seconds",
    "gauge",
    "Unix time at which the budget's next period starts; 0 for a prepaid budget, which has no period.",
    _BUDGET,
    unit="seconds",
)
EXHAUSTION: Final = Metric(
    "mcp_budget_exhaustion_timestamp_seconds",
    "gauge",
    "Unix time at which the budget is exhausted at the burn rate of the last 6 h, even if the period ends earlier; "
    "0 while nothing is spent.",
    _BUDGET,
    unit="seconds",
)
REFUSALS: Final = Metric(
    "mcp_budget_refusals_total",
    "counter",
    "Calls refused because the rest of the budget did not cover their maximum cost.",
    _BUDGET,
)
FALLBACK_PRICED: Final = Metric(
    "mcp_budget_fallback_priced_total",
    "counter",
    "Model calls without a price, counted against budgets by the fallback price.",
    (labels.PROVIDER,),
)

ROWS: Final = (SPENT, RESERVED, LIMIT, SOFT_LIMIT, PERIOD_END, EXHAUSTION, REFUSALS, FALLBACK_PRICED)
