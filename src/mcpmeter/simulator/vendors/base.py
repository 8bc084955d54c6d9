"""What the simulator asks of a vendor."""

from __future__ import annotations

from http import HTTPStatus
from typing import NamedTuple, Protocol

from aiohttp import web

from mcpmeter.errors import MeterError
from mcpmeter.simulator.quota import Quota

JSON = "application/json"
HTML = "text/html; charset=utf-8"

_WITHOUT_BODY = frozenset({204, 205, 304})


class Refusal(NamedTuple):
    """One error answer: HTTP status, media type, body."""

    status: int
    content_type: str
    body: bytes


class Vendor(Protocol):
    """How a provider words its errors and its headers, and where it looks for a key."""

    @property
    def key_hint(self) -> str:
        """What to do about a wrong key."""

    def given_key(self, request: web.BaseRequest) -> str | None:
        """The key that came with a request."""

    def typical(self, status: int, *, retry_after_seconds: float | None = None, request_id: str = "") -> Refusal:
        """What the provider typically answers with this status."""

    def from_error(self, error: MeterError) -> Refusal:
        """An error of ours in the vendor's shape."""

    def headers(self, quota: Quota, request_id: str = "") -> dict[str, str]:
        """Headers of every answer: its id and what the quota still allows."""


def without_error(status: int) -> Refusal | None:
    """The answer to a status that is no error, which looks alike everywhere."""
    if status in _WITHOUT_BODY:
        return Refusal(status, JSON, b"")
    return Refusal(status, JSON, b"{}") if status < 400 else None


def page(title: str) -> bytes:
    """A gateway's page."""
    head = f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n"
    return f"{head}<center><h1>{title}</h1></center>\r\n<hr><center>gateway</center>\r\n</body>\r\n</html>\r\n".encode()


def gateway_page(status: int) -> Refusal:
    """The page that a gateway before the provider sends with this status."""
    return Refusal(status, HTML, page(f"{status} {_phrase(status)}"))


def bearer(request: web.BaseRequest) -> str | None:
    """The token of `Authorization: Bearer TOKEN`."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token if scheme == "Bearer" and token else None


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Web server is returning an unknown error"
