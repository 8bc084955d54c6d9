"""Requests, errors and MCP operations.

The first family carries the published guide's names; the second follows OpenTelemetry's MCP conventions
(semantic-conventions-genai, "Development"), whose duration buckets are kept.
"""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog import labels
from mcpmeter.catalog.spec import NANO, Label, Metric

GUIDE_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""The guide's buckets end at 10 s; model calls take longer."""

OTEL_MCP_SECONDS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

REQUESTS: Final = Metric(
    "mcp_requests_total",
    "counter",
    "Requests completed: HTTP routes by verb and status code, MCP messages by JSON-RPC method and outcome.",
    (labels.ENDPOINT, labels.METHOD, labels.STATUS),
)
REQUEST_DURATION: Final = Metric(
    "mcp_request_duration_seconds",
    "histogram",
    "Time from the first byte of a request to the last byte of its response.",
    (labels.ENDPOINT, labels.METHOD),
    unit="seconds",
    buckets=GUIDE_SECONDS,
    scale=NANO,
)
ACTIVE_REQUESTS: Final = Metric("mcp_active_requests", "gauge", "Requests that are in progress.")
ERRORS: Final = Metric(
    "mcp_errors_total",
    "counter",
    "Failed requests by type of error and by the side that caused it.",
    (labels.ERROR_TYPE, labels.SIDE),
)
SERVER_OPERATION_DURATION: Final = Metric(
    "mcp_server_operation_duration_seconds",
    "histogram",
    "Duration of MCP requests and notifications as the server sees them (mcp.server.operation.duration).",
    (
        labels.MCP_METHOD_NAME,
        labels.TOOL,
        labels.OTEL_ERROR_TYPE,
        labels.NETWORK_TRANSPORT,
        labels.PROTOCOL_VERSION,
        labels.SERVER,
    ),
    unit="seconds",
    buckets=OTEL_MCP_SECONDS,
    scale=NANO,
)
CLIENT_OPERATION_DURATION: Final = Metric(
    "mcp_client_operation_duration_seconds",
    "histogram",
    "Duration of MCP requests and notifications as a client or proxy sees them (mcp.client.operation.duration).",
    SERVER_OPERATION_DURATION.labels,
    unit="seconds",
    buckets=OTEL_MCP_SECONDS,
    scale=NANO,
)
SERVER_SESSION_DURATION: Final = Metric(
    "mcp_server_session_duration_seconds",
    "histogram",
    "Duration of MCP sessions as the server sees them (mcp.server.session.duration).",
    (labels.OTEL_ERROR_TYPE, labels.NETWORK_TRANSPORT, labels.PROTOCOL_VERSION, labels.SERVER),
    unit="seconds",
    buckets=OTEL_MCP_SECONDS,
    scale=NANO,
)
TRANSPORT_REJECTIONS: Final = Metric(
    "mcp_transport_rejections_total",
    "counter",
    "HTTP requests for MCP refused before a handler received a message.",
    (
        Label(
            "reason",
            (
                "bad_session",
                "bad_header",
                "bad_host",
                "bad_origin",
                "parse_error",
                "too_large",
                "not_acceptable",
                "too_many_sessions",
                "unauthorized",
                "bad_request",
            ),
        ),
    ),
)
CONTEXT_BYTES: Final = (100.0, 400.0, 1_600.0, 6_400.0, 25_600.0, 102_400.0, 409_600.0, 1_638_400.0)
CONTEXT_TOKENS: Final = (25.0, 100.0, 400.0, 1_600.0, 6_400.0, 25_600.0, 102_400.0, 409_600.0)

TOOL_RESULT_BYTES: Final = Metric(
    "mcp_tool_result_bytes",
    "histogram",
    "Size of the content of tool results, as JSON. It takes up the context window of the model that receives it.",
    (labels.SERVER, labels.TOOL_NAME),
    unit="bytes",
    buckets=CONTEXT_BYTES,
)
TOOL_RESULT_TOKENS: Final = Metric(
    "mcp_tool_result_tokens",
    "histogram",
    "Tokens of the text in tool results, estimated as 4 bytes per token. Images and audio are not counted.",
    (labels.SERVER, labels.TOOL_NAME),
    buckets=CONTEXT_TOKENS,
)
TOOL_DEFINITION_TOKENS: Final = Metric(
    "mcp_tool_definition_tokens",
    "gauge",
    "Tokens of a tool's definition (name, description, input schema), estimated as 4 bytes per token. They take up "
    "the model's context window before the tool is called.",
    (labels.SERVER, labels.TOOL_NAME),
)

ROWS: Final = (
    REQUESTS,
    REQUEST_DURATION,
    ACTIVE_REQUESTS,
    ERRORS,
    SERVER_OPERATION_DURATION,
    CLIENT_OPERATION_DURATION,
    SERVER_SESSION_DURATION,
    TRANSPORT_REJECTIONS,
    TOOL_RESULT_BYTES,
    TOOL_RESULT_TOKENS,
    TOOL_DEFINITION_TOKENS,
)
