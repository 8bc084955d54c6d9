"""Every wait has a deadline with an error of its own."""

from __future__ import annotations

import asyncio

import pytest
from tests.http.client.responses import CHUNKED, HALF, OK, SHORT
from tests.http.client.scripted_server import (
    BODY,
    HEADERS,
    LIMIT,
    Peer,
    assert_nothing_is_left,
    call,
    connection_in_memory,
    fault_of,
    post,
    slots_taken,
    sockets_that_connect,
    until,
)

from mcpmeter.errors import InvalidUpstreamResponse, Overloaded, UpstreamTimedOut, UpstreamUnreachable
from mcpmeter.http.client import Http1Client
from mcpmeter.http.client.interface import Timeouts


async def test_connect_timeout(network, deaf_port):
    client = network.client(connect_seconds=0.1)
    before = sockets_that_connect(deaf_port)  # the fillers
    with pytest.raises(UpstreamUnreachable, match="no connection in time"):
        await client.post("acme", f"http://127.0.0.1:{deaf_port}/", HEADERS, BODY)
    assert slots_taken(client) == 0
    await until(lambda: sockets_that_connect(deaf_port) == before)


async def test_waiting_too_long_for_a_slot_is_overload(network):
    client = network.client(slots=1, connect_seconds=0.1)
    provider = await network.provider(SHORT)
    held = await post(client, provider)
    with pytest.raises(Overloaded, match=r"all 1 connections were in use for 0\.1 s.*max_connections"):
        await post(client, provider)
    held.finish()
    assert await call(client, provider) == (200, b"hello")


SLOW: dict[str, tuple[bytes, dict[str, float], str]] = {
    "no head": (b"", {"first_byte_seconds": 0.1}, "sent nothing in time"),
    "half a head": (OK + b"X-A: 1\r\n", {"first_byte_seconds": 0.1}, "sent nothing in time"),
    "hints alone": (b"HTTP/1.1 100 Continue\r\n\r\n", {"first_byte_seconds": 0.1}, "sent nothing in time"),
    "half a body": (HALF, {"idle_seconds": 0.1}, "between two parts"),
    "no end": (CHUNKED + b"2\r\nhi\r\n", {"idle_seconds": 0.1}, "between two parts"),
    "no head in all the time": (b"", {"total_seconds": 0.1}, "did not end its response"),
    "no body in all the time": (HALF, {"total_seconds": 0.1}, "did not end its response"),
}


@pytest.mark.parametrize("name", SLOW)
async def test_a_silent_provider_times_out(network, name):
    wire, times, message = SLOW[name]

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(wire)
        await peer.until_closed()

    fault = await fault_of(network, await network.provider(script), network.client(**times))
    assert type(fault) is UpstreamTimedOut
    assert message in fault.message


@pytest.mark.parametrize("part", [b"1\r\na\r\n", b"HTTP/1.1 103 Hi\r\n\r\n", b"1;a"], ids=["parts", "hints", "noise"])
async def test_a_provider_that_drips_forever_times_out(network, part):
    async def script(peer: Peer) -> None:
        await peer.request()
        if part.startswith(b"1"):
            await peer.send(CHUNKED)
        while True:
            await peer.send(part)
            await asyncio.sleep(0.02)

    client = network.client(first_byte_seconds=0.15, total_seconds=0.15)
    assert type(await fault_of(network, await network.provider(script), client)) in (
        UpstreamTimedOut,
        InvalidUpstreamResponse,
    )


async def test_a_slow_reader_is_not_timed(network):
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"3\r\none\r\n")
        await has_read.wait()
        await peer.send(b"3\r\ntwo\r\n0\r\n\r\n")

    has_read = asyncio.Event()
    client = network.client(first_byte_seconds=0.2, idle_seconds=0.2, total_seconds=0.25)
    response = await post(client, await network.provider(script))
    chunks = response.chunks(LIMIT)
    assert await anext(chunks) == b"one"
    await asyncio.sleep(0.3)
    has_read.set()
    assert await anext(chunks) == b"two"
    await asyncio.sleep(0.3)
    assert [part async for part in chunks] == []
    response.finish()


async def test_a_response_finished_after_a_timeout_is_closed():
    client = Http1Client(Timeouts(idle_seconds=0.01), max_connections=1)
    _connection, wire = connection_in_memory(client)
    task = asyncio.create_task(client.post("acme", "http://wire.example/", HEADERS, BODY))
    await asyncio.sleep(0)
    wire.receive(HALF)
    response = await task
    with pytest.raises(UpstreamTimedOut):
        await response.read(LIMIT)
    assert not wire.is_closing()
    response.finish()
    assert wire.is_closing()
    await client.close()
    assert_nothing_is_left(client, 1)
