"""MCPCostDrift: the cost a provider reports differs from its price list."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import money
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "MCPCostDrift"
RATIO: Final = Parameter(
    "ratio", "0.05", "Largest accepted difference between reported and listed cost, as a share.", most="1"
)
USD: Final = Parameter("usd", "1", "Reported US dollars in a day below which it does not fire.")
PARAMETERS: Final = (RATIO, USD)

DRIFT: Final = 'mcp_cost_drift_ratio{provider="holysheep"}'
REPORTED: Final = 'mcp_provider_reported_cost_usd_total{provider="holysheep"}'


def alert(q: Queries) -> Alert:
    """The gauge covers all calls of a replica since its start; 0 means that no call had both costs."""
    return Alert(
        name=NAME,
        area="money",
        parameters=PARAMETERS,
        rules=(Rule(expr=_expr(q), hold="1h"),),
        summary="The cost reported by {{ $labels.provider }} differs from its price list.",
        description="The cost reported by {{ $labels.provider }} differs by {{ $value | humanizePercentage }} from the "
        "listed cost of the same calls.",
        runbook=Runbook(
            means="A price changed, a discount or markup applies, or the provider counts tokens differently.",
            check=(
                Check("Reported divided by listed cost, by replica", q.of(money.COST_DRIFT)),
                Check(
                    "Reported US dollars in the last day", q.increase(money.PROVIDER_REPORTED_COST, "1d", "provider")
                ),
            ),
            do=(
                "Compare `x-mcpmeter-cost-usd` of one response with the provider's own page.",
                "A new price: add it with its date to the price list. The ledger has the reported cost already.",
                "The provider is wrong: its bill will be wrong too. Keep the ledger's rows for the complaint.",
            ),
            fault="The price list or the provider.",
        ),
        cases=(
            fires(
                "10 % above the list price",
                "6h",
                {DRIFT: "1.1x400", REPORTED: "0+0.01x400"},
                Firing({"provider": "holysheep"}, "10%"),
            ),
            fires(
                "10 % below the list price",
                "6h",
                {DRIFT: "0.9x400", REPORTED: "0+0.01x400"},
                Firing({"provider": "holysheep"}, "10%"),
            ),
            quiet("a difference of 1 %", "6h", {DRIFT: "1.01x400", REPORTED: "0+0.01x400"}),
            quiet("low traffic: ten cents", "6h", {DRIFT: "2x400", REPORTED: "0+0.0002x400"}),
            quiet("first scrape: no call had both costs yet", "6h", {DRIFT: "0x400", REPORTED: "0+0.01x400"}),
            quiet("a restart resets the gauge", "6h", {DRIFT: "1x200 0x10 1x190", REPORTED: "0+0.01x200 0+0.01x200"}),
            quiet("the provider reports nothing", "6h", {}),
            quiet(
                "one noisy replica of ten, new and with one odd call",
                "6h",
                {
                    **{on(f"r{n}", DRIFT): "1x400" for n in range(9)},
                    on("noisy", DRIFT): "1.4x400",
                    REPORTED: "0+0.01x400",
                },
            ),
        ),
    )


def _expr(q: Queries) -> str:
    drift = f"abs(avg {q.by('provider')} ({q.of(money.COST_DRIFT)} > 0) - 1)"
    reported = q.increase(money.PROVIDER_REPORTED_COST, "1d", "provider")
    return f"{drift} > {q[RATIO]} and {reported} >= {q[USD]}"
