"""Errors as a provider words them: OpenAI's shape, and the pages of HTML that a gateway before it sends."""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple

import msgspec

from mcpmeter.errors import BodyTooLarge, MeterError, MethodNotAllowed, NotAuthenticated, RouteNotFound

JSON = "application/json"
HTML = "text/html; charset=utf-8"


class Refusal(NamedTuple):
    """One error answer: HTTP status, media type, body."""

    status: int
    content_type: str
    body: bytes


class _Wording(NamedTuple):
    message: str
    type: str
    code: str | None


_WORDINGS = {
    400: _Wording("Invalid value in your request.", "invalid_request_error", "invalid_value"),
    401: _Wording("Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
    402: _Wording("Insufficient Balance", "insufficient_quota", "insufficient_balance"),
    403: _Wording("Your project does not have access to this model.", "invalid_request_error", "model_not_allowed"),
    404: _Wording("The model does not exist.", "invalid_request_error", "model_not_found"),
    408: _Wording("The request timed out.", "timeout", None),
    409: _Wording("The resource was changed by another request.", "invalid_request_error", None),
    413: _Wording("The request is too large.", "invalid_request_error", "request_too_large"),
    422: _Wording("The request was well formed but cannot be processed.", "invalid_request_error", None),
    429: _Wording("Rate limit reached for requests. Please try again later.", "requests", "rate_limit_exceeded"),
    500: _Wording("The server had an error while processing your request. Sorry about that!", "server_error", None),
    503: _Wording("The server is overloaded or not ready yet.", "server_error", "service_unavailable"),
    529: _Wording("Overloaded", "overloaded_error", None),
}
_GATEWAY_PAGES = frozenset({502, 504, *range(520, 528)})
_WITHOUT_BODY = frozenset({204, 205, 304})


def typical(status: int) -> Refusal:
    """What a provider typically answers with this status."""
    if status in _WITHOUT_BODY:
        return Refusal(status, JSON, b"")
    if status in _GATEWAY_PAGES:
        return Refusal(status, HTML, page(f"{status} {_phrase(status)}"))
    if status < 400:
        return Refusal(status, JSON, b"{}")
    fallback = 400 if status < 500 else 500
    return Refusal(status, JSON, error_body(*_WORDINGS.get(status, _WORDINGS[fallback])))


def from_error(error: MeterError) -> Refusal:
    """An error of ours in OpenAI's shape."""
    return Refusal(error.http_status, JSON, error_body(str(error), "invalid_request_error", _code(error)))


def error_body(message: str, type_: str, code: str | None) -> bytes:
    """OpenAI's error object."""
    return msgspec.json.encode({"error": {"message": message, "type": type_, "param": None, "code": code}})


def page(title: str) -> bytes:
    """A gateway's page."""
    head = f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n"
    return f"{head}<center><h1>{title}</h1></center>\r\n<hr><center>gateway</center>\r\n</body>\r\n</html>\r\n".encode()


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


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Web server is returning an unknown error"
