"""Calls that are cancelled, and a client that is closed, leave nothing."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from tests.http.client.responses import CHUNKED, HALF, OK, SHORT
from tests.http.client.scripted_server import (
    BODY,
    HEADERS,
    LIMIT,
    Peer,
    assert_nothing_is_left,
    call,
    cancel,
    ending_late,
    finish_early,
    idle_connections,
    post,
    silent,
    slots_taken,
    sockets_that_connect,
    until,
)

from mcpmeter.errors import ServiceFault
from mcpmeter.http.client import Connection, Pool, Target


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
async def test_a_call_cancelled_at_any_step_leaves_nothing(network, certificates, is_tls):
    provider = await network.provider(
        CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", tls=certificates.server() if is_tls else None
    )
    client = network.client(slots=1, tls=certificates.trust if is_tls else None)
    for steps in itertools.count():
        task = asyncio.create_task(call(client, provider))
        for _ in range(steps):
            await asyncio.sleep(0)
        was_done = task.done()
        await cancel(task)
        assert slots_taken(client) == len(client._pool._open)
        for connection in idle_connections(client):
            connection.close()
        await until(lambda: slots_taken(client) == 0)
        if was_done:
            break
    assert steps > 3
    await until(lambda: not network.sockets())


async def test_a_call_cancelled_while_connecting_leaves_nothing(network, deaf_port):
    before = sockets_that_connect(deaf_port)
    client = network.client(slots=1)
    task = asyncio.create_task(client.post("acme", f"http://127.0.0.1:{deaf_port}/", HEADERS, BODY))
    await until(lambda: sockets_that_connect(deaf_port) > before)
    await cancel(task)
    assert slots_taken(client) == 0
    await until(lambda: sockets_that_connect(deaf_port) == before)


async def test_a_call_cancelled_in_a_handshake_leaves_nothing(network, certificates):
    provider = await network.provider(silent())
    client = network.client(slots=1, tls=certificates.trust)
    provider.url = provider.url.replace("http:", "https:")
    task = asyncio.create_task(post(client, provider))
    await until(lambda: provider.peers)
    await cancel(task)
    assert slots_taken(client) == 0
    await until(lambda: not network.sockets())


@pytest.mark.parametrize("wire", [b"", HALF, OK + b"\r\nhello"], ids=["head", "body", "body without a length"])
async def test_a_provider_notices_a_cancelled_call(network, wire):
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(wire)
        has_sent.set()
        await peer.until_closed()
        is_left.set()

    has_sent, is_left = asyncio.Event(), asyncio.Event()
    client = network.client(slots=1)
    task = asyncio.create_task(call(client, await network.provider(script)))
    await has_sent.wait()
    await cancel(task)
    async with asyncio.timeout(120):
        await is_left.wait()
    assert slots_taken(client) == 0


@pytest.mark.parametrize("wire", [b"", HALF, OK + b"\r\nhello"], ids=["head", "body", "body without a length"])
async def test_closing_ends_calls_in_flight_as_our_fault(network, wire):
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(wire)
        has_sent.set()
        await peer.until_closed()

    has_sent = asyncio.Event()
    client = network.client(slots=1)
    provider = await network.provider(script)
    going = [asyncio.create_task(call(client, provider)) for _ in range(3)]
    await has_sent.wait()
    await client.close()
    assert_nothing_is_left(client, 1)
    for task in going:
        with pytest.raises(ServiceFault, match="closed"):
            await task
    with pytest.raises(ServiceFault, match="closed"):
        await post(client, provider)
    assert len(provider.peers) == 1


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
async def test_closing_at_any_step_of_a_call_ends_it(network, certificates, is_tls):
    provider = await network.provider(SHORT, tls=certificates.server() if is_tls else None)
    for steps in itertools.count():
        client = network.client(slots=1, tls=certificates.trust if is_tls else None)
        task = asyncio.create_task(call(client, provider))
        for _ in range(steps):
            await asyncio.sleep(0)
        was_done = task.done()
        await client.close()
        try:
            assert await task == (200, b"hello")
        except ServiceFault:
            assert not was_done
        assert_nothing_is_left(client, 1)
        if was_done:
            break
    assert steps > 3


async def test_closing_does_not_end_a_response_without_a_length(network):
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK + b"\r\nhalf")
        await peer.until_closed()

    client = network.client()
    response = await post(client, await network.provider(script))
    chunks = response.chunks(LIMIT)
    assert await anext(chunks) == b"half"
    await client.close()
    with pytest.raises(ServiceFault, match="closed"):
        await anext(chunks)


async def test_a_cancelled_request_stays_cancelled_when_closing():
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


async def test_closing_closes_idle_and_finishing_connections(network):
    idle, ending = await network.provider(SHORT), await network.provider(ending_late(asyncio.Event(), b""))
    client = network.client()
    assert await call(client, idle) == (200, b"hello")
    await finish_early(client, ending)
    assert len(network.sockets()) == 2
    await client.close()
    assert_nothing_is_left(client, 8)
