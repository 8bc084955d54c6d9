"""Counts MCP requests over HTTP that no handler received.

The SDK refuses an invalid session, header, Host or body before its middleware runs. A POST whose message reaches the
middleware is counted there, as the message; every other request is counted here, once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

import msgspec

from mcpmeter.catalog import mcp, service
from mcpmeter.errors import Side
from mcpmeter.http.asgi import App, Message, Receive, Scope, Send
from mcpmeter.instrument.http_request import SCOPE_KEY, MeteredRequest
from mcpmeter.meter import CallResult, Meter
from mcpmeter.metrics.recorder import Recorder

log = logging.getLogger("mcpmeter")

KEPT_BYTES: Final = 4096
"""The part of an error body that is kept to read its JSON-RPC code."""

HANDSHAKE_VERSIONS: Final = ("", "2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
"""Values of `mcp-protocol-version` before 2026-07-28; absent counts as the first."""

REASON_BY_STATUS: Final = {
    401: "unauthorized",
    404: "bad_session",
    406: "not_acceptable",
    413: "too_large",
    415: "not_acceptable",
    421: "bad_host",
    503: "too_many_sessions",
}
REASON_BY_CODE: Final = {-32700: "parse_error", -32020: "bad_header", -32022: "bad_header"}
"""JSON-RPC and MCP codes of refusals with status 400."""

ERROR_BY_REASON: Final[Mapping[str, tuple[str, Side]]] = {
    "bad_session": ("protocol_error", "client"),
    "bad_header": ("protocol_error", "client"),
    "parse_error": ("protocol_error", "client"),
    "bad_request": ("protocol_error", "client"),
    "too_large": ("validation_error", "client"),
    "not_acceptable": ("validation_error", "client"),
    "bad_host": ("auth_error", "client"),
    "bad_origin": ("auth_error", "client"),
    "unauthorized": ("auth_error", "client"),
    "too_many_sessions": ("rate_limited", "server"),
}


class _Error(msgspec.Struct):
    code: int


class _Refusal(msgspec.Struct):
    error: _Error


_refusal_decoder = msgspec.json.Decoder(_Refusal)


def register_rejections(recorder: Recorder) -> None:
    """Register every reason, so that its series starts at zero."""
    recorder.register_children(mcp.TRANSPORT_REJECTIONS)


class TransportMeter:
    """Pure ASGI middleware in front of a Streamable HTTP application; passes everything through unchanged.

    `path` limits counting to one route of an application with several; None counts all requests.
    """

    def __init__(self, app: App, meter: Meter, *, endpoint: str = "/mcp", path: str | None = None) -> None:
        self._app = app
        self._meter = meter
        self._endpoint = endpoint
        self._path = path
        meter.recorder.label_allowlist.register("endpoint", [endpoint])
        register_rejections(meter.recorder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or not self._is_counted(scope):
            await self._app(scope, receive, send)
            return
        request = _CountedRequest(self._meter, self._endpoint, scope, receive, send)
        scope[SCOPE_KEY] = request.state
        try:
            await self._app(scope, request.receive, request.send)
        except Exception:
            request.status = request.status or 500
            raise
        finally:
            request.count()

    def _is_counted(self, scope: Scope) -> bool:
        if self._path is None:
            return True
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        return path.rstrip("/") == self._path.rstrip("/")


class _CountedRequest:
    """One HTTP request, and its response as far as it is sent."""

    def __init__(self, meter: Meter, endpoint: str, scope: Scope, receive: Receive, send: Send) -> None:
        self.state = MeteredRequest()
        self.status = 0
        self._recorder = meter.recorder
        self._endpoint = endpoint
        self._method: str = scope["method"]
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._opened = meter.open(endpoint, self._method)
        self._receive = receive
        self._send = send
        self._is_challenge = False
        self._is_complete = False
        self._body = b""

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._is_complete:
            self.state.disconnect()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._is_challenge = any(name.lower() == b"www-authenticate" for name, _ in message.get("headers", ()))
        elif message["type"] == "http.response.body":
            if self.status >= 400:
                self._body += message.get("body", b"")[: KEPT_BYTES - len(self._body)]
            self._is_complete = not message.get("more_body", False)
        await self._send(message)

    def count(self) -> None:
        """Count the request unless the middleware counts its message."""
        if self.state.message_seen or self._is_posted_to_session():
            return
        try:
            self._count()
        except Exception as fault:
            log.warning("the meter could not record an HTTP request for MCP (%s)", type(fault).__name__)
            self._recorder.add(service.INTERNAL_FAULTS)

    def _is_posted_to_session(self) -> bool:
        """Whether a session accepted a notification, which the middleware counts, or a response to a server request."""
        return self.status == 202 and self._header(b"mcp-protocol-version") in HANDSHAKE_VERSIONS

    def _count(self) -> None:
        if self._method == "GET" and self.status == 200:
            # The stream lasts as long as its session: its duration is not a latency.
            self._recorder.add(mcp.REQUESTS, endpoint=self._endpoint, method=self._method, status="200")
            return
        if self.state.refusal is not None and not self.status:
            self.status = self.state.refusal.http_status
        reason = self._reason()
        if reason is not None:
            self._recorder.add(mcp.TRANSPORT_REJECTIONS, reason=reason)
        self._opened.count(self._result(reason))

    def _result(self, reason: str | None) -> CallResult:
        if self.state.refusal is not None:
            return CallResult(status=str(self.status), outcome="error", error=self.state.refusal)
        if reason is not None:
            error_type, side = ERROR_BY_REASON[reason]
            return CallResult(status=str(self.status), outcome="error", error_type=error_type, error_side=side)
        if self.status == 0:
            return CallResult(status="499", outcome="error", error_type="client_disconnected", error_side="client")
        if self.status >= 500:
            return CallResult(
                status=str(self.status), outcome="error", error_type="internal_error", error_side="server"
            )
        return CallResult(status=str(self.status))

    def _reason(self) -> str | None:
        refusal = self.state.refusal
        if refusal is not None and refusal.error_type != "auth_error":
            return None
        if self.status in REASON_BY_STATUS:
            return REASON_BY_STATUS[self.status]
        if self.status == 403:
            return "unauthorized" if self._is_challenge else "bad_origin"
        if self.status == 400:
            return self._reason_of_bad_request()
        return "bad_request" if 400 <= self.status < 500 else None

    def _reason_of_bad_request(self) -> str:
        try:
            code = _refusal_decoder.decode(self._body).error.code
        except (msgspec.DecodeError, UnicodeDecodeError):
            # The SDK refuses a wrong Content-Type in plain text.
            return "bad_header"
        if code in REASON_BY_CODE:
            return REASON_BY_CODE[code]
        is_handshake = self._header(b"mcp-protocol-version") in HANDSHAKE_VERSIONS
        if code == -32600 and is_handshake and not self._header(b"mcp-session-id"):
            return "bad_session"
        return "bad_request"

    def _header(self, name: bytes) -> str:
        return next((value.decode("latin-1") for key, value in self._headers if key == name), "")
