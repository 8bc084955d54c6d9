"""Classifies how an MCP operation ended, with this project's error types and OpenTelemetry's. Pure."""

from __future__ import annotations

from typing import Any, Final

from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from mcpmeter.meter import CallResult

INVALID_PARAMS: Final = -32602
URL_ELICITATION_REQUIRED: Final = -32042

CLIENT_ERROR_CODES: Final = frozenset(
    (
        -32700,  # parse error
        -32600,  # invalid request
        -32601,  # method not found
        INVALID_PARAMS,
        -32002,  # resource not found, before 2026-07-28
        -32020,  # headers and body disagree
        -32021,  # the client lacks a capability
        -32022,  # unsupported protocol version
    )
)
"""JSON-RPC and MCP codes of errors that only the client can fix."""

OK: Final = CallResult(status="ok")
INPUT_REQUIRED: Final = CallResult(status="input_required", otel_error_type="input_required")
CANCELLED: Final = CallResult(
    status="cancelled",
    outcome="error",
    error_type="client_disconnected",
    error_side="client",
    otel_error_type="cancelled",
)
CRASHED: Final = CallResult(status="error", outcome="error", error_type="internal_error", error_side="server")


def of_result(result: Any, cause: tuple[str, str] | None = None) -> CallResult:
    """Classify a result: `isError`, `resultType: input_required`, or success.

    `cause` is the (error type, side) that a tool set for a failed result.
    """
    if field_of(result, "isError", "is_error") is True:
        error_type, side = cause or ("tool_error", "server")
        return CallResult(
            status="tool_error",
            outcome="error",
            error_type=error_type,
            error_side=side,
            otel_error_type="tool_error",
        )
    if field_of(result, "resultType", "result_type") == "input_required":
        return INPUT_REQUIRED
    return OK


def of_exception(fault: Exception) -> CallResult:
    """Classify an exception of the SDK or of a handler by its JSON-RPC error."""
    if isinstance(fault, MCPError):
        return _of_code(fault.error.code)
    if isinstance(fault, ValidationError):
        return _of_code(INVALID_PARAMS)
    return CRASHED


def _of_code(code: int) -> CallResult:
    if code == URL_ELICITATION_REQUIRED:
        return INPUT_REQUIRED
    is_client_error = code in CLIENT_ERROR_CODES
    return CallResult(
        status="error",
        outcome="error",
        error_type="protocol_error" if is_client_error else "internal_error",
        error_side="client" if is_client_error else "server",
        otel_error_type=str(code),
    )


def field_of(result: Any, wire_name: str, attribute: str) -> Any:
    """A field of a result: a JSON object, or an SDK object if inner middleware made the result."""
    return result.get(wire_name) if isinstance(result, dict) else getattr(result, attribute, None)
