"""The client to providers before a server that says, and leaves unsaid, whatever a test wants; on both loops."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import os
import socket
import ssl
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmeter.errors import (
    InvalidUpstreamResponse,
    MeterError,
    Overloaded,
    ServiceFault,
    UpstreamDisconnected,
    UpstreamFault,
    UpstreamResponseTooLarge,
    UpstreamTimedOut,
    UpstreamUnreachable,
)
from mcpmeter.http.client import (
    MAX_BUFFERED_BYTES,
    MAX_CACHED_HEADERS_LENGTH,
    MAX_TARGETS,
    Connection,
    Http1Client,
    Http1Response,
    Pool,
    Target,
)
from mcpmeter.http.client import connection as connections
from mcpmeter.http.client.interface import Timeouts
from mcpmeter.http.framing import MAX_HEADER_BYTES

HEADERS = {"content-type": "application/json", "authorization": "Bearer sk-1"}
BODY = b'{"model":"m"}'
LIMIT = 1 << 20
OK = b"HTTP/1.1 200 OK\r\n"
SHORT = OK + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
PATIENT = Timeouts(connect_seconds=5, first_byte_seconds=5, idle_seconds=5, total_seconds=10)
MEGABYTE = 1 << 20


class Peer:
    """The server's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.sent_bytes = 0

    async def request(self) -> bytes:
        """The next request, head and body. Raises IncompleteReadError when the client has left."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        return head + await self._reader.readexactly(length)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()
        self.sent_bytes += len(data)

    async def until_left(self) -> None:
        """Wait until the client has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(1 << 16):
                pass

    def reset(self) -> None:
        """End with RST instead of FIN."""
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()


Play = Callable[["Peer"], Awaitable[None]]


@dataclass
class Provider:
    """A scripted server: `play` is run for each connection, which is then closed."""

    play: Play
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
            await self.play(peer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            self.open_now -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def answering(*answers: bytes, ends: bool = False) -> Play:
    """Answer each request of a connection with the next of these, the last one for ever, or until it is said."""

    async def play(peer: Peer) -> None:
        for answer in answers if ends else itertools.chain(answers, itertools.repeat(answers[-1])):
            await peer.request()
            await peer.send(answer)

    return play


def saying_nothing() -> Play:
    async def play(peer: Peer) -> None:
        await peer.until_left()

    return play


@dataclass
class World:
    """Servers and clients of one test; what they leave behind is looked at when it ends."""

    servers: list[asyncio.Server] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    clients: list[tuple[Http1Client, int]] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)

    async def provider(self, play: Play | bytes, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Any:
        provider = Provider(answering(play) if isinstance(play, bytes) else play)
        server = await asyncio.start_server(provider.serve, host, 0, ssl=tls)
        self.servers.append(server)
        provider.port = server.sockets[0].getsockname()[1]
        self.ports.append(provider.port)
        named = f"[{host}]" if ":" in host else "localhost" if tls else host
        provider.url = f"{'https' if tls else 'http'}://{named}:{provider.port}/v1/chat"
        return provider

    def client(
        self, *, places: int = 8, tls: ssl.SSLContext | None = None, timeouts: Timeouts = PATIENT, **times: float
    ) -> Http1Client:
        if times:
            timeouts = Timeouts(**{"connect_seconds": 5, "first_byte_seconds": 5, "idle_seconds": 5, **times})
        client = Http1Client(timeouts, max_connections=places, tls=tls)
        self.clients.append((client, places))
        return client

    def sockets(self) -> list[int]:
        """Descriptors in this process of connections that clients made."""
        return [fd for fd in map(int, os.listdir("/proc/self/fd")) if _peer_port(fd) in self.ports]

    async def close(self) -> None:
        for client, places in self.clients:
            await client.close()
            await client.close()
            assert_nothing_is_taken(client, places)
        await until(lambda: not self.sockets())
        for server in self.servers:
            server.close()
        assert self.faults == []


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    asyncio.get_running_loop().set_exception_handler(lambda _, told: world.faults.append(told))
    yield world
    await world.close()


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
    """How many connections of this process to a port are there or on their way."""
    every = psutil.Process().net_connections("tcp")
    return sum(one.raddr.port == port and one.fd != -1 for one in every if one.raddr)


async def until(is_so: Callable[[], object]) -> None:
    """Wait for something that tells nobody when it happens."""
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.002)


def assert_nothing_is_taken(client: Http1Client, places: int) -> None:
    pool = client._pool
    assert pool._free_slots == places
    assert not pool._open
    assert not any(pool._idle.values())
    assert not [waiter for _, waiter in pool._waiting if not waiter.done()]


def places_taken(client: Http1Client) -> int:
    return client._max_connections - client._pool._free_slots


def idle_connections(client: Http1Client) -> list[Connection]:
    return [connection for kept in client._pool._idle.values() for connection in kept]


async def post(client: Http1Client, provider: Provider) -> Http1Response:
    return await client.post("acme", provider.url, HEADERS, BODY)


async def call(client: Http1Client, provider: Provider, limit_bytes: int = LIMIT) -> tuple[int, bytes]:
    """A whole call, as the pipeline makes it."""
    answer = await post(client, provider)
    try:
        body = await answer.read(limit_bytes)
        answer.finish()
        return answer.status, body
    finally:
        answer.abort()


# What is sent --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_request_is_what_the_caller_gave_and_host_and_length(world, host):
    asked: list[bytes] = []

    async def play(peer: Peer) -> None:
        asked.append(await peer.request())
        await peer.send(SHORT)

    provider = await world.provider(play, host=host)
    provider.url += "?api-version=2026-01-01&x=%2F y|é"
    assert await call(world.client(), provider) == (200, b"hello")
    named = f"[{host}]" if ":" in host else host
    assert asked == [
        b"POST /v1/chat?api-version=2026-01-01&x=%2F%20y%7C%C3%A9 HTTP/1.1\r\n"
        b"host: " + f"{named}:{provider.port}".encode() + b"\r\n"
        b"content-type: application/json\r\nauthorization: Bearer sk-1\r\ncontent-length: 13\r\n\r\n" + BODY
    ]


@pytest.mark.parametrize(
    ("url", "origin", "host"),
    [
        ("https://api.example/v1", ("api.example", 443, True), "api.example"),
        ("http://API.example:8080", ("api.example", 8080, False), "api.example:8080"),
        ("http://bücher.example/", ("xn--bcher-kva.example", 80, False), "xn--bcher-kva.example"),
        ("https://[::1]:8443/v1", ("::1", 8443, True), "[::1]:8443"),
        ("http://[fd00::2]/v1", ("fd00::2", 80, False), "[fd00::2]"),
    ],
)
def test_an_address_is_taken_apart_as_dns_and_tls_need_it(url, origin, host):
    target = Target.of(url)
    assert tuple(target.origin) == origin
    assert f"\r\nhost: {host}\r\n" in target.first_lines


@pytest.mark.parametrize("host", ["straße.example", "ｇoogle.example", "ü" * 70 + ".example", "ü..example"])
async def test_a_host_that_could_be_two_names_gets_no_key(world, host):
    with pytest.raises(ServiceFault, match="xn--"):
        await world.client().post("acme", f"http://{host}/", HEADERS, BODY)


@pytest.mark.parametrize("evil", ["k\r\nx: 1", "k\r\n", "k\n", "k\r", "k\0", "\r\n\r\nGET / HTTP/1.1", "k→", "k\ud800"])
async def test_a_key_cannot_add_to_the_request_and_is_not_repeated_in_the_error(world, evil):
    provider = await world.provider(SHORT)
    with pytest.raises(ServiceFault, match="A header for the provider holds") as raised:
        await world.client().post("acme", provider.url, {"authorization": f"Bearer sk-{evil}"}, BODY)
    assert "sk-" not in str(raised.value)
    assert provider.peers == []


async def test_addresses_that_clients_choose_do_not_gather(world):
    provider = await world.provider(SHORT)
    client = world.client()
    for name in (*map(str, range(MAX_TARGETS + 5)), "m" * 10_000):
        target = Provider(saying_nothing(), url=f"{provider.url}/{name}")
        assert await call(client, target) == (200, b"hello")
        assert len(client._targets) <= MAX_TARGETS
        assert sum(map(len, client._targets)) < MAX_TARGETS * 100
    assert len(provider.peers) == 1


async def test_a_large_body_goes_out_whole(world):
    sizes: list[int] = []

    async def play(peer: Peer) -> None:
        sizes.append(len(await peer.request()))
        await peer.send(SHORT)

    provider = await world.provider(play)
    answer = await world.client().post("acme", provider.url, HEADERS, b"x" * 8 * MEGABYTE)
    assert await answer.read(LIMIT) == b"hello"
    answer.finish()
    assert 8 * MEGABYTE < sizes[0] < 8 * MEGABYTE + 300


async def test_a_connection_whose_request_was_not_taken_whole_is_not_used_again(world):
    async def play(peer: Peer) -> None:
        await peer._reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        await asyncio.Event().wait() if len(provider.peers) == 1 else None

    provider = await world.provider(play)
    client = world.client()
    answer = await client.post("acme", provider.url, HEADERS, b"x" * 32 * MEGABYTE)
    assert (answer.status, await answer.read(LIMIT)) == (413, b"")
    answer.finish()
    assert idle_connections(client) == []
    assert (await post(client, provider)).status == 413
    assert len(provider.peers) == 2


# How an answer ends --------------------------------------------------------------------------------------------------

PARTS = b"5\r\nhello\r\n1\r\n \r\n5\r\nworld\r\n0\r\n"
WHOLE: dict[str, tuple[bytes, int, bytes, bool]] = {
    "length": (SHORT, 200, b"hello", True),
    "no body": (OK + b"Content-Length: 0\r\n\r\n", 200, b"", True),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi", True),
    "chunked": (CHUNKED + PARTS + b"\r\n", 200, b"hello world", True),
    "chunked, no body": (CHUNKED + b"0\r\n\r\n", 200, b"", True),
    "chunked, and blanks": (OK + b"Transfer-Encoding:  Chunked  \r\n\r\n" + PARTS + b"\r\n", 200, b"hello world", True),
    "chunk extensions": (CHUNKED + b'2;a=b;c="d e"\r\nhi\r\n0;z\r\n\r\n', 200, b"hi", True),
    "chunk size in capitals": (CHUNKED + b"00A\r\n0123456789\r\n0\r\n\r\n", 200, b"0123456789", True),
    "trailers": (CHUNKED + PARTS + b"Status: 500\r\nX-A: 1\r\n\r\n", 200, b"hello world", True),
    "close": (OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi", False),
    "chunked and close": (
        OK + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + PARTS + b"\r\n",
        200,
        b"hello world",
        False,
    ),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, b"hi", False),
    "HTTP/1.0 that stays": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi",
        200,
        b"hi",
        True,
    ),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    "204 that names a length": (b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n", 204, b"", True),
    "304 that names a length": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 300\r\n\r\n", 304, b"", True),
    "100 before it": (b"HTTP/1.1 100 Continue\r\n\r\n" + SHORT, 200, b"hello", True),
    "102 and 103 before it": (
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX-A: 1\r\n\r\n" + SHORT,
        200,
        b"hello",
        True,
    ),
    "an offer to upgrade": (
        OK + b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\nhi",
        200,
        b"hi",
        True,
    ),
    "an error": (b"HTTP/1.1 529 Overloaded\r\nContent-Length: 2\r\n\r\nno", 529, b"no", True),
    "an end of line before it": (b"\r\n" + SHORT, 200, b"hello", True),
}
UNTIL_CLOSED: dict[str, tuple[bytes, bytes]] = {
    "no length": (OK + b"\r\nall of it", b"all of it"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall\r\n\r\nHTTP/1.1", b"all\r\n\r\nHTTP/1.1"),
    "nothing": (OK + b"Connection: close\r\n\r\n", b""),
}


@pytest.mark.parametrize("name", WHOLE)
async def test_an_answer_is_read_to_its_end_and_its_connection_used_again_if_it_may_be(world, name):
    wire, status, body, is_reused = WHOLE[name]
    provider = await world.provider(wire)
    client = world.client()
    for _ in range(3):
        assert await call(client, provider) == (status, body)
    assert len(provider.peers) == (1 if is_reused else 3)
    await until(lambda: places_taken(client) == is_reused)


@pytest.mark.parametrize("name", WHOLE)
async def test_an_answer_that_comes_byte_by_byte_is_the_same(world, name):
    wire, status, body, is_reused = WHOLE[name]

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            for place in range(len(wire)):
                await peer.send(wire[place : place + 1])
                await asyncio.sleep(0)

    provider = await world.provider(play)
    client = world.client()
    assert await call(client, provider) == (status, body)
    assert len(idle_connections(client)) == is_reused


@pytest.mark.parametrize("name", UNTIL_CLOSED)
async def test_an_answer_without_a_length_ends_with_its_connection(world, name):
    wire, body = UNTIL_CLOSED[name]
    provider = await world.provider(answering(wire, ends=True))
    client = world.client()
    assert await call(client, provider) == (200, body)
    assert places_taken(client) == 0


async def test_an_answer_without_a_length_is_not_whole_when_its_connection_is_reset(world):
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + b"\r\nhalf")
        await may_reset.wait()
        peer.reset()

    may_reset = asyncio.Event()
    provider = await world.provider(play)
    answer = await post(world.client(), provider)
    chunks = answer.chunks(LIMIT)
    assert await anext(chunks) == b"half"
    may_reset.set()
    with pytest.raises(UpstreamDisconnected):
        await anext(chunks)
    answer.abort()


@pytest.mark.parametrize("wire", [SHORT, CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", b"HTTP/1.1 204 No\r\n\r\n"])
@pytest.mark.parametrize("more", [b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"\0" * 100_000, b"HTTP"])
async def test_bytes_after_an_answer_belong_to_nobody(world, wire, more):
    provider = await world.provider(wire + more)
    client = world.client()
    for _ in range(3):
        status, body = await call(client, provider)
        assert (status, body) in ((200, b"hello"), (204, b""))
        await until(lambda: not idle_connections(client))
    assert len(provider.peers) == 3


async def test_headers_keep_their_bytes_and_repeated_ones_are_joined(world):
    provider = await world.provider(
        OK + b"X-Raw: \xff\xfe Z\xc3\xbcrich\r\nX-Two: a\r\nx-two:b \r\nX-Empty:\r\nContent-Length: 0\r\n\r\n"
    )
    answer = await post(world.client(), provider)
    answer.finish()
    assert answer.headers["x-raw"].encode("latin-1") == b"\xff\xfe Z\xc3\xbcrich"
    assert (answer.headers["x-two"], answer.headers["x-empty"]) == ("a, b", "")


async def test_headers_of_hints_and_trailers_are_not_the_answers(world):
    provider = await world.provider(
        b"HTTP/1.1 103 Early Hints\r\nX-Hint: 1\r\n\r\n" + CHUNKED + b"2\r\nhi\r\n0\r\nX-Trailer: 1\r\n\r\n"
    )
    answer = await post(world.client(), provider)
    assert await answer.read(LIMIT) == b"hi"
    answer.finish()
    assert dict(answer.headers) == {"transfer-encoding": "chunked"}


async def test_headers_of_one_call_are_not_changed_by_the_next(world):
    provider = await world.provider(answering(OK + b"X-A: 1\r\nContent-Length: 0\r\n\r\n", SHORT))
    client = world.client()
    first = await post(client, provider)
    first.finish()
    assert await call(client, provider) == (200, b"hello")
    assert (first.status, dict(first.headers)) == (200, {"x-a": "1", "content-length": "0"})


@pytest.mark.parametrize("first", [name for name, (*_, is_reused) in WHOLE.items() if is_reused])
async def test_an_answer_leaves_nothing_behind_for_the_next_on_its_connection(first):
    client = Http1Client(PATIENT, max_connections=1)
    connection, wire = wired(client)
    provider = Provider(saying_nothing(), url="http://wire.example/")
    for name, (answer, status, body, is_reused) in WHOLE.items():
        if not is_reused:
            continue
        for said in (WHOLE[first][0], answer):
            assert idle_connections(client) == [connection], name
            task = asyncio.create_task(post(client, provider))
            await asyncio.sleep(0)
            connection.data_received(said)
            told = await task
            read = await told.read(LIMIT)
            told.finish()
        assert (told.status, read, dict(told.headers)) == (status, body, await headers_alone(answer))
    assert not wire.is_closing()
    await client.close()
    assert_nothing_is_taken(client, 1)


async def headers_alone(said: bytes) -> dict[str, str]:
    """An answer's headers on a connection of its own."""
    client = Http1Client(PATIENT, max_connections=1)
    connection, _ = wired(client)
    task = asyncio.create_task(post(client, Provider(saying_nothing(), url="http://wire.example/")))
    await asyncio.sleep(0)
    connection.data_received(said)
    told = await task
    told.finish()
    await client.close()
    return dict(told.headers)


async def test_what_is_sent_follows_the_headers_of_each_call(world):
    asked: list[bytes] = []

    async def play(peer: Peer) -> None:
        while True:
            asked.append(await peer.request())
            await peer.send(SHORT)

    provider = await world.provider(play)
    client = world.client()
    headers = {"authorization": "Bearer sk-1"}
    for key in ("sk-1", "sk-1", "sk-2", "sk-1"):
        headers["authorization"] = f"Bearer {key}"
        answer = await client.post("acme", provider.url, headers, BODY)
        answer.finish()
        assert f"\r\nauthorization: Bearer {key}\r\n".encode() in asked[-1]
        assert "sk-" not in repr(client._targets)
    long = {"x-long": "x" * MAX_CACHED_HEADERS_LENGTH}
    (await client.post("acme", provider.url, long, BODY)).finish()
    assert b"\r\nx-long: xxx" in asked[-1]
    assert b"authorization" not in asked[-1]
    assert all(len(target._written) <= MAX_CACHED_HEADERS_LENGTH for target in client._targets.values())


# What is no answer ---------------------------------------------------------------------------------------------------

GARBAGE = {
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a TLS alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "a status of letters": b"HTTP/1.1 OK OK\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "a status of zeros": b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
    "a status below all": b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc",
    "another protocol, unnamed": b"HTTP/1.1 101 Switching\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
    "a folded header": OK + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "a blank before the colon": OK + b"Content-Length : 2\r\n\r\nhi",
    "a header without a name": OK + b": a\r\nContent-Length: 0\r\n\r\n",
    "NUL in a header": OK + b"X: a\0b\r\nContent-Length: 0\r\n\r\n",
    "CR in a header": OK + b"X: a\rb\r\nContent-Length: 0\r\n\r\n",
    "a control character in a header": OK + b"X: a\x01b\r\nContent-Length: 0\r\n\r\n",
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi!",
    "a length twice": OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
    "a list of lengths": OK + b"Content-Length: 2, 2\r\n\r\nhi",
    "an empty length": OK + b"Content-Length:\r\n\r\nhi",
    "a negative length": OK + b"Content-Length: -2\r\n\r\nhi",
    "a length with a sign": OK + b"Content-Length: +2\r\n\r\nhi",
    "a length in hexadecimal": OK + b"Content-Length: 0x2\r\n\r\nhi",
    "a length beyond 64 bits": OK + b"Content-Length: 18446744073709551617\r\n\r\nhi",
    "length, then chunked": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "chunked, then length": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "chunked twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "packed, then chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "chunked, then packed": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "chunked and a tab, which the parser reads until the end": OK + b"Transfer-Encoding: chunked\t\r\n\r\n0\r\n\r\n",
    "nearly chunked": OK + b"Transfer-Encoding: xchunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    "an endless header": OK + b"X-A: " + b"a" * 300_000,
    "an endless header's name": OK + b"a" * 300_000,
    "an endless reason": b"HTTP/1.1 200 " + b"a" * 300_000,
    "endlessly many headers": OK + b"X-A: 1\r\n" * 10_000 + b"\r\n",
    "many headers and a body": OK + b"X-A: 1\r\n" * 20_000 + b"Content-Length: 2\r\n\r\nhi",
    "endless hints": b"HTTP/1.1 103 Early Hints\r\nX-A: 1\r\n\r\n" * 10_000,
    "endless blank lines": b"\r\n" * 100_000,
}
GARBAGE_IN_THE_BODY = {
    "a chunk without a size": b"zz\r\nhi",
    "a chunk size with a sign": b"+2\r\nhi\r\n0\r\n\r\n",
    "a chunk size beyond 64 bits": b"fffffffffffffffff\r\nhi",
    "a chunk longer than it said": b"2\r\nhi!\r\n0\r\n\r\n",
    "a chunk extension ending in LF": b"2;a\nhi\r\n0\r\n\r\n",
    "an endless chunk extension": b"2;" + b"a" * 300_000,
    "endless zeros of a size": b"0" * 300_000,
    "a length in a trailer": b"2\r\nhi\r\n0\r\nContent-Length: 2\r\n\r\n",
    "an endless trailer": b"2\r\nhi\r\n0\r\nX-A: " + b"a" * 300_000,
    "chunk extensions that outweigh their chunks": (b"1;" + b"a" * 1000 + b"\r\na\r\n") * 300,
    "endlessly many trailers": b"2\r\nhi\r\n0\r\n" + b"X-A: 1\r\n" * 40_000,
}
CUT_SHORT = {
    "nothing": b"",
    "half a status line": b"HTTP/1.1 2",
    "half a head": OK + b"Content-Type: app",
    "a hint and no answer": b"HTTP/1.1 100 Continue\r\n\r\n",
    "less than its length": OK + b"Content-Length: 6\r\n\r\nhello",
    "no body at all": OK + b"Content-Length: 6\r\n\r\n",
    "a length as long as can be": OK + b"Content-Length: 18446744073709551614\r\n\r\nhello",
    "a chunk cut short": CHUNKED + b"5\r\nhel",
    "a chunk as long as can be": CHUNKED + b"fffffffffffffff\r\nhi",
    "no last chunk": CHUNKED + b"5\r\nhello\r\n",
    "half a last chunk": CHUNKED + b"5\r\nhello\r\n0\r\n",
    "half a trailer": CHUNKED + b"5\r\nhello\r\n0\r\nX-A: 1\r\n",
}


async def fault_of(world: World, provider: Provider, client: Http1Client | None = None) -> MeterError:
    """The one error of a call; it must name the provider, hold nothing that was sent, and leave no connection."""
    client = client or world.client()
    with pytest.raises(MeterError) as raised:
        await call(client, provider)
    await until(lambda: not world.sockets())
    assert places_taken(client) == 0
    assert "acme" in raised.value.message
    assert raised.value.hint
    assert len(provider.peers) <= 1
    return raised.value


@pytest.mark.parametrize("name", GARBAGE)
async def test_what_is_no_answer_is_refused(world, name):
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(GARBAGE[name])
        await peer.until_left()

    assert type(await fault_of(world, await world.provider(play))) is InvalidUpstreamResponse


@pytest.mark.parametrize("name", GARBAGE_IN_THE_BODY)
async def test_a_body_that_is_none_is_refused_after_what_came_before(world, name):
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"3\r\nhi,\r\n")
        await may_go_on.wait()
        await peer.send(GARBAGE_IN_THE_BODY[name])
        await peer.until_left()

    may_go_on = asyncio.Event()
    answer = await post(world.client(), await world.provider(play))
    chunks = answer.chunks(LIMIT)
    assert await anext(chunks) == b"hi,"
    may_go_on.set()
    with pytest.raises(InvalidUpstreamResponse):
        await answer.read(LIMIT)
    answer.abort()
    await until(lambda: not world.sockets())


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("name", CUT_SHORT)
async def test_an_answer_cut_short_is_broken(world, name, is_reset):
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(CUT_SHORT[name])
        if is_reset:
            peer.reset()

    assert type(await fault_of(world, await world.provider(play))) is UpstreamDisconnected


async def test_a_head_of_nearly_the_limit_is_taken(world):
    long = b"a" * (MAX_HEADER_BYTES - 1000)
    provider = await world.provider(OK + b"X-A: " + long + b"\r\nContent-Length: 2\r\n\r\nhi")
    assert await call(world.client(), provider) == (200, b"hi")


async def test_a_long_stream_of_tiny_chunks_is_no_flood_of_headers(world):
    tiny = b"1;ext=12345\r\na\r\n"
    provider = await world.provider(CHUNKED + tiny * 20_000 + b"0\r\n\r\n")
    assert await call(world.client(), provider) == (200, b"a" * 20_000)


async def test_bytes_after_a_complete_answer_end_its_connection(world):
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(SHORT)
        await is_complete.wait()
        await peer.send(OK + b"X-A: " + b"a" * 1000)
        await peer.until_left()

    is_complete = asyncio.Event()
    client = world.client()
    answer = await post(client, await world.provider(play))
    await until(lambda: answer._connection.is_complete)
    is_complete.set()
    await until(lambda: places_taken(client) == 0)
    assert await answer.read(LIMIT) == b"hello"
    answer.finish()


async def test_a_server_that_speaks_first_is_not_listened_to(world):
    async def play(peer: Peer) -> None:
        await peer.send(SHORT)
        await peer.until_left()

    client = world.client()
    provider = await world.provider(play)
    with contextlib.suppress(UpstreamFault):
        # What is there before the request cannot be told from an answer that is quick; nothing else may come of it.
        assert await call(client, provider) == (200, b"hello")
    await until(lambda: idle_connections(client) or places_taken(client) == 0)
    assert len(provider.peers) == 1


# Limits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", [OK + b"Content-Length: 1000\r\n\r\n", CHUNKED + b"3e8\r\n", OK + b"\r\n"])
async def test_an_answer_over_the_limit_is_refused(world, framing):
    ending = b"\r\n0\r\n\r\n" if framing.startswith(CHUNKED) else b""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(framing + b"x" * 1000 + ending)

    provider = await world.provider(play)
    client = world.client()
    assert await call(client, provider, 1000) == (200, b"x" * 1000)
    await until(lambda: places_taken(client) == 0)
    with pytest.raises(UpstreamResponseTooLarge, match="999 bytes"):
        await call(client, provider, 999)


def packed(body: bytes) -> bytes:
    return OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def test_a_packed_answer_is_unpacked_within_the_limit(world):
    provider = await world.provider(
        answering(packed(gzip.compress(b"x" * 1000)), packed(gzip.compress(b"x" * 1001)), ends=True)
    )
    client = world.client()
    assert await call(client, provider, 1000) == (200, b"x" * 1000)
    with pytest.raises(UpstreamResponseTooLarge):
        await call(client, provider, 1000)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (gzip.compress(b"hello")[:-1], UpstreamDisconnected),
        (gzip.compress(b"hello") + b"junk", InvalidUpstreamResponse),
        (gzip.compress(b"") * 60_000, UpstreamResponseTooLarge),
    ],
    ids=["cut short", "junk after it", "much that is nothing"],
)
async def test_a_packed_answer_that_is_not_whole_is_an_error(world, body, error):
    assert type(await fault_of(world, await world.provider(packed(body)))) is error


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
async def test_a_provider_that_is_faster_than_the_reader_is_held_up(world, certificates, is_tls):
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + b"Content-Length: %d\r\n\r\n" % (100 * MEGABYTE))
        for _ in range(100):
            await peer.send(b"x" * MEGABYTE)
        await peer.request()

    provider = await world.provider(play, tls=certificates.server() if is_tls else None)
    client = world.client(tls=certificates.trust if is_tls else None)
    answer = await post(client, provider)
    (connection,) = client._pool._open
    await until(lambda: connection._is_paused)
    sent_bytes = -1
    while sent_bytes < provider.peers[0].sent_bytes:  # until the kernel's buffers are full too
        sent_bytes = provider.peers[0].sent_bytes
        await asyncio.sleep(0.05)
    assert MAX_BUFFERED_BYTES < connection._buffered_bytes < 4 * MAX_BUFFERED_BYTES
    assert sent_bytes < 50 * MEGABYTE
    total = 0
    async for part in answer.chunks(200 * MEGABYTE):
        total += len(part)
        assert len(part) < 4 * MAX_BUFFERED_BYTES
    assert total == 100 * MEGABYTE
    answer.finish()
    assert len(idle_connections(client)) == 1


# Connections ---------------------------------------------------------------------------------------------------------


async def test_the_connection_used_last_is_used_first_and_old_ones_are_closed(world, monkeypatch):
    provider = await world.provider(SHORT)
    client = world.client()
    answers = [await post(client, provider) for _ in range(3)]
    for answer in answers:
        answer.finish()
    first, second, third = idle_connections(client)
    assert await call(client, provider) == (200, b"hello")
    assert idle_connections(client) == [first, second, third]
    first.idle_since = second.idle_since = 0.0
    await call(client, provider)  # too old ones are looked for whenever one is kept
    assert idle_connections(client) == [second, third]
    third.idle_since = 0.0
    await call(client, provider)
    assert len(provider.peers) == 4
    (fourth,) = idle_connections(client)
    assert fourth not in (first, second, third)


async def test_a_connection_that_its_server_closed_while_it_was_idle_loses_no_call(world):
    provider = await world.provider(answering(SHORT, ends=True))
    client = world.client()
    for _ in range(3):
        assert await call(client, provider) == (200, b"hello")
        await until(lambda: not idle_connections(client))
    assert places_taken(client) == 0


async def test_a_connection_on_which_something_came_while_it_was_idle_is_closed(world):
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(SHORT)
        await may_speak.wait()
        await peer.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        await peer.until_left()

    may_speak = asyncio.Event()
    provider = await world.provider(play)
    client = world.client()
    assert await call(client, provider) == (200, b"hello")
    may_speak.set()
    await until(lambda: not idle_connections(client))
    assert await call(client, provider) == (200, b"hello")
    assert len(provider.peers) == 2


@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_server_that_closes_when_it_is_asked_again_is_not_asked_twice(world, is_reset):
    asked = 0

    async def play(peer: Peer) -> None:
        nonlocal asked
        await peer.request()
        await peer.send(SHORT)
        await peer.request()
        asked += 1
        if is_reset:
            peer.reset()

    provider = await world.provider(play)
    client = world.client()
    assert await call(client, provider) == (200, b"hello")
    with pytest.raises(UpstreamDisconnected):
        await call(client, provider)
    assert (asked, len(provider.peers)) == (1, 1)


async def test_a_refused_connection_is_unreachable(world):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        provider = Provider(saying_nothing(), url=f"http://127.0.0.1:{taken.getsockname()[1]}/")
        fault = await fault_of(world, provider)
    assert type(fault) is UpstreamUnreachable
    assert "(connection refused)" in fault.message


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example"])
async def test_a_name_that_cannot_be_one_is_unreachable(world, host):
    fault = await fault_of(world, Provider(saying_nothing(), url=f"http://{host}/"))
    assert type(fault) is UpstreamUnreachable
    assert "name does not resolve" in fault.message


# Time-outs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def deaf_port() -> Iterable[int]:
    """A port whose backlog is full: connecting to it never ends."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(server.getsockname())
        yield server.getsockname()[1]


async def test_a_connection_that_is_not_made_in_time_is_unreachable(world, deaf_port):
    client = world.client(connect_seconds=0.1)
    before = sockets_that_connect(deaf_port)  # the fillers
    with pytest.raises(UpstreamUnreachable, match="no connection in time"):
        await client.post("acme", f"http://127.0.0.1:{deaf_port}/", HEADERS, BODY)
    assert places_taken(client) == 0
    await until(lambda: sockets_that_connect(deaf_port) == before)


async def test_a_place_that_is_not_free_in_time_is_told_apart_from_a_provider_that_is_not_there(world):
    client = world.client(places=1, connect_seconds=0.1)
    provider = await world.provider(SHORT)
    held = await post(client, provider)
    with pytest.raises(Overloaded, match=r"all 1 connections were in use for 0\.1 s.*max_connections"):
        await post(client, provider)
    held.finish()
    assert await call(client, provider) == (200, b"hello")


HALF = OK + b"Content-Length: 10\r\n\r\nhello"
SLOW: dict[str, tuple[bytes, dict[str, float], str]] = {
    "no head": (b"", {"first_byte_seconds": 0.1}, "sent nothing in time"),
    "half a head": (OK + b"X-A: 1\r\n", {"first_byte_seconds": 0.1}, "sent nothing in time"),
    "hints alone": (b"HTTP/1.1 100 Continue\r\n\r\n", {"first_byte_seconds": 0.1}, "sent nothing in time"),
    "half a body": (HALF, {"idle_seconds": 0.1}, "between two parts"),
    "no end": (CHUNKED + b"2\r\nhi\r\n", {"idle_seconds": 0.1}, "between two parts"),
    "no head in all the time": (b"", {"total_seconds": 0.1}, "did not end its answer"),
    "no body in all the time": (HALF, {"total_seconds": 0.1}, "did not end its answer"),
}


@pytest.mark.parametrize("name", SLOW)
async def test_a_provider_that_stops_speaking_times_out(world, name):
    wire, times, told = SLOW[name]

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(wire)
        await peer.until_left()

    fault = await fault_of(world, await world.provider(play), world.client(**times))
    assert type(fault) is UpstreamTimedOut
    assert told in fault.message


@pytest.mark.parametrize("part", [b"1\r\na\r\n", b"HTTP/1.1 103 Hi\r\n\r\n", b"1;a"], ids=["parts", "hints", "noise"])
async def test_a_provider_that_drips_for_ever_times_out(world, part):
    async def play(peer: Peer) -> None:
        await peer.request()
        if part.startswith(b"1"):
            await peer.send(CHUNKED)
        while True:
            await peer.send(part)
            await asyncio.sleep(0.02)

    client = world.client(first_byte_seconds=0.15, total_seconds=0.15)
    assert type(await fault_of(world, await world.provider(play), client)) in (
        UpstreamTimedOut,
        InvalidUpstreamResponse,
    )


async def test_only_the_provider_is_timed_and_not_who_reads(world):
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"3\r\none\r\n")
        await has_read.wait()
        await peer.send(b"3\r\ntwo\r\n0\r\n\r\n")

    has_read = asyncio.Event()
    client = world.client(first_byte_seconds=0.2, idle_seconds=0.2, total_seconds=0.25)
    answer = await post(client, await world.provider(play))
    chunks = answer.chunks(LIMIT)
    assert await anext(chunks) == b"one"
    await asyncio.sleep(0.3)
    has_read.set()
    assert await anext(chunks) == b"two"
    await asyncio.sleep(0.3)
    assert [part async for part in chunks] == []
    answer.finish()


# The end of an answer that nobody waits for --------------------------------------------------------------------------


def ending_late(may_end: asyncio.Event, end: bytes) -> Play:
    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(CHUNKED + b"e\r\ndata: [DONE]\n\n\r\n")
            await may_end.wait()
            await peer.send(end)

    return play


async def finished_before_its_end(client: Http1Client, provider: Provider) -> None:
    answer = await post(client, provider)
    assert await anext(answer.chunks(LIMIT)) == b"data: [DONE]\n\n"
    answer.finish()
    answer.finish()
    answer.abort()
    assert not client._pool._idle.get(Target.of(provider.url).origin)


async def test_a_stream_that_was_left_at_its_last_event_gives_its_connection_back_when_it_ends(world):
    may_end = asyncio.Event()
    provider = await world.provider(ending_late(may_end, b"3\r\nend\r\n0\r\nX-A: 1\r\n\r\n"))
    client = world.client()
    for _ in range(3):
        may_end.clear()
        await finished_before_its_end(client, provider)
        may_end.set()
        await until(lambda: idle_connections(client))
    assert len(provider.peers) == 1


@pytest.mark.parametrize("end", [b"0\r\n\r\n" + SHORT, b"junk", b"0\r\n\r\nHTTP"])
async def test_a_stream_that_was_left_and_then_ends_badly_loses_its_connection(world, end):
    may_end = asyncio.Event()
    client = world.client()
    await finished_before_its_end(client, await world.provider(ending_late(may_end, end)))
    may_end.set()
    await until(lambda: places_taken(client) == 0)


async def test_a_stream_that_was_left_and_does_not_end_is_closed(world, monkeypatch):
    monkeypatch.setattr(connections, "FINISH_SECONDS", 0.05)
    client = world.client()
    await finished_before_its_end(client, await world.provider(ending_late(asyncio.Event(), b"")))
    await until(lambda: places_taken(client) == 0)
    await until(lambda: not world.sockets())


async def test_a_stream_that_was_left_while_it_was_held_up_gives_its_connection_back(world):
    wire = OK + b"Content-Length: %d\r\n\r\n" % (2 * MEGABYTE) + b"x" * 2 * MEGABYTE
    provider = await world.provider(wire)
    client = world.client()
    for _ in range(2):
        answer = await post(client, provider)
        await until(lambda: next(iter(client._pool._open))._is_paused)
        answer.finish()
        await until(lambda: idle_connections(client))
    (connection,) = idle_connections(client)
    assert len(provider.peers) == 1
    assert (connection._parts, connection._buffered_bytes, connection._is_paused) == ([], 0, False)


async def test_a_whole_answer_that_nobody_took_does_not_hold_up_the_next(world):
    wire = OK + b"Content-Length: %d\r\n\r\n" % (2 * MAX_BUFFERED_BYTES) + b"x" * 2 * MAX_BUFFERED_BYTES
    provider = await world.provider(answering(wire, SHORT))
    client = world.client()
    answer = await post(client, provider)
    (connection,) = client._pool._open
    await until(lambda: connection._is_paused or connection.is_complete)
    answer.finish()
    await until(lambda: idle_connections(client))
    assert await call(client, provider) == (200, b"hello")
    assert len(provider.peers) == 1


@pytest.mark.parametrize("wire", [SHORT, HALF, OK + b"\r\nhello", CHUNKED + b"5\r\nhello\r\n"])
@pytest.mark.parametrize("taken", [0, 1])
@pytest.mark.parametrize("end", ["finish", "abort", "finish, abort", "abort, finish"])
@pytest.mark.parametrize("is_lost", [False, True])
async def test_however_an_answer_is_left_its_place_and_socket_are_free_again(
    world, monkeypatch, wire, taken, end, is_lost
):
    monkeypatch.setattr(connections, "FINISH_SECONDS", 0.01)

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(wire)
        if not is_lost:
            await peer.until_left()

    client = world.client(places=1)
    answer = await post(client, await world.provider(play))
    if taken:
        assert await anext(answer.chunks(LIMIT)) == b"hello"
    if is_lost:
        await until(lambda: not client._pool._open)
    for step in end.split(", "):
        getattr(answer, step)()
    await until(lambda: places_taken(client) == len(idle_connections(client)))
    assert idle_connections(client) == [] or (wire, is_lost, end[:6]) == (SHORT, False, "finish")


# Places --------------------------------------------------------------------------------------------------------------


async def test_never_more_connections_than_places_and_everybody_is_answered(world):
    provider = await world.provider(SHORT)
    client = world.client(places=3)
    assert await asyncio.gather(*(call(client, provider) for _ in range(20))) == [(200, b"hello")] * 20
    assert (provider.open_most, len(provider.peers), places_taken(client)) == (3, 3, 3)


async def test_places_go_round_between_origins_however_their_connections_end(world):
    closing = await world.provider(OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello")
    staying, breaking = await world.provider(SHORT), await world.provider(answering(HALF, ends=True))
    client = world.client(places=2)

    async def outcome(provider: Provider) -> object:
        try:
            return await call(client, provider)
        except UpstreamDisconnected:
            return None

    got = await asyncio.gather(*(outcome(provider) for _ in range(10) for provider in (closing, staying, breaking)))
    assert got == [(200, b"hello"), (200, b"hello"), None] * 10
    assert len(world.sockets()) <= 2


async def test_an_idle_connection_to_elsewhere_makes_place(world):
    here, there = await world.provider(SHORT), await world.provider(SHORT)
    client = world.client(places=1)
    for provider in (here, there, here):
        assert await call(client, provider) == (200, b"hello")
    assert (len(here.peers), len(there.peers)) == (2, 1)
    await until(lambda: here.open_now + there.open_now == 1)


async def test_who_waits_longest_is_served_first_wherever_he_wants_to_go(world):
    order: list[str] = []
    here, there = await world.provider(SHORT), await world.provider(SHORT)
    client = world.client(places=1)
    held = await post(client, here)

    async def noted(name: str, provider: Provider) -> None:
        await call(client, provider)
        order.append(name)

    async with asyncio.TaskGroup() as group:
        for name, provider in (("one", here), ("two", there), ("three", here), ("four", here), ("five", there)):
            group.create_task(noted(name, provider))
            await asyncio.sleep(0)
        held.finish()
    assert order == ["one", "two", "three", "four", "five"]
    assert (len(here.peers), len(there.peers)) == (2, 2)


async def test_who_waits_gets_the_connection_that_becomes_free(world):
    provider = await world.provider(SHORT)
    client = world.client(places=1)
    held = await post(client, provider)
    waiting = asyncio.create_task(call(client, provider))
    await asyncio.sleep(0)
    held.finish()
    assert await waiting == (200, b"hello")
    assert len(provider.peers) == 1


async def test_a_connection_lost_between_being_given_and_being_taken_loses_no_call(world):
    provider = await world.provider(SHORT)
    client = world.client(places=1)
    held = await post(client, provider)
    (connection,) = client._pool._open
    waiting = asyncio.create_task(call(client, provider))
    await asyncio.sleep(0)
    held.finish()
    connection.close()
    assert await waiting == (200, b"hello")
    assert len(provider.peers) == 2


async def test_a_connection_given_to_a_call_that_is_cancelled_goes_to_the_next(world):
    provider = await world.provider(SHORT)
    client = world.client(places=1)
    held = await post(client, provider)
    waiting = [asyncio.create_task(call(client, provider)) for _ in range(3)]
    await asyncio.sleep(0)
    held.finish()
    waiting[0].cancel()
    assert await asyncio.gather(*waiting[1:]) == [(200, b"hello")] * 2
    assert waiting[0].cancelled()
    assert len(provider.peers) == 1


async def test_a_place_given_to_a_call_that_is_cancelled_goes_to_the_next():
    pool, origin = Pool(1), Target.of("http://wire.example/").origin
    assert await pool.acquire(origin) is None
    waiting = [asyncio.create_task(pool.acquire(origin)) for _ in range(3)]
    await asyncio.sleep(0)
    Connection(pool, origin).close()  # one that was never made
    waiting[0].cancel()
    assert await waiting[1] is None
    assert (waiting[0].cancelled(), waiting[2].done(), pool._free_slots) == (True, False, 0)
    Connection(pool, origin).close()
    assert await waiting[2] is None
    Connection(pool, origin).close()
    assert pool._free_slots == 1


# Cancelling and closing ----------------------------------------------------------------------------------------------


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
async def test_a_call_cancelled_at_any_step_leaves_nothing(world, certificates, is_tls):
    provider = await world.provider(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", tls=certificates.server() if is_tls else None)
    client = world.client(places=1, tls=certificates.trust if is_tls else None)
    for steps in itertools.count():
        task = asyncio.create_task(call(client, provider))
        for _ in range(steps):
            await asyncio.sleep(0)
        was_done = task.done()
        await cancelled(task)
        assert places_taken(client) == len(client._pool._open)
        for connection in idle_connections(client):
            connection.close()
        await until(lambda: places_taken(client) == 0)
        if was_done:
            break
    assert steps > 3
    await until(lambda: not world.sockets())


async def test_a_call_cancelled_while_it_connects_leaves_nothing(world, deaf_port):
    before = sockets_that_connect(deaf_port)
    client = world.client(places=1)
    task = asyncio.create_task(client.post("acme", f"http://127.0.0.1:{deaf_port}/", HEADERS, BODY))
    await until(lambda: sockets_that_connect(deaf_port) > before)
    await cancelled(task)
    assert places_taken(client) == 0
    await until(lambda: sockets_that_connect(deaf_port) == before)


async def test_a_call_cancelled_in_the_tls_handshake_leaves_nothing(world, certificates):
    provider = await world.provider(saying_nothing())
    client = world.client(places=1, tls=certificates.trust)
    provider.url = provider.url.replace("http:", "https:")
    task = asyncio.create_task(post(client, provider))
    await until(lambda: provider.peers)
    await cancelled(task)
    assert places_taken(client) == 0
    await until(lambda: not world.sockets())


@pytest.mark.parametrize("wire", [b"", HALF, OK + b"\r\nhello"], ids=["head", "body", "body without a length"])
async def test_a_call_cancelled_while_it_waits_is_noticed_by_the_provider(world, wire):
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(wire)
        has_sent.set()
        await peer.until_left()
        is_left.set()

    has_sent, is_left = asyncio.Event(), asyncio.Event()
    client = world.client(places=1)
    task = asyncio.create_task(call(client, await world.provider(play)))
    await has_sent.wait()
    await cancelled(task)
    async with asyncio.timeout(1):
        await is_left.wait()
    assert places_taken(client) == 0


@pytest.mark.parametrize("wire", [b"", HALF, OK + b"\r\nhello"], ids=["head", "body", "body without a length"])
async def test_closing_ends_calls_on_their_way_as_our_fault(world, wire):
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(wire)
        has_sent.set()
        await peer.until_left()

    has_sent = asyncio.Event()
    client = world.client(places=1)
    provider = await world.provider(play)
    going = [asyncio.create_task(call(client, provider)) for _ in range(3)]
    await has_sent.wait()
    await client.close()
    assert_nothing_is_taken(client, 1)
    for task in going:
        with pytest.raises(ServiceFault, match="closed"):
            await task
    with pytest.raises(ServiceFault, match="closed"):
        await post(client, provider)
    assert len(provider.peers) == 1


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
async def test_closing_at_any_step_of_a_call_ends_it(world, certificates, is_tls):
    provider = await world.provider(SHORT, tls=certificates.server() if is_tls else None)
    for steps in itertools.count():
        client = world.client(places=1, tls=certificates.trust if is_tls else None)
        task = asyncio.create_task(call(client, provider))
        for _ in range(steps):
            await asyncio.sleep(0)
        was_done = task.done()
        await client.close()
        try:
            assert await task == (200, b"hello")
        except ServiceFault:
            assert not was_done
        assert_nothing_is_taken(client, 1)
        if was_done:
            break
    assert steps > 3


async def test_an_answer_without_a_length_that_closing_cut_off_is_not_taken_for_whole(world):
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + b"\r\nhalf")
        await peer.until_left()

    client = world.client()
    answer = await post(client, await world.provider(play))
    chunks = answer.chunks(LIMIT)
    assert await anext(chunks) == b"half"
    await client.close()
    with pytest.raises(ServiceFault, match="closed"):
        await anext(chunks)


async def test_who_is_cancelled_while_closing_tells_him_so_is_cancelled():
    pool, origin = Pool(1), Target.of("http://wire.example/").origin
    assert await pool.acquire(origin) is None
    waiting = asyncio.create_task(pool.acquire(origin))
    await asyncio.sleep(0)
    await pool.close()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    Connection(pool, origin).close()
    assert pool._free_slots == 1


async def test_closing_closes_idle_connections_and_those_that_wait_for_an_end(world):
    idle, ending = await world.provider(SHORT), await world.provider(ending_late(asyncio.Event(), b""))
    client = world.client()
    assert await call(client, idle) == (200, b"hello")
    await finished_before_its_end(client, ending)
    assert len(world.sockets()) == 2
    await client.close()
    assert_nothing_is_taken(client, 8)


# TLS -----------------------------------------------------------------------------------------------------------------


class Certificates:
    """A certificate authority of our own, and certificates of all kinds by it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Test authority")])
        authority = self._signed(self._name, self._key.public_key(), None, days=10)
        self.trust = ssl.create_default_context(
            cadata=authority.public_bytes(serialization.Encoding.PEM).decode("ascii")
        )

    def _signed(self, name: x509.Name, key: Any, host: str | None, *, days: int) -> x509.Certificate:
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=20))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )
        if host is not None:
            made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        else:
            usage = dict.fromkeys(
                ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
                 "encipher_only", "decipher_only"),
                False,
            )  # fmt: skip
            made = made.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        return made.sign(self._key, hashes.SHA256())

    def server(self, host: str = "localhost", *, days: int = 10) -> ssl.SSLContext:
        """A server's context whose certificate is for this host and ends in so many days."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
        certificate = self._signed(name, key.public_key(), host, days=days)
        file = self._folder / f"{host}{days}.pem"
        file.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(file)
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


async def test_a_call_over_tls_uses_its_connection_again(world, certificates):
    provider = await world.provider(CHUNKED + PARTS + b"\r\n", tls=certificates.server())
    client = world.client(tls=certificates.trust)
    for _ in range(3):
        assert await call(client, provider) == (200, b"hello world")
    assert len(provider.peers) == 1


async def test_answers_over_tls_end_and_break_as_others_do(world, certificates):
    context = certificates.server()
    client = world.client(tls=certificates.trust)
    assert await call(client, await world.provider(answering(OK + b"\r\nall", ends=True), tls=context)) == (200, b"all")
    with pytest.raises(UpstreamDisconnected):
        await call(client, await world.provider(answering(HALF, ends=True), tls=context))
    with pytest.raises(InvalidUpstreamResponse):
        await call(client, await world.provider(b"SSH-2.0-OpenSSH_9.2\r\n", tls=context))
    await until(lambda: places_taken(client) == 0)


@pytest.mark.parametrize(
    ("host", "days", "is_trusted", "told"),
    [
        ("other.example", 10, True, "TLS failed: Hostname mismatch"),
        ("localhost", -1, True, "TLS failed: certificate has expired"),
        ("localhost", 10, False, "TLS failed: "),
    ],
    ids=["another host's", "expired", "of an authority unknown"],
)
async def test_a_certificate_that_does_not_hold_gets_no_request(world, certificates, host, days, is_trusted, told):
    provider = await world.provider(SHORT, tls=certificates.server(host, days=days))
    client = world.client(tls=certificates.trust if is_trusted else None)
    with pytest.raises(UpstreamUnreachable, match=told):
        await call(client, provider)
    assert places_taken(client) == 0
    await until(lambda: not world.sockets())


@pytest.mark.parametrize("wire", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x28"])
async def test_a_server_that_does_not_speak_tls_is_unreachable(world, certificates, wire):
    async def play(peer: Peer) -> None:
        await peer.send(wire)
        await peer.until_left()

    provider = await world.provider(play)
    provider.url = provider.url.replace("http:", "https:")
    client = world.client(tls=certificates.trust)
    fault = await fault_of(world, provider, client)
    assert type(fault) is UpstreamUnreachable
    assert "(TLS failed" in fault.message


@pytest.mark.parametrize("is_closed", [True, False])
async def test_a_handshake_that_does_not_end_is_unreachable(world, certificates, is_closed):
    async def play(peer: Peer) -> None:
        if not is_closed:
            await peer.until_left()

    provider = await world.provider(play)
    provider.url = provider.url.replace("http:", "https:")
    client = world.client(tls=certificates.trust, connect_seconds=0.2)
    assert type(await fault_of(world, provider, client)) is UpstreamUnreachable


# Any bytes -----------------------------------------------------------------------------------------------------------


class DirectResponse(asyncio.Transport):
    """A transport whose other side is the test."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        self._is_closing = False

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


def wired(client: Http1Client) -> tuple[Connection, DirectResponse]:
    """A connection without a socket, idle in the client's pool."""
    connection = Connection(client._pool, Target.of("http://wire.example/").origin)
    client._pool._free_slots -= 1
    wire = DirectResponse(connection)
    connection.connection_made(wire)
    client._pool.release(connection)
    return connection, wire


async def spoken(parts: Iterable[bytes], *, ends: bool = True) -> tuple[int, bytes] | type[MeterError]:
    """What a call makes of an answer that comes in these parts."""
    client = Http1Client(PATIENT, max_connections=1)
    connection, wire = wired(client)
    task = asyncio.create_task(call(client, Provider(saying_nothing(), url="http://wire.example/")))
    await asyncio.sleep(0)
    for part in parts:
        if wire.is_closing():
            break
        connection.data_received(part)
        await asyncio.sleep(0)
    if ends:
        wire.end()
    try:
        return await task
    except MeterError as error:
        return type(error)
    finally:
        await client.close()
        assert_nothing_is_taken(client, 1)


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges) if start != end]


PLACES = st.lists(st.integers(0, 1 << 16), max_size=12)


@pytest.mark.parametrize("name", WHOLE)
async def test_an_answer_cut_in_two_at_any_byte_is_the_same(name):
    wire, status, body, _ = WHOLE[name]
    for place in range(1, len(wire)):
        assert await spoken(cut(wire, [place]), ends=False) == (status, body)


@pytest.mark.parametrize("name", GARBAGE)
async def test_what_is_no_answer_is_refused_when_it_comes_at_once(name):
    assert await spoken([GARBAGE[name]]) is InvalidUpstreamResponse


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(WHOLE)), places=PLACES)
async def test_an_answer_cut_anywhere_is_the_same(name, places):
    wire, status, body, _ = WHOLE[name]
    assert await spoken(cut(wire, places)) == (status, body)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(GARBAGE)), places=PLACES)
async def test_what_is_no_answer_is_refused_however_it_is_cut(name, places):
    assert await spoken(cut(GARBAGE[name], places)) is InvalidUpstreamResponse


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(CUT_SHORT)), places=PLACES)
async def test_an_answer_cut_short_is_broken_however_it_is_cut(name, places):
    assert await spoken(cut(CUT_SHORT[name], places)) is UpstreamDisconnected


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(
        st.binary(max_size=40)
        | st.sampled_from(
            (OK, CHUNKED, SHORT, PARTS, b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"Content-Length: 3\r\n", b"X: \r\n")
        ),
        max_size=10,
    )
)
async def test_any_bytes_end_in_an_answer_or_an_error_of_the_tree(parts):
    outcome = await spoken(parts)
    assert isinstance(outcome, tuple) or issubclass(outcome, UpstreamFault)


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(sorted(WHOLE)),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(max_size=3)), min_size=1, max_size=3),
    places=PLACES,
)
async def test_a_damaged_answer_ends_in_an_answer_or_an_error_of_the_tree(name, changes, places):
    data = WHOLE[name][0]
    for place, change in changes:
        at = place % len(data)
        data = data[:at] + change + data[at + 1 :]
    outcome = await spoken(cut(data, places))
    assert isinstance(outcome, tuple) or issubclass(outcome, UpstreamFault)


async def test_a_connection_that_is_closing_is_not_used_though_it_is_still_there(world):
    provider = await world.provider(SHORT)
    client = world.client(places=2)
    _, wire = wired(client)
    provider.url = "http://wire.example/"
    wire.end()
    assert len(idle_connections(client)) == 1
    assert client._pool.take_idle(Target.of(provider.url).origin) is None


async def test_a_connection_closed_before_the_request_was_not_called():
    client = Http1Client(PATIENT, max_connections=1)
    connection, wire = wired(client)
    wire.end()
    with pytest.raises(UpstreamUnreachable, match="before the request"):
        connection.send("acme", b"POST / HTTP/1.1\r\n\r\n", b"", 1.0)
    await client.close()
    assert_nothing_is_taken(client, 1)


async def test_a_connection_that_ended_badly_is_never_idle_however_whole_its_answer_was():
    client = Http1Client(PATIENT, max_connections=1)
    connection, wire = wired(client)
    task = asyncio.create_task(call(client, Provider(saying_nothing(), url="http://wire.example/")))
    await asyncio.sleep(0)
    connection.data_received(SHORT)
    connection.data_received(b"junk")
    assert await task == (200, b"hello")
    assert wire.is_closing()
    assert idle_connections(client) == []
    await client.close()
    assert_nothing_is_taken(client, 1)


async def test_an_answer_that_timed_out_and_is_then_finished_is_closed_at_once():
    client = Http1Client(Timeouts(idle_seconds=0.01), max_connections=1)
    connection, wire = wired(client)
    task = asyncio.create_task(client.post("acme", "http://wire.example/", HEADERS, BODY))
    await asyncio.sleep(0)
    connection.data_received(HALF)
    answer = await task
    with pytest.raises(UpstreamTimedOut):
        await answer.read(LIMIT)
    assert not wire.is_closing()
    answer.finish()
    assert wire.is_closing()
    await client.close()
    assert_nothing_is_taken(client, 1)


async def test_a_connection_that_is_made_after_it_was_given_up_is_closed():
    client = Http1Client(PATIENT, max_connections=1)
    client._pool._free_slots -= 1
    connection = Connection(client._pool, Target.of("http://wire.example/").origin)
    connection.discard()
    wire = DirectResponse(connection)
    connection.connection_made(wire)
    assert wire.is_closing()
    await asyncio.sleep(0)
    assert_nothing_is_taken(client, 1)


async def test_a_connection_that_began_to_close_before_its_answer_was_finished_is_not_kept():
    client = Http1Client(PATIENT, max_connections=1)
    connection, wire = wired(client)
    task = asyncio.create_task(client.post("acme", "http://wire.example/", HEADERS, BODY))
    await asyncio.sleep(0)
    connection.data_received(SHORT)
    answer = await task
    wire.end()
    answer.finish()
    assert idle_connections(client) == []
    await client.close()
    assert_nothing_is_taken(client, 1)
