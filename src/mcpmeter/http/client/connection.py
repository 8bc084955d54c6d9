"""One connection to a provider, as the event loop and the parser tell of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

import httptools

from mcpmeter.errors import InvalidUpstreamResponse, MeterError, UpstreamDisconnected, UpstreamUnreachable
from mcpmeter.http.client.deadlines import Waiting
from mcpmeter.http.client.decompression import too_large
from mcpmeter.http.client.names import NAMES, new_name
from mcpmeter.http.client.pool import Pool
from mcpmeter.http.client.target import Origin
from mcpmeter.http.framing import FREE_BYTES_PER_PART, MAX_HEADER_BYTES

BUFFERED_BYTES: Final = 256 * 1024
"""Above this a connection is not read until what it brought is taken: a slow client must not fill our memory."""

SECONDS_TO_SEE_THE_END: Final = 1.0
"""How long a finished stream's connection may take to show its end before it is closed instead of reused."""

JOINED_BYTES: Final = 16 * 1024
"""Up to this a request goes out as one piece: one record of TLS and one buffer. Larger ones are not copied."""


class Connection(Waiting, asyncio.Protocol):
    """One connection: a request goes out, its answer comes in, and again. Callbacks named `on_…` are the parser's."""

    # fmt: off
    __slots__ = (
        "_abandoned", "_buffered_bytes", "_has_head", "_has_place", "_header_bytes", "_is_paused", "_is_reusable",
        "_limit_bytes", "_may_pipe_bytes", "_overhead_bytes", "_parser", "_parts", "_pool", "_sink", "_spare_parser",
        "_transport", "headers", "idle_since", "origin", "status",
    )
    # fmt: on

    def __init__(self, pool: Pool, origin: Origin) -> None:
        super().__init__()
        self.origin = origin
        self.idle_since = 0.0
        self.status = 0
        self.headers: dict[str, str] = {}
        self._pool = pool
        self._has_place = True
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._spare_parser: httptools.HttpResponseParser | None = None
        self._limit_bytes = self._may_pipe_bytes = 0
        self._sink: Callable[[bytes], bool] | None = None
        self._parts: list[bytes] = []
        self._buffered_bytes = 0
        self._header_bytes = 0
        self._overhead_bytes = 0
        self._is_paused = False
        self._has_head = False
        self._is_reusable = False
        self._abandoned: asyncio.TimerHandle | None = None

    def is_usable(self) -> bool:
        """Whether the connection was made, and neither side has begun to close it."""
        return self._transport is not None and not self._transport.is_closing()

    # Asked by the client ----------------------------------------------------------------------------------------

    def send(self, provider: str, head: bytes, body: bytes, total_seconds: float) -> None:
        """Begin a request. Raises UpstreamUnreachable while nothing was sent."""
        transport = self._transport
        if transport is None or transport.is_closing():
            raise UpstreamUnreachable(
                f"{provider} cannot be reached (it closed the connection before the request).", hint="Retry."
            )
        self._provider = provider
        self._seconds_left = total_seconds
        self._parser = self._spare_parser
        self._has_head = self.is_complete = self._is_reusable = False
        self._header_bytes = self._overhead_bytes = 0
        self.headers = {}
        if len(body) <= JOINED_BYTES:
            transport.write(head + body)
        else:
            transport.writelines((head, body))

    async def next_part(self, seconds: float) -> bytes:
        """What has come of the body, waiting for some; empty at its end. Raises as `wait`."""
        while not self._parts:
            if self.is_complete:
                return b""
            await self.wait(seconds, "sent nothing between two parts of its answer")
        part = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._drop_parts()
        return part

    def whole_body(self) -> bytes | None:
        """The body, if all of it came with the head, as a small answer's does."""
        return self._parts[0] if self.is_complete and len(self._parts) == 1 else None

    def finish(self) -> None:
        """The answer is all that was wanted: use the connection again if its end is there or comes soon."""
        if not self.is_complete:
            self._wait_for_the_end()
            return
        self._parser = None
        if self._abandoned is not None:
            self._forget_end()
        self._drop_parts()
        transport = self._transport
        # A provider that answers before it has taken the whole request may never read the rest of it.
        is_sent = transport is not None and not transport.is_closing() and not transport.get_write_buffer_size()
        if is_sent and self._is_reusable:
            self._pool.free(self)
        else:
            self.close()

    def _wait_for_the_end(self) -> None:
        if self._fault is not None:
            self.close()
        elif self._abandoned is None and self._transport is not None:
            self._abandoned = self._loop.call_later(SECONDS_TO_SEE_THE_END, self.close)
            self._drop_parts()

    def close(self, fault: MeterError | None = None) -> None:
        """Close at once; whoever waits hears the fault, or that the connection broke."""
        if fault is not None and not self.is_complete:
            self._fail(fault)
        if self._transport is not None:
            self._transport.abort()
        else:
            self._leave()

    def discard(self) -> None:
        """Close what was not made in time. uvloop tells nobody of a connection that it drops while it is being made."""
        self.close()
        self._leave()

    def _leave(self) -> None:
        """Give the place back: once, whether the connection was made or not."""
        self._stop_timer()
        if self._has_place:
            self._has_place = False
            self._pool.lost(self)

    def _forget_end(self) -> None:
        if self._abandoned is not None:
            self._abandoned.cancel()
            self._abandoned = None

    def _drop_parts(self) -> None:
        self._parts.clear()
        self._buffered_bytes = 0
        if self._is_paused:
            self._is_paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    async def pipe(self, sink: Callable[[bytes], bool], limit_bytes: int, seconds: float) -> None:
        """Hand what comes to `sink`, from inside the parser's callback, until it says False or the body has ended."""
        self._limit_bytes = self._may_pipe_bytes = limit_bytes
        parts, self._parts = self._parts, []
        self._drop_parts()
        self._sink = sink
        try:
            if all(self._pour(sink, part) for part in parts) and not self.is_complete:
                await self.wait(seconds, "sent nothing between two parts of its answer")
            elif self._fault is not None:
                raise self._fault
        finally:
            self._sink = None
            self._is_held = False

    def _pour(self, sink: Callable[[bytes], bool], body: bytes) -> bool:
        self._heard_at = self.now()
        self._may_pipe_bytes -= len(body)
        try:
            if self._may_pipe_bytes < 0:
                raise too_large(self._provider, self._limit_bytes)
            if sink(body):
                return True
        except Exception as fault:  # goes to whoever waits; the parser would make another one of it
            self._fail(fault)
        self._sink = None
        self._wake()
        return False

    def pause(self) -> None:
        """Read nothing, and do not time the provider, who cannot send."""
        if self._sink is not None and not self._is_paused and self.is_usable():
            self._is_paused = self._is_held = True
            self._stop_clock()
            cast("asyncio.Transport", self._transport).pause_reading()

    def resume(self) -> None:
        """The end of `hold`."""
        if self._sink is not None and self._is_paused:
            self._is_held = False
            self._start_clock()
            self._drop_parts()

    def _refuse(self, what: str) -> None:
        self._fail(InvalidUpstreamResponse(f"{self._provider} answered {what}.", hint="Check its base_url."))
        self.close()

    # Told by the event loop -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # One for all answers: it begins anew after one that was whole, and after no other the connection is used again.
        self._spare_parser = httptools.HttpResponseParser(self)
        if self._has_place:
            self._pool.opened(self)
        else:
            self._transport.abort()  # nobody waited until it was made

    def data_received(self, data: bytes) -> None:
        parser = self._parser
        if parser is None or self._fault is not None or self.is_complete:
            self.close()  # no request is waiting for this
            return
        overhead = self._overhead_bytes
        self._overhead_bytes = (overhead if overhead > 0 else 0) + len(data)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse("something that is not HTTP")
            return
        if self._overhead_bytes > MAX_HEADER_BYTES and not self.is_complete:
            # The parser gathers a line until it ends, so on_header alone would not hear of one that never does.
            self._refuse("with headers that have no end")
        elif self._buffered_bytes > BUFFERED_BYTES and not self._is_paused and self.is_usable():
            self._is_paused = True
            cast("asyncio.Transport", self._transport).pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_complete:
            if self._has_head and exc is None and self._fault is None and self._ends_with_connection():
                self.is_complete = True
                self._wake()
            else:
                self._fail(
                    UpstreamDisconnected(
                        f"{self._provider} closed the connection before its answer ended.", hint="Retry."
                    )
                )
        self._is_reusable = False
        self._forget_end()
        self._parser = self._spare_parser = None
        self._transport = None
        self._leave()

    def _ends_with_connection(self) -> bool:
        return "content-length" not in self.headers and "transfer-encoding" not in self.headers

    # Told by the parser -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.is_complete:
            # More than one answer to one request: what follows belongs to nobody.
            self._is_reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES:
            self._refuse("with headers that have no end")
        elif not self._has_head:  # else trailers, or a second answer's
            # Blanks after a value are no part of it (RFC 9110, 5.5); the parser leaves them. A tab stays: with one the
            # parser does not know `chunked` any more, and then it must be refused.
            key, text = NAMES.get(name) or new_name(name), value.decode("latin-1").rstrip(" ")
            headers = self.headers
            headers[key] = f"{headers[key]}, {text}" if key in headers else text

    def on_headers_complete(self) -> None:
        if self._has_head or self._fault is not None or self._parser is None:
            return
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self._take_interim()
        elif "transfer-encoding" in self.headers and self.headers["transfer-encoding"].lower() != "chunked":
            # None was asked for; one that is not undone here would go on as if it were the body.
            self._refuse("in a transfer coding that was not asked for")
        else:
            self._has_head = True
            self._wake()

    def _take_interim(self) -> None:
        """RFC 9110, 15.2: the answer itself follows, unless the protocol is changed, which nobody asked for."""
        if self.status < 100 or self.status == 101:
            self._refuse("something that is not HTTP")
        self.headers = {}

    def on_body(self, body: bytes) -> None:
        self._overhead_bytes -= 2 * len(body) + FREE_BYTES_PER_PART
        sink = self._sink
        if sink is not None:
            self._pour(sink, body)
            return
        if self.is_complete or self._abandoned is not None:
            return
        self._parts.append(body)
        self._buffered_bytes += len(body)
        if self._waiter is not None:
            self._wake()

    def on_message_complete(self) -> None:
        if self.is_complete or not self._has_head or self._parser is None:
            return
        self.is_complete = True
        self._sink = None  # whatever follows belongs to nobody
        self._is_reusable = self._parser.should_keep_alive()
        if self._abandoned is not None:
            # Not from inside the parser's own callback: it may still hold data.
            self._loop.call_soon(self.finish)
        if self._waiter is not None:
            self._wake()
