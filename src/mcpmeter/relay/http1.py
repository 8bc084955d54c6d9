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
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import urlsplit

import httptools

from mcpmeter.errors import (
    MeterError,
    ServiceFault,
    UpstreamAnsweredGarbage,
    UpstreamAnswerTooLarge,
    UpstreamBroke,
    UpstreamTimedOut,
    UpstreamUnreachable,
)
from mcpmeter.relay.inflate import Inflate
from mcpmeter.relay.upstream import Timeouts

MOST_HEADER_BYTES: Final = 64 * 1024
BUFFERED_BYTES: Final = 256 * 1024
"""Above this a connection is not read until what it brought is taken: a slow client must not fill our memory."""

IDLE_SECONDS: Final = 15.0
"""How long an unused connection is trusted; servers close theirs after a while, and a race with that loses a call."""

SECONDS_TO_SEE_THE_END: Final = 1.0
"""How long a finished stream's connection may take to show its end before it is closed instead of reused."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where connections of a pool go."""

    host: str
    port: int
    is_tls: bool


@dataclass(frozen=True, slots=True)
class Target:
    """An address, taken apart once: parsing it would take longer than any other step."""

    origin: Origin
    head: str
    """The request's first lines, up to the headers that differ."""

    @classmethod
    def of(cls, url: str) -> Target:
        """From an `http(s)://` address that configuration has checked."""
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        host = (
            (parts.hostname or "").encode("idna").decode() if not (parts.hostname or "").isascii() else parts.hostname
        )
        port = parts.port or (443 if is_tls else 80)
        named = f"[{host}]" if ":" in (host or "") else host
        authority = f"{named}:{parts.port}" if parts.port else named
        path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        return cls(Origin(host or "", port, is_tls), f"POST {path} HTTP/1.1\r\nhost: {authority}\r\n")


class Http1Client:
    """`upstream.UpstreamClient` for one event loop. Connections are kept and used again, the last used first."""

    def __init__(self, timeouts: Timeouts, *, max_connections: int = 512, tls: ssl.SSLContext | None = None) -> None:
        self._timeouts = timeouts
        self._tls = tls
        self._targets: dict[str, Target] = {}
        self._pool = Pool(max_connections)

    async def post(self, provider: str, url: str, headers: Mapping[str, str], body: bytes) -> Http1Answer:
        """POST and wait for the answer's head. Raises UpstreamUnreachable, UpstreamTimedOut, UpstreamBroke, …"""
        target = self._targets.get(url)
        if target is None:
            target = self._targets[url] = Target.of(url)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeouts.total_seconds
        head = _request_head(target.head, headers, len(body))
        connection = self._pool.idle(target.origin) or await self._connect(provider, target.origin)
        try:
            connection.send(provider, head, body)
            await connection.until_head(min(deadline, loop.time() + self._timeouts.first_byte_seconds))
        except BaseException:
            connection.close()
            raise
        return Http1Answer(connection, provider, self._timeouts, deadline)

    async def _connect(self, provider: str, origin: Origin) -> Connection:
        try:
            async with asyncio.timeout(self._timeouts.connect_seconds):
                freed = await self._pool.place(origin)
                return freed if freed is not None else await self._open(origin)
        except (OSError, UnicodeError) as fault:  # TimeoutError and every TLS error are OSErrors
            raise UpstreamUnreachable(
                f"{provider} cannot be reached ({_reason(fault)}).",
                hint="Check its base_url and the network, then retry.",
            ) from fault

    async def _open(self, origin: Origin) -> Connection:
        connection = Connection(self._pool, origin)
        tls = self._tls_context() if origin.is_tls else None
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: connection,
                origin.host,
                origin.port,
                ssl=tls,
                server_hostname=origin.host if tls is not None else None,
            )
        except BaseException:
            if connection.is_open:
                connection.close()
            else:
                self._pool.give_place()
            raise
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    async def close(self) -> None:
        """Close all connections."""
        self._pool.close()


class Pool:
    """Connections that are open, those of them that are idle, and who waits for one. Each takes one of the places."""

    def __init__(self, places: int) -> None:
        self._free_places = places
        self._open: set[Connection] = set()
        self._idle: dict[Origin, list[Connection]] = {}
        self._waiting: deque[tuple[Origin, asyncio.Future[Connection | None]]] = deque()
        self._is_closed = False

    def idle(self, origin: Origin) -> Connection | None:
        """A connection to use again, if there is one that can be trusted."""
        kept = self._idle.get(origin)
        while kept:
            connection = kept.pop()
            if connection.idle_since > asyncio.get_running_loop().time() - IDLE_SECONDS:
                return connection
            connection.close()
        return None

    async def place(self, origin: Origin) -> Connection | None:
        """Take a place to open a connection in (None), or a connection that has become idle meanwhile."""
        if self._is_closed:
            raise ServiceFault("The client to providers is closed.", hint="Retry.")
        if self._free_places:
            self._free_places -= 1
            return None
        self._close_an_idle_one()
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((origin, waiter))
        try:
            return await waiter
        except asyncio.CancelledError:
            self._give_back(waiter)
            raise

    def _give_back(self, waiter: asyncio.Future[Connection | None]) -> None:
        """What was given to somebody who no longer waits."""
        if not waiter.done() or waiter.cancelled():
            return
        connection = waiter.result()
        if connection is not None:
            self.free(connection)
        else:
            self.give_place()

    def _close_an_idle_one(self) -> None:
        kept = next((kept for kept in self._idle.values() if kept), None)
        if kept is not None:
            kept.pop(0).close()

    def opened(self, connection: Connection) -> None:
        """A connection is there."""
        self._open.add(connection)

    def lost(self, connection: Connection) -> None:
        """A connection has gone, whoever closed it."""
        self._open.discard(connection)
        kept = self._idle.get(connection.origin, [])
        if connection in kept:
            kept.remove(connection)
        self.give_place()

    def give_place(self) -> None:
        """Let the next one who waits open a connection."""
        while self._waiting:
            _, waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free_places += 1

    def free(self, connection: Connection) -> None:
        """A connection's answer is complete: who waits for one to the same place gets it, else it is kept."""
        for waiting in self._waiting:
            if waiting[0] == connection.origin and not waiting[1].done():
                self._waiting.remove(waiting)
                waiting[1].set_result(connection)
                return
        if self._is_closed or self._waiting:
            connection.close()
            return
        connection.idle_since = asyncio.get_running_loop().time()
        self._idle.setdefault(connection.origin, []).append(connection)

    def close(self) -> None:
        """Close all connections."""
        self._is_closed = True
        for connection in list(self._open):
            connection.close()


class Connection(asyncio.Protocol):
    """One connection: a request goes out, its answer comes in, and again. Callbacks named `on_…` are the parser's."""

    def __init__(self, pool: Pool, origin: Origin) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_complete = True
        self._pool = pool
        self._provider = ""
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._fault: MeterError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._parts: list[bytes] = []
        self._buffered_bytes = 0
        self._header_bytes = 0
        self._is_paused = False
        self._has_head = False
        self._is_reusable = False
        self._is_abandoned: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether the connection was made and not lost."""
        return self._transport is not None

    # Asked by the client ----------------------------------------------------------------------------------------

    def send(self, provider: str, head: bytes, body: bytes) -> None:
        """Begin a request."""
        self._provider = provider
        self._parser = httptools.HttpResponseParser(self)
        self._has_head = self.is_complete = self._is_reusable = False
        self._header_bytes = 0
        self.headers = {}
        if self._transport is None or self._transport.is_closing():
            raise self._broke()
        self._transport.writelines((head, body))

    async def until_head(self, deadline: float) -> None:
        """Wait for status and headers. Raises UpstreamTimedOut, UpstreamBroke, UpstreamAnsweredGarbage."""
        while not self._has_head:
            await self._wait(deadline, "in time")

    async def next_part(self, deadline: float) -> bytes:
        """What has come of the body, waiting for some; empty at its end. Raises as `until_head`."""
        while not self._parts:
            if self.is_complete:
                return b""
            await self._wait(deadline, "between two parts of its answer")
        part = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._buffered_bytes = 0
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()
        return part

    def finish(self) -> None:
        """The answer is all that was wanted: use the connection again if its end is there or comes soon."""
        if self.is_complete:
            self._free()
        elif self._is_abandoned is None and self._transport is not None:
            loop = asyncio.get_running_loop()
            self._is_abandoned = loop.call_later(SECONDS_TO_SEE_THE_END, self.close)
            if self._is_paused:
                self._is_paused = False
                self._transport.resume_reading()

    def close(self) -> None:
        """Close at once; whoever waits hears that it broke."""
        if self._transport is not None:
            self._transport.abort()

    def _free(self) -> None:
        self._parser = None
        if self._is_abandoned is not None:
            self._is_abandoned.cancel()
            self._is_abandoned = None
        self._parts.clear()
        self._buffered_bytes = 0
        if self._is_reusable and self._fault is None:
            self._pool.free(self)
        else:
            self.close()

    async def _wait(self, deadline: float, when: str) -> None:
        if self._fault is not None:
            raise self._fault
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = loop.call_at(deadline, self._expire, when)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _expire(self, when: str) -> None:
        self._fail(UpstreamTimedOut(f"{self._provider} sent nothing {when}.", hint="Retry, or raise relay.timeouts."))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, fault: MeterError) -> None:
        if self._fault is None:
            self._fault = fault
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._fault)

    def _broke(self) -> UpstreamBroke:
        return UpstreamBroke(f"{self._provider} closed the connection before its answer ended.", hint="Retry.")

    def _garbage(self, what: str) -> UpstreamAnsweredGarbage:
        return UpstreamAnsweredGarbage(f"{self._provider} answered {what}.", hint="Check its base_url.")

    # Told by the event loop -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._pool.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._fault is not None:
            self.close()  # nobody asked for anything
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(self._garbage("something that is not HTTP"))
            self.close()
        if self._buffered_bytes > BUFFERED_BYTES and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_complete:
            if self._has_head and exc is None and self._ends_with_connection():
                self.is_complete = True
                self._wake()
            else:
                self._fail(self._broke())
        self._is_reusable = False
        if self._is_abandoned is not None:
            self._is_abandoned.cancel()
        self._transport = None
        self._pool.lost(self)

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
            self._fail(self._garbage("with headers that have no end"))
            self.close()
            return
        if self.is_complete or self._has_head:
            return  # a second answer, or trailers
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self.headers[key] = f"{self.headers[key]}, {text}" if key in self.headers else text

    def on_headers_complete(self) -> None:
        if self.is_complete or self._parser is None:
            return
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200:
            self.headers = {}  # interim (RFC 9110, 15.2): the answer itself follows
            return
        self._has_head = True
        self._wake()

    def on_body(self, body: bytes) -> None:
        if self.is_complete or self._is_abandoned is not None:
            return
        self._parts.append(body)
        self._buffered_bytes += len(body)
        self._wake()

    def on_message_complete(self) -> None:
        if self.is_complete or not self._has_head or self._parser is None:
            return
        self.is_complete = True
        self._is_reusable = self._parser.should_keep_alive()
        if self._is_abandoned is not None:
            # Not from inside the parser's own callback: it may still hold data.
            asyncio.get_running_loop().call_soon(self._free)
        self._wake()


class Http1Answer:
    """`upstream.Answer`: an answer whose head has arrived."""

    __slots__ = ("_connection", "_deadline", "_is_done", "_provider", "_timeouts", "headers", "status")

    def __init__(self, connection: Connection, provider: str, timeouts: Timeouts, deadline: float) -> None:
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers
        self._connection = connection
        self._provider = provider
        self._timeouts = timeouts
        self._deadline = deadline
        self._is_done = False

    async def read(self, limit_bytes: int) -> bytes:
        """The whole body. Raises UpstreamAnswerTooLarge, UpstreamBroke, UpstreamTimedOut."""
        parts = [part async for part in self.chunks(limit_bytes)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def chunks(self, limit_bytes: int) -> AsyncGenerator[bytes, None]:
        """The body as it comes. Only the provider is timed, never a client that takes its time to read."""
        connection, provider = self._connection, self._provider
        inflate = Inflate.for_encoding(self.headers.get("content-encoding", ""), provider, limit_bytes)
        loop = asyncio.get_running_loop()
        total = 0
        while data := await connection.next_part(min(self._deadline, loop.time() + self._timeouts.idle_seconds)):
            if inflate is not None:
                data = inflate.feed(data)
            total += len(data)
            if total > limit_bytes:
                raise UpstreamAnswerTooLarge(
                    f"The answer of {provider} passes {limit_bytes} bytes.",
                    hint="Raise relay.max_answer_bytes if such answers are wanted.",
                )
            if data:
                yield data
        if inflate is not None:
            inflate.finish()

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


def _request_head(first_lines: str, headers: Mapping[str, str], body_bytes: int) -> bytes:
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\r\n") != len(headers) or lines.count("\n") != len(headers) or "\0" in lines:
        raise ServiceFault("A header for the provider holds a line break.", hint="Check its key in the configuration.")
    return f"{first_lines}{lines}content-length: {body_bytes}\r\n\r\n".encode("latin-1")


def _reason(fault: Exception) -> str:
    if isinstance(fault, ssl.SSLError):
        return "TLS failed"
    if isinstance(fault, socket.gaierror | UnicodeError):
        return "its name does not resolve"
    if isinstance(fault, TimeoutError):
        return "no connection in time"
    return "connection refused" if isinstance(fault, ConnectionRefusedError) else "no connection"
