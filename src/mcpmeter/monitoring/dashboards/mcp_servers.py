"""MCP servers and tools: calls, outcomes, durations and protocol revisions."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import mcp
from mcpmeter.monitoring.dashboards.promql import PageQueries, share, yes
from mcpmeter.monitoring.dashboards.spec import (
    BAD,
    CALLER,
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

q: Final = PageQueries("server")
OPERATIONS: Final = mcp.SERVER_OPERATION_DURATION

CALLS: Final = 'mcp_method_name="tools/call"'
GOOD: Final = f'{CALLS}, error_type=""'
TOOL_FAILED: Final = f'{CALLS}, error_type="tool_error"'
CALLER_FAILED: Final = f'{CALLS}, error_type=~"-326.*|-320.*|validation_error|auth_error|protocol_error"'
BROKEN_OFF: Final = f'{CALLS}, error_type=~"cancelled|timeout|input_required"'
OURS_FAILED: Final = f'{CALLS}, error_type=~"-32603|internal_error|_OTHER"'

TOOL_CALLS: Final = q.count_rate(OPERATIONS, where=CALLS)


def failing(where: str) -> str:
    """Share of tool calls with this outcome."""
    return share(q.count_rate(OPERATIONS, where=where), TOOL_CALLS)


VERDICT: Final = verdict(
    "Healthy: tools respond",
    (
        Sentence(
            yes(f"{q.rate(mcp.TRANSPORT_REJECTIONS)} > bool 0.1 * {q.count_rate(OPERATIONS)}"),
            "Many requests are refused before a message is read: see Refused by the transport",
            WARN,
        ),
        Sentence(
            yes(f"{failing(CALLER_FAILED)} > bool 0.05"),
            "Callers send invalid tool calls: see Tool calls by outcome",
            WARN,
        ),
        Sentence(yes(f"{failing(TOOL_FAILED)} > bool 0.05"), "Tools fail above 5 %: see the table Tools", BAD),
        Sentence(yes(f"{failing(OURS_FAILED)} > bool 0.01"), "Servers fail above 1 %: read their logs", BAD),
    ),
    "The most severe current condition. A tool result with isError is a failure, although its HTTP status is 200.",
)

NOW: Final = Row(
    "Calls and outcomes",
    (
        VERDICT,
        tile(
            "Tool calls",
            "Tool calls per second.",
            (Query(TOOL_CALLS, "calls"),),
            "reqps",
        ),
        tile(
            "Tool failures",
            "Share of tool calls with isError, caused by the tool or by its input.",
            (Query(failing(TOOL_FAILED), "tool_error"),),
            "percentunit",
            thresholds=((None, TOOL), (0.05, BAD)),
            decimals=1,
        ),
        tile(
            "Latency of tools p95",
            "95 % of tool calls complete within this time.",
            (Query(q.quantile(0.95, OPERATIONS, where=CALLS), "p95"),),
            "s",
            thresholds=((None, SERVED), (10, WARN), (60, BAD)),
        ),
        tile(
            "Servers",
            "Servers and replicas with metrics.",
            (Query(f"count(count by (job, instance, server) ({q.series(OPERATIONS, suffix='_count')}))", "servers"),),
            "short",
        ),
        tile(
            "Sessions ended",
            "Sessions that ended in this time range. Revision 2026-07-28 has no sessions.",
            (Query(q.grown(mcp.SERVER_SESSION_DURATION, suffix="_count"), "sessions"),),
            "short",
            decimals=0,
        ),
        tile(
            "Refused by the transport",
            "Requests in this time range that reached no handler: bad session, bad header, bad Host, invalid JSON.",
            (Query(q.grown(mcp.TRANSPORT_REJECTIONS), "refused"),),
            "short",
            thresholds=((None, CALLER), (100, WARN)),
            decimals=0,
        ),
        Panel(
            "Tool calls by outcome",
            "Tool calls per second: succeeded, or failed by cause.",
            (
                Query(q.count_rate(OPERATIONS, where=GOOD), "succeeded"),
                Query(q.count_rate(OPERATIONS, where=TOOL_FAILED), "tool_error"),
                Query(f"{q.count_rate(OPERATIONS, where=CALLER_FAILED)} or vector(0)", "refused by the protocol"),
                Query(
                    f"{q.count_rate(OPERATIONS, where=BROKEN_OFF)} or vector(0)",
                    "cancelled, timed out, input required",
                ),
                Query(f"{q.count_rate(OPERATIONS, where=OURS_FAILED)} or vector(0)", "failed in the server"),
            ),
            "reqps",
            width=12,
            colours={
                "succeeded": SERVED,
                "tool_error": TOOL,
                "refused by the protocol": CALLER,
                "cancelled, timed out, input required": UPSTREAM,
                "failed in the server": OURS,
            },
            stacked=True,
        ),
        Panel(
            "Latency of each tool, p95",
            "The ten slowest tools over all replicas, to the end of the response.",
            (
                Query(
                    f"topk(10, {q.quantile(0.95, OPERATIONS, 'gen_ai_tool_name', where=CALLS)})", "{{gen_ai_tool_name}}"
                ),
            ),
            "s",
            width=12,
            logarithmic=True,
        ),
        Panel(
            "Tools",
            "Calls, durations and share of failures of each tool in this time range.",
            (
                Query(
                    f"{q.grown(OPERATIONS, 'gen_ai_tool_name', 'server', where=CALLS, suffix='_count')} > 0", "Calls"
                ),
                Query(q.quantile_of_range(0.5, OPERATIONS, "gen_ai_tool_name", "server", where=CALLS), "p50"),
                Query(q.quantile_of_range(0.95, OPERATIONS, "gen_ai_tool_name", "server", where=CALLS), "p95"),
                Query(
                    share(
                        q.grown(OPERATIONS, "gen_ai_tool_name", "server", where=TOOL_FAILED, suffix="_count"),
                        q.grown(OPERATIONS, "gen_ai_tool_name", "server", where=CALLS, suffix="_count"),
                    ),
                    "Failed",
                ),
            ),
            "short",
            kind="table",
            width=24,
            height=6,
            units={"p50": "s", "p95": "s", "Failed": "percentunit"},
            decimals=2,
        ),
    ),
)

CONTEXT: Final = Row(
    "Context cost of tools",
    (
        Panel(
            "Tokens of tool definitions",
            "Tokens of each tool's name, description and input schema, which a model reads with every request. "
            "Estimated as 4 bytes per token.",
            (Query(f"topk(20, {q.greatest(mcp.TOOL_DEFINITION_TOKENS, 'tool', 'server')})", "{{tool}}"),),
            "short",
            width=8,
        ),
        Panel(
            "Tokens of tool results, p95",
            "95 % of a tool's results have at most this many tokens of text. Estimated as 4 bytes per token.",
            (Query(f"topk(10, {q.quantile(0.95, mcp.TOOL_RESULT_TOKENS, 'tool')})", "{{tool}}"),),
            "short",
            width=8,
            logarithmic=True,
        ),
        Panel(
            "Bytes of tool results per second",
            "Content of tool results by tool, including images and audio.",
            (Query(q.rate(mcp.TOOL_RESULT_BYTES, "tool", suffix="_sum"), "{{tool}}"),),
            "Bps",
            width=8,
            stacked=True,
        ),
    ),
)

PROTOCOL: Final = Row(
    "Protocol",
    (
        Panel(
            "Messages by method",
            "MCP requests and notifications per second. Many tools/list are a client without a cache of them.",
            (Query(q.count_rate(OPERATIONS, "mcp_method_name"), "{{mcp_method_name}}"),),
            "reqps",
            width=12,
            stacked=True,
        ),
        Panel(
            "Latency by method, p95",
            "95 % of a method's messages complete within this time.",
            (Query(q.quantile(0.95, OPERATIONS, "mcp_method_name"), "{{mcp_method_name}}"),),
            "s",
            width=12,
            logarithmic=True,
        ),
        Panel(
            "Revisions in use",
            "Messages per second by protocol revision.",
            (Query(q.count_rate(OPERATIONS, "mcp_protocol_version"), "{{mcp_protocol_version}}"),),
            "reqps",
            stacked=True,
        ),
        Panel(
            "Duration of sessions, p50",
            "Half of the ended sessions lasted at most this long.",
            (Query(q.quantile(0.5, mcp.SERVER_SESSION_DURATION, "mcp_protocol_version"), "{{mcp_protocol_version}}"),),
            "s",
        ),
        Panel(
            "Refused by the transport, by reason",
            "Requests per second that were refused before a handler received a message.",
            (Query(q.moving(mcp.TRANSPORT_REJECTIONS, "reason"), "{{reason}}"),),
            "reqps",
            stacked=True,
        ),
    ),
)

PAGE: Final = Page(
    uid="mcpmeter-mcp",
    title="mcpmeter: MCP servers and tools",
    description="Calls, outcomes and durations of the relay's tools and of every instrumented server.",
    rows=(NOW, CONTEXT, PROTOCOL),
    wanted=("server",),
)
