"""MCP servers and tools: what agents call, how it ends, how long it takes, and which protocol they speak."""

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
    """Share of tool calls that end so."""
    return share(q.count_rate(OPERATIONS, where=where), TOOL_CALLS)


VERDICT: Final = verdict(
    "All is well: tools answer",
    (
        Sentence(
            yes(f"{q.rate(mcp.TRANSPORT_REJECTIONS)} > bool 0.1 * {q.count_rate(OPERATIONS)}"),
            "Clients are refused before a message is read: see Refused by the transport",
            WARN,
        ),
        Sentence(
            yes(f"{failing(CALLER_FAILED)} > bool 0.05"),
            "Callers send tool calls that the protocol refuses",
            WARN,
        ),
        Sentence(yes(f"{failing(TOOL_FAILED)} > bool 0.05"), "Tools fail above 5 %: the table names them", BAD),
        Sentence(yes(f"{failing(OURS_FAILED)} > bool 0.01"), "Servers fail themselves: read their logs", BAD),
    ),
    "Read this first. A tool that answers with isError has failed, although its HTTP status is 200.",
)

NOW: Final = Row(
    "What is called, and how it ends",
    (
        VERDICT,
        Panel(
            "Tool calls",
            "Calls of tools a second.",
            (Query(TOOL_CALLS, "calls"),),
            "reqps",
            kind="stat",
            width=4,
            height=4,
            thresholds=((None, SERVED),),
        ),
        Panel(
            "Tools' failures",
            "Share of tool calls that answered with isError: the tool's fault or its input's.",
            (Query(failing(TOOL_FAILED), "tool_error"),),
            "percentunit",
            kind="stat",
            width=4,
            height=4,
            thresholds=((None, TOOL), (0.05, BAD)),
            decimals=1,
        ),
        Panel(
            "Latency of tools p95",
            "95 of 100 tool calls end within this time.",
            (Query(q.quantile(0.95, OPERATIONS, where=CALLS), "p95"),),
            "s",
            kind="stat",
            width=4,
            height=4,
            thresholds=((None, SERVED), (10, WARN), (60, BAD)),
        ),
        Panel(
            "Servers",
            "Servers and replicas that show themselves.",
            (Query(f"count(count by (job, instance, server) ({q.series(OPERATIONS, suffix='_count')}))", "servers"),),
            "short",
            kind="stat",
            width=4,
            height=4,
            thresholds=((None, SERVED),),
        ),
        Panel(
            "Sessions ended",
            "Sessions that ended in the time shown. The 2026-07-28 revision has none.",
            (Query(q.grown(mcp.SERVER_SESSION_DURATION, suffix="_count"), "sessions"),),
            "short",
            kind="stat",
            width=4,
            height=4,
            thresholds=((None, SERVED),),
            decimals=0,
        ),
        Panel(
            "Refused by the transport",
            "Requests in the time shown that no handler ever saw: bad session, bad header, bad Host, no JSON.",
            (Query(q.grown(mcp.TRANSPORT_REJECTIONS), "refused"),),
            "short",
            kind="stat",
            width=4,
            height=4,
            thresholds=((None, CALLER), (100, WARN)),
            decimals=0,
        ),
        Panel(
            "Tool calls by outcome",
            "Tool calls a second: answered, or failed on whose side.",
            (
                Query(q.count_rate(OPERATIONS, where=GOOD), "answered"),
                Query(q.count_rate(OPERATIONS, where=TOOL_FAILED), "tool_error"),
                Query(f"{q.count_rate(OPERATIONS, where=CALLER_FAILED)} or vector(0)", "refused by the protocol"),
                Query(
                    f"{q.count_rate(OPERATIONS, where=BROKEN_OFF)} or vector(0)",
                    "broken off, timed out, asks for input",
                ),
                Query(f"{q.count_rate(OPERATIONS, where=OURS_FAILED)} or vector(0)", "failed in the server"),
            ),
            "reqps",
            width=12,
            colours={
                "answered": SERVED,
                "tool_error": TOOL,
                "refused by the protocol": CALLER,
                "broken off, timed out, asks for input": UPSTREAM,
                "failed in the server": OURS,
            },
            stacked=True,
        ),
        Panel(
            "Latency of each tool, p95",
            "The slowest tools on top. Over replicas, to the end of the answer.",
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
            "Each tool in the time shown: how often it was called, how long it took, and how many of its calls failed.",
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
    "What tools cost the model's window",
    (
        Panel(
            "Definitions, before any call",
            "Tokens of each tool's name, description and input schema, which a model reads with every request; four "
            "bytes count as one.",
            (Query(f"topk(20, {q.greatest(mcp.TOOL_DEFINITION_TOKENS, 'tool', 'server')})", "{{tool}}"),),
            "short",
            width=8,
        ),
        Panel(
            "Results, tokens p95",
            "95 of 100 results of a tool have no more text than this, in tokens; four bytes count as one.",
            (Query(f"topk(10, {q.quantile(0.95, mcp.TOOL_RESULT_TOKENS, 'tool')})", "{{tool}}"),),
            "short",
            width=8,
            logarithmic=True,
        ),
        Panel(
            "Results, bytes a second",
            "Content that tools hand to models, by tool, pictures and sound in it.",
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
            "MCP requests and notifications a second. Many tools/list beside few tools/call is a client that forgets.",
            (Query(q.count_rate(OPERATIONS, "mcp_method_name"), "{{mcp_method_name}}"),),
            "reqps",
            width=12,
            stacked=True,
        ),
        Panel(
            "Latency by method, p95",
            "95 of 100 messages of a method are answered within this time.",
            (Query(q.quantile(0.95, OPERATIONS, "mcp_method_name"), "{{mcp_method_name}}"),),
            "s",
            width=12,
            logarithmic=True,
        ),
        Panel(
            "Revisions in use",
            "Messages a second by the protocol's revision: who still speaks the handshake, who is stateless.",
            (Query(q.count_rate(OPERATIONS, "mcp_protocol_version"), "{{mcp_protocol_version}}"),),
            "reqps",
            stacked=True,
        ),
        Panel(
            "Length of sessions",
            "Half of the sessions that ended lasted no longer than this.",
            (Query(q.quantile(0.5, mcp.SERVER_SESSION_DURATION, "mcp_protocol_version"), "{{mcp_protocol_version}}"),),
            "s",
        ),
        Panel(
            "Refused by the transport, by reason",
            "Requests a second that were refused before any handler saw a message.",
            (Query(q.moving(mcp.TRANSPORT_REJECTIONS, "reason"), "{{reason}}"),),
            "reqps",
            stacked=True,
        ),
    ),
)

PAGE: Final = Page(
    uid="mcpmeter-mcp",
    title="mcpmeter: MCP servers and tools",
    description="What agents call, how it ends and how long it takes: the relay's tools and every instrumented server.",
    rows=(NOW, CONTEXT, PROTOCOL),
    wanted=("server",),
)
