"""Anthropic: errors, `anthropic-ratelimit-…` headers, `x-api-key` (https://docs.claude.com/en/api/errors)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from mcpmeter.errors import MeterError
from mcpmeter.simulator.quota import Quota
from mcpmeter.simulator.server import SimulatorRequest
from mcpmeter.simulator.vendors.base import JSON, PlainResponse, bearer, common_response

_ERRORS = {
    400: ("invalid_request_error", "The request cannot be understood."),
    401: ("authentication_error", "invalid x-api-key"),
    402: ("billing_error", "Your credit balance is too low."),
    403: ("permission_error", "Your API key does not have permission to use the specified resource."),
    404: ("not_found_error", "The requested resource could not be found."),
    413: ("request_too_large", "Request exceeds the maximum allowed number of bytes."),
    429: ("rate_limit_error", "This request would exceed your organization's rate limit."),
    500: ("api_error", "Internal server error"),
    504: ("timeout_error", "The request timed out while it was processed."),
    529: ("overloaded_error", "Overloaded"),
}
_GATEWAY_STATUSES = frozenset({502, *range(520, 528)})


class Anthropic:
    """Anthropic's errors and headers."""

    key_hint = "Send 'x-api-key: KEY'."

    def given_key(self, request: SimulatorRequest) -> str | None:
        """`x-api-key: KEY`, or a bearer token."""
        return request.header("x-api-key") or bearer(request)

    def typical(self, status: int, *, retry_after_seconds: float | None = None, request_id: str = "") -> PlainResponse:
        """Anthropic's error object, or a gateway's page."""
        common = common_response(status, _GATEWAY_STATUSES)
        if common is not None:
            return common
        return PlainResponse(status, JSON, msgspec.json.encode(error_object(status, request_id=request_id)))

    def from_error(self, error: MeterError) -> PlainResponse:
        """A `MeterError` in Anthropic's format."""
        body = error_object(error.http_status, message=str(error))
        return PlainResponse(error.http_status, JSON, msgspec.json.encode(body))

    def headers(self, quota: Quota, request_id: str = "") -> dict[str, str]:
        """The request's id and the limits of requests, tokens, input tokens and output tokens."""
        reset = _instant(quota.reset_seconds)
        headers = {
            **_limits("requests", quota.limit_requests, quota.left_requests, reset),
            **_limits("tokens", quota.limit_tokens, quota.left_tokens, reset),
            **_limits("input-tokens", quota.limit_input_tokens, quota.left_input_tokens, reset),
            **_limits("output-tokens", quota.limit_output_tokens, quota.left_output_tokens, reset),
        }
        if request_id:
            headers["request-id"] = request_id
        return headers


def error_object(status: int, *, message: str = "", request_id: str = "") -> dict[str, Any]:
    """Anthropic's body for this status; also the data of a stream's `error` event."""
    type_, usual = _ERRORS.get(status, _ERRORS[400 if status < 500 else 500])
    body: dict[str, Any] = {"type": "error", "error": {"type": type_, "message": message or usual}}
    return body | {"request_id": request_id} if request_id else body


def _limits(name: str, limit: int, left: int, reset: str) -> dict[str, str]:
    prefix = f"anthropic-ratelimit-{name}"
    return {f"{prefix}-limit": str(limit), f"{prefix}-remaining": str(left), f"{prefix}-reset": reset}


def _instant(seconds_ahead: float) -> str:
    """An RFC 3339 instant in whole seconds."""
    return f"{datetime.now(UTC) + timedelta(seconds=seconds_ahead):%Y-%m-%dT%H:%M:%SZ}"


ANTHROPIC = Anthropic()
