"""Labels that several rows share, each with its closed set."""

from __future__ import annotations

from typing import Final

from mcpmeter.catalog.spec import Label
from mcpmeter.errors import ERROR_TYPES

# fmt: off
HTTP_STATUSES: Final = (
    "200", "202", "204", "400", "401", "402", "403", "404", "405", "406", "408", "409", "410", "413", "415", "421",
    "422", "424", "429", "431", "499", "500", "501", "502", "503", "504", "529",
)
# fmt: on
MCP_OUTCOMES: Final = ("ok", "error", "tool_error", "cancelled", "timeout", "input_required")
MCP_METHODS: Final = (
    "initialize",
    "ping",
    "server/discover",
    "tools/list",
    "tools/call",
    "resources/list",
    "resources/templates/list",
    "resources/read",
    "resources/subscribe",
    "resources/unsubscribe",
    "prompts/list",
    "prompts/get",
    "completion/complete",
    "logging/setLevel",
    "subscriptions/listen",
    "notifications/initialized",
    "notifications/cancelled",
    "notifications/progress",
    "notifications/roots/list_changed",
)
HTTP_VERBS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PROTOCOL_VERSIONS: Final = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28", "")
JSONRPC_CODES: Final = (
    "-32700",
    "-32600",
    "-32601",
    "-32602",
    "-32603",
    "-32000",
    "-32001",
    "-32002",
    "-32003",
    "-32020",
    "-32021",
    "-32022",
    "-32042",
    "0",
)

ENDPOINT: Final = Label("endpoint", allowlist="endpoint")
METHOD: Final = Label("method", (*HTTP_VERBS, *MCP_METHODS))
STATUS: Final = Label("status", (*HTTP_STATUSES, *MCP_OUTCOMES))
MODEL: Final = Label("model", allowlist="model")
TEAM: Final = Label("team", allowlist="team")
PROVIDER: Final = Label("provider", allowlist="provider")
TOKEN_TYPE: Final = Label("token_type", ("prompt", "completion"))
TOKEN_SOURCE: Final = Label("source", ("reported", "estimated", "partial"))
COST_SOURCE: Final = Label("source", ("reported", "listed"))
TOKEN_DETAIL: Final = Label("detail", ("cached_read", "cache_write", "reasoning", "audio"))
ERROR_TYPE: Final = Label("error_type", ERROR_TYPES)
SIDE: Final = Label("side", ("client", "server", "upstream"))

# OpenTelemetry's names, with underscores for dots.
OTEL_ERROR_TYPE: Final = Label(
    "error_type", ("", *ERROR_TYPES, *JSONRPC_CODES, "timeout", "cancelled", "input_required", "_OTHER")
)
MCP_METHOD_NAME: Final = Label("mcp_method_name", MCP_METHODS)
TOOL: Final = Label("gen_ai_tool_name", allowlist="tool")
NETWORK_TRANSPORT: Final = Label("network_transport", ("tcp", "pipe", "inproc"))
PROTOCOL_VERSION: Final = Label("mcp_protocol_version", PROTOCOL_VERSIONS)
TOOL_NAME: Final = Label("tool", allowlist="tool")
SERVER: Final = Label("server", allowlist="server")
OPERATION_NAME: Final = Label(
    "gen_ai_operation_name",
    # `count_tokens` is ours: OpenTelemetry has no name for that call.
    ("chat", "embeddings", "text_completion", "generate_content", "count_tokens"),
)
PROVIDER_NAME: Final = Label("gen_ai_provider_name", allowlist="provider")
REQUEST_MODEL: Final = Label("gen_ai_request_model", allowlist="model")
RESPONSE_MODEL: Final = Label("gen_ai_response_model", allowlist="model")
GEN_AI_TOKEN_TYPE: Final = Label("gen_ai_token_type", ("input", "output"))
