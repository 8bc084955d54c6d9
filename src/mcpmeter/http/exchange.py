"""One request and its answer, as the pipeline sees them: over HTTP, or from inside for the MCP tools."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from types import TracebackType
from typing import Any, Final, Protocol

from mcpmeter.errors import BodyTooLarge, BodyTooSlow, ClientDisconnected, MeterError
from mcpmeter.records import NO_PATH_PARAMS, PathParams

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

BODY_TIMEOUT_SECONDS: Final = 60.0
DRAIN_TIMEOUT_SECONDS: Final = 120.0
"""How long a client may leave what it was sent unread, before it counts as gone."""

DIRECT_RESPONSE: Final = "mcpmeter.direct_response"
"""The ASGI extension under which our own server offers its `DirectResponse`."""

_HEADERS: Final = "mcpmeter.headers"
_TRACEPARENT: Final = re.compile(rb"^[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


class DirectResponse(Protocol):
    """The connection under a request, in callbacks and plain calls: tasks and messages cost more than the bytes."""

    response_started: bool
    disconnected: bool
    """Whether the client has gone."""
    is_backpressured: bool
    """Whether the client does not read what was sent."""

    def whole_body(self) -> bytes | None:
        """The request's body, if all of it is there."""

    def watch(self, on_disconnect: Callable[[], None] | None) -> None:
        """Tell when the client has gone."""

    async def drain(self) -> None:
        """Wait until it reads, or has gone."""

    on_drain: Callable[[], None] | None
    """Told when it reads again."""

    def respond(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """An answer that is there in full; neither length nor connection is among its headers."""

    def start(self, status: int, headers: Iterable[Header]) -> None:
        """The head of the answer; it goes with the first part of the body."""

    def write(self, data: bytes) -> None:
        """A part of the body. Nothing happens when the client has gone."""

    def end(self, data: bytes) -> None:
        """The last part of the body."""


class Exchange(Protocol):
    """What the pipeline asks of whoever makes a call."""

    endpoint: str
    method: str
    trace_id: str
    parent_id: str
    secret: str | None
    headers: Mapping[bytes, bytes]
    path_params: PathParams
    """What the path says of model and stream, in dialects that put it there."""
    started: bool
    """Whether the head of the answer is out, so that no other status can be sent."""

    async def read_body(self, limit_bytes: int) -> bytes:
        """Raises BodyTooLarge, BodyTooSlow, ClientDisconnected."""

    def cancel_on_disconnect(self) -> CancelOnDisconnect:
        """While inside, the caller's leaving is raised as ClientDisconnected."""

    async def respond(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """Send an answer that is there in full; its length is added to its headers."""

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        """Send the head of the answer."""

    async def send(self, data: bytes) -> None:
        """Send a part of the body."""

    async def end(self, data: bytes = b"") -> None:
        """Send the last part."""

    @property
    def direct_response(self) -> DirectResponse | None:
        """The connection itself, where there is one."""


class CancelOnDisconnect:
    """Runs a block and cancels it when the caller leaves, or the service cuts it off: tokens stop burning at once."""

    __slots__ = ("_cut", "_task", "_watch")

    def __init__(self, watch: Callable[[Callable[[], None] | None], None]) -> None:
        """`watch` takes what is to be told that the caller has gone, and None at the end."""
        self._watch = watch
        self._cut: MeterError | None = None
        self._task: asyncio.Task[Any] | None = None

    def __enter__(self) -> CancelOnDisconnect:
        self._task = asyncio.current_task()
        self._watch(self._gone)
        return self

    def _gone(self) -> None:
        self.cut(ClientDisconnected("The client closed the connection before the answer was complete."))

    def cut(self, error: MeterError) -> None:
        """End the block with `error`."""
        if self._cut is None and self._task is not None:
            self._cut = error
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        self._watch(None)
        if self._cut is not None and task is not None and task.uncancel() == 0 and kind is not None:
            raise self._cut from None


class HttpExchange:
    """An exchange over HTTP: by the wire of our own server, or by ASGI's messages where another one offers none."""

    # fmt: off
    __slots__ = (
        "_receive",
        "_scope",
        "_send",
        "_watcher",
        "direct_response",
        "endpoint",
        "headers",
        "method",
        "path_params",
        "secret",
        "started",
        "trace_id",
    )
    # fmt: on
    parent_id = ""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, endpoint: str, path_params: PathParams = NO_PATH_PARAMS
    ) -> None:
        self.endpoint = endpoint
        self.path_params = path_params
        self.method: str = scope["method"]
        self.headers = headers_of(scope)
        self.trace_id = trace_id_of(self.headers)
        self.secret = secret_of(self.headers)
        self.started = False
        self.direct_response: DirectResponse | None = scope.get("extensions", {}).get(DIRECT_RESPONSE)
        self._scope = scope
        self._receive = receive
        self._send = send
        self._watcher: asyncio.Task[None] | None = None

    @property
    def peer(self) -> str:
        """The client's address."""
        return (self._scope.get("client") or ("",))[0]

    @property
    def query(self) -> bytes:
        """What stands behind the path."""
        found: bytes = self._scope.get("query_string", b"")
        return found

    async def read_body(self, limit_bytes: int) -> bytes:
        """The whole body. Raises BodyTooLarge, BodyTooSlow, ClientDisconnected."""
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit_bytes:
            raise _too_large(limit_bytes)
        body = self.direct_response.whole_body() if self.direct_response is not None else None
        if body is not None:
            return _within(body, limit_bytes)
        try:
            async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
                return await self._read_parts(limit_bytes)
        except TimeoutError:
            raise BodyTooSlow(
                f"The body did not arrive within {BODY_TIMEOUT_SECONDS:g} s.", hint="Send it in one go."
            ) from None

    async def _read_parts(self, limit_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected("The client closed the connection while sending its request.")
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > limit_bytes:
                raise _too_large(limit_bytes)
            parts.append(part)
            if not message.get("more_body"):
                return part if len(parts) == 1 else b"".join(parts)

    def cancel_on_disconnect(self) -> CancelOnDisconnect:
        """While inside, the client's leaving is raised as ClientDisconnected."""
        return CancelOnDisconnect(self._watch if self.direct_response is None else self.direct_response.watch)

    def _watch(self, on_disconnect: Callable[[], None] | None) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        if on_disconnect is not None:
            self._watcher = asyncio.get_running_loop().create_task(self._tell_when_gone(on_disconnect))

    async def _tell_when_gone(self, on_disconnect: Callable[[], None]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        on_disconnect()

    async def respond(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """Send a complete response. Raises ClientDisconnected if the client does not read it."""
        wire = self.direct_response
        if wire is not None and not wire.is_backpressured:
            self.started = True
            wire.respond(status, headers, body)
        else:
            await self.start(status, (*headers, length(body)))
            await self.end(b"" if self.method == "HEAD" else body)

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        """Send the head; by wire it goes with the first part of the body."""
        self.started = True
        if self.direct_response is not None:
            self.direct_response.start(status, headers)
        else:
            await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def send(self, data: bytes) -> None:
        """Send a part. Waits while the client does not read; raises ClientDisconnected when that takes too long."""
        if self.direct_response is None:
            await self._in_time(self._send({"type": "http.response.body", "body": data, "more_body": True}))
            return
        if self.direct_response.is_backpressured:
            await self._in_time(self.direct_response.drain())
        self.direct_response.write(data)

    async def end(self, data: bytes = b"") -> None:
        """Send the last part. Raises ClientDisconnected when the client does not read it."""
        if self.direct_response is None:
            await self._in_time(self._send({"type": "http.response.body", "body": data}))
            return
        if self.direct_response.is_backpressured:
            await self._in_time(self.direct_response.drain())
        self.direct_response.end(data)

    @staticmethod
    async def _in_time(sending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_SECONDS):
                await sending
        except TimeoutError:
            raise client_stalled() from None


def client_stalled() -> ClientDisconnected:
    """The client has left too long unread what it was sent."""
    return ClientDisconnected("The client stopped reading the answer.")


def length(body: bytes) -> Header:
    """The header that says how long a body is."""
    return b"content-length", b"%d" % len(body)


def headers_of(scope: Scope) -> Mapping[bytes, bytes]:
    """A request's headers by name. Made once a request, and kept in its scope."""
    headers: Mapping[bytes, bytes] | None = scope.get(_HEADERS)
    if headers is None:
        headers = scope[_HEADERS] = dict(scope["headers"])
    return headers


def trace_id_of(headers: Mapping[bytes, bytes]) -> str:
    """The trace id of a `traceparent` header (W3C Trace Context), or empty."""
    header = headers.get(b"traceparent")
    found = _TRACEPARENT.match(header) if header else None
    return found[1].decode() if found else ""


def secret_of(headers: Mapping[bytes, bytes]) -> str | None:
    """The caller's key, from wherever the dialects' SDKs put it."""
    authorization = headers.get(b"authorization")
    if authorization is not None:
        scheme, _, value = authorization.decode("latin-1").partition(" ")
        return value.strip() if scheme.lower() == "bearer" else ""
    for name in (b"x-api-key", b"api-key", b"x-goog-api-key"):
        if name in headers:
            return headers[name].decode("latin-1").strip()
    return None


def _within(body: bytes, limit_bytes: int) -> bytes:
    if len(body) > limit_bytes:
        raise _too_large(limit_bytes)
    return body


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body is larger than {limit_bytes} bytes.", hint="Send less, or raise server.max_body_bytes."
    )
