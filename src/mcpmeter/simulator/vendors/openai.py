"""OpenAI: errors, `x-ratelimit-…` headers, bearer keys (https://platform.openai.com/docs/api-reference)."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from mcpmeter.errors import BodyTooLarge, MeterError, MethodNotAllowed, NotAuthenticated, RouteNotFound
from mcpmeter.simulator.quota import Quota
from mcpmeter.simulator.server import SimulatorRequest
from mcpmeter.simulator.vendors.base import JSON, PlainResponse, bearer, common_response


class Wording(NamedTuple):
    """The text and codes of an error."""

    message: str
    type: str
    code: str | None


_WORDINGS = {
    400: Wording("Invalid value in your request.", "invalid_request_error", "invalid_value"),
    401: Wording("Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
    402: Wording("Insufficient Balance", "insufficient_quota", "insufficient_balance"),
    403: Wording("Your project does not have access to this model.", "invalid_request_error", "model_not_allowed"),
    404: Wording("The model does not exist.", "invalid_request_error", "model_not_found"),
    408: Wording("The request timed out.", "timeout", None),
    409: Wording("The resource was changed by another request.", "invalid_request_error", None),
    413: Wording("The request is too large.", "invalid_request_error", "request_too_large"),
    422: Wording("The request was well formed but cannot be processed.", "invalid_request_error", None),
    429: Wording("Rate limit reached for requests. Please try again later.", "requests", "rate_limit_exceeded"),
    500: Wording("The server had an error while processing your request. Sorry about that!", "server_error", None),
    503: Wording("The server is overloaded or not ready yet.", "server_error", "service_unavailable"),
    529: Wording("Overloaded", "overloaded_error", None),
}
_GATEWAY_STATUSES = frozenset({502, 504, *range(520, 528)})


class OpenAi:
    """OpenAI's errors and headers."""

    key_hint = "Send 'Authorization: Bearer KEY'."

    def given_key(self, request: SimulatorRequest) -> str | None:
        """`Authorization: Bearer KEY`."""
        return bearer(request)

    def typical(self, status: int, *, retry_after_seconds: float | None = None, request_id: str = "") -> PlainResponse:
        """OpenAI's error object, or a gateway's page."""
        common = common_response(status, _GATEWAY_STATUSES)
        if common is not None:
            return common
        return PlainResponse(status, JSON, _error_body(*wording(status)))

    def from_error(self, error: MeterError) -> PlainResponse:
        """A `MeterError` in OpenAI's format."""
        return PlainResponse(error.http_status, JSON, _error_body(str(error), "invalid_request_error", _code(error)))

    def headers(self, quota: Quota, request_id: str = "") -> dict[str, str]:
        """The request's id and the six `x-ratelimit-…` headers."""
        reset = go_duration(quota.reset_seconds)
        headers = {
            "x-ratelimit-limit-requests": str(quota.limit_requests),
            "x-ratelimit-limit-tokens": str(quota.limit_tokens),
            "x-ratelimit-remaining-requests": str(quota.left_requests),
            "x-ratelimit-remaining-tokens": str(quota.left_tokens),
            "x-ratelimit-reset-requests": reset,
            "x-ratelimit-reset-tokens": reset,
        }
        if request_id:
            headers["x-request-id"] = request_id
        return headers


def wording(status: int) -> Wording:
    """OpenAI's wording of this status."""
    return _WORDINGS.get(status, _WORDINGS[400 if status < 500 else 500])


def go_duration(seconds: float) -> str:
    """A duration in OpenAI's format: `17ms`, `8.64s`, `6m0s`, `1h2m3s`."""
    milliseconds = max(0, round(seconds * 1000))
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    if not minutes:
        return f"{rest / 1000:g}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest // 1000}s" if hours else f"{minutes}m{rest // 1000}s"


def _error_body(message: str, type_: str, code: str | None) -> bytes:
    return msgspec.json.encode({"error": {"message": message, "type": type_, "param": None, "code": code}})


def _code(error: MeterError) -> str | None:
    match error:
        case NotAuthenticated():
            return "invalid_api_key"
        case RouteNotFound():
            return "unknown_url"
        case MethodNotAllowed():
            return "method_not_supported"
        case BodyTooLarge():
            return "request_too_large"
        case _:
            return None


OPENAI = OpenAi()
