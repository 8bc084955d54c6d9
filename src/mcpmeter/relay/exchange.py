"""One request and its answer, as the pipeline sees them: over ASGI, or from inside for the MCP tools."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from types import TracebackType
from typing import Any, Final, Protocol

from mcpmeter.errors import BodyTooLarge, BodyTooSlow, CallerGone, MeterError
from mcpmeter.relay.dialects.base import NOTHING, Named

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

SECONDS_FOR_THE_BODY: Final = 60.0
SECONDS_UNWATCHED: Final = 0.05
"""How long a call runs before anybody looks whether its client is still there."""

SECONDS_FOR_THE_READER: Final = 120.0
"""How long a client may leave what it was sent unread, before it counts as gone."""

_TRACEPARENT: Final = re.compile(rb"^[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


class Exchange(Protocol):
    """What the pipeline asks of whoever makes a call."""

    endpoint: str
    method: str
    trace_id: str
    parent_id: str
    secret: str | None
    headers: Mapping[bytes, bytes]
    named: Named
    """What the path says of model and stream, in dialects that put it there."""
    started: bool
    """Whether the head of the answer is out, so that no other status can be sent."""

    async def read_body(self, limit_bytes: int) -> bytes:
        """Raises BodyTooLarge, BodyTooSlow, CallerGone."""

    def listening(self) -> Listening:
        """While inside, the caller's leaving is raised as CallerGone."""

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        """Send the head of the answer."""

    async def send(self, data: bytes) -> None:
        """Send a part of the body."""

    async def end(self, data: bytes = b"") -> None:
        """Send the last part."""


class Listening:
    """Runs a block and cancels it when the caller leaves, or when the service cuts it off.

    Starlette's middleware hides disconnects, so this watches the raw `receive`: tokens stop burning at once. Watching
    takes a task, which calls that are over in a moment do without.
    """

    __slots__ = ("_cut", "_seconds_in_send", "_task", "_timer", "_wait_until_gone", "_watcher")

    def __init__(
        self, wait_until_gone: Callable[[], Awaitable[None]], seconds_in_send: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._wait_until_gone = wait_until_gone
        self._seconds_in_send = seconds_in_send
        self._cut: MeterError | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None

    async def __aenter__(self) -> Listening:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(SECONDS_UNWATCHED, self._begin_to_watch)
        return self

    def _begin_to_watch(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        self._look_at_the_reader()

    def _look_at_the_reader(self) -> None:
        # Looked at from time to time: a time-out around each chunk would cost more than sending it.
        if self._seconds_in_send() > SECONDS_FOR_THE_READER:
            self.cut(CallerGone("The client stopped reading the answer."))
            return
        pause = SECONDS_FOR_THE_READER / 4
        self._timer = asyncio.get_running_loop().call_later(pause, self._look_at_the_reader)

    async def _watch(self) -> None:
        await self._wait_until_gone()
        self.cut(CallerGone("The client closed the connection before the answer was complete."))

    def cut(self, error: MeterError) -> None:
        """End the block with `error`."""
        if self._cut is None and self._task is not None:
            self._cut = error
            self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._cut is not None and task is not None and task.uncancel() == 0 and kind is not None:
            raise self._cut from None


class HttpExchange:
    """An exchange over ASGI 3."""

    __slots__ = (
        "_receive",
        "_send",
        "_sending_since",
        "endpoint",
        "headers",
        "method",
        "named",
        "parent_id",
        "peer",
        "secret",
        "started",
        "trace_id",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, endpoint: str, named: Named = NOTHING) -> None:
        self.endpoint = endpoint
        self.named = named
        self.method: str = scope["method"]
        self.headers: Mapping[bytes, bytes] = dict(scope["headers"])
        self.parent_id = ""
        self.peer: str = (scope.get("client") or ("",))[0]
        self.trace_id = trace_id_of(self.headers)
        self.secret = secret_of(self.headers)
        self.started = False
        self._sending_since = 0.0
        self._receive = receive
        self._send = send

    async def read_body(self, limit_bytes: int) -> bytes:
        """The whole body. Raises BodyTooLarge, BodyTooSlow, CallerGone."""
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit_bytes:
            raise _too_large(limit_bytes)
        try:
            async with asyncio.timeout(SECONDS_FOR_THE_BODY):
                return await self._read_parts(limit_bytes)
        except TimeoutError:
            raise BodyTooSlow(
                f"The body did not arrive within {SECONDS_FOR_THE_BODY:g} s.", hint="Send it in one go."
            ) from None

    async def _read_parts(self, limit_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise CallerGone("The client closed the connection while sending its request.")
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > limit_bytes:
                raise _too_large(limit_bytes)
            parts.append(part)
            if not message.get("more_body"):
                return part if len(parts) == 1 else b"".join(parts)

    def listening(self) -> Listening:
        """While inside, the client's leaving is raised as CallerGone."""
        return Listening(self._wait_until_gone, self._seconds_in_send)

    def _seconds_in_send(self) -> float:
        return time.monotonic() - self._sending_since if self._sending_since else 0.0

    async def _wait_until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        """Send the head."""
        self.started = True
        await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def send(self, data: bytes) -> None:
        """Send a part; waits while the client does not read. Inside `listening` too long a wait raises CallerGone."""
        self._sending_since = time.monotonic()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._sending_since = 0.0

    async def end(self, data: bytes = b"") -> None:
        """Send the last part. Raises CallerGone when the client does not read it."""
        try:
            async with asyncio.timeout(SECONDS_FOR_THE_READER):
                await self._send({"type": "http.response.body", "body": data})
        except TimeoutError:
            raise CallerGone("The client stopped reading the answer.") from None


def trace_id_of(headers: dict[bytes, bytes]) -> str:
    """The trace id of a `traceparent` header (W3C Trace Context), or empty."""
    header = headers.get(b"traceparent")
    found = _TRACEPARENT.match(header) if header else None
    return found[1].decode() if found else ""


def secret_of(headers: dict[bytes, bytes]) -> str | None:
    """The caller's key, from wherever the dialects' SDKs put it."""
    authorization = headers.get(b"authorization")
    if authorization is not None:
        scheme, _, value = authorization.decode("latin-1").partition(" ")
        return value.strip() if scheme.lower() == "bearer" else ""
    for name in (b"x-api-key", b"api-key", b"x-goog-api-key"):
        if name in headers:
            return headers[name].decode("latin-1").strip()
    return None


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body is larger than {limit_bytes} bytes.", hint="Send less, or raise server.max_body_bytes."
    )
