"""MCPUnpricedTraffic: calls, or items of them, have no known price, so that their cost is missing in the ledger."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import money, service
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "MCPUnpricedTraffic"
CALLS: Final = Parameter("calls", "5", "Accepted number of unpriced calls, and of an unpriced item, per hour.")
PARAMETERS: Final = (CALLS,)

UNPRICED: Final = 'mcp_unpriced_requests_total{provider="openai",reason="unknown_model"}'
ITEM: Final = 'mcp_unpriced_items_total{provider="anthropic",item="usage.smell_tokens"}'


def alert(q: Queries) -> Alert:
    """A model without a price is not free, and neither is an item; the cost is missing."""
    calls = f"{q.increase(money.UNPRICED, '1h', 'provider', 'reason')} > {q[CALLS]}"
    items = f"{q.increase(money.UNPRICED_ITEMS, '1h', 'provider', 'item')} > {q[CALLS]}"
    return Alert(
        name=NAME,
        area="money",
        parameters=PARAMETERS,
        rules=(Rule(expr=f"{calls} or {items}"),),
        summary="Calls to {{ $labels.provider }} have no price, in whole or in part.",
        description="{{ $value | humanize }} calls to {{ $labels.provider }} in the last hour have no price, or an "
        "item without one ({{ $labels.reason }}{{ $labels.item }}). That cost is missing in budgets and reports.",
        runbook=Runbook(
            means="`unknown_model`: no price list contains the model. `usage_missing`: the token count is unknown. "
            "`not_determined`: the price does not cover these tokens. An item: the call has a price, but this "
            "fee or field of the provider's usage has none.",
            check=(
                Check("By provider and reason", q.increase(money.UNPRICED, "1d", "provider", "reason")),
                Check("By provider and item", q.increase(money.UNPRICED_ITEMS, "1d", "provider", "item")),
                Check("Models outside the allowlist", q.of(service.LABEL_OVERFLOW, "", 'label="model"')),
            ),
            do=(
                "`mcpmeter report --by model` shows the models without a price.",
                "`unknown_model`: add a price list (`pricing.files`), or update `genai-prices`.",
                "An item: `mcpmeter report items` shows how often it occurred; add its price to a price list.",
                "`usage_missing`: check what the provider omits. Streams request usage automatically.",
            ),
            fault="A missing price in the configuration.",
        ),
        cases=(
            fires(
                "a model in no price list",
                "2h",
                {UNPRICED: "0+1x130"},
                Firing({"provider": "openai", "reason": "unknown_model"}, "60"),
            ),
            fires(
                "a field of the usage that no table knows",
                "2h",
                {ITEM: "0+1x130"},
                Firing({"provider": "anthropic", "item": "usage.smell_tokens"}, "60"),
            ),
            quiet("low traffic: two such calls", "2h", {UNPRICED: "0x100 1x10 2x20"}),
            quiet("none for an hour", "4h", {UNPRICED: "0+1x100 100x150"}),
            quiet("a restart resets the counter", "2h", {UNPRICED: "900x100 0x30"}),
            quiet("first scrape of a service that had many", "2m", {UNPRICED: "9000"}),
            quiet("the series is missing", "2h", {}),
            quiet("one noisy replica had them two hours ago", "3h", {on("noisy", UNPRICED): "0+1x60 60x150"}),
        ),
    )
