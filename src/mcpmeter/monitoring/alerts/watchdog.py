"""Watchdog: always fires, so that its absence reveals that alerts no longer arrive."""

from __future__ import annotations

from typing import Final

from mcpmeter.monitoring.alert import Alert, Check, Rule, Runbook, fires
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "Watchdog"
PARAMETERS: Final[tuple[Parameter, ...]] = ()


def alert(q: Queries) -> Alert:
    """Always fires."""
    return Alert(
        name=NAME,
        area="meter",
        parameters=PARAMETERS,
        rules=(Rule(expr="vector(1)", severity="none"),),
        summary="Alerts of mcpmeter reach their receivers.",
        description="This alert always fires. A dead man's switch pages if it no longer arrives.",
        runbook=Runbook(
            means="The path from Prometheus through Alertmanager to the dead man's switch works. This is not a fault.",
            check=(Check("State in Prometheus", f'ALERTS{{alertname="{NAME}",alertstate="firing"}}'),),
            do=(
                "Nothing, while it fires.",
                "If the dead man's switch pages: check that Prometheus runs and evaluates rules, that it reaches "
                "Alertmanager (its Status page), and Alertmanager's log for errors of the receiver.",
            ),
            fault="Prometheus, Alertmanager, or the network between them.",
        ),
        cases=(fires("nothing is scraped", "1m", {}),),
    )
