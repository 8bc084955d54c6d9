"""One request and its response, as the code that answers it sees them: over HTTP, or from inside for the MCP tools."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Protocol

from mcpmeter.errors import ClientDisconnected, MeterError
from mcpmeter.http.asgi import Header, Scope
from mcpmeter.http.content_encoding import decompressed, is_compressed, too_large
from mcpmeter.http.trace_context import trace_id_of
from mcpmeter.records import NO_PATH_PARAMS, PathParams

DIRECT_RESPONSE: Final = "mcpmeter.direct_response"
"""The ASGI extension under which our server offers its `DirectResponse`."""

HEADERS: Final = "mcpmeter.headers"
"""The entry of a scope that holds the request's headers by name, each once."""

REFUSAL: Final = "mcpmeter.refusal"
"""The entry of a scope that holds the error for headers that no endpoint may see."""


class DirectResponse(Protocol):
    """The connection under a request, in callbacks and plain calls: tasks and messages cost more than the bytes."""

    on_pause: Callable[[], None] | None
    """Called when the client falls behind with reading."""

    on_drain: Callable[[], None] | None
    """Called when the client reads again."""

    keep_alive: bool
    """Whether the connection stays open after the response."""

    @property
    def response_started(self) -> bool:
        """Whether the status is decided, so that no other can be sent."""

    @property
    def response_complete(self) -> bool:
        """Whether all of the response was written."""

    @property
    def disconnected(self) -> bool:
        """Whether the client has closed the connection."""

    @property
    def is_backpressured(self) -> bool:
        """Whether the client leaves the response unread, so that more of it would only fill our memory."""

    def whole_body(self) -> bytes | None:
        """Return the request's body if all of it has arrived."""

    async def next_body_part(self) -> bytes:
        """Wait for more of the request's body; empty at its end. Raises ClientDisconnected."""

    def watch(self, on_disconnect: Callable[[], None] | None) -> None:
        """Call `on_disconnect` once the client has disconnected, at once if it has; None ends the watch."""

    async def drain(self) -> None:
        """Wait until the client reads or has disconnected."""

    def keep_inflated(self, size: int) -> None:
        """Count a body that is decompressed, until the call ends. Raises Overloaded if it does not fit into memory."""

    def keep_event(self, size: int) -> bool:
        """Count `size` bytes of a stream's incomplete event. False if they do not fit into memory."""

    def drop_event(self, size: int) -> None:
        """The bytes that `keep_event` counted are no longer held."""

    def respond(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """Send a complete response in one write. Its content-length is added."""

    def start(self, status: int, headers: Iterable[Header]) -> None:
        """Set status and headers, which go out with the first part of the body."""

    def write(self, data: bytes) -> None:
        """Send a part of the body. Does nothing after a disconnect."""

    def end(self, data: bytes) -> None:
        """Send the last part of the body."""


class Exchange(Protocol):
    """What the pipeline needs of a request and its response."""

    endpoint: str
    method: str
    trace_id: str
    parent_id: str
    secret: str | None
    headers: Mapping[bytes, bytes]
    path_params: PathParams

    @property
    def started(self) -> bool:
        """Whether the response has started, so that no other status can be sent."""

    @property
    def direct_response(self) -> DirectResponse | None:
        """The connection itself, if there is one."""

    async def read_body(self, limit_bytes: int) -> bytes:
        """Raises BodyTooLarge, BodyTooSlow, Overloaded, ClientDisconnected."""

    def cancel_on_disconnect(self) -> CancelOnDisconnect:
        """While inside, a disconnect of the caller is raised as ClientDisconnected."""

    async def respond(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """Send a complete response; its content-length is added."""

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        """Send status and headers."""

    async def send(self, data: bytes) -> None:
        """Send a part of the body."""

    async def end(self, data: bytes = b"") -> None:
        """Send the last part."""


class CancelOnDisconnect:
    """Runs a block and cancels it if the caller disconnects or the service ends it: no more tokens are bought."""

    __slots__ = ("_cut", "_task", "_watch", "outlives")

    def __init__(self, watch: Callable[[Callable[[], None] | None], None]) -> None:
        """`watch` takes the callback for a disconnect, and None at the end of the block."""
        self._watch = watch
        self._cut: MeterError | None = None
        self._task: asyncio.Task[Any] | None = None
        self.outlives: Callable[[MeterError], bool] | None = None
        """Whether the block runs on although the caller has disconnected; None: it does not."""

    def __enter__(self) -> CancelOnDisconnect:
        self._task = asyncio.current_task()
        self._watch(self._on_disconnect)
        return self

    def _on_disconnect(self) -> None:
        error = ClientDisconnected("The client closed the connection before the response was complete.")
        if self.outlives is None or not self.outlives(error):
            self.cut(error)

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
        cut, self._cut = self._cut, None
        if cut is not None and task is not None and task.uncancel() == 0 and kind is not None:
            try:
                raise cut from None
            finally:
                del cut  # with its traceback it would be a circle of references


class HttpExchange:
    """An exchange on a connection of our server."""

    __slots__ = ("_scope", "direct_response", "endpoint", "headers", "method", "path_params", "secret", "trace_id")
    parent_id = ""

    def __init__(self, scope: Scope, *, endpoint: str, path_params: PathParams = NO_PATH_PARAMS) -> None:
        self.endpoint = endpoint
        self.path_params = path_params
        self.method: str = scope["method"]
        self.headers = headers_of(scope)
        traceparent = self.headers.get(b"traceparent")
        self.trace_id = trace_id_of(traceparent.decode("latin-1")) if traceparent else ""
        self.secret = secret_of(self.headers)
        self.direct_response = direct_response_of(scope)
        self._scope = scope

    @property
    def started(self) -> bool:
        """Whether the response has started."""
        return self.direct_response.response_started

    @property
    def peer(self) -> str:
        """The client's address."""
        return (self._scope.get("client") or ("",))[0]

    @property
    def has_body(self) -> bool:
        """Whether the headers announce a body."""
        return self.headers.get(b"content-length", b"0").strip(b"0") != b"" or b"transfer-encoding" in self.headers

    @property
    def query(self) -> bytes:
        """The part of the URL behind `?`."""
        found: bytes = self._scope.get("query_string", b"")
        return found

    async def read_body(self, limit_bytes: int) -> bytes:
        """Return the whole body, plain. Raises BodyTooLarge, BodyTooSlow, Overloaded, ClientDisconnected."""
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit_bytes:
            raise too_large(limit_bytes)
        compressed = b"content-encoding" in self.headers and is_compressed(self.headers)
        body = self.direct_response.whole_body()
        if body is None:
            body = await self._read_parts(limit_bytes)
        elif len(body) > limit_bytes:
            raise too_large(limit_bytes)
        if compressed:
            # Off the event loop: however few bytes they are, they can grow up to the limit.
            body = await asyncio.to_thread(decompressed, body, limit_bytes)
            self.direct_response.keep_inflated(len(body))
        return body

    async def _read_parts(self, limit_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while part := await self.direct_response.next_body_part():
            size += len(part)
            if size > limit_bytes:
                raise too_large(limit_bytes)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def cancel_on_disconnect(self) -> CancelOnDisconnect:
        """While inside, a disconnect of the client is raised as ClientDisconnected."""
        return CancelOnDisconnect(self.direct_response.watch)

    async def respond(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """Send a complete response, once the client reads the one before."""
        if self.direct_response.is_backpressured:
            await self.direct_response.drain()
        self.direct_response.respond(status, headers, body)

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        """Set status and headers, which go out with the first part of the body."""
        self.direct_response.start(status, headers)

    async def send(self, data: bytes) -> None:
        """Send a part. Waits while the client does not read; the connection ends that if it takes too long."""
        if self.direct_response.is_backpressured:
            await self.direct_response.drain()
        self.direct_response.write(data)

    async def end(self, data: bytes = b"") -> None:
        """Send the last part. Waits as `send`."""
        if self.direct_response.is_backpressured:
            await self.direct_response.drain()
        self.direct_response.end(data)


def direct_response_of(scope: Scope) -> DirectResponse:
    """Return the connection under a request of our server."""
    found: DirectResponse = scope["extensions"][DIRECT_RESPONSE]
    return found


def headers_of(scope: Scope) -> Mapping[bytes, bytes]:
    """Return a request's headers by name. They are kept in its scope."""
    headers: Mapping[bytes, bytes] | None = scope.get(HEADERS)
    if headers is None:
        headers = scope[HEADERS] = dict(scope["headers"])
    return headers


def secret_of(headers: Mapping[bytes, bytes]) -> str | None:
    """Return the caller's key: the bearer token, or the first of the headers that clients use for API keys."""
    authorization = headers.get(b"authorization")
    if authorization is not None:
        scheme, _, value = authorization.decode("latin-1").partition(" ")
        return value.strip() if scheme.lower() == "bearer" else ""
    for name in (b"x-api-key", b"api-key", b"x-goog-api-key"):
        if name in headers:
            return headers[name].decode("latin-1").strip()
    return None
