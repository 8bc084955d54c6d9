"""Overview: the golden signals, failures by side, and the six panels of the published guide."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import budget, llm, mcp, money, service, upstream
from mcpmeter.monitoring.dashboards.promql import PageQueries, share, yes
from mcpmeter.monitoring.dashboards.spec import (
    BAD,
    CALLER,
    OK,
    OURS,
    SERVED,
    TOOL,
    UPSTREAM,
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

TIMED: Final = f"{WATCHING}, {LISTENING}"
"""Requests with a meaningful duration: a subscription lasts for hours by design."""

OURSELVES: Final = "ours"
UPSTREAMS: Final = "upstream's"
TOOLS: Final = "the tool's"
CALLERS: Final = "the caller's"
SIDES: Final = {
    OURSELVES: 'error_type!="tool_error", side="server"',
    UPSTREAMS: 'side="upstream"',
    TOOLS: 'error_type="tool_error"',
    CALLERS: 'side="client"',
}
COLOURS: Final = {
    "served": SERVED,
    OURSELVES: OURS,
    UPSTREAMS: UPSTREAM,
    TOOLS: TOOL,
    CALLERS: CALLER,
}
ALL_CALLS: Final = q.rate(mcp.REQUESTS, where=WATCHING)


def failing(side: str) -> str:
    """Share of requests that fail on this side."""
    return share(q.rate(mcp.ERRORS, where=SIDES[side]), ALL_CALLS)


def _tile(title: str, side: str, why: str) -> Panel:
    return tile(
        title,
        why,
        (Query(failing(side), side),),
        "percentunit",
        thresholds=((None, COLOURS[side]), (0.05, BAD)),
        decimals=1,
    )


VERDICT: Final = verdict(
    "Healthy: every replica is up, no failure rate is above 5 %",
    (
        Sentence(
            yes(f"{failing(CALLERS)} > bool 0.05"),
            "Callers send invalid requests: see Errors by type below",
            WARN,
        ),
        Sentence(
            yes(f"{q.rate(budget.REFUSALS)} > bool 0"),
            "An exhausted budget refuses calls: see LLM cost and tokens",
            WARN,
        ),
        Sentence(
            yes(f"{failing(TOOLS)} > bool 0.05"),
            "Tools fail above 5 %: see MCP servers and tools",
            WARN,
        ),
        Sentence(
            yes(f"{q.least(upstream.UP)} < bool 1"),
            "An upstream is down, calls use other routes if configured: see Upstreams and quota",
            WARN,
        ),
        Sentence(
            yes(f"{failing(UPSTREAMS)} > bool 0.05"),
            "Upstreams fail above 5 %: see Upstreams and quota",
            BAD,
        ),
        Sentence(
            yes(f"{failing(OURSELVES)} > bool 0.01"), "mcpmeter itself fails above 1 %: see The meter itself", BAD
        ),
        Sentence(
            yes(f"({q.of_ours('up')}) == bool 0"),
            "A replica cannot be scraped: see The meter itself",
            BAD,
        ),
    ),
    "The most severe current condition; the panels below show the details. A failure counts for the side that "
    "caused it.",
)

SIGNALS: Final = Row(
    "Traffic and failures by side",
    (
        VERDICT,
        tile(
            "Calls",
            "Requests and MCP messages per second, without probes, scrapes and pages.",
            (Query(ALL_CALLS, "calls"),),
            "reqps",
        ),
        _tile("Failing, ours", OURSELVES, "Share of requests that fail because of mcpmeter. See The meter itself."),
        _tile(
            "Failing, upstream's",
            UPSTREAMS,
            "Share of requests that fail because of a provider. See Upstreams and quota.",
        ),
        _tile(
            "Failing, callers'",
            CALLERS,
            "Share of requests that fail because of the caller: bad bodies, unknown keys, exhausted budgets.",
        ),
        tile(
            "Latency p95",
            "95 % of requests complete within this time, including the last byte of a stream.",
            (Query(q.quantile(0.95, mcp.REQUEST_DURATION, where=TIMED), "p95"),),
            "s",
            thresholds=((None, SERVED), (30, WARN), (120, BAD)),
        ),
        tile(
            "Cost in this time range",
            "Cost of priced model calls. Calls without a price are missing: see LLM cost and tokens.",
            (Query(q.grown(money.COST), "cost"),),
            "currencyUSD",
        ),
        Panel(
            "Calls by outcome",
            "Requests per second: served, or failed by side. The target for ours is 0.",
            (
                Query(f"clamp_min({ALL_CALLS} - {q.rate(mcp.ERRORS)}, 0)", "served"),
                *(Query(q.rate(mcp.ERRORS, where=where), side) for side, where in SIDES.items()),
            ),
            "reqps",
            width=16,
            colours=COLOURS,
            stacked=True,
        ),
        Panel(
            "Time to the first chunk",
            "Time until the first chunk of a streamed model call.",
            (
                Query(q.quantile(0.5, llm.TIME_TO_FIRST_CHUNK), "p50"),
                Query(q.quantile(0.95, llm.TIME_TO_FIRST_CHUNK), "p95"),
            ),
            "s",
        ),
    ),
)

GUIDE: Final = Row(
    "The published guide's six panels",
    (
        Panel(
            "Request rate",
            "Requests per second by endpoint.",
            (Query(q.moving(mcp.REQUESTS, "endpoint", where=WATCHING), "{{endpoint}}"),),
            "reqps",
        ),
        Panel(
            "Latency",
            "Request duration over all replicas, to the last byte. The top bucket is 600 s.",
            tuple(
                Query(q.quantile(at, mcp.REQUEST_DURATION, where=TIMED), f"p{at * 100:.0f}") for at in (0.5, 0.95, 0.99)
            ),
            "s",
            logarithmic=True,
        ),
        Panel(
            "Active requests",
            "Requests in progress, by replica. If it only rises, the replica hangs.",
            (Query(q.total(mcp.ACTIVE_REQUESTS, "instance"), "{{instance}}"),),
            "short",
            stacked=True,
        ),
        Panel(
            "Tokens by model",
            "Prompt and completion tokens per second.",
            (Query(q.moving(llm.TOKENS, "model"), "{{model}}"),),
            "short",
            stacked=True,
        ),
        Panel(
            "Cost by model",
            "US dollars per hour at the current rate.",
            (Query(f"3600 * {q.rate(money.COST, 'model')}", "{{model}}"),),
            "currencyUSD",
            stacked=True,
        ),
        Panel(
            "Errors by type",
            "Failed requests per second by type of error. docs/errors.md has the fix for each.",
            (Query(q.moving(mcp.ERRORS, "error_type", "side"), "{{error_type}} ({{side}})"),),
            "reqps",
            stacked=True,
        ),
    ),
)

SATURATION: Final = Row(
    "Replicas",
    (
        Panel(
            "Up",
            "Whether Prometheus can scrape each replica.",
            (Query(q.of_ours("up"), "{{job}} {{instance}}"),),
            "bool_on_off",
            kind="stat",
            thresholds=((None, BAD), (1, OK)),
        ),
        Panel(
            "CPU",
            "Share of one core used by each replica. A process uses at most one core: near 1, add a replica.",
            (Query(q.cores(), "{{instance}}"),),
            "percentunit",
            thresholds=((None, OK), (0.8, WARN), (0.95, BAD)),
        ),
        Panel(
            "Versions",
            "Replicas by version of mcpmeter. Two versions for a long time indicate a stuck roll-out.",
            (Query(f"count by (version) ({q.series(service.BUILD_INFO)})", "{{version}}"),),
            "short",
            stacked=True,
        ),
    ),
)

PAGE: Final = Page(
    uid="mcpmeter-overview",
    title="mcpmeter: Overview",
    description="State of the replicas, failures by side, and cost. Start here.",
    rows=(SIGNALS, GUIDE, SATURATION),
)
