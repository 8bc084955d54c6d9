"""Reuse, slots and the order of waiting requests."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from tests.http.client.responses import HALF, OK, SHORT
from tests.http.client.scripted_server import (
    Peer,
    Provider,
    call,
    connection_in_memory,
    idle_connections,
    post,
    responding,
    slots_taken,
    until,
)

from mcpmeter.errors import UpstreamDisconnected
from mcpmeter.http.client import Connection, Pool, Target
from mcpmeter.http.client.pool import READS_PER_ROUND


async def test_the_last_used_connection_is_reused_first(network, monkeypatch):
    provider = await network.provider(SHORT)
    client = network.client()
    responses = [await post(client, provider) for _ in range(3)]
    for response in responses:
        response.finish()
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


async def test_a_connection_closed_while_idle_loses_no_call(network):
    provider = await network.provider(responding(SHORT, ends=True))
    client = network.client()
    for _ in range(3):
        assert await call(client, provider) == (200, b"hello")
        await until(lambda: not idle_connections(client))
    assert slots_taken(client) == 0


async def test_bytes_on_an_idle_connection_close_it(network):
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(SHORT)
        await may_speak.wait()
        await peer.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        await peer.until_closed()

    may_speak = asyncio.Event()
    provider = await network.provider(script)
    client = network.client()
    assert await call(client, provider) == (200, b"hello")
    may_speak.set()
    await until(lambda: not idle_connections(client))
    assert await call(client, provider) == (200, b"hello")
    assert len(provider.peers) == 2


@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_sent_request_is_never_sent_twice(network, is_reset):
    repeated = 0

    async def script(peer: Peer) -> None:
        nonlocal repeated
        await peer.request()
        await peer.send(SHORT)
        await peer.request()
        repeated += 1
        if is_reset:
            peer.reset()

    provider = await network.provider(script)
    client = network.client()
    assert await call(client, provider) == (200, b"hello")
    with pytest.raises(UpstreamDisconnected):
        await call(client, provider)
    assert (repeated, len(provider.peers)) == (1, 1)


async def test_there_are_never_more_connections_than_slots(network):
    provider = await network.provider(SHORT)
    client = network.client(slots=3)
    assert await asyncio.gather(*(call(client, provider) for _ in range(20))) == [(200, b"hello")] * 20
    assert (provider.open_most, len(provider.peers), slots_taken(client)) == (3, 3, 3)


async def test_origins_share_slots_however_connections_end(network):
    closing = await network.provider(OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello")
    staying, breaking = await network.provider(SHORT), await network.provider(responding(HALF, ends=True))
    client = network.client(slots=2)

    async def outcome(provider: Provider) -> object:
        try:
            return await call(client, provider)
        except UpstreamDisconnected:
            return None

    got = await asyncio.gather(*(outcome(provider) for _ in range(10) for provider in (closing, staying, breaking)))
    assert got == [(200, b"hello"), (200, b"hello"), None] * 10
    assert len(network.sockets()) <= 2


async def test_an_idle_connection_gives_way_to_another_origin(network):
    here, there = await network.provider(SHORT), await network.provider(SHORT)
    client = network.client(slots=1)
    for provider in (here, there, here):
        assert await call(client, provider) == (200, b"hello")
    assert (len(here.peers), len(there.peers)) == (2, 1)
    await until(lambda: here.open_now + there.open_now == 1)


async def test_waiting_requests_are_served_in_order(network):
    order: list[str] = []
    here, there = await network.provider(SHORT), await network.provider(SHORT)
    client = network.client(slots=1)
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


async def test_a_waiting_request_gets_the_released_connection(network):
    provider = await network.provider(SHORT)
    client = network.client(slots=1)
    held = await post(client, provider)
    waiting = asyncio.create_task(call(client, provider))
    await asyncio.sleep(0)
    held.finish()
    assert await waiting == (200, b"hello")
    assert len(provider.peers) == 1


async def test_a_connection_lost_in_handover_loses_no_call(network):
    provider = await network.provider(SHORT)
    client = network.client(slots=1)
    held = await post(client, provider)
    (connection,) = client._pool._open
    waiting = asyncio.create_task(call(client, provider))
    await asyncio.sleep(0)
    held.finish()
    connection.close()
    assert await waiting == (200, b"hello")
    assert len(provider.peers) == 2


async def test_a_cancelled_call_passes_its_connection_on(network):
    provider = await network.provider(SHORT)
    client = network.client(slots=1)
    held = await post(client, provider)
    waiting = [asyncio.create_task(call(client, provider)) for _ in range(3)]
    await asyncio.sleep(0)
    held.finish()
    waiting[0].cancel()
    assert await asyncio.gather(*waiting[1:]) == [(200, b"hello")] * 2
    assert waiting[0].cancelled()
    assert len(provider.peers) == 1


async def test_a_cancelled_call_passes_its_slot_on():
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


async def test_a_closing_connection_is_not_reused(network):
    provider = await network.provider(SHORT)
    client = network.client(slots=2)
    _, wire = connection_in_memory(client)
    provider.url = "http://wire.example/"
    wire.end()
    assert len(idle_connections(client)) == 1
    assert client._pool.take_idle(Target.of(provider.url).origin) is None


async def test_in_each_round_few_connections_read_on_and_all_in_order():
    pool, read, counts = Pool(1), [], [0]

    class Reader:
        def __init__(self, reads: int) -> None:
            self.reads_left = reads

        def read_on(self) -> None:
            read.append(self)
            self.reads_left -= 1
            if self.reads_left:
                pool.read_in_turn(self)

    readers = [Reader(reads=2) for _ in range(100)]
    for reader in readers:
        pool.read_in_turn(reader)
    async with asyncio.timeout(10):
        while len(read) < 200:
            await asyncio.sleep(0)
            counts.append(len(read))
    assert max(after - before for before, after in pairwise(counts)) == READS_PER_ROUND
    assert read == readers * 2
