"""One connection: what is a response, where it ends, and whether the connection is reused."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from tests.http.client.responses import CHUNKED, HALF, INVALID, INVALID_BODY, OK, SHORT, TOO_SHORT, UNTIL_CLOSED, WHOLE
from tests.http.client.scripted_server import (
    BODY,
    HEADERS,
    LIMIT,
    MEGABYTE,
    PATIENT,
    MemoryTransport,
    Peer,
    Provider,
    assert_nothing_is_left,
    call,
    connection_in_memory,
    ending_late,
    fault_of,
    finish_early,
    idle_connections,
    post,
    responding,
    silent,
    slots_taken,
    until,
)

from mcpmeter.errors import InvalidUpstreamResponse, UpstreamDisconnected, UpstreamFault, UpstreamUnreachable
from mcpmeter.http.client import MAX_BUFFERED_BYTES, Connection, Http1Client, Target
from mcpmeter.http.client import connection as connections
from mcpmeter.http.framing import MAX_HEADER_BYTES


async def test_a_request_left_unread_costs_its_connection(network):
    async def script(peer: Peer) -> None:
        await peer._reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        await asyncio.Event().wait() if len(provider.peers) == 1 else None

    provider = await network.provider(script)
    client = network.client()
    response = await client.post("acme", provider.url, HEADERS, b"x" * 32 * MEGABYTE)
    assert (response.status, await response.read(LIMIT)) == (413, b"")
    response.finish()
    assert idle_connections(client) == []
    assert (await post(client, provider)).status == 413
    assert len(provider.peers) == 2


@pytest.mark.parametrize("name", WHOLE)
async def test_a_response_is_read_and_its_connection_reused(network, name):
    wire, status, body, is_reused = WHOLE[name]
    provider = await network.provider(wire)
    client = network.client()
    for _ in range(3):
        assert await call(client, provider) == (status, body)
    assert len(provider.peers) == (1 if is_reused else 3)
    await until(lambda: slots_taken(client) == is_reused)


@pytest.mark.parametrize("name", UNTIL_CLOSED)
async def test_a_response_without_a_length_ends_at_close(network, name):
    wire, body = UNTIL_CLOSED[name]
    provider = await network.provider(responding(wire, ends=True))
    client = network.client()
    assert await call(client, provider) == (200, body)
    assert slots_taken(client) == 0


async def test_a_reset_does_not_end_a_response_without_a_length(network):
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + b"\r\nhalf")
        await may_reset.wait()
        peer.reset()

    may_reset = asyncio.Event()
    provider = await network.provider(script)
    response = await post(network.client(), provider)
    chunks = response.chunks(LIMIT)
    assert await anext(chunks) == b"half"
    may_reset.set()
    with pytest.raises(UpstreamDisconnected):
        await anext(chunks)
    response.abort()


@pytest.mark.parametrize("wire", [SHORT, CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", b"HTTP/1.1 204 No\r\n\r\n"])
@pytest.mark.parametrize("more", [b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"\0" * 100_000, b"HTTP"])
async def test_bytes_after_a_response_cost_its_connection(network, wire, more):
    provider = await network.provider(wire + more)
    client = network.client()
    for _ in range(3):
        status, body = await call(client, provider)
        assert (status, body) in ((200, b"hello"), (204, b""))
        await until(lambda: not idle_connections(client))
    assert len(provider.peers) == 3


async def test_headers_keep_their_bytes_and_are_joined(network):
    provider = await network.provider(
        OK + b"X-Raw: \xff\xfe Z\xc3\xbcrich\r\nX-Two: a\r\nx-two:b \r\nX-Empty:\r\nContent-Length: 0\r\n\r\n"
    )
    response = await post(network.client(), provider)
    response.finish()
    assert response.headers["x-raw"].encode("latin-1") == b"\xff\xfe Z\xc3\xbcrich"
    assert (response.headers["x-two"], response.headers["x-empty"]) == ("a, b", "")


async def test_interim_headers_and_trailers_are_dropped(network):
    provider = await network.provider(
        b"HTTP/1.1 103 Early Hints\r\nX-Hint: 1\r\n\r\n" + CHUNKED + b"2\r\nhi\r\n0\r\nX-Trailer: 1\r\n\r\n"
    )
    response = await post(network.client(), provider)
    assert await response.read(LIMIT) == b"hi"
    response.finish()
    assert dict(response.headers) == {"transfer-encoding": "chunked"}


async def test_a_later_response_leaves_earlier_headers_alone(network):
    provider = await network.provider(responding(OK + b"X-A: 1\r\nContent-Length: 0\r\n\r\n", SHORT))
    client = network.client()
    first = await post(client, provider)
    first.finish()
    assert await call(client, provider) == (200, b"hello")
    assert (first.status, dict(first.headers)) == (200, {"x-a": "1", "content-length": "0"})


@pytest.mark.parametrize("first", [name for name, (*_, is_reused) in WHOLE.items() if is_reused])
async def test_a_response_leaves_nothing_to_the_next(first):
    client = Http1Client(PATIENT, max_connections=1)
    connection, wire = connection_in_memory(client)
    provider = Provider(silent(), url="http://wire.example/")
    for name, (response, status, body, is_reused) in WHOLE.items():
        if not is_reused:
            continue
        for sent in (WHOLE[first][0], response):
            assert idle_connections(client) == [connection], name
            task = asyncio.create_task(post(client, provider))
            await asyncio.sleep(0)
            wire.receive(sent)
            received = await task
            read = await received.read(LIMIT)
            received.finish()
        assert (received.status, read, dict(received.headers)) == (status, body, await headers_alone(response))
    assert not wire.is_closing()
    await client.close()
    assert_nothing_is_left(client, 1)


async def headers_alone(sent: bytes) -> dict[str, str]:
    """An response's headers on a connection of its own."""
    client = Http1Client(PATIENT, max_connections=1)
    _, wire = connection_in_memory(client)
    task = asyncio.create_task(post(client, Provider(silent(), url="http://wire.example/")))
    await asyncio.sleep(0)
    wire.receive(sent)
    received = await task
    received.finish()
    await client.close()
    return dict(received.headers)


@pytest.mark.parametrize("name", INVALID)
async def test_an_invalid_response_is_refused(network, name):
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(INVALID[name])
        await peer.until_closed()

    assert type(await fault_of(network, await network.provider(script))) is InvalidUpstreamResponse


@pytest.mark.parametrize("name", INVALID_BODY)
async def test_an_invalid_body_is_refused_after_its_good_part(network, name):
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"3\r\nhi,\r\n")
        await may_go_on.wait()
        await peer.send(INVALID_BODY[name])
        await peer.until_closed()

    may_go_on = asyncio.Event()
    response = await post(network.client(), await network.provider(script))
    chunks = response.chunks(LIMIT)
    assert await anext(chunks) == b"hi,"
    may_go_on.set()
    with pytest.raises(InvalidUpstreamResponse):
        await response.read(LIMIT)
    response.abort()
    await until(lambda: not network.sockets())


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("name", TOO_SHORT)
async def test_a_response_cut_short_is_a_disconnect(network, name, is_reset):
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(TOO_SHORT[name])
        if is_reset:
            peer.reset()

    assert type(await fault_of(network, await network.provider(script))) is UpstreamDisconnected


async def test_headers_just_below_the_limit_are_read(network):
    long = b"a" * (MAX_HEADER_BYTES - 1000)
    provider = await network.provider(OK + b"X-A: " + long + b"\r\nContent-Length: 2\r\n\r\nhi")
    assert await call(network.client(), provider) == (200, b"hi")


async def test_many_tiny_chunks_are_no_flood(network):
    tiny = b"1;ext=12345\r\na\r\n"
    provider = await network.provider(CHUNKED + tiny * 20_000 + b"0\r\n\r\n")
    assert await call(network.client(), provider) == (200, b"a" * 20_000)


async def test_a_server_that_sends_first_gets_no_second_call(network):
    async def script(peer: Peer) -> None:
        await peer.send(SHORT)
        await peer.until_closed()

    client = network.client()
    provider = await network.provider(script)
    with contextlib.suppress(UpstreamFault):
        # Bytes that precede the request look like a fast response; only the first call may read them.
        assert await call(client, provider) == (200, b"hello")
    await until(lambda: idle_connections(client) or slots_taken(client) == 0)
    assert len(provider.peers) == 1


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
async def test_a_slow_reader_pauses_the_provider(network, certificates, is_tls):
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + b"Content-Length: %d\r\n\r\n" % (100 * MEGABYTE))
        for _ in range(100):
            await peer.send(b"x" * MEGABYTE)
        await peer.request()

    provider = await network.provider(script, tls=certificates.server() if is_tls else None)
    client = network.client(tls=certificates.trust if is_tls else None)
    response = await post(client, provider)
    (connection,) = client._pool._open
    await until(lambda: connection._is_paused)
    sent_bytes = -1
    while sent_bytes < provider.peers[0].sent_bytes:  # until the kernel's buffers are full too
        sent_bytes = provider.peers[0].sent_bytes
        await asyncio.sleep(0.05)
    assert MAX_BUFFERED_BYTES < connection._buffered_bytes < 4 * MAX_BUFFERED_BYTES
    assert sent_bytes < 50 * MEGABYTE
    total = 0
    async for part in response.chunks(200 * MEGABYTE):
        total += len(part)
        assert len(part) < 4 * MAX_BUFFERED_BYTES
    assert total == 100 * MEGABYTE
    response.finish()
    assert len(idle_connections(client)) == 1


async def test_a_stream_finished_early_returns_its_connection(network):
    may_end = asyncio.Event()
    provider = await network.provider(ending_late(may_end, b"3\r\nend\r\n0\r\nX-A: 1\r\n\r\n"))
    client = network.client()
    for _ in range(3):
        may_end.clear()
        await finish_early(client, provider)
        may_end.set()
        await until(lambda: idle_connections(client))
    assert len(provider.peers) == 1


@pytest.mark.parametrize("end", [b"0\r\n\r\n" + SHORT, b"junk", b"0\r\n\r\nHTTP"])
async def test_a_finished_stream_with_a_bad_end_is_closed(network, end):
    may_end = asyncio.Event()
    client = network.client()
    await finish_early(client, await network.provider(ending_late(may_end, end)))
    may_end.set()
    await until(lambda: slots_taken(client) == 0)


async def test_a_finished_stream_without_an_end_is_closed(network, monkeypatch):
    monkeypatch.setattr(connections, "FINISH_SECONDS", 0.05)
    client = network.client()
    await finish_early(client, await network.provider(ending_late(asyncio.Event(), b"")))
    await until(lambda: slots_taken(client) == 0)
    await until(lambda: not network.sockets())


async def test_a_paused_stream_finished_early_is_reused(network):
    wire = OK + b"Content-Length: %d\r\n\r\n" % (2 * MEGABYTE) + b"x" * 2 * MEGABYTE
    provider = await network.provider(wire)
    client = network.client()
    for _ in range(2):
        response = await post(client, provider)
        await until(lambda: next(iter(client._pool._open))._is_paused)
        response.finish()
        await until(lambda: idle_connections(client))
    (connection,) = idle_connections(client)
    assert len(provider.peers) == 1
    assert (connection._parts, connection._buffered_bytes, connection._is_paused) == ([], 0, False)


async def test_an_unread_response_does_not_block_the_next(network):
    wire = OK + b"Content-Length: %d\r\n\r\n" % (2 * MAX_BUFFERED_BYTES) + b"x" * 2 * MAX_BUFFERED_BYTES
    provider = await network.provider(responding(wire, SHORT))
    client = network.client()
    response = await post(client, provider)
    (connection,) = client._pool._open
    await until(lambda: connection._is_paused or connection.is_complete)
    response.finish()
    await until(lambda: idle_connections(client))
    assert await call(client, provider) == (200, b"hello")
    assert len(provider.peers) == 1


@pytest.mark.parametrize("wire", [SHORT, HALF, OK + b"\r\nhello", CHUNKED + b"5\r\nhello\r\n"])
@pytest.mark.parametrize("taken", [0, 1])
@pytest.mark.parametrize("end", ["finish", "abort", "finish, abort", "abort, finish"])
@pytest.mark.parametrize("is_lost", [False, True])
async def test_every_way_to_leave_a_response_frees_its_slot(network, monkeypatch, wire, taken, end, is_lost):
    monkeypatch.setattr(connections, "FINISH_SECONDS", 0.01)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(wire)
        if not is_lost:
            await peer.until_closed()

    client = network.client(slots=1)
    response = await post(client, await network.provider(script))
    if taken:
        assert await anext(response.chunks(LIMIT)) == b"hello"
    if is_lost:
        await until(lambda: not client._pool._open)
    for step in end.split(", "):
        getattr(response, step)()
    await until(lambda: slots_taken(client) == len(idle_connections(client)))
    assert idle_connections(client) == [] or (wire, is_lost, end[:6]) == (SHORT, False, "finish")


async def test_a_request_on_a_closed_connection_is_unreachable():
    client = Http1Client(PATIENT, max_connections=1)
    connection, wire = connection_in_memory(client)
    wire.end()
    with pytest.raises(UpstreamUnreachable, match="before the request"):
        connection.send("acme", b"POST / HTTP/1.1\r\n\r\n", b"", 1.0)
    await client.close()
    assert_nothing_is_left(client, 1)


async def test_junk_behind_a_whole_response_costs_its_connection():
    client = Http1Client(PATIENT, max_connections=1)
    _connection, wire = connection_in_memory(client)
    task = asyncio.create_task(call(client, Provider(silent(), url="http://wire.example/")))
    await asyncio.sleep(0)
    wire.receive(SHORT)
    wire.receive(b"junk")
    assert await task == (200, b"hello")
    assert wire.is_closing()
    assert idle_connections(client) == []
    await client.close()
    assert_nothing_is_left(client, 1)


async def test_a_connection_made_after_its_discard_is_closed():
    client = Http1Client(PATIENT, max_connections=1)
    client._pool._free_slots -= 1
    connection = Connection(client._pool, Target.of("http://wire.example/").origin)
    connection.discard()
    wire = MemoryTransport(connection)
    connection.connection_made(wire)
    assert wire.is_closing()
    await asyncio.sleep(0)
    assert_nothing_is_left(client, 1)


async def test_a_closing_connection_is_not_kept():
    client = Http1Client(PATIENT, max_connections=1)
    _connection, wire = connection_in_memory(client)
    task = asyncio.create_task(client.post("acme", "http://wire.example/", HEADERS, BODY))
    await asyncio.sleep(0)
    wire.receive(SHORT)
    response = await task
    wire.end()
    response.finish()
    assert idle_connections(client) == []
    await client.close()
    assert_nothing_is_left(client, 1)


@pytest.mark.parametrize("size", [1, 5, 48 * 1024, 1 << 20])
async def test_a_peek_leaves_the_body(network, size):
    body = b"x" * 100_000
    provider = await network.provider(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + body)
    response = await post(network.client(), provider)
    start = await response.peek(size)
    assert min(size, 64 * 1024) <= len(start) <= len(body)
    assert await response.read(LIMIT) == body


async def test_a_pipe_that_ends_early_leaves_the_rest(network):
    provider = await network.provider(WHOLE["chunked"][0])
    response = await post(network.client(), provider)
    await response.peek(1 << 20)
    parts: list[bytes] = []
    await response.pipe(lambda part: bool(parts.append(part)), LIMIT)
    assert parts[0] + await response.read(LIMIT) == WHOLE["chunked"][2]
