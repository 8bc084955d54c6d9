"""A proxy that breaks connections between any client and any HTTP/1.1 upstream."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from mcpmeter.errors import ConfigInvalid, PortTaken
from mcpmeter.simulator.server import send_rst, until_cancelled
from mcpmeter.simulator.wire_faults import NO_WIRE_FAULT, PIECE_BYTES, Stage, WireFault

MAX_HEADER_BYTES = 64 * 1024
DRIPS_PER_SECOND = 20
_CONNECTION_ERRORS = (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)


class FaultProxy:
    """`async with FaultProxy(sim.url) as proxy:` listens on a free port; give `proxy.base_url` to an SDK.

    `proxy.fault` applies to the connections after it is set; without a fault responses pass unchanged. Each connection
    carries one call. Raises `ConfigInvalid` for an upstream that is not `http://HOST:PORT`, `PortTaken` at start.
    """

    def __init__(self, upstream: str, fault: WireFault = NO_WIRE_FAULT, *, host: str = "127.0.0.1") -> None:
        parts = urlsplit(upstream)
        if parts.scheme != "http" or not parts.hostname or not parts.port:
            raise ConfigInvalid("The fault proxy needs an upstream like http://127.0.0.1:8001.")
        self._upstream = (parts.hostname, parts.port)
        self._host = host
        self._port = 0
        self._fault = fault
        self._connections_before = 0
        self._server: asyncio.Server | None = None
        self._reserved: socket.socket | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self.connections = 0
        """Connections accepted so far."""

    @property
    def fault(self) -> WireFault:
        """The fault of new connections; its `first` counts connections since it was set."""
        return self._fault

    @fault.setter
    def fault(self, fault: WireFault) -> None:
        self._fault, self._connections_before = fault, self.connections

    @property
    def url(self) -> str:
        """`http://host:port` of the proxy. Raises `ConfigInvalid` before the start."""
        if not self._port:
            raise ConfigInvalid("The fault proxy does not run.", hint="Use it inside 'async with FaultProxy(...)'.")
        return f"http://{self._host}:{self._port}"

    @property
    def base_url(self) -> str:
        """The base URL for OpenAI's SDK; Anthropic's and Google's take `url`."""
        return f"{self.url}/v1"

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def listen(self) -> None:
        """Accept connections, after `refuse` on the same port. Raises `PortTaken`."""
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None
        try:
            self._server = await asyncio.start_server(self._serve, self._host, self._port, limit=MAX_HEADER_BYTES)
        except OSError:
            raise PortTaken(f"Cannot listen on {self._host}:{self._port}.") from None
        self._port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Refuse connections until `listen`; the port stays bound, so that no other program can take it."""
        await self._stop()
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind((self._host, self._port))  # without listen()

    async def close(self) -> None:
        """Stop and abort the connections in progress."""
        await self._stop()
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = self._fault
        if fault.first is not None and self.connections - self._connections_before >= fault.first:
            fault = NO_WIRE_FAULT
        self.connections += 1
        call = asyncio.create_task(_ProxiedCall(reader, writer, fault, self._upstream).run())
        self._serving.add(call)
        try:
            with suppress(*_CONNECTION_ERRORS, asyncio.CancelledError):
                await call
        finally:
            self._serving.discard(call)
            writer.close()


class _Headers(NamedTuple):
    """The status line and headers of a response, and how its body is delimited."""

    lines: list[bytes]
    length: int | None
    is_chunked: bool

    @classmethod
    def parse(cls, raw: bytes) -> _Headers:
        lines = raw[:-4].split(b"\r\n")
        pairs = [line.partition(b":") for line in lines[1:]]
        fields = {name.strip().lower(): value.strip().lower() for name, _, value in pairs}
        length = fields.get(b"content-length")
        is_chunked = fields.get(b"transfer-encoding") == b"chunked"
        return cls(lines, int(length) if length is not None else None, is_chunked)

    def as_chunked(self, *more: bytes) -> bytes:
        """The headers with chunked framing and `more` headers."""
        framing = (b"content-length:", b"transfer-encoding:")
        kept = [line for line in self.lines if not line.lower().startswith(framing)]
        return b"\r\n".join((*kept, *more, b"Transfer-Encoding: chunked")) + b"\r\n\r\n"


class _ProxiedCall:
    """One call on one connection."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        fault: WireFault,
        upstream: tuple[str, int],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._fault = fault
        self._upstream = upstream

    async def run(self) -> None:
        """Pass one request and its response on until the fault breaks the connection."""
        await self._break_at("accept")
        request = await self._request()
        reader, writer = await asyncio.open_connection(*self._upstream, limit=MAX_HEADER_BYTES)
        try:
            writer.write(request)
            response = asyncio.ensure_future(self._respond(reader))
            disconnect = asyncio.ensure_future(self._reader.read())  # the client sends nothing after its request
            try:
                await asyncio.wait((response, disconnect), return_when=asyncio.FIRST_COMPLETED)
                if response.done():
                    response.result()
            finally:
                for task in (response, disconnect):
                    task.cancel()
                await asyncio.gather(response, disconnect, return_exceptions=True)
        finally:
            writer.transport.abort()

    async def _request(self) -> bytes:
        raw = await self._reader.readuntil(b"\r\n\r\n")
        lines = [line for line in raw[:-4].split(b"\r\n") if not line.lower().startswith(b"connection:")]
        length = next((int(line[15:]) for line in lines if line.lower().startswith(b"content-length:")), 0)
        body = await self._reader.readexactly(length)
        return b"\r\n".join((*lines, b"Connection: close")) + b"\r\n\r\n" + body

    async def _respond(self, upstream: asyncio.StreamReader) -> None:
        raw = await upstream.readuntil(b"\r\n\r\n")
        await self._break_at("headers")
        headers = _Headers.parse(raw)
        is_chunked = headers.is_chunked or self._fault.changes_length
        if self._fault.changes_length:
            more = (b"Content-Encoding: gzip",) if self._fault.gzip_bomb_mb is not None else ()
            raw = headers.as_chunked(*more)
        if self._fault.stage == "head":
            await self._send(raw[: len(raw) // 2])
            await self._break_at("head")
        await self._send(raw)
        await self._send_body(self._fault.changed(_body(upstream, headers)), is_chunked=is_chunked)

    async def _send_body(self, body: AsyncIterator[bytes], *, is_chunked: bool) -> None:
        fault, sent = self._fault, 0
        async for piece in body:
            if fault.stage in ("body", "chunk") and sent + len(piece) > fault.after_bytes:
                await self._send_part(piece[: fault.after_bytes - sent], is_chunked=is_chunked)
                await self._break_at("body")
                await self._send(b"%x\r\n" % (2 * PIECE_BYTES) + piece[fault.after_bytes - sent :])
                await self._break_at("chunk")
            await self._send_part(piece, is_chunked=is_chunked)
            sent += len(piece)
        if is_chunked:
            await self._send(b"0\r\n\r\n")

    async def _send_part(self, piece: bytes, *, is_chunked: bool) -> None:
        if piece:
            await self._send(b"%x\r\n%s\r\n" % (len(piece), piece) if is_chunked else piece)

    async def _send(self, data: bytes) -> None:
        rate = self._fault.drip_bytes_per_second
        if rate is None:
            self._writer.write(data)
            await self._writer.drain()
            return
        size = max(1, rate // DRIPS_PER_SECOND)
        for start in range(0, len(data), size):
            drop = data[start : start + size]
            self._writer.write(drop)
            await self._writer.drain()
            await asyncio.sleep(len(drop) / rate)

    async def _break_at(self, stage: Stage) -> None:
        """Break the connection if the fault has this stage; returns only for other stages."""
        fault = self._fault
        if fault.stage != stage:
            return
        if fault.stall is not None:
            await self._until_disconnect()
        elif fault.reset is not None:
            await send_rst(self._writer.transport)
        raise ConnectionAbortedError("requested fault")

    async def _until_disconnect(self) -> None:
        if self._fault.stall == "accept":
            await self._reader.read()
        else:
            await until_cancelled()  # `run` cancels this when the client disconnects


async def _body(upstream: asyncio.StreamReader, headers: _Headers) -> AsyncIterator[bytes]:
    """The body without its transfer encoding."""
    if headers.is_chunked:
        while size := int(await upstream.readline(), 16):
            yield await upstream.readexactly(size)
            await upstream.readline()
        return
    left = headers.length
    while left is None or left:
        piece = await upstream.read(PIECE_BYTES if left is None else min(PIECE_BYTES, left))
        if not piece:
            return
        left = None if left is None else left - len(piece)
        yield piece
