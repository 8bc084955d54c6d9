"""The interface of a vendor: errors, headers, keys."""

from __future__ import annotations

from collections.abc import Collection
from http import HTTPStatus
from typing import NamedTuple, Protocol

from mcpmeter.errors import MeterError
from mcpmeter.simulator.quota import Quota
from mcpmeter.simulator.server import SimulatorRequest

JSON = "application/json"
HTML = "text/html; charset=utf-8"

_WITHOUT_BODY = frozenset({204, 205, 304})


class PlainResponse(NamedTuple):
    """A response sent in one piece: HTTP status, media type, body."""

    status: int
    content_type: str
    body: bytes


class Vendor(Protocol):
    """A provider's errors, response headers and place of the API key."""

    @property
    def key_hint(self) -> str:
        """How to send the key."""

    def given_key(self, request: SimulatorRequest) -> str | None:
        """The request's API key."""

    def typical(self, status: int, *, retry_after_seconds: float | None = None, request_id: str = "") -> PlainResponse:
        """The provider's typical response with this status."""

    def from_error(self, error: MeterError) -> PlainResponse:
        """A `MeterError` in the vendor's format."""

    def headers(self, quota: Quota, request_id: str = "") -> dict[str, str]:
        """Headers of every response: its id and the remaining quota."""


def common_response(status: int, gateway_statuses: Collection[int]) -> PlainResponse | None:
    """The response with a status that is no error or is a gateway's; None for the vendor's own errors."""
    if status in _WITHOUT_BODY:
        return PlainResponse(status, JSON, b"")
    if status < 400:
        return PlainResponse(status, JSON, b"{}")
    return PlainResponse(status, HTML, page(f"{status} {_phrase(status)}")) if status in gateway_statuses else None


def page(title: str) -> bytes:
    """A gateway's HTML page."""
    start = f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n"
    return (
        f"{start}<center><h1>{title}</h1></center>\r\n<hr><center>gateway</center>\r\n</body>\r\n</html>\r\n".encode()
    )


def bearer(request: SimulatorRequest) -> str | None:
    """The token of `Authorization: Bearer TOKEN`."""
    scheme, _, token = request.header("Authorization").partition(" ")
    return token if scheme == "Bearer" and token else None


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Web server is returning an unknown error"
