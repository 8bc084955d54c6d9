"""Cost of model calls, and the calls whose cost is unknown."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import labels
from mcpmeter.catalog.spec import NANO, Label, Metric

UNPRICED_REASON: Final = Label("reason", ("unknown_model", "usage_missing", "not_determined"))

COST: Final = Metric(
    "mcp_cost_usd_total",
    "counter",
    "Cost of model calls in US dollars. The label source says whether the provider reported it or it is from a dated "
    "price list.",
    (labels.MODEL, labels.TEAM, labels.PROVIDER, labels.COST_SOURCE),
    unit="usd",
    scale=NANO,
)
UNPRICED: Final = Metric(
    "mcp_unpriced_requests_total",
    "counter",
    "Model calls without a known price. They are not free: their cost is missing from mcp_cost_usd_total.",
    (labels.PROVIDER, UNPRICED_REASON),
)
PROVIDER_REPORTED_COST: Final = Metric(
    "mcp_provider_reported_cost_usd_total",
    "counter",
    "Cost reported by the provider in its responses, for example in an X-Cost-USD header.",
    (labels.PROVIDER,),
    unit="usd",
    scale=NANO,
)
COST_DRIFT: Final = Metric(
    "mcp_cost_drift_ratio",
    "gauge",
    "Reported cost divided by listed cost, over all calls since startup that have both and reported usage. 1 means no "
    "drift.",
    (labels.PROVIDER,),
    unit="ratio",
    scale=NANO,
)

ROWS: Final = (COST, UNPRICED, PROVIDER_REPORTED_COST, COST_DRIFT)
