"""A provider that is up, resets, answers 503, hangs or cuts off, in turns of milliseconds: nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx2
import pytest
from tests.e2e.watching import Resources, at_rest

MODES = ("up", "reset", "503", "hangs", "cut off")
CALLS, CALLS_IN_FULL = 200, 5_000
AT_ONCE = 24
SECONDS_FOR_A_CALL = 120.0
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
RELAY = """relay:
  timeouts: {connect_seconds: 5, first_byte_seconds: 1, idle_seconds: 1, total_seconds: 10}
  retries: {base_ms: 1, cap_ms: 5}
  circuit: {failures: 5, window_seconds: 30, open_seconds: 0.1}
"""


@dataclass
class Provider:
    """Speaks the chat dialect, or does what its mode says at the moment of the request."""

    mode: str = "up"
    seen: Counter[str] = field(default_factory=Counter)
    port: int = 0
    open_connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
                await self._answer(json.loads(await reader.readexactly(length)), reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the relay has closed the connection
        finally:
            self.open_connections -= 1
            writer.transport.abort()

    async def _answer(self, asked: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mode = self.mode
        self.seen[mode] += 1
        match mode:
            case "reset":
                raise ConnectionResetError
            case "503":
                writer.write(b"HTTP/1.1 503 Unavailable\r\ncontent-length: 2\r\n\r\n{}")
            case "hangs":
                await reader.read(1)  # until the relay has had enough
                raise ConnectionResetError
            case "cut off":
                writer.write(_response(asked)[:-20])
                await writer.drain()
                raise ConnectionResetError
            case _:
                writer.write(_response(asked))


def _response(asked: Any) -> bytes:
    choice = {"index": 0, "finish_reason": "stop"}
    if not asked.get("stream"):
        body = json.dumps({"choices": [{**choice, "message": {"content": "Hi"}}], "usage": USAGE}).encode()
        return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    events = ({"choices": [{**choice, "delta": {"content": "Hi"}}]}, {"choices": [], "usage": USAGE})
    body = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"
    headers = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return headers + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Provider]:
    provider = Provider()
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    provider.port = server.sockets[0].getsockname()[1]
    yield provider
    server.close()


@dataclass
class Load:
    """Calls at the relay and how they ended for their clients."""

    address: str
    statuses: Counter[int] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)
    broken_off: int = 0

    async def run(self, count: int) -> None:
        todo = iter(range(count))
        limits = httpx2.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
        async with httpx2.AsyncClient(
            base_url=self.address, timeout=SECONDS_FOR_A_CALL, limits=limits, verify=False
        ) as http:

            async def work() -> None:
                for number in todo:
                    await self._call(http, stream=number % 2 == 1)

            await asyncio.gather(*(work() for _ in range(AT_ONCE)))

    async def _call(self, http: httpx2.AsyncClient, *, stream: bool) -> None:
        asked = {"model": "gpt-4.1", "stream": stream, "messages": [{"role": "user", "content": "Count."}]}
        try:
            async with http.stream("POST", "/v1/chat/completions", json=asked) as answer:
                self.statuses[answer.status_code] += 1
                self.ids.append(answer.headers["x-mcpmeter-call-id"])
                await answer.aread()
        except httpx2.RemoteProtocolError:
            self.broken_off += 1


async def flap(provider: Provider, random: Random) -> None:
    while True:
        provider.mode = random.choice(MODES)
        await asyncio.sleep(random.choice((0.0005, 0.002, 0.01, 0.05)))


@pytest.mark.trial
@pytest.mark.timeout(1200)
async def test_each_call_at_a_flapping_provider_settles_once_and_nothing_leaks(stand, start, trials, tmp_path):
    async with running() as provider:
        stand.upstream = f"http://127.0.0.1:{provider.port}"
        stand.configure(extra=RELAY)
        await asyncio.to_thread(stand.start_relay)
        relay = Resources(stand.relay.process.pid, tmp_path / "tasks")
        await asyncio.to_thread(stand.samples)
        before = relay.descriptors()

        load, count = Load(stand.address), CALLS_IN_FULL if trials.full else CALLS
        flapping = asyncio.create_task(flap(provider, Random(11)))
        await load.run(count)
        flapping.cancel()
        provider.mode = "up"
        calls_until_closed = await until_the_circuit_closes(stand, load)
        after = Load(stand.address)
        await after.run(4 * AT_ONCE)

        def gauges() -> tuple[float, float]:
            return stand.total("mcp_active_requests"), stand.total("mcp_ledger_open_rows")

        left = await at_rest(gauges, lambda seen: not any(seen))
        rows = {row["id"]: row for row in await asyncio.to_thread(stand.rows)}
        kept_connections = provider.open_connections
    # The provider's side of the kept connections closes with it.
    descriptors = await at_rest(relay.descriptors, lambda held: held <= before + kept_connections)
    ids = load.ids + after.ids
    trials.record(
        "A provider that flaps",
        f"The provider changes every 0.5 to 50 ms between {', '.join(MODES)}; half of the calls are streams.",
        {
            "calls while it flaps": count,
            **{f"requests it met while {mode}": provider.seen[mode] for mode in MODES},
            **{f"calls answered with {status}": number for status, number in sorted(load.statuses.items())},
            "rows": len(rows),
            "rows not settled": sum(row["state"] != "settled" for row in rows.values()),
            "calls without exactly one row": len(set(ids) ^ rows.keys()) + len(ids) - len(set(ids)),
            "calls until the circuit was closed again": calls_until_closed,
            "calls afterwards that failed": sum(after.statuses.values()) - after.statuses[200],
            "mcp_active_requests at the end": int(left[0]),
            "mcp_ledger_open_rows at the end": int(left[1]),
            "connections that the relay still holds, beyond those kept for further calls": max(
                0, descriptors - before - kept_connections
            ),
        },
    )
    assert min(provider.seen[mode] for mode in MODES) > 0
    assert len(load.statuses) > 1
    assert sorted(ids) == sorted(rows)
    assert {row["state"] for row in rows.values()} == {"settled"}
    assert all(row["prompt_tokens"] == 3 for row in rows.values() if row["outcome"] == "ok")
    assert after.statuses == {200: 4 * AT_ONCE}
    assert left == (0, 0)
    assert descriptors <= before + kept_connections
    assert stand.relay.end().code == 0


async def until_the_circuit_closes(stand: Any, load: Load) -> int:
    """Call until the provider counts as up; the number of calls that it took."""
    async with asyncio.timeout(120):
        for number in itertools.count():
            if not await asyncio.to_thread(stand.total, "mcp_upstream_circuit_open"):
                return number
            await load.run(1)
    raise AssertionError
