"""A request and its answer on a connection: uvicorn's ASGI cycle, and a `relay.exchange.Wire` besides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from mcpmeter.http.exchange import Header, length

if TYPE_CHECKING:
    from uvicorn._types import (
        ASGI3Application,
        ASGIReceiveCallable,
        ASGIReceiveEvent,
        ASGISendCallable,
        HTTPScope,
        Scope,
    )
    from uvicorn.protocols.http.flow_control import FlowControl

    from mcpmeter.errors import MeterError

NO_STATUS_BODY = (204, 304)


class RequestCycle(RequestResponseCycle):
    """Answers by ASGI's messages, or by a wire's methods; one request never mixes the two."""

    # How a request begins is said here, so that making one sets no more than what is its own.
    logger = access_logger = logging.getLogger("uvicorn.error")
    access_log = False
    disconnected = response_started = response_complete = False
    more_body = True
    body: bytes | bytearray = b""  # type: ignore[assignment]
    chunked_encoding: bool | None = None
    expected_content_length = 0

    on_disconnect: Callable[[], None] | None = None
    on_drain: Callable[[], None] | None = None
    is_backpressured = False
    """Whether the client does not read: what is written now only fills our memory."""
    _head = b""
    """The head until something of the body goes with it: one write is the dearest step of a small answer."""
    _refusal: MeterError | None = None
    _event: asyncio.Event | None = None
    _has_news = False
    """Whether something has come that `receive` has not told yet."""

    def __init__(  # not uvicorn's, which sets everything
        self,
        scope: HTTPScope,
        transport: asyncio.Transport,
        flow: FlowControl,
        *,
        default_headers: list[Header],
        expect_100_continue: bool,
        keep_alive: bool,
        on_response: Callable[[], None],
    ) -> None:
        self.scope = scope
        self.transport = transport
        self.flow = flow
        self.default_headers = default_headers
        self.waiting_for_100_continue = expect_100_continue
        self.keep_alive = keep_alive
        self.on_response = on_response
        self._forget_task: Callable[[], None] = _nothing

    def run(self, app: ASGI3Application, loop: asyncio.AbstractEventLoop, tasks: set[asyncio.Task[None]]) -> None:
        """Run the application in a task that is among `tasks` until it ends."""
        task = loop.create_task(self.run_asgi(app))
        tasks.add(task)
        self._forget_task = partial(tasks.discard, task)

    async def run_asgi(self, app: ASGI3Application) -> None:
        """Run the application. How it may end badly is uvicorn's, which is asked only then."""
        try:
            await app(self.scope, self.receive, self.send)
        except BaseException as fault:
            await super().run_asgi(_that_raises(fault))
        else:
            if not self.response_complete and not self.disconnected:
                await super().run_asgi(_that_has_returned)
        finally:
            # A circle of references would have to be looked for.
            self.scope.pop("extensions", None)
            self.on_response = _nothing
            self._forget_task()

    # What was asked -----------------------------------------------------------------------------------------------

    @property
    def message_event(self) -> asyncio.Event:  # type: ignore[override]
        """What `receive` waits for; made for who waits, which the relay does for slow uploads only."""
        if self._event is None:
            self._event = asyncio.Event()
            if self._has_news:
                self._event.set()
        return self._event

    def has_come(self, part: bytes = b"") -> None:
        """A part of the request's body, or its end."""
        if not part:
            pass
        elif not self.body:
            self.body = part  # as it came: most bodies are of one part
        elif isinstance(self.body, bytearray):
            self.body += part
        else:
            self.body = bytearray(self.body + part)
        self._has_news = True
        if self._event is not None:
            self._event.set()

    def whole_body(self) -> bytes | None:
        """The request's body if all of it is there. Not asked again once it was given."""
        if self.more_body or self.disconnected:
            return None
        body, self.body = bytes(self.body), b""
        self._has_news = False
        if self._event is not None:
            self._event.clear()
        return body

    def watch(self, on_disconnect: Callable[[], None] | None) -> None:
        """Tell when the client has gone, at once if it has; None: no more."""
        self.on_disconnect = on_disconnect
        if on_disconnect is None:
            return
        if self.flow.read_paused:
            self.flow.resume_reading()  # a connection that is not read does not tell its end
        if self.disconnected:
            on_disconnect()

    def refuse(self, error: MeterError, end: Callable[[], None]) -> None:
        """The request ends here: `receive` raises `error`, and `end` closes the connection after the response."""
        self._refusal, self.keep_alive = error, False
        self.transport = cast("asyncio.Transport", _EndedBy(self.transport, end))
        self.has_come()

    async def receive(self) -> ASGIReceiveEvent:
        """The next of ASGI's messages. Raises the error that `refuse` was given."""
        if self._refusal is None:
            message = await super().receive()
        if self._refusal is not None:
            raise self._refusal
        return message

    def tell_gone(self) -> None:
        """The connection is lost."""
        self.disconnected, self.is_backpressured = True, False
        self.has_come()
        if self.on_disconnect is not None:
            self.on_disconnect()

    # The answer ---------------------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Wait until the client reads, or has gone."""
        if self.is_backpressured:
            await self.flow.drain()

    def tell_room(self) -> None:
        """The client reads again."""
        self.is_backpressured = False
        if self.on_drain is not None:
            self.on_drain()

    def respond(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """An answer that is there in full, in one write. Its length is added here."""
        self.response_started = True
        self.waiting_for_100_continue = False
        lines = [b": ".join(header) for header in (*self.default_headers, *headers, length(body))]
        if not self.keep_alive:
            lines.append(b"connection: close")
        head = _head_of(status, lines)
        if self.disconnected:
            return
        self.transport.write(head if self.scope["method"] == "HEAD" else head + body)
        self._complete()

    def start(self, status: int, headers: Iterable[Header]) -> None:
        """The head of the answer; goes with the first part of the body."""
        self.response_started = True
        self.waiting_for_100_continue = False
        lines = []
        for name, value in (*self.default_headers, *headers):
            if name == b"content-length":
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif name == b"connection" and value == b"close":
                self.keep_alive = False
                continue
            lines.append(b"%b: %b" % (name, value))
        if not self.keep_alive:
            lines.append(b"connection: close")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in NO_STATUS_BODY:
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked")
        self._head = _head_of(status, lines)

    def write(self, data: bytes) -> None:
        """A part of the body."""
        if not self._head and data and self.chunked_encoding:
            if not self.disconnected:
                self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        elif self.chunked_encoding:
            self._write(b"%b%x\r\n%b\r\n" % (self._head, len(data), data) if data else self._head)
        else:
            self._write(self._counted(data))

    def end(self, data: bytes) -> None:
        """The last part; the answer is complete."""
        if self.chunked_encoding:
            last = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            self._write(b"%b%b0\r\n\r\n" % (self._head, last))
        else:
            self._write(self._counted(data))
        if self.disconnected:
            return
        if self.expected_content_length:
            raise RuntimeError("an answer is shorter than its content-length")
        self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        if self._event is not None:
            self._event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def _counted(self, data: bytes) -> bytes:
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            return self._head
        self.expected_content_length -= len(data)
        if self.expected_content_length < 0:
            raise RuntimeError("an answer is longer than its content-length")
        return self._head + data

    def _write(self, data: bytes) -> None:
        self._head = b""
        if data and not self.disconnected:
            self.transport.write(data)


class _EndedBy:
    """A transport with another way to close. uvicorn's `send` has no hook for it."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


def _head_of(status: int, lines: list[bytes]) -> bytes:
    head = b"\r\n".join([STATUS_LINE[status][:-2], *lines, b"\r\n"])
    breaks = len(lines) + 2
    if head.count(b"\r") != breaks or head.count(b"\n") != breaks or b"\0" in head:
        raise RuntimeError("a header holds a line break")
    return head


def _that_raises(fault: BaseException) -> ASGI3Application:
    async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        raise fault

    return app


async def _that_has_returned(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """An application that says nothing more."""


def _nothing() -> None:
    """In place of a callback that is no longer wanted."""
