"""One request and its response on a connection.

The request's side: parts of the body arrive by `add_body` until `end_body`. Two events can come first: `disconnect`, if
the connection is lost, and `refuse`, if the rest of the body breaks a bound. Readers get the parts, then the error.

The response's side: nothing → started → complete. `start` decides the status and keeps the headers; they go out with
the first part of the body, because a write is the most expensive step of a small response. A response that starts
before the request's body has ended closes the connection. `end` completes the
response, and `on_complete` tells the connection, which takes its next request or closes. If the application ends before
that, the client gets status 500, or the connection closes in the middle of the response.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from operator import itemgetter
from typing import Final

from mcpmeter.errors import ClientDisconnected, MeterError
from mcpmeter.http.asgi import App, Header, Message, Scope
from mcpmeter.http.exchange import DIRECT_RESPONSE
from mcpmeter.http.memory import FREE_BYTES, Hold, MemoryBudget

log = logging.getLogger("mcpmeter")

NO_BODY_STATUSES: Final = (204, 304)

FRAMING_HEADERS: Final = frozenset((b"content-length", b"connection", b"transfer-encoding"))
"""How a body is framed, and whether its connection closes, is decided here."""

_name_of: Final = itemgetter(0)
_STATUS_LINES: Final[Mapping[int, bytes]] = {
    status.value: b"HTTP/1.1 %d %b" % (status.value, status.phrase.encode()) for status in HTTPStatus
}


class Flow:
    """Pauses either direction of a connection. Pausing what is paused does nothing."""

    __slots__ = ("_is_writable", "_transport", "is_reading_paused", "is_writing_paused", "pinned_bytes")

    def __init__(self, transport: asyncio.Transport) -> None:
        # Above this a response counts as unread, and a stream's provider is not read any longer.
        transport.set_write_buffer_limits(FREE_BYTES)
        self._transport = transport
        self.pinned_bytes = 0
        """The size of large parts that are not sent to their last byte."""
        self.is_reading_paused = False
        self.is_writing_paused = False
        """Whether the client leaves unread what was written."""
        self._is_writable = asyncio.Event()

    def pause_reading(self) -> None:
        if not self.is_reading_paused:
            self.is_reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self.is_reading_paused:
            self.is_reading_paused = False
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        self.is_writing_paused = True
        self._is_writable.clear()

    def write_large(self, parts: Iterable[bytes]) -> None:
        """Write parts that the event loop keeps whole until their last byte is sent, even if few bytes are left."""
        self.pinned_bytes += sum(map(len, parts))
        self._transport.set_write_buffer_limits(0)
        self._transport.writelines(parts)
        if not self.is_writing_paused:
            self._unpin()

    def _unpin(self) -> None:
        self.pinned_bytes = 0
        self._transport.set_write_buffer_limits(FREE_BYTES)

    def resume_writing(self) -> None:
        if self.pinned_bytes:
            self._unpin()
        self.is_writing_paused = False
        self._is_writable.set()

    async def drain(self) -> None:
        """Wait until writing is not paused."""
        if self.is_writing_paused:
            await self._is_writable.wait()


class RequestCycle:
    """The `DirectResponse` of a request, and ASGI's `receive` and `send` on top of it for other applications."""

    # The state in which a request begins: creating one sets only what differs.
    disconnected = response_started = response_complete = False
    on_disconnect: Callable[[], None] | None = None
    on_pause: Callable[[], None] | None = None
    on_drain: Callable[[], None] | None = None

    received_bytes = 0
    """How much of the body has arrived."""
    body_since = 0.0
    """When the connection first waited for more of the body."""
    memory: MemoryBudget | None = None
    hold: Hold | None = None
    """Counts in `memory` what is large enough: the body until the request ends, and an event that is incomplete."""

    _body: bytes | bytearray = b""
    _is_body_complete = False
    _is_body_taken = False
    _refusal: MeterError | None = None
    _task: asyncio.Task[None] | None = None
    _event: asyncio.Event | None = None
    """Set at each change of the request's side; created for the first reader that has to wait."""

    _headers = b""
    """Response headers, buffered so that headers and first part of the body go out in one write."""
    _is_chunked = False
    _bytes_left: int | None = None
    """How much of the declared content-length is still to be written; None if the body ends in another way."""

    def __init__(
        self,
        scope: Scope,
        transport: asyncio.Transport,
        flow: Flow,
        *,
        default_headers: list[Header],
        expects_100_continue: bool,
        keep_alive: bool,
        on_complete: Callable[[], None],
    ) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self._transport = transport
        self._flow = flow
        self._default_headers = default_headers
        self._expects_100_continue = expects_100_continue
        self._on_complete = on_complete

    def run(self, app: App, loop: asyncio.AbstractEventLoop, tasks: set[asyncio.Task[None]]) -> None:
        """Run the application in a task that is among `tasks` until it ends."""
        self.scope["extensions"] = {DIRECT_RESPONSE: self}
        self._task = loop.create_task(self._run(app, tasks))
        tasks.add(self._task)

    async def _run(self, app: App, tasks: set[asyncio.Task[None]]) -> None:
        try:
            await app(self.scope, self.receive, self.send)
        except Exception as fault:
            log.error("fault while answering: %s", type(fault).__name__)
        finally:
            try:
                self._close_if_incomplete()
            finally:
                # These would be circles of references, which only the garbage collector finds.
                self.scope.pop("extensions", None)
                task, self._task = self._task, None
                self._on_complete, self._refusal = _nothing, None
                if self.hold is not None:
                    self.release()
                if task is not None:
                    tasks.discard(task)

    def release(self) -> None:
        """The request has ended, or will never be answered: its body is not held any longer."""
        if self.hold is not None and self.memory is not None:
            self.memory.release(self.hold)
            self.hold = None

    def _close_if_incomplete(self) -> None:
        if self.response_complete or self.disconnected:
            return
        if self.response_started:
            self._transport.close()
        else:
            self.keep_alive = False
            self.respond(500, [(b"content-type", b"text/plain; charset=utf-8")], b"Internal Server Error")

    def keep_inflated(self, size: int) -> None:
        """Count a body that is decompressed, beside the bytes that arrived. Raises Overloaded if it does not fit."""
        if size <= FREE_BYTES or self.memory is None:
            return
        if self.hold is None:
            self.hold = Hold()
        if not self.memory.keep_more(self.hold, size):
            raise self.memory.error()

    def keep_event(self, size: int) -> bool:
        """Count bytes of a stream's incomplete event, until it or the request ends. False if they do not fit."""
        if self.memory is None:
            return True
        if self.hold is None:
            self.hold = Hold()
        return self.memory.keep_event(self.hold, size)

    def drop_event(self, size: int) -> None:
        """Undo `keep_event`."""
        if self.memory is not None and self.hold is not None:
            self.memory.grow(self.hold, -size)

    # The connection reports ---------------------------------------------------------------------------------------

    @property
    def body_bytes(self) -> int:
        """How much of the body waits to be read."""
        return len(self._body)

    def add_body(self, part: bytes) -> None:
        """Take a part of the body."""
        self.received_bytes += len(part)
        if not self._body:
            self._body = part  # not copied: most bodies arrive in one part
        elif isinstance(self._body, bytearray):
            self._body += part
        else:
            self._body = bytearray(self._body + part)
        if self._event is not None:
            self._event.set()

    def end_body(self) -> None:
        """The body is complete."""
        self._is_body_complete = True
        if self._event is not None:
            self._event.set()

    def refuse(self, error: MeterError) -> None:
        """Raise `error` from all further reading. The connection closes after the response."""
        self._refusal, self.keep_alive = error, False
        self._notify()

    def disconnect(self) -> None:
        """The connection is lost."""
        self.disconnected = True
        self._notify()
        if self.on_disconnect is not None:
            self.on_disconnect()

    def _notify(self) -> None:
        if self._event is not None:
            self._event.set()

    # The request --------------------------------------------------------------------------------------------------

    def whole_body(self) -> bytes | None:
        """Return the body if all of it has arrived."""
        return self._take_body() if self._is_body_complete and not self.disconnected else None

    async def next_body_part(self) -> bytes:
        """Wait for more of the body; empty at its end. Raises ClientDisconnected and the error given to `refuse`."""
        while not (self._body or self._is_body_complete or self.disconnected or self._refusal):
            await self._change()
        if self._refusal is not None:
            raise self._refusal
        if self.disconnected:
            raise ClientDisconnected("The client closed the connection while sending its request.")
        return self._take_body()

    def watch(self, on_disconnect: Callable[[], None] | None) -> None:
        """Call `on_disconnect` once the client has disconnected, at once if it has; None ends the watch."""
        self.on_disconnect = on_disconnect
        if on_disconnect is None:
            return
        self._flow.resume_reading()  # the end of a connection that is not read goes unnoticed
        if self.disconnected:
            on_disconnect()

    async def receive(self) -> Message:
        """ASGI: the body in parts, then the end of the request. Raises the error given to `refuse`."""
        while not self._has_message():
            await self._change()
        if self._refusal is not None:
            raise self._refusal
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": self._take_body(), "more_body": not self._is_body_complete}

    def _has_message(self) -> bool:
        if self.disconnected or self.response_complete or self._refusal is not None:
            return True
        return bool(self._body) or (self._is_body_complete and not self._is_body_taken)

    async def _change(self) -> None:
        if self._expects_100_continue:
            self._expects_100_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._flow.resume_reading()
        if self._event is None:
            self._event = asyncio.Event()
        self._event.clear()
        await self._event.wait()

    def _take_body(self) -> bytes:
        body, self._body = bytes(self._body), b""
        self._is_body_taken = self._is_body_complete
        return body

    # The response -------------------------------------------------------------------------------------------------

    @property
    def is_backpressured(self) -> bool:
        """Whether the client leaves the response unread."""
        return self._flow.is_writing_paused

    async def drain(self) -> None:
        """Wait until the client reads or has disconnected."""
        await self._flow.drain()

    def respond(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """Send a complete response in one write. Its content-length is added."""
        size = len(body)
        self._start(status, headers, size)
        if self._bytes_left != size or self.disconnected:  # a response to HEAD, for one
            self.end(body)
            return
        written, self._headers, self._bytes_left = self._headers, b"", 0
        if size <= FREE_BYTES:
            self._transport.write(written + body)
        else:
            self._flow.write_large((written, body))
        self._complete()

    def start(self, status: int, headers: Iterable[Header]) -> None:
        """Set status and headers, which go out with the first part of the body."""
        self._start(status, headers, None)

    def _start(self, status: int, headers: Iterable[Header], body_bytes: int | None) -> None:
        if self.response_started:
            raise RuntimeError("a response has started already")
        self._is_chunked, self._bytes_left = False, None  # of a start that failed
        given = list(headers)
        if not FRAMING_HEADERS.isdisjoint(map(_name_of, given)):
            given, body_bytes = self._without_framing(given, body_bytes)
        sent = [*self._default_headers, *given]
        if not self._is_body_complete:
            self.keep_alive = False  # the rest of the body is not worth reading for the sake of the connection
        if status in NO_BODY_STATUSES:
            body_bytes = None  # RFC 9110, 8.6: none in a 204
        if body_bytes is not None:
            self._bytes_left = body_bytes
            sent.append((b"content-length", b"%d" % body_bytes))
        if not self.keep_alive:
            sent.append((b"connection", b"close"))
        if self.scope["method"] == "HEAD":
            self._bytes_left = 0
        elif body_bytes is None:
            self._frame(status, sent)
        self._headers = response_headers(status, sent)
        self.response_started = True
        self._expects_100_continue = False

    def _without_framing(self, headers: list[Header], body_bytes: int | None) -> tuple[list[Header], int | None]:
        """Obey an application's headers that frame its response; returns the others and the body's length."""
        for name, value in headers:
            if name == b"content-length":
                body_bytes = int(value)
            elif name == b"connection" and b"close" in value.lower():
                self.keep_alive = False
        return [header for header in headers if header[0] not in FRAMING_HEADERS], body_bytes

    def _frame(self, status: int, headers: list[Header]) -> None:
        if status in NO_BODY_STATUSES:
            self._bytes_left = 0
        elif self.scope["http_version"] != "1.0":  # RFC 9112, 6.1; there, the end of the connection ends the body
            self._is_chunked = True
            headers.append((b"transfer-encoding", b"chunked"))

    def write(self, data: bytes) -> None:
        """Send a part of the body. Does nothing after a disconnect."""
        if self.disconnected:
            return
        if not self._is_chunked:
            data = self._counted(data)
        elif data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._headers or len(data) > FREE_BYTES:
            self._write(data)
        elif data:  # at once: a stream has hundreds of parts
            self._transport.write(data)

    def end(self, data: bytes) -> None:
        """Send the last part. Raises RuntimeError if the body is not as long as its content-length."""
        if self.disconnected:
            return
        if self._is_chunked:
            self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n")
        else:
            self._write(self._counted(data))
            if self._bytes_left:
                raise RuntimeError("a response is shorter than its content-length")
        self._complete()

    def _complete(self) -> None:
        self.response_complete = True
        if self._event is not None:
            self._event.set()
        self._on_complete()

    def _counted(self, data: bytes) -> bytes:
        if self._bytes_left is not None:
            if self.scope["method"] == "HEAD":
                return b""
            self._bytes_left -= len(data)
            if self._bytes_left < 0:
                raise RuntimeError("a response is longer than its content-length")
        return data

    def _write(self, data: bytes) -> None:
        if self._headers:
            data, self._headers = self._headers + data, b""
        if len(data) > FREE_BYTES:
            self._flow.write_large((data,))
        elif data:
            self._transport.write(data)

    async def send(self, message: Message) -> None:
        """ASGI: the response's start, then the parts of its body."""
        await self._flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.start" and not self.response_started:
            self.start(message["status"], [(name.lower(), value) for name, value in message.get("headers", ())])
            self._write(b"")  # an event stream's first event may be minutes away
        elif kind == "http.response.body" and self.response_started and not self.response_complete:
            body = message.get("body", b"")
            if message.get("more_body"):
                self.write(body)
            else:
                self.end(body)
        else:
            raise RuntimeError(f"an unexpected ASGI message: {kind}")


def response_headers(status: int, headers: list[Header]) -> bytes:
    """A response up to its body. Raises RuntimeError for a header that would be more than one."""
    status_line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status
    written = b"\r\n".join([status_line, *map(b": ".join, headers), b"\r\n"])
    breaks = len(headers) + 2
    if written.count(b"\r") != breaks or written.count(b"\n") != breaks or b"\0" in written:
        raise RuntimeError("a header holds a line break")
    return written


def _nothing() -> None:
    """Stands for a callback that is no longer wanted."""
