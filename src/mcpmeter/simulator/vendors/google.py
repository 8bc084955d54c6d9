"""Google: errors in the shape of `google.rpc.Status`, keys in a header or in the URL (https://ai.google.dev/api).

The Gemini API sends no limits in headers: the error's details name the exhausted quota and the retry delay.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mcpmeter.errors import MeterError, NotAuthenticated
from mcpmeter.simulator.quota import Quota
from mcpmeter.simulator.server import SimulatorRequest
from mcpmeter.simulator.vendors.base import PlainResponse, common_response

JSON_UTF8 = "application/json; charset=UTF-8"

_TYPES = "type.googleapis.com/google.rpc."
_STATUSES = {
    400: ("INVALID_ARGUMENT", "Request contains an invalid argument."),
    401: ("UNAUTHENTICATED", "Request had invalid authentication credentials."),
    402: ("FAILED_PRECONDITION", "Billing is not enabled for this project."),
    403: ("PERMISSION_DENIED", "The caller does not have permission."),
    404: ("NOT_FOUND", "The model is not found for this version of the API."),
    409: ("ABORTED", "The operation was aborted."),
    429: ("RESOURCE_EXHAUSTED", "You exceeded your current quota, please check your plan and billing details."),
    499: ("CANCELLED", "The operation was cancelled."),
    500: ("INTERNAL", "An internal error has occurred."),
    501: ("UNIMPLEMENTED", "The operation is not implemented."),
    503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
    504: ("DEADLINE_EXCEEDED", "The request could not be finished within its deadline."),
}
_GATEWAY_STATUSES = frozenset({502, *range(520, 528)})


class Google:
    """Google's errors. `in_array`: a JSON stream wraps its errors in an array."""

    key_hint = "Send 'x-goog-api-key: KEY'."

    def __init__(self, *, in_array: bool = False) -> None:
        self._in_array = in_array

    def given_key(self, request: SimulatorRequest) -> str | None:
        """`x-goog-api-key: KEY`, or `?key=KEY`."""
        return request.header("x-goog-api-key") or request.query_params.get("key")

    def typical(self, status: int, *, retry_after_seconds: float | None = None, request_id: str = "") -> PlainResponse:
        """Google's status object, or a gateway's page."""
        common = common_response(status, _GATEWAY_STATUSES)
        if common is not None:
            return common
        return self._response(status, error_object(status, retry_after_seconds=retry_after_seconds))

    def from_error(self, error: MeterError) -> PlainResponse:
        """A `MeterError` in Google's format. A wrong key gets status 400, as from Google."""
        if isinstance(error, NotAuthenticated):
            reason = {"@type": f"{_TYPES}ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}
            return self._response(400, error_object(400, message=str(error), details=[reason]))
        return self._response(error.http_status, error_object(error.http_status, message=str(error)))

    def headers(self, quota: Quota, request_id: str = "") -> dict[str, str]:
        """The request's id, which Google does not send: it identifies the record in the billing log."""
        return {"x-request-id": request_id} if request_id else {}

    def _response(self, status: int, body: dict[str, Any]) -> PlainResponse:
        return PlainResponse(status, JSON_UTF8, msgspec.json.encode([body] if self._in_array else body))


def error_object(
    status: int,
    *,
    message: str = "",
    retry_after_seconds: float | None = None,
    details: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Google's body for this HTTP status."""
    name, usual = _STATUSES.get(status, _STATUSES[400 if status < 500 else 500])
    error: dict[str, Any] = {"code": status, "message": message or usual, "status": name}
    found = [*(details or []), *(_exhausted(retry_after_seconds) if status == 429 else [])]
    return {"error": error | {"details": found} if found else error}


def _exhausted(retry_after_seconds: float | None) -> list[dict[str, Any]]:
    violation = {
        "quotaMetric": "generativelanguage.googleapis.com/generate_content_paid_tier_requests",
        "quotaId": "GenerateRequestsPerMinutePerProjectPerModel",
    }
    failure = {"@type": f"{_TYPES}QuotaFailure", "violations": [violation]}
    if retry_after_seconds is None:
        return [failure]
    return [failure, {"@type": f"{_TYPES}RetryInfo", "retryDelay": f"{retry_after_seconds:g}s"}]


GOOGLE = Google()
GOOGLE_ARRAY = Google(in_array=True)
