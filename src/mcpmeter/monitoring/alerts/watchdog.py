"""Watchdog: always on, so that its silence says that alerts no longer arrive."""

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
        description="This alert is always on. A dead man's switch pages when it no longer arrives.",
        runbook=Runbook(
            means="The way from Prometheus through Alertmanager to the dead man's switch works. It is no fault.",
            check=(Check("It is on in Prometheus", f'ALERTS{{alertname="{NAME}",alertstate="firing"}}'),),
            do=(
                "Nothing while it fires.",
                "When the dead man's switch pages: see whether Prometheus runs and evaluates rules, whether it reaches "
                "Alertmanager (its Status page), and whether Alertmanager's log names the receiver.",
            ),
            fault="Prometheus's or Alertmanager's, or the network's between them.",
        ),
        cases=(fires("nothing at all is scraped", "1m", {}),),
    )
