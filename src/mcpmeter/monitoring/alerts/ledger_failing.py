"""MCPLedgerFailing: the ledger is not writable, leaves rows open, or commits slowly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mcpmeter.catalog import mcp, service
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "MCPLedgerFailing"
ROWS: Final = Parameter("rows", "10", "Accepted number of open rows beyond the requests in progress.")
SECONDS: Final = Parameter("seconds", "0.5", "Threshold of the 99th percentile of a commit, in seconds.", most="5")
PARAMETERS: Final = (ROWS, SECONDS)

HEALTHY: Final = "mcp_ledger_healthy"
OPEN: Final = "mcp_ledger_open_rows"
ACTIVE: Final = "mcp_active_requests"


def commits(fast: str, all_of_them: str) -> dict[str, str]:
    """Buckets of commits: the fast ones within a millisecond, the others between 1 and 5 seconds."""
    return {
        'mcp_ledger_commit_seconds_bucket{le="0.001"}': fast,
        'mcp_ledger_commit_seconds_bucket{le="1.0"}': fast,
        'mcp_ledger_commit_seconds_bucket{le="5.0"}': all_of_them,
        'mcp_ledger_commit_seconds_bucket{le="+Inf"}': all_of_them,
    }


def alert(q: Queries) -> Alert:
    """Per replica, since each has its own ledger file or connection."""
    return Alert(
        name=NAME,
        area="meter",
        parameters=PARAMETERS,
        rules=tuple(_rules(q)),
        summary="The ledger of {{ $labels.instance }} {{ $labels.sign }}.",
        description="The ledger of {{ $labels.job }} on {{ $labels.instance }} {{ $labels.sign }}. While it is not "
        "writable, calls are refused with 503, ledger_unavailable.",
        runbook=Runbook(
            means="`cannot be written`: the disk is full or read-only, or the file was moved. Every call is refused. "
            "`leaves rows open`: calls end without being settled. `is slow`: commits, and with them calls, wait for "
            "the disk.",
            check=(
                Check("Replicas whose ledger is not writable", f"{q.of(service.LEDGER_HEALTHY)} == 0"),
                Check(
                    "Replicas with more open rows than requests",
                    f"{q.of(service.LEDGER_OPEN_ROWS)} > {q.of(mcp.ACTIVE_REQUESTS)}",
                ),
                Check("Duration of commits", q.quantile("0.99", service.LEDGER_COMMIT, "5m", "instance")),
            ),
            do=(
                "Run `df -h` and `mount` for the ledger's folder. `/-/ready` reports the same state as the gauge.",
                "Free disk space or repair the mount. The service recovers within a second, without a restart.",
                "Rows that stay open are settled as `recovered` at startup: restart the replica when it is idle.",
                "Slow commits: look for other programs that write to the disk. Do not use a network disk.",
            ),
            fault="Almost always the machine's disk.",
        ),
        cases=(
            fires(
                "the disk is full on one of two replicas",
                "20m",
                {on("a", HEALTHY): "1x10 0x20", on("b", HEALTHY): "1x30"},
                Firing({"instance": "a:8000", "severity": "critical", "sign": "cannot be written"}),
            ),
            fires(
                "rows stay open",
                "30m",
                {HEALTHY: "1x40", OPEN: "50x40", ACTIVE: "2x40"},
                Firing({"instance": "one:8000", "severity": "warning", "sign": "leaves rows open"}),
            ),
            fires(
                "commits take seconds",
                "30m",
                commits("0+54x40", "0+60x40"),
                Firing({"instance": "one:8000", "severity": "warning", "sign": "is slow"}),
            ),
            quiet(
                "normal operation under load",
                "30m",
                {HEALTHY: "1x40", OPEN: "80x40", ACTIVE: "80x40", **commits("0+60x40", "0+60x40")},
            ),
            quiet("not writable for one scrape, while it restarts", "20m", {HEALTHY: "1x10 0 1x20"}),
            quiet("first scrape", "1m", {HEALTHY: "1", OPEN: "0", ACTIVE: "0"}),
            quiet("a library without a ledger", "20m", {ACTIVE: "0x30"}),
            quiet("a restart resets the buckets", "30m", commits("0+60x20 0+60x20", "0+60x20 0+60x20")),
            quiet("low traffic: one slow commit per hour", "30m", {HEALTHY: "1x40", **commits("0x40", "0x25 1x15")}),
        ),
    )


def _rules(q: Queries) -> Iterator[Rule]:
    writable = f"min {q.by('instance')} ({q.of(service.LEDGER_HEALTHY)})"
    yield Rule(expr=f"{writable} == 0", hold="1m", severity="critical", labels={"sign": "cannot be written"})
    rows, active = (f"sum {q.by('instance')} ({q.of(row)})" for row in (service.LEDGER_OPEN_ROWS, mcp.ACTIVE_REQUESTS))
    yield Rule(expr=f"{rows} - {active} > {q[ROWS]}", hold="15m", labels={"sign": "leaves rows open"})
    slow = q.quantile("0.99", service.LEDGER_COMMIT, "5m", "instance")
    yield Rule(expr=f"{slow} > {q[SECONDS]}", hold="10m", labels={"sign": "is slow"})
