"""MCPTargetDown: Prometheus cannot scrape a replica, or all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "MCPTargetDown"
PARAMETERS: Final[tuple[Parameter, ...]] = ()
UP: Final = "up"


def alert(q: Queries) -> Alert:
    """Pages if all replicas are down; one of several is a ticket."""
    return Alert(
        name=NAME,
        area="meter",
        parameters=PARAMETERS,
        rules=tuple(_rules(q)),
        summary="{{ $labels.which }} of {{ $labels.job }} cannot be scraped.",
        description="{{ $labels.which }} of {{ $labels.job }} cannot be scraped"
        "{{ with $labels.instance }}: {{ . }}{{ end }}. Its other alerts cannot fire.",
        runbook=Runbook(
            means="The process is down, hangs or is overloaded, or it requires a token that Prometheus does not send.",
            check=(
                Check("Targets that are down", f"{q.recorded(UP)} == 0"),
                Check("Share of the last day they were up", f"avg_over_time({q.recorded(UP)}[{q.span('1d')}])"),
            ),
            do=(
                "Prometheus shows the reason under Status, Targets. 401: set `bearer_token_file`. 403: add the "
                "target's host name to `server.allowed_hosts`, or set `metrics.bearer_token`, with which every name is "
                "accepted. Connection refused: check that the process runs.",
                "Run `curl -s http://TARGET/-/ready` on the machine of Prometheus.",
                "Start the process again. Open calls are settled as `recovered`.",
            ),
            fault="The service or the network.",
        ),
        cases=(
            fires(
                "both replicas are down",
                "20m",
                {on("a", UP): "1x5 0x20", on("b", UP): "1x5 0x20"},
                Firing({"severity": "critical", "which": "Every replica"}),
                *(Firing({"severity": "warning", "which": "A replica", "instance": f"{name}:8000"}) for name in "ab"),
            ),
            fires(
                "one of two replicas is down",
                "20m",
                {on("a", UP): "1x5 0x20", on("b", UP): "1x30"},
                Firing({"severity": "warning", "which": "A replica", "instance": "a:8000"}),
            ),
            quiet("a restart of one minute", "20m", {UP: "1x15 0 1x10"}),
            quiet(
                "a rolling update stops each replica for two minutes",
                "20m",
                {on("a", UP): "1x12 0 0 1x10", on("b", UP): "1x15 0 0 1x10"},
            ),
            quiet("first scrape succeeds", "1m", {UP: "1"}),
            quiet("another job is down", "20m", {'up{job="node"}': "0x30"}),
            quiet("a target that was removed", "20m", {on("old", UP): "1x5 stale", on("new", UP): "1x30"}),
            quiet("no target at all (MCPAbsent fires)", "20m", {}),
        ),
    )


def _rules(q: Queries) -> Iterator[Rule]:
    up = q.recorded(UP)
    yield Rule(expr=f"max {q.by()} ({up}) == 0", hold="2m", severity="critical", labels={"which": "Every replica"})
    yield Rule(expr=f"min {q.by('instance')} ({up}) == 0", hold="10m", labels={"which": "A replica"})
