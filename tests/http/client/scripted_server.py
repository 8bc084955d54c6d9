"""A provider that follows a script, the clients of a test, and what they must not leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import ssl
import stat
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from tests.http.client.responses import CHUNKED

from mcpmeter.errors import MeterError
from mcpmeter.http.client import Connection, Http1Client, Http1Response, Target
from mcpmeter.http.client.interface import Timeouts

HEADERS = {"content-type": "application/json", "authorization": "Bearer sk-1"}
BODY = b'{"model":"m"}'
LIMIT = 1 << 20
PATIENT = Timeouts(connect_seconds=60, first_byte_seconds=60, idle_seconds=60, total_seconds=120)
MEGABYTE = 1 << 20


class Peer:
    """The server's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.sent_bytes = 0

    async def request(self) -> bytes:
        """Read the next request. Raises IncompleteReadError if the client has closed the connection."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        return head + await self._reader.readexactly(length)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()
        self.sent_bytes += len(data)

    async def until_closed(self) -> None:
        """Wait until the client has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(1 << 16):
                pass

    def reset(self) -> None:
        """End with RST instead of FIN."""
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()


Script = Callable[["Peer"], Awaitable[None]]


@dataclass
class Provider:
    """A scripted server: `script` is run for each connection, which is then closed."""

    script: Script
    url: str = ""
    port: int = 0
    peers: list[Peer] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    open_now: int = 0
    open_most: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self.peers.append(peer)
        self.open_now += 1
        self.open_most = max(self.open_now, self.open_most)
        try:
            await self.script(peer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has closed the connection
        finally:
            self.open_now -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def responding(*responses: bytes, ends: bool = False) -> Script:
    """Answer each request of a connection with the next of these; the last one repeats unless `ends`."""

    async def script(peer: Peer) -> None:
        for response in responses if ends else itertools.chain(responses, itertools.repeat(responses[-1])):
            await peer.request()
            await peer.send(response)

    return script


def silent() -> Script:
    async def script(peer: Peer) -> None:
        await peer.until_closed()

    return script


@dataclass
class Network:
    """Servers and clients of one test, which checks at its end that they leave nothing."""

    servers: list[asyncio.Server] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    clients: list[tuple[Http1Client, int]] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)

    async def provider(
        self, script: Script | bytes, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> Any:
        provider = Provider(responding(script) if isinstance(script, bytes) else script)
        server = await asyncio.start_server(provider.serve, host, 0, ssl=tls)
        self.servers.append(server)
        provider.port = server.sockets[0].getsockname()[1]
        self.ports.append(provider.port)
        named = f"[{host}]" if ":" in host else "localhost" if tls else host
        provider.url = f"{'https' if tls else 'http'}://{named}:{provider.port}/v1/chat"
        return provider

    def client(
        self, *, slots: int = 8, tls: ssl.SSLContext | None = None, timeouts: Timeouts = PATIENT, **times: float
    ) -> Http1Client:
        if times:
            timeouts = Timeouts(**{"connect_seconds": 5, "first_byte_seconds": 5, "idle_seconds": 5, **times})
        client = Http1Client(timeouts, max_connections=slots, tls=tls)
        self.clients.append((client, slots))
        return client

    def sockets(self) -> list[int]:
        """File descriptors in this process of connections that clients opened."""
        return [fd for fd in map(int, os.listdir("/proc/self/fd")) if _peer_port(fd) in self.ports]

    async def close(self) -> None:
        for client, slots in self.clients:
            await client.close()
            await client.close()
            assert_nothing_is_left(client, slots)
        await until(lambda: not self.sockets())
        for server in self.servers:
            server.close()
        assert self.faults == []


def _peer_port(fd: int) -> int:
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return 0
        with socket.socket(fileno=os.dup(fd)) as one:
            name = one.getpeername()
    except OSError:
        return 0  # closed meanwhile, or not connected
    return name[1] if isinstance(name, tuple) else 0


def sockets_that_connect(port: int) -> int:
    """How many connections of this process to a port are open or being opened."""
    every = psutil.Process().net_connections("tcp")
    return sum(one.raddr.port == port and one.fd != -1 for one in every if one.raddr)


async def until(is_so: Callable[[], object]) -> None:
    """Wait for a condition that has no event."""
    async with asyncio.timeout(120):
        while not is_so():
            await asyncio.sleep(0.002)


def assert_nothing_is_left(client: Http1Client, slots: int) -> None:
    pool = client._pool
    assert pool._free_slots == slots
    assert not pool._open
    assert not any(pool._idle.values())
    assert not [waiter for _, waiter in pool._waiting if not waiter.done()]


def slots_taken(client: Http1Client) -> int:
    return client._max_connections - client._pool._free_slots


def idle_connections(client: Http1Client) -> list[Connection]:
    return [connection for kept in client._pool._idle.values() for connection in kept]


async def post(client: Http1Client, provider: Provider) -> Http1Response:
    return await client.post("acme", provider.url, HEADERS, BODY)


async def call(client: Http1Client, provider: Provider, limit_bytes: int = LIMIT) -> tuple[int, bytes]:
    """Make a whole call as the pipeline does."""
    response = await post(client, provider)
    try:
        body = await response.read(limit_bytes)
        response.finish()
        return response.status, body
    finally:
        response.abort()


async def fault_of(network: Network, provider: Provider, client: Http1Client | None = None) -> MeterError:
    """The one error of a call; it must name the provider, hold nothing that was sent, and leave no connection."""
    client = client or network.client()
    with pytest.raises(MeterError) as raised:
        await call(client, provider)
    await until(lambda: not network.sockets())
    assert slots_taken(client) == 0
    assert "acme" in raised.value.message
    assert raised.value.hint
    assert len(provider.peers) <= 1
    return raised.value


def ending_late(may_end: asyncio.Event, end: bytes) -> Script:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(CHUNKED + b"e\r\ndata: [DONE]\n\n\r\n")
            await may_end.wait()
            await peer.send(end)

    return script


async def finish_early(client: Http1Client, provider: Provider) -> None:
    response = await post(client, provider)
    assert await anext(response.chunks(LIMIT)) == b"data: [DONE]\n\n"
    response.finish()
    response.finish()
    response.abort()
    assert not client._pool._idle.get(Target.of(provider.url).origin)


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


class MemoryTransport(asyncio.Transport):
    """A transport whose other side is the test."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._is_closing = False

    def receive(self, data: bytes) -> None:
        """Deliver bytes as the event loop does, in one read if the connection takes as many at once."""
        while data:
            buffer = self._connection.get_buffer(-1)
            size = min(len(data), len(buffer))
            buffer[:size], data = data[:size], data[size:]
            self._connection.buffer_updated(size)

    def is_closing(self) -> bool:
        return self._is_closing

    def abort(self) -> None:
        self.end()

    def end(self, exc: Exception | None = None) -> None:
        if not self._is_closing:
            self._is_closing = True
            asyncio.get_running_loop().call_soon(self._connection.connection_lost, exc)

    def write(self, data: Any) -> None:
        assert data.startswith(b"POST ")

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        assert not self._is_closing

    def resume_reading(self) -> None:
        assert not self._is_closing


def connection_in_memory(client: Http1Client) -> tuple[Connection, MemoryTransport]:
    """A connection without a socket, idle in the client's pool."""
    connection = Connection(client._pool, Target.of("http://wire.example/").origin)
    client._pool._free_slots -= 1
    wire = MemoryTransport(connection)
    connection.connection_made(wire)
    client._pool.release(connection)
    return connection, wire
