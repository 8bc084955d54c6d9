"""One connection to an upstream server.

It holds a slot of the pool from before it is made until it is closed, and goes through these states:

- *connecting*, until `connection_made`;
- *idle*, in the pool's keeping; anything the upstream sends now closes the connection;
- *waiting for headers*, from `send` until `_has_headers`; interim responses (1xx) are skipped;
- *reading the body*, until `is_complete`. Parts are buffered for `next_part`, up to `MAX_BUFFERED_BYTES`, or go to the
  sink of `pipe` from inside the parser's callback. What a sink raises becomes the fault and is raised to the waiter;
- *finishing*, if `finish` is called before the end has arrived: parts are dropped for at most `FINISH_SECONDS`, so that
  a stream whose last event was read does not cost its connection;
- *closed*, by either side or after a fault. The first fault is the one that is raised.

From *complete* the connection goes back to *idle* if the upstream keeps it open, has taken the whole request and has
sent nothing behind its response; otherwise it is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

import httptools

from mcpmeter.errors import InvalidUpstreamResponse, MeterError, UpstreamDisconnected, UpstreamUnreachable
from mcpmeter.http.client.deadlines import Deadlines
from mcpmeter.http.client.decompression import too_large
from mcpmeter.http.client.interface import MAX_PEEK_BYTES
from mcpmeter.http.client.target import Origin
from mcpmeter.http.framing import FREE_BYTES_PER_PART, MAX_HEADER_BYTES

MAX_BUFFERED_BYTES: Final = 16 * 1024
"""Above this a connection is not read until its parts are taken: a slow client must not fill our memory."""

MAX_READ_BYTES: Final = 16 * 1024
"""The most that is read at once. By itself the event loop reads 256 KB, of each of a thousand connections in turn."""

FINISH_SECONDS: Final = 1.0

MAX_JOINED_BYTES: Final = 16 * 1024
"""Up to this a request goes out as one piece: one record of TLS and one buffer. Larger ones are not copied."""

STREAM_TIMEOUT_TEXT: Final = "sent nothing between two parts of its response"


class ConnectionOwner(Protocol):
    """The pool, as a connection sees it."""

    read_buffer: memoryview
    """Takes what one read of any connection returns; the parser copies what it keeps."""

    def opened(self, connection: Connection) -> None:
        """The connection was made."""

    def release(self, connection: Connection) -> None:
        """The connection can be used again."""

    def closed(self, connection: Connection) -> None:
        """The connection is closed, or was never made: its slot is free."""

    def read_in_turn(self, connection: Connection) -> None:
        """Call `read_on` of the connection soon."""


class Connection(Deadlines, asyncio.BufferedProtocol):
    """One request and its response at a time. Callbacks named `on_…` are the parser's."""

    # fmt: off
    __slots__ = (
        "_buffered_bytes", "_finish_timer", "_has_headers", "_has_slot", "_header_bytes", "_is_paused",
        "_is_reusable", "_limit_bytes", "_overhead_bytes", "_owner", "_parser", "_parts", "_pipe_bytes_left",
        "_read_buffer", "_sink", "_spare_parser", "_transport", "headers", "idle_since", "origin", "status",
    )
    # fmt: on

    def __init__(self, owner: ConnectionOwner, origin: Origin) -> None:
        super().__init__()
        self.origin = origin
        self.idle_since = 0.0
        self.status = 0
        self.headers: dict[str, str] = {}
        self._owner = owner
        self._read_buffer = owner.read_buffer
        self._has_slot = True
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._spare_parser: httptools.HttpResponseParser | None = None
        self._limit_bytes = self._pipe_bytes_left = 0
        self._sink: Callable[[bytes], bool] | None = None
        self._parts: list[bytes] = []
        self._buffered_bytes = 0
        self._header_bytes = 0
        self._overhead_bytes = 0
        """The balance that `http.framing` describes."""
        self._is_paused = False
        self._has_headers = False
        self._is_reusable = False
        self._finish_timer: asyncio.TimerHandle | None = None

    def is_usable(self) -> bool:
        """Whether the connection was made, and neither side has begun to close it."""
        return self._transport is not None and not self._transport.is_closing()

    # The client calls -------------------------------------------------------------------------------------------

    def send(self, provider: str, headers: bytes, body: bytes, total_seconds: float) -> None:
        """Send a request. Raises UpstreamUnreachable if nothing was sent."""
        transport = self._transport
        if transport is None or transport.is_closing():
            raise UpstreamUnreachable(
                f"{provider} cannot be reached (it closed the connection before the request).", hint="Retry."
            )
        self._provider = provider
        self._total_seconds_left = total_seconds
        self._parser = self._spare_parser
        self._has_headers = self.is_complete = self._is_reusable = False
        self._header_bytes = self._overhead_bytes = 0
        self.headers = {}
        if len(body) <= MAX_JOINED_BYTES:
            transport.write(headers + body)
        else:
            transport.writelines((headers, body))

    async def next_part(self, idle_seconds: float) -> bytes:
        """Wait for more of the body; empty at its end. Raises as `wait`."""
        while not self._parts:
            if self.is_complete:
                return b""
            await self.wait(idle_seconds, STREAM_TIMEOUT_TEXT)
        part = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._drop_parts()
        return part

    async def peek(self, size: int, idle_seconds: float) -> bytes:
        """Wait for `size` bytes of the body, or its end; they stay. Raises as `wait`."""
        while self._buffered_bytes < min(size, MAX_PEEK_BYTES) and not self.is_complete:
            if self._is_paused:
                self._read_again()
            await self.wait(idle_seconds, STREAM_TIMEOUT_TEXT)
        return b"".join(self._parts)

    def whole_body(self) -> bytes | None:
        """Return the body if all of it arrived with the headers, as small ones do."""
        return self._parts[0] if self.is_complete and len(self._parts) == 1 else None

    def finish(self) -> None:
        """No more of the response is needed: reuse the connection if its end is there or arrives soon."""
        if not self.is_complete:
            self._await_end()
            return
        self._parser = None
        if self._finish_timer is not None:
            self._cancel_finish_timer()
        self._drop_parts()
        transport = self._transport
        # A provider that answers before it has taken the whole request may never read the rest of it.
        is_sent = transport is not None and not transport.is_closing() and not transport.get_write_buffer_size()
        if is_sent and self._is_reusable:
            self._owner.release(self)
        else:
            self.close()

    def _await_end(self) -> None:
        if self._fault is not None:
            self.close()
        elif self._finish_timer is None and self._transport is not None:
            self._finish_timer = self._loop.call_later(FINISH_SECONDS, self.close)
            self._drop_parts()

    def close(self, fault: MeterError | None = None) -> None:
        """Close at once. The waiter gets the fault, or UpstreamDisconnected."""
        if fault is not None and not self.is_complete:
            self._fail(fault)
        if self._transport is not None:
            self._transport.abort()
        else:
            self._leave()

    def discard(self) -> None:
        """Close a connection that was not made in time. uvloop makes no callback for one that is dropped before."""
        self.close()
        self._leave()

    def _leave(self) -> None:
        """Give the slot back: once, whether the connection was made or not."""
        self._stop_timer()
        if self._has_slot:
            self._has_slot = False
            self._owner.closed(self)

    def _cancel_finish_timer(self) -> None:
        if self._finish_timer is not None:
            self._finish_timer.cancel()
            self._finish_timer = None

    def _drop_parts(self) -> None:
        self._parts.clear()
        self._buffered_bytes = 0
        if self._is_paused:
            self._read_again()

    def _read_again(self) -> None:
        self._is_paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    async def pipe(self, sink: Callable[[bytes], bool], limit_bytes: int, idle_seconds: float) -> None:
        """Call `sink` with each part, from inside the parser's callback, until it returns False or the body ends."""
        self._limit_bytes = self._pipe_bytes_left = limit_bytes
        parts, self._parts = self._parts, []
        self._drop_parts()
        self._sink = sink
        try:
            for index, part in enumerate(parts):
                if not self._pour(sink, part):
                    self._keep(parts[index + 1 :])
                    if self._fault is not None:
                        raise self._fault
                    return
            if not self.is_complete:
                await self.wait(idle_seconds, STREAM_TIMEOUT_TEXT)
            elif self._fault is not None:
                raise self._fault
        finally:
            self._sink = None
            self._is_suspended = False

    def _keep(self, parts: list[bytes]) -> None:
        """Hold on to the parts behind the one that a sink ended with: they are read in another way, or dropped."""
        self._parts = parts
        self._buffered_bytes = sum(map(len, parts))

    def _pour(self, sink: Callable[[bytes], bool], part: bytes) -> bool:
        self._pipe_bytes_left -= len(part)
        try:
            if self._pipe_bytes_left < 0:
                raise too_large(self._provider, self._limit_bytes)
            if sink(part):
                return True
        except Exception as fault:  # for the waiter; the parser would replace it by an error of its own
            self._fail(fault)
        self._sink = None
        self._wake()
        return False

    def pause(self) -> None:
        """Read nothing more of a pipe for now, and stop the clock."""
        if self._sink is not None and not self._is_paused and self.is_usable():
            self._is_paused = self._is_suspended = True
            self._stop_clock()
            cast("asyncio.Transport", self._transport).pause_reading()

    def resume(self) -> None:
        """Undo `pause`."""
        if self._sink is not None and self._is_paused:
            self._is_suspended = False
            self._start_clock()
            self._drop_parts()

    def _refuse(self, what: str) -> None:
        if not self.is_complete:  # what follows a whole response costs its connection, not the response
            self._fail(InvalidUpstreamResponse(f"{self._provider} answered {what}.", hint="Check its base_url."))
        self.close()

    # The event loop calls ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # One parser for all responses: it is ready again after a response that ended, and the connection is used again
        # after no other.
        self._spare_parser = httptools.HttpResponseParser(self)
        if self._has_slot:
            self._owner.opened(self)
        else:
            self._transport.abort()  # it was discarded before it was made

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        parser = self._parser
        if parser is None or self._fault is not None or self.is_complete:
            self.close()  # no request is waiting for this
            return
        self._last_byte_at = self.now()
        overhead = self._overhead_bytes
        self._overhead_bytes = (overhead if overhead > 0 else 0) + nbytes
        try:
            parser.feed_data(self._read_buffer[:nbytes])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse("something that is not HTTP")
            return
        if self._overhead_bytes > MAX_HEADER_BYTES and not self.is_complete:
            # The parser collects a line until it ends: on_header does not see a line that never ends.
            self._refuse("with headers that have no end")
        elif self._buffered_bytes > MAX_BUFFERED_BYTES:
            if not self._is_paused and self.is_usable():
                self._is_paused = True
                cast("asyncio.Transport", self._transport).pause_reading()
        elif nbytes == MAX_READ_BYTES and not self._is_paused and self.is_usable():
            # There is more, which libuv would read at once, up to 32 times; other connections have to get their turn.
            cast("asyncio.Transport", self._transport).pause_reading()
            self._owner.read_in_turn(self)

    def read_on(self) -> None:
        """It is this connection's turn."""
        if not self._is_paused and self.is_usable():
            cast("asyncio.Transport", self._transport).resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_complete:
            if self._has_headers and exc is None and self._fault is None and self._ends_with_connection():
                self.is_complete = True
                self._wake()
            else:
                self._fail(
                    UpstreamDisconnected(
                        f"{self._provider} closed the connection before its response ended.", hint="Retry."
                    )
                )
        self._is_reusable = False
        self._cancel_finish_timer()
        self._parser = self._spare_parser = None
        self._transport = None
        self._leave()

    def _ends_with_connection(self) -> bool:
        return "content-length" not in self.headers and "transfer-encoding" not in self.headers

    # The parser calls -------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.is_complete:
            # A second response to one request belongs to no request.
            self._is_reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        size = self._header_bytes = self._header_bytes + len(name) + len(value)
        if size > MAX_HEADER_BYTES:
            self._refuse("with headers that have no end")
        elif not self._has_headers:  # else trailers, or a second response's
            # Blanks after a value are no part of it (RFC 9110, 5.5); the parser leaves them. A tab stays: with one the
            # parser does not recognise `chunked`, so it must be refused.
            key, text = name.decode("latin-1").lower(), value.decode("latin-1").rstrip(" ")
            headers = self.headers
            if key in headers:
                text = f"{headers[key]}, {text}"
            headers[key] = text

    def on_headers_complete(self) -> None:
        if self._has_headers or self._fault is not None or self._parser is None:
            return
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self._skip_interim_response()
        elif "transfer-encoding" in self.headers and self.headers["transfer-encoding"].lower() != "chunked":
            # No coding was requested; one that is not undone here would be passed on as the body.
            self._refuse("in a transfer coding that was not requested")
        else:
            self._has_headers = True
            self._wake()

    def _skip_interim_response(self) -> None:
        """RFC 9110, 15.2: the final response follows, unless the protocol is switched, which was not requested."""
        if self.status < 100 or self.status == 101:
            self._refuse("something that is not HTTP")
        self.headers = {}

    def on_body(self, body: bytes) -> None:
        size = len(body)
        self._overhead_bytes -= 2 * size + FREE_BYTES_PER_PART
        sink = self._sink
        if sink is not None:
            self._pour(sink, body)
            return
        if self.is_complete or self._finish_timer is not None:
            return
        self._parts.append(body)
        self._buffered_bytes += size
        if self._waiter is not None:
            self._wake()

    def on_message_complete(self) -> None:
        if self.is_complete or not self._has_headers or self._parser is None:
            return
        self.is_complete = True
        self._sink = None
        self._is_reusable = self._parser.should_keep_alive()
        if self._finish_timer is not None:
            # Not from inside the parser's own callback: it may still hold data.
            self._loop.call_soon(self.finish)
        if self._waiter is not None:
            self._wake()
