"""What model calls cost, and where a cost is not known."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import labels
from mcpmeter.catalog.spec import NANO, Label, Metric

UNPRICED_REASON: Final = Label("reason", ("unknown_model", "usage_missing", "not_determined"))

COST: Final = Metric(
    "mcp_cost_usd_total",
    "counter",
    "Cost of model calls in US dollars; source says whether the provider reported it or a dated price list gave it.",
    (labels.MODEL, labels.TEAM, labels.PROVIDER, labels.COST_SOURCE),
    unit="usd",
    scale=NANO,
)
UNPRICED: Final = Metric(
    "mcp_unpriced_requests_total",
    "counter",
    "Model calls that no price was known for. They are not free: their cost is missing from mcp_cost_usd_total.",
    (labels.PROVIDER, UNPRICED_REASON),
)
PROVIDER_REPORTED_COST: Final = Metric(
    "mcp_provider_reported_cost_usd_total",
    "counter",
    "Cost that the provider itself reported with its answers, for example in an X-Cost-USD header.",
    (labels.PROVIDER,),
    unit="usd",
    scale=NANO,
)
COST_DRIFT: Final = Metric(
    "mcp_cost_drift_ratio",
    "gauge",
    "What a provider reported by what its price list says, over all calls since start with both and with reported "
    "usage; 1 is no drift.",
    (labels.PROVIDER,),
    unit="ratio",
    scale=NANO,
)

ROWS: Final = (COST, UNPRICED, PROVIDER_REPORTED_COST, COST_DRIFT)
