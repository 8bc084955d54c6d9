"""Overview: the golden signals, whose fault failures are, and the six panels of the published guide."""

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
    verdict,
)
from mcpmeter.monitoring.queries import WATCHING
from mcpmeter.monitoring.recording import LISTENING

q: Final = PageQueries()

TIMED: Final = f"{WATCHING}, {LISTENING}"
"""Requests whose duration says something: a subscription lasts for hours and is well."""

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
    return Panel(
        title,
        why,
        (Query(failing(side), side),),
        "percentunit",
        kind="stat",
        width=4,
        height=4,
        thresholds=((None, COLOURS[side]), (0.05, BAD)),
        decimals=1,
    )


VERDICT: Final = verdict(
    "All is well: every replica answers, nothing fails above 5 %",
    (
        Sentence(
            yes(f"{failing(CALLERS)} > bool 0.05"),
            "Callers send what cannot be served: see the errors by type below",
            WARN,
        ),
        Sentence(
            yes(f"{q.rate(budget.REFUSALS)} > bool 0"),
            "A budget has no room left and refuses calls: see LLM cost and tokens",
            WARN,
        ),
        Sentence(
            yes(f"{failing(TOOLS)} > bool 0.05"),
            "Tools fail: see MCP servers and tools",
            WARN,
        ),
        Sentence(
            yes(f"{q.least(upstream.UP)} < bool 1"),
            "An upstream is down: calls go elsewhere if they can; see Upstreams and quota",
            WARN,
        ),
        Sentence(
            yes(f"{failing(UPSTREAMS)} > bool 0.05"),
            "Upstreams fail above 5 %: see Upstreams and quota",
            BAD,
        ),
        Sentence(yes(f"{failing(OURSELVES)} > bool 0.01"), "We fail ourselves: see The meter itself", BAD),
        Sentence(
            yes(f"({q.of_ours('up')}) == bool 0"),
            "A replica does not answer its scrape: see The meter itself",
            BAD,
        ),
    ),
    "Read this first. The gravest thing that is true now; the panels below prove it. A failure counts on the side "
    "whose fault it is, so a caller's typing error never looks like ours.",
)

SIGNALS: Final = Row(
    "What is happening, and whose fault failures are",
    (
        VERDICT,
        Panel(
            "Calls",
            "Requests and MCP messages answered a second; probes, scrapes and pages are left out.",
            (Query(ALL_CALLS, "calls"),),
            "reqps",
            kind="stat",
            width=4,
            height=4,
            thresholds=((None, SERVED),),
        ),
        _tile(
            "Failing, ours", OURSELVES, "Share of requests that fail because of this service. Look at The meter itself."
        ),
        _tile(
            "Failing, upstream's",
            UPSTREAMS,
            "Share of requests that fail because a provider failed. Look at Upstreams and quota.",
        ),
        _tile(
            "Failing, callers'",
            CALLERS,
            "Share of requests that nobody could serve: bad bodies, unknown keys, spent budgets, clients that left.",
        ),
        Panel(
            "Latency p95",
            "95 of 100 requests end within this time, last byte included. A stream lasts as long as the model talks.",
            (Query(q.quantile(0.95, mcp.REQUEST_DURATION, where=TIMED), "p95"),),
            "s",
            kind="stat",
            width=4,
            height=4,
            thresholds=((None, SERVED), (30, WARN), (120, BAD)),
        ),
        Panel(
            "Cost in this time",
            "Priced model calls in the time shown above. Calls without a price are missing: see LLM cost and tokens.",
            (Query(q.grown(money.COST), "cost"),),
            "currencyUSD",
            kind="stat",
            width=4,
            height=4,
            thresholds=((None, SERVED),),
        ),
        Panel(
            "Calls by outcome",
            "Every request a second: served, or failed on whose side. Ours is to be flat zero.",
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
            "How long a streamed model call waits for its first chunk: what a person feels.",
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
            "Requests a second by endpoint.",
            (Query(q.moving(mcp.REQUESTS, "endpoint", where=WATCHING), "{{endpoint}}"),),
            "reqps",
        ),
        Panel(
            "Latency",
            "Request duration over all replicas, to the last byte. Buckets reach 600 s: an answer may take minutes.",
            tuple(
                Query(q.quantile(at, mcp.REQUEST_DURATION, where=TIMED), f"p{at * 100:.0f}") for at in (0.5, 0.95, 0.99)
            ),
            "s",
            logarithmic=True,
        ),
        Panel(
            "Active requests",
            "Requests being answered now, by replica. One that only rises hangs.",
            (Query(q.total(mcp.ACTIVE_REQUESTS, "instance"), "{{instance}}"),),
            "short",
            stacked=True,
        ),
        Panel(
            "Tokens by model",
            "Tokens a second, prompt and completion together.",
            (Query(q.moving(llm.TOKENS, "model"), "{{model}}"),),
            "short",
            stacked=True,
        ),
        Panel(
            "Cost by model",
            "US dollars an hour at the rate of now.",
            (Query(f"3600 * {q.rate(money.COST, 'model')}", "{{model}}"),),
            "currencyUSD",
            stacked=True,
        ),
        Panel(
            "Errors by type",
            "Failed requests a second, by what went wrong. docs/errors.md says of each what to do.",
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
            "Answering",
            "Whether Prometheus reaches each replica.",
            (Query(q.of_ours("up"), "{{job}} {{instance}}"),),
            "bool_on_off",
            kind="stat",
            thresholds=((None, BAD), (1, OK)),
        ),
        Panel(
            "Processor",
            "Share of one core that each replica uses. One process uses one core: near 1 it is full, add a replica.",
            (Query(q.cores(), "{{instance}}"),),
            "percentunit",
            thresholds=((None, OK), (0.8, WARN), (0.95, BAD)),
        ),
        Panel(
            "Versions",
            "Replicas by version of mcpmeter. Two at once for long is a roll-out that hangs.",
            (Query(f"count by (version) ({q.series(service.BUILD_INFO)})", "{{version}}"),),
            "short",
            stacked=True,
        ),
    ),
)

PAGE: Final = Page(
    uid="mcpmeter-overview",
    title="mcpmeter: Overview",
    description="What runs, what fails on whose side, what it costs. Start here.",
    rows=(SIGNALS, GUIDE, SATURATION),
)
