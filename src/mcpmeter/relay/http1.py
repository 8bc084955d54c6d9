"""The client to providers: HTTP/1.1 on httptools (Node's parser), one protocol object a connection, pooled.

Written because it is the metering path and was measured: see docs/decisions/012-upstream-client.md. It does what a
relay needs and no more: POST, keep-alive, chunked and length-delimited answers, TLS by the standard library. No
redirects, cookies or proxies: a key goes only to the address that local configuration names.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast
from urllib.parse import quote, urlsplit

import httptools

from mcpmeter.errors import (
    MeterError,
    Overloaded,
    ServiceFault,
    UpstreamAnsweredGarbage,
    UpstreamBroke,
    UpstreamTimedOut,
    UpstreamUnreachable,
)
from mcpmeter.relay.inflate import Inflate, too_large
from mcpmeter.relay.upstream import Timeouts

MOST_HEADER_BYTES: Final = 64 * 1024
"""For a head with all that came before it, and for what comes between two parts of a body: trailers, extensions."""

BUFFERED_BYTES: Final = 256 * 1024
"""Above this a connection is not read until what it brought is taken: a slow client must not fill our memory."""

IDLE_SECONDS: Final = 15.0
"""How long an unused connection is trusted; servers close theirs after a while, and a race with that loses a call."""

SECONDS_TO_SEE_THE_END: Final = 1.0
"""How long a finished stream's connection may take to show its end before it is closed instead of reused."""

JOINED_BYTES: Final = 16 * 1024
"""Up to this a request goes out as one piece: one record of TLS and one buffer. Larger ones are not copied."""

MOST_TARGETS: Final = 1024
LONGEST_KEPT_URL: Final = 512
LONGEST_KEPT_HEAD: Final = 4096
"""Some providers have the model in the path, and that comes from clients: it must not fill our memory."""

MOST_NAMES: Final = 512
LONGEST_KEPT_NAME: Final = 64
"""Names of headers come from providers: they too must not fill our memory."""


class Origin(NamedTuple):
    """Where connections go that may be used for each other's calls."""

    host: str
    port: int
    is_tls: bool


@dataclass(slots=True)
class Target:
    """An address, taken apart once: parsing it would take longer than any other step."""

    origin: Origin
    head: str
    """The request's first lines, up to the headers that differ."""
    _headers: Mapping[str, str] | None = field(default=None, repr=False)
    _written: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, url: str) -> Target:
        """From an `http(s)://` address that configuration has checked. Raises ServiceFault for an unclear host."""
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        host = _ascii_host(parts.hostname or "")
        named = f"[{host}]" if ":" in host else host
        authority = f"{named}:{parts.port}" if parts.port else named
        path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        path = quote(path, safe="/?%:@!$&'()*+,;=~")
        origin = Origin(host, parts.port or (443 if is_tls else 80), is_tls)
        return cls(origin, f"POST {path} HTTP/1.1\r\nhost: {authority}\r\n")

    def request_head(self, headers: Mapping[str, str], body_bytes: int) -> bytes:
        """All before the body. Raises ServiceFault for a header that would be more than one."""
        # Most calls to an address differ from the one before in their length alone.
        written = self._written if headers == self._headers else self._write(headers)
        return b"%bcontent-length: %d\r\n\r\n" % (written, body_bytes)

    def _write(self, headers: Mapping[str, str]) -> bytes:
        written = _first_lines(self.head, headers)
        if len(written) <= LONGEST_KEPT_HEAD:
            self._headers, self._written = dict(headers), written
        return written


class Http1Client:
    """`upstream.UpstreamClient` for one event loop. Connections are kept and used again, the last used first."""

    def __init__(self, timeouts: Timeouts, *, max_connections: int = 512, tls: ssl.SSLContext | None = None) -> None:
        self._timeouts = timeouts
        self._tls = tls
        self._targets: dict[str, Target] = {}
        self._max_connections = max_connections
        self._pool = Pool(max_connections)

    async def post(
        self, provider: str, url: str, headers: Mapping[str, str], body: bytes, timeouts: Timeouts | None = None
    ) -> Http1Answer:
        """POST and wait for the answer's head. Raises UpstreamUnreachable, UpstreamTimedOut, UpstreamBroke, …"""
        times = timeouts or self._timeouts
        target = self._targets.get(url) or self._new_target(url)
        head = target.request_head(headers, len(body))
        origin = target.origin
        connection = self._pool.idle(origin) or await self._connect(provider, origin, times.connect_seconds)
        try:
            connection.send(provider, head, body, times.total_seconds)
            await connection.wait(times.first_byte_seconds, "sent nothing in time")
        except BaseException:
            connection.close()
            raise
        return Http1Answer(connection, provider, times.idle_seconds)

    def _new_target(self, url: str) -> Target:
        target = Target.of(url)
        if len(url) <= LONGEST_KEPT_URL:
            if len(self._targets) >= MOST_TARGETS:
                self._targets.clear()
            self._targets[url] = target
        return target

    async def _connect(self, provider: str, origin: Origin, seconds: float) -> Connection:
        try:
            async with asyncio.timeout(seconds):
                freed = await self._pool.place(origin)
        except TimeoutError as fault:
            raise Overloaded(
                f"{provider} was not called: all {self._max_connections} connections were in use for {seconds:g} s.",
                hint="Retry, or raise relay.timeouts.max_connections.",
            ) from fault
        if freed is not None:
            return freed
        connection = Connection(self._pool, origin)
        try:
            async with asyncio.timeout(seconds):
                await self._open(connection)
        except BaseException as fault:
            connection.discard()
            if not isinstance(fault, OSError | ValueError):  # TimeoutError and TLS errors, UnicodeError
                raise
            raise UpstreamUnreachable(
                f"{provider} cannot be reached ({_reason(fault)}).",
                hint="Check its base_url and the network, then retry.",
            ) from fault
        return connection

    async def _open(self, connection: Connection) -> None:
        host, port, is_tls = connection.origin
        await asyncio.get_running_loop().create_connection(
            lambda: connection,
            host,
            port,
            ssl=self._tls_context() if is_tls else None,
            server_hostname=host if is_tls else None,
        )
        self._pool.refuse_if_closed()

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    async def close(self) -> None:
        """Close all connections. Calls on their way end with ServiceFault."""
        await self._pool.close()


class Pool:
    """Connections that are open, those of them that are idle, and who waits for one. Each takes one of the places.

    Who has waited longest is served first, with a connection as it is or with its place: many calls to one origin
    cannot keep a call to another one waiting.
    """

    def __init__(self, places: int) -> None:
        self._free_places = places
        self._open: set[Connection] = set()
        self._idle: dict[Origin, list[Connection]] = {}
        self._waiting: deque[tuple[Origin, asyncio.Future[Connection | None]]] = deque()
        self._is_closed = False
        self._all_lost = asyncio.Event()

    def idle(self, origin: Origin) -> Connection | None:
        """A connection to use again, if there is one that can be trusted."""
        kept = self._idle.get(origin)
        if not kept:
            return None
        while kept:
            connection = kept.pop()
            if connection.idle_since > connection.now() - IDLE_SECONDS and connection.is_usable():
                return connection
            connection.close()
        return None

    async def place(self, origin: Origin) -> Connection | None:
        """Take a place to open a connection in (None), or a connection that has become idle meanwhile."""
        while True:
            self.refuse_if_closed()
            if self._free_places:
                self._free_places -= 1
                return None
            self._close_an_idle_one()
            connection = await self._wait(origin)
            if connection is None or connection.is_usable():
                return connection
            connection.close()  # lost between being given and being taken

    async def _wait(self, origin: Origin) -> Connection | None:
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((origin, waiter))
        try:
            return await waiter
        except asyncio.CancelledError:
            self._take_back(waiter)
            raise

    def _take_back(self, waiter: asyncio.Future[Connection | None]) -> None:
        """What was given to somebody who no longer waits."""
        if not waiter.done() or waiter.cancelled() or waiter.exception() is not None:
            return
        connection = waiter.result()
        if connection is not None:
            self.free(connection)
        else:
            self._give_place()

    def _close_an_idle_one(self) -> None:
        kept = next((kept for kept in self._idle.values() if kept), None)
        if kept is not None:
            kept.pop(0).close()

    def _next_waiting(self) -> tuple[Origin, asyncio.Future[Connection | None]] | None:
        while self._waiting and self._waiting[0][1].done():
            self._waiting.popleft()
        return self._waiting[0] if self._waiting else None

    def opened(self, connection: Connection) -> None:
        """A connection is there."""
        self._open.add(connection)

    def lost(self, connection: Connection) -> None:
        """A connection has gone or was never made: its place is free."""
        self._open.discard(connection)
        kept = self._idle.get(connection.origin, ())
        if connection in kept:
            self._idle[connection.origin].remove(connection)
        if not self._open:
            self._all_lost.set()
        self._give_place()

    def _give_place(self) -> None:
        waiting = self._next_waiting()
        if waiting is None:
            self._free_places += 1
        else:
            waiting[1].set_result(None)

    def free(self, connection: Connection) -> None:
        """A connection's answer is complete: who waits gets it, or its place if he wants to go elsewhere."""
        waiting = self._next_waiting() if self._waiting else None
        if waiting is None and not self._is_closed:
            self._keep(connection)
        elif waiting is not None and waiting[0] == connection.origin:
            waiting[1].set_result(connection)
        else:
            connection.close()

    def _keep(self, connection: Connection) -> None:
        now = connection.idle_since = connection.now()
        kept = self._idle.get(connection.origin)
        if kept is None:
            kept = self._idle[connection.origin] = []
        if kept and kept[0].idle_since < now - IDLE_SECONDS:
            kept.pop(0).close()
        kept.append(connection)

    def refuse_if_closed(self) -> None:
        """Raises ServiceFault after `close`."""
        if self._is_closed:
            raise _closed()

    async def close(self) -> None:
        """Close all connections, and wait until they are."""
        self._is_closed = True
        while waiting := self._next_waiting():
            waiting[1].set_exception(_closed())
        self._all_lost.clear()
        for connection in list(self._open):
            connection.close(_closed())
        if self._open:
            await self._all_lost.wait()


class Connection(asyncio.Protocol):
    """One connection: a request goes out, its answer comes in, and again. Callbacks named `on_…` are the parser's."""

    # fmt: off
    __slots__ = (
        "_abandoned", "_buffered_bytes", "_fault", "_has_head", "_has_place", "_header_bytes", "_heard_at",
        "_is_paused", "_is_reusable", "_is_timed", "_limit_bytes", "_loop", "_may_pipe_bytes", "_overhead_bytes",
        "_parser", "_parts", "_pool", "_provider", "_seconds_left", "_sink", "_spare_parser", "_timer", "_timer_at",
        "_transport", "_waiter", "_waits_for", "_waits_since", "_waits_up_to", "headers", "idle_since", "is_complete",
        "now", "origin", "status",
    )
    # fmt: on

    def __init__(self, pool: Pool, origin: Origin) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_complete = True
        self._pool = pool
        self._has_place = True
        self._provider = ""
        self._seconds_left = 0.0
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._spare_parser: httptools.HttpResponseParser | None = None
        self._fault: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._is_timed = False
        self._waits_for = ""
        self._waits_up_to = 0.0
        self._waits_since = 0.0
        self._heard_at = 0.0
        self._limit_bytes = self._may_pipe_bytes = 0
        self._sink: Callable[[bytes], bool] | None = None
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
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
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
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

    def hold(self) -> None:
        """Read nothing, and do not time the provider, who cannot send."""
        if self._sink is not None and not self._is_paused and self.is_usable():
            self._is_paused = True
            self._stop_clock()
            cast("asyncio.Transport", self._transport).pause_reading()

    def go_on(self) -> None:
        """The end of `hold`."""
        if self._sink is not None and self._is_paused:
            self._start_clock()
            self._drop_parts()

    async def wait(self, seconds: float, what: str) -> None:
        """Until something comes: first the head. Raises UpstreamTimedOut, UpstreamBroke, UpstreamAnsweredGarbage."""
        if self._fault is not None:
            raise self._fault
        self._waits_up_to, self._waits_for = seconds, what
        if not self._is_paused or self._sink is None:
            self._start_clock()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self.is_complete:
                self._is_timed = False  # for good: nothing is left to wait for
            else:
                self._stop_clock()

    def _start_clock(self) -> None:
        self._is_timed = True
        now = self._waits_since = self._heard_at = self.now()
        left, up_to = self._seconds_left, self._waits_up_to
        give_up_at = now + (up_to if up_to < left else left)
        if self._timer is None or self._timer_at > give_up_at:
            self._set_timer(give_up_at)

    def _stop_clock(self) -> None:
        if self._is_timed:
            self._is_timed = False
            self._seconds_left -= self.now() - self._waits_since

    def _give_up_at(self) -> float:
        return min(self._heard_at + self._waits_up_to, self._waits_since + self._seconds_left)

    def _set_timer(self, at: float) -> None:
        """One timer serves all waits of a stream, whose times only move on: making one a chunk would cost more than
        reading it."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._look_at_the_clock)

    def _look_at_the_clock(self) -> None:
        self._timer = None
        if not self._is_timed:
            return
        give_up_at = self._give_up_at()
        if self.now() < give_up_at:
            self._set_timer(give_up_at)
        else:
            is_silent = self._heard_at + self._waits_up_to <= give_up_at
            what = self._waits_for if is_silent else "did not end its answer in time"
            self._fail(UpstreamTimedOut(f"{self._provider} {what}.", hint="Retry, or raise relay.timeouts."))

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None  # woken once; what else comes until he runs need not ask
            if not waiter.done():
                waiter.set_result(None)

    def _fail(self, fault: Exception) -> None:
        if self._fault is None:
            self._fault = fault
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._fault)

    def _refuse(self, what: str) -> None:
        self._fail(UpstreamAnsweredGarbage(f"{self._provider} answered {what}.", hint="Check its base_url."))
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
        if parser is None or self._fault is not None:
            self.close()  # nobody asked for anything
            return
        self._overhead_bytes += len(data)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse("something that is not HTTP")
            return
        if self._overhead_bytes > MOST_HEADER_BYTES and not self.is_complete:
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
                    UpstreamBroke(f"{self._provider} closed the connection before its answer ended.", hint="Retry.")
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
        if self._header_bytes > MOST_HEADER_BYTES:
            self._refuse("with headers that have no end")
        elif not self._has_head:  # else trailers, or a second answer's
            # Blanks after a value are no part of it (RFC 9110, 5.5); the parser leaves them. A tab stays: with one the
            # parser does not know `chunked` any more, and then it must be refused.
            key, text = _NAMES.get(name) or _new_name(name), value.decode("latin-1").rstrip(" ")
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
        self._overhead_bytes = 0
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


_NAMES: Final[dict[bytes, str]] = {}
"""Headers' names as they came and as we know them: most answers bring the same ones."""


def _new_name(name: bytes) -> str:
    key = name.decode("latin-1").lower()
    if len(_NAMES) < MOST_NAMES and len(name) <= LONGEST_KEPT_NAME:
        _NAMES[name] = key
    return key


class Http1Answer:
    """`upstream.Answer`: an answer whose head has arrived."""

    __slots__ = ("_connection", "_idle_seconds", "_is_done", "_provider", "headers", "status")

    def __init__(self, connection: Connection, provider: str, idle_seconds: float) -> None:
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers
        self._connection = connection
        self._provider = provider
        self._idle_seconds = idle_seconds
        self._is_done = False

    async def read(self, limit_bytes: int) -> bytes:
        """The whole body. Raises UpstreamAnswerTooLarge, UpstreamBroke, UpstreamTimedOut."""
        body = self._connection.whole_body()
        if body is not None and len(body) <= limit_bytes and "content-encoding" not in self.headers:
            return body
        parts = [part async for part in self.chunks(limit_bytes)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def chunks(self, limit_bytes: int) -> AsyncGenerator[bytes, None]:
        """The body as it comes. Only the provider is timed, never a client that takes its time to read."""
        inflate = Inflate.for_encoding(self.headers.get("content-encoding", ""), self._provider, limit_bytes)
        total = 0
        while data := await self._connection.next_part(self._idle_seconds):
            total += len(data)
            if total > limit_bytes:
                raise too_large(self._provider, limit_bytes)
            if inflate is None:
                yield data
                continue
            for part in inflate.feed(data):
                yield part
        if inflate is not None:
            inflate.finish()

    @property
    def is_plain(self) -> bool:
        """Whether the body is as it came. What is unpacked may be a thousand times what came, so it is not piped."""
        return self.headers.get("content-encoding", "identity") == "identity"

    async def pipe(self, take: Callable[[bytes], bool], limit_bytes: int) -> None:
        """Hand each part to `take` the moment it comes, until it says False or all has come."""
        await self._connection.pipe(take, limit_bytes, self._idle_seconds)

    def hold(self) -> None:
        """Read nothing more of a pipe for now."""
        self._connection.hold()

    def go_on(self) -> None:
        """Read on."""
        self._connection.go_on()

    def finish(self) -> None:
        """Nothing more is wanted of an answer that was complete: its connection may be used again."""
        if not self._is_done:
            self._is_done = True
            self._connection.finish()

    def abort(self) -> None:
        """Close the connection now, so that the provider stops working. Harmless after `finish`."""
        if not self._is_done:
            self._is_done = True
            self._connection.close()


def _ascii_host(host: str) -> str:
    """A host name as DNS has it. Raises ServiceFault for a name that encodings know differently (`ß`, or `ss`?)."""
    if host.isascii():
        return host
    try:
        encoded = host.encode("idna")
        if encoded.decode("idna") == host:
            return encoded.decode()
    except UnicodeError:
        pass
    raise ServiceFault("The host of a provider's base_url is no clear name.", hint="Write it in its xn-- form.")


def _first_lines(first: str, headers: Mapping[str, str]) -> bytes:
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\r") != len(headers) or lines.count("\n") != len(headers) or "\0" in lines:
        raise _bad_header("a line break")
    try:
        return f"{first}{lines}".encode("latin-1")
    except UnicodeEncodeError:
        raise _bad_header("a character that no header can hold") from None


def _bad_header(what: str) -> ServiceFault:
    return ServiceFault(f"A header for the provider holds {what}.", hint="Check its key in the configuration.")


def _closed() -> ServiceFault:
    return ServiceFault("The client to providers is closed.", hint="Retry.")


def _reason(fault: Exception) -> str:
    match fault:
        case ssl.SSLCertVerificationError():
            return f"TLS failed: {fault.verify_message.rstrip('.')}"
        case ssl.SSLError():
            return "TLS failed"
        case socket.gaierror() | UnicodeError():
            return "its name does not resolve"
        case TimeoutError():
            return "no connection in time"
        case ConnectionRefusedError():
            return "connection refused"
    return "no connection"
