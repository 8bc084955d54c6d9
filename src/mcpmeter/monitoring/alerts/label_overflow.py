"""MCPLabelOverflow: many values are outside their label's closed set and shown as `other`."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import llm, service
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "MCPLabelOverflow"
VALUES: Final = Parameter("values", "100", "Accepted number of values per hour that are shown as `other`.")
PARAMETERS: Final = (VALUES,)

OVERFLOW: Final = 'mcp_label_overflow_total{label="model"}'


def alert(q: Queries) -> Alert:
    """No series is lost or created; the values under `other` have grown."""
    expr = f"{q.increase(service.LABEL_OVERFLOW, '1h', 'label')} > {q[VALUES]}"
    return Alert(
        name=NAME,
        area="meter",
        parameters=PARAMETERS,
        rules=(Rule(expr=expr, hold="15m", severity="info"),),
        summary="Much traffic of {{ $labels.job }} is shown as `other`.",
        description="In the last hour, {{ $value | humanize }} values of the label {{ $labels.label }} were outside "
        "its set. They are counted as `other`.",
        runbook=Runbook(
            means="Callers use a model, tool or path that the configuration does not name. Totals are correct, but the "
            "values cannot be distinguished.",
            check=(
                Check("By label", q.increase(service.LABEL_OVERFLOW, "1h", "label")),
                Check(
                    "Tokens of unknown models",
                    q.increase(llm.TOKENS, "1h", "team", where=('model="other"',)),
                ),
            ),
            do=(
                "`model`: `mcpmeter report --by model` shows the names, since the ledger keeps them unchanged. "
                "Add them to `providers[].models`, or add a price.",
                "`endpoint`, `method`, `status`: a scanner, or a client with a newer protocol.",
            ),
            fault="The callers or the configuration.",
        ),
        cases=(
            fires(
                "a model missing in the configuration", "2h", {OVERFLOW: "0+10x150"}, Firing({"label": "model"}, "600")
            ),
            quiet("low traffic: one a minute", "2h", {OVERFLOW: "0+1x150"}),
            quiet("a restart resets the counter", "2h", {OVERFLOW: "5000x90 0+1x60"}),
            quiet("first scrape of a service that had many", "2m", {OVERFLOW: "90000"}),
            quiet("nothing overflows", "2h", {OVERFLOW: "0x150"}),
            quiet("the series is missing", "2h", {}),
            quiet("one noisy replica for ten minutes", "3h", {on("noisy", OVERFLOW): "0x60 0+9x9 90x150"}),
        ),
    )
