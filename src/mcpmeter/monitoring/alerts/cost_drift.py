"""MCPCostDrift: what a provider says it charges is not what its price list says."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import money
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "MCPCostDrift"
RATIO: Final = Parameter("ratio", "0.05", "How far, as a share, reported and listed cost may be apart.", most="1")
USD: Final = Parameter("usd", "1", "Reported US dollars in a day below which nothing is said.")
PARAMETERS: Final = (RATIO, USD)

DRIFT: Final = 'mcp_cost_drift_ratio{provider="holysheep"}'
REPORTED: Final = 'mcp_provider_reported_cost_usd_total{provider="holysheep"}'


def alert(q: Queries) -> Alert:
    """The gauge is over all calls of a replica since its start; 0 says that none had both costs."""
    return Alert(
        name=NAME,
        area="money",
        parameters=PARAMETERS,
        rules=(Rule(expr=_expr(q), hold="1h"),),
        summary="{{ $labels.provider }} charges other prices than its list.",
        description="What {{ $labels.provider }} reports is {{ $value | humanizePercentage }} away from what the price "
        "list says for the same calls.",
        runbook=Runbook(
            means="A price changed, a discount or a markup applies, or tokens are counted in another way.",
            check=(
                Check("Reported by listed, by replica", q.of(money.COST_DRIFT)),
                Check("How much was reported in a day", q.increase(money.PROVIDER_REPORTED_COST, "1d", "provider")),
            ),
            do=(
                "Compare one call: `x-mcpmeter-cost-usd` of its answer with the provider's own page.",
                "A new price: add an entry with its day to the list. The reported cost is what the books have already.",
                "The provider is wrong: its bill will be too; keep the ledger's rows for the complaint.",
            ),
            fault="The price list's, or the provider's.",
        ),
        cases=(
            fires(
                "a tenth dearer than listed",
                "6h",
                {DRIFT: "1.1x400", REPORTED: "0+0.01x400"},
                Firing({"provider": "holysheep"}, "10%"),
            ),
            fires(
                "a tenth cheaper than listed",
                "6h",
                {DRIFT: "0.9x400", REPORTED: "0+0.01x400"},
                Firing({"provider": "holysheep"}, "10%"),
            ),
            quiet("within a hundredth", "6h", {DRIFT: "1.01x400", REPORTED: "0+0.01x400"}),
            quiet("low traffic: ten cents", "6h", {DRIFT: "2x400", REPORTED: "0+0.0002x400"}),
            quiet("first scrape: no call had both costs yet", "6h", {DRIFT: "0x400", REPORTED: "0+0.01x400"}),
            quiet("a restart begins anew", "6h", {DRIFT: "1x200 0x10 1x190", REPORTED: "0+0.01x200 0+0.01x200"}),
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
