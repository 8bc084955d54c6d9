"""MCPTargetDown: Prometheus cannot scrape a replica, or any of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "MCPTargetDown"
PARAMETERS: Final[tuple[Parameter, ...]] = ()
UP: Final = "up"


def alert(q: Queries) -> Alert:
    """All of them down pages; one of several is a ticket."""
    return Alert(
        name=NAME,
        area="meter",
        parameters=PARAMETERS,
        rules=tuple(_rules(q)),
        summary="{{ $labels.which }} of {{ $labels.job }} cannot be scraped.",
        description="{{ $labels.which }} of {{ $labels.job }} cannot be scraped"
        "{{ with $labels.instance }}: {{ . }}{{ end }}. It is not watched: its other alerts are silent.",
        runbook=Runbook(
            means="The process is gone, hangs, is overloaded, or asks Prometheus for a token that it does not send.",
            check=(
                Check("Which", f"{q.recorded(UP)} == 0"),
                Check("For how long was it up", f"avg_over_time({q.recorded(UP)}[{q.span('1d')}])"),
            ),
            do=(
                "Prometheus's page Status, Targets has the reason. 401: give it `bearer_token_file`. 403: the target's "
                "host name is missing in `server.allowed_hosts`. Refused: is the process there?",
                "`curl -s http://TARGET/-/ready` from the machine of Prometheus.",
                "Start it again. Calls that were open are settled as `recovered`.",
            ),
            fault="Ours, or the network's.",
        ),
        cases=(
            fires(
                "both replicas are gone",
                "20m",
                {on("a", UP): "1x5 0x20", on("b", UP): "1x5 0x20"},
                Firing({"severity": "critical", "which": "Every replica"}),
                *(Firing({"severity": "warning", "which": "A replica", "instance": f"{name}:8000"}) for name in "ab"),
            ),
            fires(
                "one of two replicas is gone",
                "20m",
                {on("a", UP): "1x5 0x20", on("b", UP): "1x30"},
                Firing({"severity": "warning", "which": "A replica", "instance": "a:8000"}),
            ),
            quiet("a restart of one minute", "20m", {UP: "1x15 0 1x10"}),
            quiet(
                "a rolling update takes each for two minutes",
                "20m",
                {on("a", UP): "1x12 0 0 1x10", on("b", UP): "1x15 0 0 1x10"},
            ),
            quiet("first scrape succeeds", "1m", {UP: "1"}),
            quiet("another job is down", "20m", {'up{job="node"}': "0x30"}),
            quiet("a target that was taken out", "20m", {on("old", UP): "1x5 stale", on("new", UP): "1x30"}),
            quiet("no target at all is MCPAbsent's", "20m", {}),
        ),
    )


def _rules(q: Queries) -> Iterator[Rule]:
    up = q.recorded(UP)
    yield Rule(expr=f"max {q.by()} ({up}) == 0", hold="2m", severity="critical", labels={"which": "Every replica"})
    yield Rule(expr=f"min {q.by('instance')} ({up}) == 0", hold="10m", labels={"which": "A replica"})
