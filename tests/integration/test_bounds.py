"""What clients get above a limit: on connections, calls, memory, sessions and time."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.integration.conftest import chat_body

from mcpmeter.access.keys import new_key
from mcpmeter.config import KeySettings

CHAT = "/v1/chat/completions"
HEALTH = b"GET %b HTTP/1.1\r\nhost: localhost\r\n\r\n"
POST = b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
SLOW = "latency_ms=60000"
KEY, _ = new_key("backend", "search", 0)
OTHER_KEY, _ = new_key("other", "search", 0)
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}
MCP = {"content-type": "application/json", "accept": "application/json, text/event-stream"}

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def reached(relay: Any) -> dict[str, int]:
    """The limits that were reached, and how often."""
    cells = relay.service.recorder.families["mcp_limit_reached_total"].cells
    return {limit: cell.value for (limit,), cell in cells.items() if cell.value}


async def opened(relay: Any, sent: bytes = b"") -> Streams:
    reader, writer = await asyncio.open_connection(*relay.address)
    writer.write(sent)
    return reader, writer


async def calls_in_progress(relay: Any, count: int, key: str | None = None) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.ensure_future(relay.chat(SLOW, key=key)) for _ in range(count)]
    await relay.until(lambda: len(relay.service.pipeline.active_calls) >= count)
    return tasks


async def end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nhost: local", b"\r\n"],
    ids=["silent", "line", "headers", "blank"],
)
async def test_a_connection_without_a_whole_request_is_closed(start_relay, sent):
    relay = await start_relay(server={"timeouts": {"headers_seconds": 0.2}})
    reader, writer = await opened(relay, sent)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


@pytest.mark.parametrize("path", [CHAT, "/health", "/mcp", "/nowhere"])
async def test_a_body_that_stalls_ends_its_connection(start_relay, path):
    relay = await start_relay(server={"timeouts": {"body_seconds": 0.2}})
    head = POST.replace(
        b"\r\n\r\n", b"\r\ncontent-type: application/json\r\naccept: application/json, text/event-stream\r\n\r\n"
    )
    reader, writer = await opened(relay, head % (path.encode(), 500) + b"{")
    received = b""
    try:
        received = await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        assert path in ("/health", "/nowhere")  # answered before the body ended
    assert b"408" in received.partition(b"\r\n")[0] or path in ("/health", "/nowhere")
    writer.close()
    await relay.until_idle()


async def test_a_whole_response_left_unread_ends_its_connection(start_relay):
    relay = await start_relay(server={"timeouts": {"response_seconds": 0.2}})
    body = json.dumps(chat_body("huge_mb=16")).encode()
    _, writer = await opened(relay, POST % (CHAT.encode(), len(body)) + body)
    writer.transport.pause_reading()
    connections = relay.service.bounds.connections._by_address
    await relay.until(lambda: bool(relay.rows()))
    await relay.until(lambda: not connections)
    assert relay.rows()[0].outcome == "ok"
    assert relay.service.bounds.memory.unread.held_bytes == 0
    writer.transport.abort()


async def test_a_streams_total_timeout_holds_for_a_client_that_reads_nothing(start_relay):
    seconds = dict.fromkeys(("connect_seconds", "first_byte_seconds", "idle_seconds", "total_seconds"), 0.5)
    relay = await start_relay(relay={"timeouts": seconds})
    body = json.dumps(chat_body("drip_bytes_per_second=2000", stream=True)).encode()
    _, writer = await opened(relay, POST % (CHAT.encode(), len(body)) + body)
    writer.transport.pause_reading()
    await relay.until(lambda: bool(relay.rows()) and relay.rows()[0].state == "settled")
    assert relay.rows()[0].error_type == "upstream_timeout"
    writer.transport.abort()


async def test_health_is_answered_when_all_connections_are_busy(start_relay):
    relay = await start_relay(server={"limits": {"connections": 2, "connections_per_address": 100}})
    body = json.dumps(chat_body(SLOW)).encode()
    busy = [await opened(relay, POST % (CHAT.encode(), len(body)) + body) for _ in range(2)]
    await relay.until(lambda: len(relay.service.pipeline.active_calls) == 2)
    for path in (b"/health", b"/-/healthy", b"/-/ready", b"/metrics"):
        reader, writer = await opened(relay, HEALTH % path)
        answer = await asyncio.wait_for(reader.read(), 5)  # to the end of the connection
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()
    for path, shape in (
        (CHAT, ("error", "type")),
        ("/v1/messages", ("error", "type")),
        ("/v1beta/models/m:generateContent", ("error", "status")),
    ):
        reply = await relay.raw(POST % (path.encode(), 2) + b"{}")
        assert (reply.status, reply.headers["retry-after"], reply.headers["connection"]) == (503, "1", "close")
        assert reply.json[shape[0]][shape[1]]
    assert reached(relay) == {"connections": 3}
    for _, writer in busy:
        writer.close()


async def test_an_idle_connection_makes_room_for_a_new_one(start_relay):
    relay = await start_relay(server={"limits": {"connections": 2, "connections_per_address": 100}})
    held = [await opened(relay) for _ in range(2)]
    await relay.until(lambda: len(relay.service.bounds.connections._admitted) == 2)
    assert (await relay.chat()).status == 200
    ends = [asyncio.ensure_future(reader.read()) for reader, _ in held]
    # Both may have been accepted in the same millisecond of the loop's clock, and then either waits the longest.
    ended, _ = await asyncio.wait(ends, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    for _, writer in held:
        writer.close()
    assert [end.result() for end in ended] == [b""]
    assert await asyncio.gather(*ends) == [b"", b""]
    assert reached(relay) == {"connections": 1}


async def test_one_address_gets_429_above_its_cap(start_relay):
    relay = await start_relay(server={"limits": {"connections_per_address": 1}})
    held = await opened(relay, HEALTH % b"/health")
    await held[0].readuntil(b"}")
    reply = await relay.raw(POST % (CHAT.encode(), 2) + b"{}")
    assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (429, "rate_limited", "1")
    reply = await relay.raw(HEALTH % b"/health")
    assert reply.status == 200
    held[1].close()
    assert reached(relay) == {"connections_per_address": 1}


async def test_silent_connections_never_keep_a_health_check_waiting(start_relay):
    relay = await start_relay(server={"limits": {"connections": 8, "connections_per_address": 4}})
    silent = [await opened(relay) for _ in range(200)]
    for _ in range(5):
        assert (await asyncio.wait_for(relay.raw(HEALTH % b"/-/healthy"), 5)).status in (0, 200)
    reply = await relay.raw(HEALTH.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") % b"/-/healthy")
    assert reply.status == 200
    for _, writer in silent:
        writer.close()


@pytest.mark.parametrize(
    ("limits", "status", "code", "limit"),
    [
        ({"concurrent_calls": 2}, 503, "overloaded", "concurrent_calls"),
        ({"concurrent_calls_per_key": 2}, 429, "rate_limited", "concurrent_calls_per_key"),
    ],
)
async def test_calls_above_the_cap_are_refused(start_relay, limits, status, code, limit):
    keys = tuple(KeySettings(name=f"k{at}", team="search", secret=key) for at, key in enumerate((KEY, OTHER_KEY)))
    relay = await start_relay(server={"limits": limits}, keys=keys)
    tasks = await calls_in_progress(relay, 2, KEY)
    reply = await relay.chat(key=KEY)
    assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (status, code, "1")
    assert (await relay.chat(key=OTHER_KEY)).status == (503 if status == 503 else 200)
    await end(tasks)
    await relay.until_idle()
    assert (await relay.chat(key=KEY)).status == 200
    assert reached(relay)[limit] == (2 if status == 503 else 1)
    assert relay.service.pipeline._calls_by_key == {}


async def test_uploads_above_their_share_of_memory_are_refused(start_relay):
    relay = await start_relay(server={"limits": {"memory_bytes": 2**20}})
    first = await opened(relay, POST % (CHAT.encode(), 250_000) + b" " * 200_000)
    await relay.until(lambda: relay.service.bounds.memory.uploads.held_bytes == 200_000)
    second = await opened(relay, POST % (CHAT.encode(), 250_000) + b" " * 200_000)
    answer = await asyncio.wait_for(first[0].read(), 5)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1\r\n" in answer
    assert b'"overloaded"' in answer
    assert reached(relay) == {"memory": 1}
    for _, writer in (first, second):
        writer.transport.abort()
    await relay.until(lambda: relay.service.bounds.memory.uploads.held_bytes == 0)


async def test_requests_above_the_memory_are_refused_before_they_are_sent(start_relay):
    relay = await start_relay(server={"limits": {"memory_bytes": 2**20}})
    large = [{"role": "user", "content": "x" * 220_000}]
    tasks: list[asyncio.Task[Any]] = []
    for count in range(1, 5):  # one by one: unfinished uploads have a share of their own
        tasks.append(asyncio.ensure_future(relay.chat(SLOW, messages=large)))
        await relay.until(lambda count=count: len(relay.service.pipeline.active_calls) == count)
    reply = await relay.chat(messages=large)
    assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (503, "overloaded", "1")
    await end(tasks)
    await relay.until_idle()
    assert (await relay.chat(messages=large)).status == 200
    assert len(relay.rows()) == 5
    await relay.until(lambda: relay.service.bounds.memory.kept_bytes == 0)


async def test_mcp_sessions_of_a_key_are_capped(start_relay):
    relay = await start_relay(
        server={"limits": {"mcp_sessions_per_key": 2}}, keys={"search": KEY, "support": OTHER_KEY}
    )
    headers = MCP | {"authorization": f"Bearer {KEY}"}
    first = await relay.ask(INITIALIZE, "/mcp", headers=headers)
    assert (await relay.ask(INITIALIZE, "/mcp", headers=headers)).status == 200
    reply = await relay.ask(INITIALIZE, "/mcp", headers=headers)
    assert (reply.status, reply.headers["retry-after"], reply.json["error"]["code"]) == (429, "60", -32600)
    assert (await relay.ask(INITIALIZE, "/mcp", headers=MCP | {"authorization": f"Bearer {OTHER_KEY}"})).status == 200
    session = {"mcp-session-id": first.headers["mcp-session-id"]}
    assert (await relay.ask(path="/mcp", method="DELETE", headers=headers | session)).status == 200
    assert (await relay.ask(INITIALIZE, "/mcp", headers=headers)).status == 200
    assert reached(relay) == {"mcp_sessions": 1}


async def test_endless_headers_count_as_a_limit_that_was_reached(start_relay):
    relay = await start_relay()
    assert (await relay.raw(b"GET /" + b"a" * 100_000)).status == 431
    assert reached(relay) == {"headers": 1}


async def test_a_page_whose_client_stalls_is_counted_once(start_relay):
    relay = await start_relay(server={"timeouts": {"response_seconds": 0.2}})
    before = relay.counts()
    _, writer = await opened(relay)
    writer.transport.pause_reading()
    writer.write(HEALTH % b"/metrics" * 200)
    await relay.until(lambda: not relay.service.bounds.connections._by_address, seconds=20)
    await relay.until_idle()
    after = relay.counts()
    assert {labels[2] for labels in after.since(before, "mcp_requests_total")} == {"200"}
    assert after.since(before, "mcp_errors_total") == {}
    writer.transport.abort()
