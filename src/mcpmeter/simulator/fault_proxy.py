"""A proxy that breaks connections: what no upstream does on purpose, between any client and any HTTP/1.1 upstream."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from mcpmeter.errors import ConfigInvalid, PortTaken
from mcpmeter.simulator.wire_faults import NO_WIRE_FAULT, PIECE_BYTES, Stage, WireFault

MAX_HEAD_BYTES = 64 * 1024
DRIPS_PER_SECOND = 20
_LINGER_NOT_AT_ALL = struct.pack("ii", 1, 0)
_SECONDS_FOR_SENT_BYTES = 0.02
_BROKEN = (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)


class FaultProxy:
    """`async with FaultProxy(sim.url) as proxy:` listens on a free port; give `proxy.base_url` to an SDK, and set
    `proxy.fault` to what shall happen from then on. Without a fault the bytes of answers pass as they come.

    A connection carries one call. Raises `ConfigInvalid` for an upstream that is not `http://HOST:PORT`, `PortTaken` at
    start.
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
        self._deaf: socket.socket | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self.connections = 0
        """How many clients have connected."""

    @property
    def fault(self) -> WireFault:
        """What happens to connections; `first` counts from when it was set."""
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
        """What OpenAI's SDK takes as its base URL; Anthropic's and Google's take `url`."""
        return f"{self.url}/v1"

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def listen(self) -> None:
        """Take connections, again on the same port after `refuse`. Raises `PortTaken`."""
        if self._deaf is not None:
            self._deaf.close()
            self._deaf = None
        try:
            self._server = await asyncio.start_server(self._serve, self._host, self._port, limit=MAX_HEAD_BYTES)
        except OSError:
            raise PortTaken(f"Cannot listen on {self._host}:{self._port}.") from None
        self._port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Refuse connections until `listen`; the port stays taken, so that nobody else can answer on it."""
        await self._stop()
        self._deaf = socket.socket()
        self._deaf.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._deaf.bind((self._host, self._port))  # and no listen()

    async def close(self) -> None:
        """Stop; connections under way are broken off."""
        await self._stop()
        if self._deaf is not None:
            self._deaf.close()
            self._deaf = None

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
        exchange = asyncio.create_task(_Exchange(reader, writer, fault, self._upstream).run())
        self._serving.add(exchange)
        try:
            with suppress(*_BROKEN, asyncio.CancelledError):
                await exchange
        finally:
            self._serving.discard(exchange)
            writer.close()


class _Head(NamedTuple):
    """The head of an answer, and how its body is delimited."""

    lines: list[bytes]
    length: int | None
    is_chunked: bool

    @classmethod
    def parse(cls, head: bytes) -> _Head:
        lines = head[:-4].split(b"\r\n")
        named = [line.partition(b":") for line in lines[1:]]
        fields = {name.strip().lower(): value.strip().lower() for name, _, value in named}
        length = fields.get(b"content-length")
        is_chunked = fields.get(b"transfer-encoding") == b"chunked"
        return cls(lines, int(length) if length is not None else None, is_chunked)

    def in_chunks(self, *more: bytes) -> bytes:
        """The head for a body that goes in chunks, whatever it was announced as."""
        framing = (b"content-length:", b"transfer-encoding:")
        kept = [line for line in self.lines if not line.lower().startswith(framing)]
        return b"\r\n".join((*kept, *more, b"Transfer-Encoding: chunked")) + b"\r\n\r\n"


class _Exchange:
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
        """Hand one request on and its answer back, up to where the connection breaks."""
        await self._break_at("accept")
        request = await self._request()
        reader, writer = await asyncio.open_connection(*self._upstream, limit=MAX_HEAD_BYTES)
        try:
            writer.write(request)
            answering = asyncio.ensure_future(self._answer(reader))
            leaving = asyncio.ensure_future(self._reader.read())  # nothing more comes but the client's end
            try:
                await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    answering.result()
            finally:
                for task in (answering, leaving):
                    task.cancel()
                await asyncio.gather(answering, leaving, return_exceptions=True)
        finally:
            writer.transport.abort()

    async def _request(self) -> bytes:
        head = await self._reader.readuntil(b"\r\n\r\n")
        lines = [line for line in head[:-4].split(b"\r\n") if not line.lower().startswith(b"connection:")]
        length = next((int(line[15:]) for line in lines if line.lower().startswith(b"content-length:")), 0)
        body = await self._reader.readexactly(length)
        return b"\r\n".join((*lines, b"Connection: close")) + b"\r\n\r\n" + body

    async def _answer(self, upstream: asyncio.StreamReader) -> None:
        raw_head = await upstream.readuntil(b"\r\n\r\n")
        await self._break_at("headers")
        head = _Head.parse(raw_head)
        in_chunks = head.is_chunked or self._fault.changes_length
        if self._fault.changes_length:
            more = (b"Content-Encoding: gzip",) if self._fault.gzip_bomb_mb is not None else ()
            raw_head = head.in_chunks(*more)
        if self._fault.stage == "head":
            await self._send(raw_head[: len(raw_head) // 2])
            await self._break_at("head")
        await self._send(raw_head)
        await self._send_body(self._fault.changed(_body(upstream, head)), in_chunks=in_chunks)

    async def _send_body(self, body: AsyncIterator[bytes], *, in_chunks: bool) -> None:
        fault, sent = self._fault, 0
        async for piece in body:
            if fault.stage in ("body", "chunk") and sent + len(piece) > fault.after_bytes:
                await self._send_part(piece[: fault.after_bytes - sent], in_chunks=in_chunks)
                await self._break_at("body")
                await self._send(b"%x\r\n" % (2 * PIECE_BYTES) + piece[fault.after_bytes - sent :])
                await self._break_at("chunk")
            await self._send_part(piece, in_chunks=in_chunks)
            sent += len(piece)
        if in_chunks:
            await self._send(b"0\r\n\r\n")

    async def _send_part(self, piece: bytes, *, in_chunks: bool) -> None:
        if piece:
            await self._send(b"%x\r\n%s\r\n" % (len(piece), piece) if in_chunks else piece)

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
        """Break the connection, if it is to be broken here: returns only where it is not."""
        fault = self._fault
        if fault.stage != stage:
            return
        if fault.stall is not None:
            await self._until_the_client_leaves()
        elif fault.reset is not None:
            # An RST overtakes what has not been sent yet, so these bytes get a moment.
            await asyncio.sleep(_SECONDS_FOR_SENT_BYTES)
            peer = self._writer.get_extra_info("socket")
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT_AT_ALL)
            self._writer.transport.abort()
        raise ConnectionAbortedError("broken as asked")

    async def _until_the_client_leaves(self) -> None:
        if self._fault.stall == "accept":
            await self._reader.read()
        else:
            await asyncio.get_running_loop().create_future()  # `run` sees the client's end and cancels this


async def _body(upstream: asyncio.StreamReader, head: _Head) -> AsyncIterator[bytes]:
    """The body as it comes, without its transfer encoding."""
    if head.is_chunked:
        while size := int(await upstream.readline(), 16):
            yield await upstream.readexactly(size)
            await upstream.readline()
        return
    left = head.length
    while left is None or left:
        piece = await upstream.read(PIECE_BYTES if left is None else min(PIECE_BYTES, left))
        if not piece:
            return
        left = None if left is None else left - len(piece)
        yield piece
