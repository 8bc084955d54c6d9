"""Cost of model calls, and the calls whose cost is unknown."""

from __future__ import annotations

from typing import Final, get_args

from mcpmeter.catalog import labels
from mcpmeter.catalog.spec import NANO, Label, Metric
from mcpmeter.items import Component

UNPRICED_REASON: Final = Label("reason", ("unknown_model", "usage_missing", "not_determined"))
COMPONENT: Final = Label("component", get_args(Component))
ITEM: Final = Label("item", allowlist="unpriced_item")
"""Known items, and up to `recorder.MAX_INVENTED_ITEMS` names that only providers know."""

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
COMPONENT_COST: Final = Metric(
    "mcp_cost_component_usd_total",
    "counter",
    "Parts of mcp_cost_usd_total in US dollars: prompt, completion, cached_read, cache_write, tool_fee (searches, "
    "sessions), other (a reported cost that nothing divides). Never add them to it.",
    (labels.MODEL, labels.PROVIDER, COMPONENT),
    unit="usd",
    scale=NANO,
)
UNPRICED_ITEMS: Final = Metric(
    "mcp_unpriced_items_total",
    "counter",
    "Items that calls were billed by, or that a provider reported, and that no price list knows, one per call and "
    "item. They are not free: their cost is missing from mcp_cost_usd_total.",
    (labels.PROVIDER, ITEM),
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

ROWS: Final = (COST, COMPONENT_COST, UNPRICED, UNPRICED_ITEMS, PROVIDER_REPORTED_COST, COST_DRIFT)
