"""MCPToolErrors: a tool of an MCP server fails often, and not because of its callers."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import mcp
from mcpmeter.monitoring.alert import Alert, Check, Firing, Rule, Runbook, fires, on, quiet
from mcpmeter.monitoring.queries import Parameter, Queries

NAME: Final = "MCPToolErrors"
RATIO: Final = Parameter("ratio", "0.2", "Accepted share of a tool's calls that fail.", most="1")
CALLS: Final = Parameter("calls", "10", "Calls of the tool in 15 minutes below which it does not fire.")
PARAMETERS: Final = (RATIO, CALLS)

TOOL_CALLS: Final = 'mcp_method_name="tools/call"'
NOT_THE_SERVERS: Final = (
    'error_type!~"|cancelled|input_required|client_disconnected|validation_error|auth_error|rate_limited|'
    'budget_exceeded|protocol_error|-32700|-32600|-32601|-32602"'
)
"""Excludes successes (the empty value) and errors of callers."""

_NAME: Final = "mcp_server_operation_duration_seconds_count"
_WHERE: Final = 'mcp_method_name="tools/call",gen_ai_tool_name="search",server="docs",network_transport="tcp"'
OK: Final = f'{_NAME}{{{_WHERE},error_type=""}}'
BAD: Final = f'{_NAME}{{{_WHERE},error_type="tool_error"}}'
CALLERS: Final = f'{_NAME}{{{_WHERE},error_type="-32602"}}'
SEARCH: Final = {"gen_ai_tool_name": "search", "server": "docs"}


def alert(q: Queries) -> Alert:
    """Counts `isError` results as failures of the tool, although the protocol treats them as results."""
    return Alert(
        name=NAME,
        area="slo",
        parameters=PARAMETERS,
        rules=(Rule(expr=_expr(q), hold="5m"),),
        summary="The tool {{ $labels.gen_ai_tool_name }} is failing.",
        description="{{ $value | humanizePercentage }} of the calls of {{ $labels.gen_ai_tool_name }} "
        "(server {{ $labels.server }}, {{ $labels.job }}) failed in the last 15 minutes.",
        runbook=Runbook(
            means="The tool raised an exception, timed out or returned `isError`. Models retry, which costs tokens.",
            check=(
                Check(
                    "Calls by type of error",
                    q.increase(mcp.SERVER_OPERATION_DURATION, "15m", *_TOOL, "error_type", part="count"),
                ),
                Check("Duration of its calls", q.quantile("0.95", mcp.SERVER_OPERATION_DURATION, "15m", *_TOOL)),
            ),
            do=(
                "`tool_error`: the server's log contains the exception. The cause is usually a dependency of the tool.",
                "`timeout`: see the second query.",
                "`upstream_…` on the tool `chat`: continue with MCPUpstreamDown.",
            ),
            fault="The MCP server, or one of its dependencies.",
        ),
        cases=(
            fires("a third of the calls fails", "30m", {OK: "0+2x40", BAD: "0+1x40"}, Firing(SEARCH, "33.33%")),
            fires(
                "it fails on one replica of two",
                "30m",
                {on("a", OK): "0+2x40", on("b", BAD): "0+2x40"},
                Firing(SEARCH, "50%"),
            ),
            quiet("low traffic: three of four calls fail", "30m", {OK: "0x20 1x20", BAD: "0x18 3x22"}),
            quiet("callers send bad arguments", "30m", {OK: "0+2x40", CALLERS: "0+4x40"}),
            quiet("one in ten fails", "30m", {OK: "0+9x40", BAD: "0+1x40"}),
            quiet("a restart resets the counters", "30m", {OK: "0+10x20 0+10x20", BAD: "0+1x20 0+1x20"}),
            quiet("first scrape of a server with old failures", "2m", {OK: "5", BAD: "500"}),
            quiet("no call has failed yet", "30m", {OK: "0+9x40"}),
            quiet("one noisy replica of ten", "30m", {on("rest", OK): "0+90x40", on("noisy", BAD): "0+10x40"}),
        ),
    )


_TOOL: Final = ("server", "gen_ai_tool_name")


def _expr(q: Queries) -> str:
    row = mcp.SERVER_OPERATION_DURATION
    failed = q.increase(row, "15m", *_TOOL, part="count", where=(TOOL_CALLS, NOT_THE_SERVERS))
    called = q.increase(row, "15m", *_TOOL, part="count", where=(TOOL_CALLS,))
    return f"{failed} / {called} > {q[RATIO]} and {called} >= {q[CALLS]}"
