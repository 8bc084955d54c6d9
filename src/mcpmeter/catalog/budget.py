"""How budgets stand in their present period, by the ledger: all replicas show the same, so queries take the `max`."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import labels
from mcpmeter.catalog.spec import NANO, Label, Metric

TEAM: Final = Label("team", allowlist="budget_team")
"""Apart from the teams that call: a budget over all teams has an empty one."""
BUDGET: Final = Label("budget", allowlist="budget")
_BUDGET: Final = (TEAM, BUDGET)

SPENT: Final = Metric(
    "mcp_budget_spent_usd",
    "gauge",
    "What settled calls of a budget's present period cost, calls without a price by the fallback price.",
    _BUDGET,
    unit="usd",
    scale=NANO,
)
RESERVED: Final = Metric(
    "mcp_budget_reserved_usd",
    "gauge",
    "The most that calls under way can cost; it is set aside until they are settled.",
    _BUDGET,
    unit="usd",
    scale=NANO,
)
LIMIT: Final = Metric(
    "mcp_budget_limit_usd",
    "gauge",
    "A budget's limit, with what was topped up.",
    _BUDGET,
    unit="usd",
    scale=NANO,
)
SOFT_LIMIT: Final = Metric(
    "mcp_budget_soft_limit_usd",
    "gauge",
    "The lowest amount at which a budget is said to run low.",
    _BUDGET,
    unit="usd",
    scale=NANO,
)
PERIOD_END: Final = Metric(
    "mcp_budget_period_end_timestamp_seconds",
    "gauge",
    "When a budget starts anew, Unix time; 0 for a prepaid one, which never does.",
    _BUDGET,
    unit="seconds",
)
EXHAUSTION: Final = Metric(
    "mcp_budget_exhaustion_timestamp_seconds",
    "gauge",
    "When nothing will be left of a budget if it burns on as in the last six hours, Unix time, be it after the "
    "period's end; 0 while nothing burns.",
    _BUDGET,
    unit="seconds",
)
REFUSALS: Final = Metric(
    "mcp_budget_refusals_total",
    "counter",
    "Calls that were refused because a budget had no room for the most that they could cost.",
    _BUDGET,
)
FALLBACK_PRICED: Final = Metric(
    "mcp_budget_fallback_priced_total",
    "counter",
    "Model calls without a price that count against budgets by the fallback price.",
    (labels.PROVIDER,),
)

ROWS: Final = (SPENT, RESERVED, LIMIT, SOFT_LIMIT, PERIOD_END, EXHAUSTION, REFUSALS, FALLBACK_PRICED)
