"""The meter itself: whether the figures of the other dashboards are complete."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import llm, mcp, service
from mcpmeter.monitoring.dashboards.promql import SCOPE, PageQueries, yes
from mcpmeter.monitoring.dashboards.spec import (
    BAD,
    OK,
    OURS,
    SERVED,
    WARN,
    Page,
    Panel,
    Query,
    Row,
    Sentence,
    tile,
    verdict,
)
from mcpmeter.monitoring.queries import WATCHING
from mcpmeter.monitoring.recording import LISTENING

q: Final = PageQueries()

CALLS: Final = f"{WATCHING}, {LISTENING}"

TRUST: Final = Row(
    "Completeness of the figures",
    (
        verdict(
            "Healthy: everything is counted, the ledger is writable",
            (
                Sentence(
                    yes(f"{q.rate(service.LABEL_OVERFLOW)} > bool 0"),
                    "Some values are shown as 'other': add their names to the configuration",
                    WARN,
                ),
                Sentence(
                    yes(f"{q.quantile(0.99, service.LEDGER_COMMIT)} > bool 0.25"),
                    "The ledger's disk is slow, and every call waits for it: see Ledger commits",
                    WARN,
                ),
                Sentence(
                    yes(f"{q.least(service.CONFIG_RELOAD_SUCCESSFUL)} < bool 1"),
                    "The last reload failed, the old configuration is active: see the log",
                    BAD,
                ),
                Sentence(
                    yes(f"{q.grown(service.INTERNAL_FAULTS)} > bool 0"),
                    "The meter failed to record something: the figures of this time range are too low",
                    BAD,
                ),
                Sentence(yes(f"({q.of_ours('up')}) == bool 0"), "A replica cannot be scraped", BAD),
            ),
            "The most severe current condition. This page shows mcpmeter only, not providers or tools.",
        ),
        tile(
            "Recording faults",
            "Internal failures to record something in this time range. Metered calls continued. Report any as a bug.",
            (Query(q.grown(service.INTERNAL_FAULTS), "faults"),),
            "short",
            thresholds=((None, OK), (1, BAD)),
            decimals=0,
        ),
        tile(
            "Calls open in the ledger",
            "Calls recorded and not settled yet. If it stays above the active requests, calls are not settled.",
            (Query(q.total(service.LEDGER_OPEN_ROWS), "open"),),
            "short",
        ),
        tile(
            "Recovered after a crash",
            "Calls left open by a previous process and recovered at startup, as estimates.",
            (Query(q.total(service.LEDGER_RECOVERED), "recovered"),),
            "short",
            thresholds=((None, SERVED), (1, WARN)),
        ),
        tile(
            "Last reload",
            "Whether the last reload of the configuration succeeded on every replica.",
            (Query(q.least(service.CONFIG_RELOAD_SUCCESSFUL), "succeeded"),),
            "bool_yes_no",
            thresholds=((None, BAD), (1, OK)),
        ),
        tile(
            "Configuration loaded",
            "Time of the last load of the configuration on any replica.",
            (Query(f"1000 * {q.greatest(service.CONFIG_RELOAD_TIMESTAMP)}", "loaded"),),
            "dateTimeFromNow",
        ),
        tile(
            "Usage not reported",
            "Model calls without reported usage in this time range. Their tokens are estimated or unknown.",
            (Query(q.grown(llm.USAGE_MISSING), "calls"),),
            "short",
            thresholds=((None, SERVED), (1, WARN)),
            decimals=0,
        ),
        Panel(
            "Ledger commits",
            "Duration of a durable commit. A call is sent after its row is on disk, so every latency includes it.",
            tuple(Query(q.quantile(at, service.LEDGER_COMMIT), f"p{at * 100:.0f}") for at in (0.5, 0.99)),
            "s",
            thresholds=((None, OK), (0.25, BAD)),
            logarithmic=True,
        ),
        Panel(
            "Time outside of upstreams",
            "Mean time of a request outside of model calls: mcpmeter, the ledger, waits between attempts and slow "
            "clients.",
            (
                Query(
                    f"clamp_min({q.rate(mcp.REQUEST_DURATION, where=CALLS, suffix='_sum')} - "
                    f"{q.rate(llm.OPERATION_DURATION, suffix='_sum')}, 0) / "
                    f"({q.count_rate(mcp.REQUEST_DURATION, where=CALLS)} > 0)",
                    "mean",
                ),
            ),
            "s",
            colours={"mean": OURS},
        ),
        Panel(
            "Values shown as other",
            "Values per second outside a label's closed set. Add their names to the configuration to show them.",
            (Query(q.moving(service.LABEL_OVERFLOW, "label"), "{{label}}"),),
            "cps",
            stacked=True,
        ),
    ),
)

PROCESS: Final = Row(
    "Processes and scrapes",
    (
        Panel(
            "Memory",
            "Resident memory of each process.",
            (Query(q.of_ours("process_resident_memory_bytes"), "{{instance}}"),),
            "bytes",
        ),
        Panel(
            "CPU",
            "Cores used by each process. A process uses at most one.",
            (Query(q.cores(), "{{instance}}"),),
            "short",
            thresholds=((None, OK), (0.8, WARN), (0.95, BAD)),
        ),
        Panel(
            "Open files",
            "Share of the limit of open files of each process. Each connection is one.",
            (
                Query(
                    f"({q.of_ours('process_open_fds')}) / process_max_fds{{{SCOPE}}}",
                    "{{instance}}",
                ),
            ),
            "percentunit",
            thresholds=((None, OK), (0.8, BAD)),
        ),
        Panel(
            "Duration of a scrape",
            "Duration of /metrics. It is rendered outside of the event loop, so calls do not wait for it.",
            (Query(q.of_ours("scrape_duration_seconds"), "{{instance}}"),),
            "s",
        ),
        Panel(
            "Series",
            "Samples per scrape. Labels have closed sets, so this depends on the configuration, not on traffic.",
            (Query(q.of_ours("scrape_samples_scraped"), "{{instance}}"),),
            "short",
        ),
        Panel(
            "Versions",
            "Versions by job and instance.",
            (Query(f"max by (job, instance, version, python_version) ({q.series(service.BUILD_INFO)})", "Runs"),),
            "short",
            kind="table",
        ),
    ),
)

PAGE: Final = Page(
    uid="mcpmeter-meter",
    title="mcpmeter: The meter itself",
    description="Whether the figures of the other dashboards are complete, and the resources mcpmeter uses.",
    rows=(TRUST, PROCESS),
)
