"""The meter itself: whether the numbers of the other dashboards can be trusted."""

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
    verdict,
)
from mcpmeter.monitoring.queries import WATCHING
from mcpmeter.monitoring.recording import LISTENING

q: Final = PageQueries()

CALLS: Final = f"{WATCHING}, {LISTENING}"

TRUST: Final = Row(
    "Can the numbers be trusted?",
    (
        verdict(
            "All is well: everything is counted, the ledger takes every call",
            (
                Sentence(
                    yes(f"{q.rate(service.LABEL_OVERFLOW)} > bool 0"),
                    "Some values are shown as 'other': a name that configuration does not announce",
                    WARN,
                ),
                Sentence(
                    yes(f"{q.quantile(0.99, service.LEDGER_COMMIT)} > bool 0.25"),
                    "The ledger's disk is slow: every call waits for it",
                    WARN,
                ),
                Sentence(
                    yes(f"{q.least(service.CONFIG_RELOAD_SUCCESSFUL)} < bool 1"),
                    "The last reload failed: the old configuration runs on, the log says why",
                    BAD,
                ),
                Sentence(
                    yes(f"{q.grown(service.INTERNAL_FAULTS)} > bool 0"),
                    "The meter failed to record something: the numbers of this time are too low",
                    BAD,
                ),
                Sentence(yes(f"({q.of_ours('up')}) == bool 0"), "A replica does not answer its scrape", BAD),
            ),
            "Read this first. Everything on this page is our own side.",
        ),
        Panel(
            "Recording faults",
            "Times in the time shown that the meter failed to record; what it meters went on. Should be 0: report it.",
            (Query(q.grown(service.INTERNAL_FAULTS), "faults"),),
            "short",
            kind="stat",
            width=4,
            height=4,
            thresholds=((None, OK), (1, BAD)),
            decimals=0,
        ),
        Panel(
            "Calls open in the ledger",
            "Calls written down and not settled yet: those under way. For long above the active requests is a leak.",
            (Query(q.total(service.LEDGER_OPEN_ROWS), "open"),),
            "short",
            kind="stat",
            width=4,
            height=4,
            thresholds=((None, SERVED),),
        ),
        Panel(
            "Recovered after a crash",
            "Calls that an earlier life left open and that were settled at start, as estimates.",
            (Query(q.total(service.LEDGER_RECOVERED), "recovered"),),
            "short",
            kind="stat",
            width=4,
            height=4,
            thresholds=((None, SERVED), (1, WARN)),
        ),
        Panel(
            "Last reload",
            "Whether the last reload of the configuration succeeded, the worst replica.",
            (Query(q.least(service.CONFIG_RELOAD_SUCCESSFUL), "succeeded"),),
            "bool_yes_no",
            kind="stat",
            width=4,
            height=4,
            thresholds=((None, BAD), (1, OK)),
        ),
        Panel(
            "Configuration is from",
            "When the configuration was last loaded, the newest replica.",
            (Query(f"1000 * {q.greatest(service.CONFIG_RELOAD_TIMESTAMP)}", "loaded"),),
            "dateTimeFromNow",
            kind="stat",
            width=4,
            height=4,
            thresholds=((None, SERVED),),
        ),
        Panel(
            "Usage not reported",
            "Model calls in the time shown whose provider told no usage, so that their tokens are estimated.",
            (Query(q.grown(llm.USAGE_MISSING), "calls"),),
            "short",
            kind="stat",
            width=4,
            height=4,
            thresholds=((None, SERVED), (1, WARN)),
            decimals=0,
        ),
        Panel(
            "Ledger commits",
            "How long a durable commit takes. A call is sent when its row is on disk, so this is in every latency.",
            tuple(Query(q.quantile(at, service.LEDGER_COMMIT), f"p{at * 100:.0f}") for at in (0.5, 0.99)),
            "s",
            thresholds=((None, OK), (0.25, BAD)),
            logarithmic=True,
        ),
        Panel(
            "Time beside the upstreams",
            "Mean time of a request that was not spent in a model call: our own work, the ledger, waits between "
            "attempts and slow readers.",
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
            "Values a second outside a label's closed set. Announce the name in configuration to tell it apart.",
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
            "Processor",
            "Cores that each process uses; one process can use one.",
            (Query(q.cores(), "{{instance}}"),),
            "short",
            thresholds=((None, OK), (0.8, WARN), (0.95, BAD)),
        ),
        Panel(
            "Open files",
            "Share of the open files that each process may have. Each connection is one.",
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
            "How long /metrics takes. It is rendered off the event loop, so calls do not wait for it.",
            (Query(q.of_ours("scrape_duration_seconds"), "{{instance}}"),),
            "s",
        ),
        Panel(
            "Series",
            "Samples of a scrape. Labels come from closed sets, so this follows configuration and not traffic.",
            (Query(q.of_ours("scrape_samples_scraped"), "{{instance}}"),),
            "short",
        ),
        Panel(
            "Versions",
            "What runs where.",
            (Query(f"max by (job, instance, version, python_version) ({q.series(service.BUILD_INFO)})", "Runs"),),
            "short",
            kind="table",
        ),
    ),
)

PAGE: Final = Page(
    uid="mcpmeter-meter",
    title="mcpmeter: The meter itself",
    description="Whether the numbers of the other dashboards can be trusted, and what the meter costs.",
    rows=(TRUST, PROCESS),
)
