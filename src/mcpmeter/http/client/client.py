"""Sends a request on a pooled connection and returns its response."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Final

from mcpmeter.errors import Overloaded, UpstreamUnreachable
from mcpmeter.http.client.connection import Connection
from mcpmeter.http.client.decompression import InflateResponse, too_large
from mcpmeter.http.client.interface import Timeouts
from mcpmeter.http.client.pool import Pool
from mcpmeter.http.client.target import Origin, Target
from mcpmeter.http.memory import FREE_BYTES, Hold, MemoryBudget

MAX_TARGETS: Final = 1024
OWN_LIMITS: Final = frozenset({errno.EMFILE, errno.ENFILE})
"""Errors of a connection that say nothing about the provider."""

MAX_CACHED_URL_LENGTH: Final = 512
"""Some providers have the model in the path, which clients choose: it must not fill our memory."""


class Http1Response:
    """`interface.UpstreamResponse` on a connection."""

    __slots__ = ("_connection", "_hold", "_idle_seconds", "_is_done", "_memory", "_provider", "headers", "status")

    def __init__(self, connection: Connection, provider: str, idle_seconds: float, memory: MemoryBudget) -> None:
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers
        self._connection = connection
        self._provider = provider
        self._idle_seconds = idle_seconds
        self._memory = memory
        self._hold: Hold | None = None
        """Counts the body that `read` returned, until the response is released."""
        self._is_done = False

    async def read(self, limit_bytes: int) -> bytes:
        """Return the whole body. Raises UpstreamResponseTooLarge, UpstreamDisconnected, UpstreamTimedOut."""
        body = self._connection.whole_body()
        if body is not None and len(body) <= limit_bytes and "content-encoding" not in self.headers:
            if len(body) > FREE_BYTES:
                self._hold = Hold()
                self._memory.add_response(self._hold, len(body))
            return body
        return await self._read_parts(limit_bytes)

    async def _read_parts(self, limit_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in self.chunks(limit_bytes):
            size += len(part)
            if self._hold is not None:
                await self._memory.read(self._hold, len(part))
            elif size > FREE_BYTES:
                self._hold = Hold()
                await self._memory.read(self._hold, size)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def peek(self, size: int) -> bytes:
        """Wait for `size` bytes of the body, or its end, and leave them. Raises as `read`."""
        return await self._connection.peek(size, self._idle_seconds)

    async def chunks(self, limit_bytes: int) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives. Only the upstream is timed, never a client that reads slowly."""
        encoding = self.headers.get("content-encoding")
        inflate = InflateResponse.for_encoding(encoding, self._provider, limit_bytes) if encoding else None
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
        """Whether the body is not compressed. A compressed one can expand a thousandfold, so it is not piped."""
        return self.headers.get("content-encoding", "identity") == "identity"

    async def pipe(self, sink: Callable[[bytes], bool], limit_bytes: int) -> None:
        """Call `sink` with each part the moment it arrives, until it returns False or the body ends."""
        await self._connection.pipe(sink, limit_bytes, self._idle_seconds)

    def pause(self) -> None:
        """Read nothing more of a pipe for now."""
        self._connection.pause()

    def resume(self) -> None:
        """Undo `pause`."""
        self._connection.resume()

    def finish(self) -> None:
        """The response is no longer needed; its connection may be reused."""
        if not self._is_done:
            self._is_done = True
            self._connection.finish()

    def abort(self) -> None:
        """Close the connection now, so that the upstream stops working, unless `finish` was called; and release."""
        if not self._is_done:
            self._is_done = True
            self._connection.close()
        if self._hold is not None:
            self.release()

    def release(self) -> None:
        """The body that `read` returned is not held any longer."""
        if self._hold is not None:
            self._memory.release_response(self._hold)
            self._hold = None


class Http1Client:
    """`interface.UpstreamClient` for one event loop. Connections are kept and reused, the last used first."""

    def __init__(
        self,
        timeouts: Timeouts,
        *,
        max_connections: int = 512,
        memory: MemoryBudget | None = None,
        on_limit: Callable[[], None] = lambda: None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`memory` counts bodies that are read whole; `on_limit` is called if a call finds no connection in time."""
        self._timeouts = timeouts
        self._tls = tls
        self._memory = memory or MemoryBudget()
        self._on_limit = on_limit
        self._targets: dict[str, Target] = {}
        self._max_connections = max_connections
        self._pool = Pool(max_connections)

    async def post(
        self,
        provider: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        timeouts: Timeouts | None = None,
        *,
        method: str = "POST",
    ) -> Http1Response:
        """POST, or send another method, and wait for the response headers.

        Raises UpstreamUnreachable, UpstreamTimedOut, UpstreamDisconnected, …
        """
        times = timeouts or self._timeouts
        if method == "POST":
            target = self._targets.get(url) or self._new_target(url)
        else:
            target = Target.of(url, method)
        request_headers = target.request_headers(headers, len(body))
        origin = target.origin
        connection = self._pool.take_idle(origin) or await self._connect(provider, origin, times.connect_seconds)
        try:
            connection.send(provider, request_headers, body, times.total_seconds)
            await connection.wait(times.first_byte_seconds, "sent nothing in time")
        except BaseException:
            connection.close()
            raise
        return Http1Response(connection, provider, times.idle_seconds, self._memory)

    def _new_target(self, url: str) -> Target:
        target = Target.of(url)
        if len(url) <= MAX_CACHED_URL_LENGTH:
            if len(self._targets) >= MAX_TARGETS:
                self._targets.clear()
            self._targets[url] = target
        return target

    async def _connect(self, provider: str, origin: Origin, seconds: float) -> Connection:
        try:
            async with asyncio.timeout(seconds):
                released = await self._pool.acquire(origin)
        except TimeoutError as fault:
            self._on_limit()
            raise Overloaded(
                f"{provider} was not called: all {self._max_connections} connections were in use for {seconds:g} s.",
                hint="Retry, or raise relay.timeouts.max_connections.",
                retry_after="1",
            ) from fault
        if released is not None:
            return released
        connection = Connection(self._pool, origin)
        try:
            async with asyncio.timeout(seconds):
                await self._open(connection)
        except BaseException as fault:
            connection.discard()
            if not isinstance(fault, OSError | ValueError):  # TimeoutError and TLS errors, UnicodeError
                raise
            if isinstance(fault, OSError) and fault.errno in OWN_LIMITS:
                raise Overloaded(
                    f"{provider} was not called: this process has no file descriptor left.",
                    hint="Retry, or raise the limit of open files (ulimit -n).",
                ) from fault
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
        """Close all connections. Calls in flight end with ServiceFault."""
        await self._pool.close()


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
