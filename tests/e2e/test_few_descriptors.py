"""The service under `ulimit -n 128`, and a flood of more connections than it can hold."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
from collections import Counter
from typing import Any

import pytest
from tests.e2e.watching import Resources, at_rest

DESCRIPTORS = 128
CONNECTIONS, CONNECTIONS_IN_FULL = 400, 2_000
MAX_KEPT = 16
"""Connections to the provider that are kept for further calls; the flood is of hundreds."""
SECONDS_FOR_A_CALL = 60.0
CALL = {
    "model": "gpt-4.1",
    "messages": [{"role": "user", "content": "Count."}],
    "metadata": {"simulate": "stall=headers,stall_seconds=0.5"},
}


def request() -> bytes:
    body = json.dumps(CALL).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return head + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body


async def flood(port: int, connections: int) -> Counter[str]:
    """Calls on a connection each, all at once, and as many connections that send nothing; what each got."""
    found: Counter[str] = Counter()

    async def one(number: int) -> None:
        outcome = "no connection"
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(SECONDS_FOR_A_CALL):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                if number % 2:
                    writer.write(request())
                    outcome = "closed"
                    answer = await reader.read()
                    outcome = answer[9:12].decode() or "closed"
                else:
                    await asyncio.sleep(1)
                    outcome = "sent nothing"
                writer.transport.abort()
        found[outcome] += 1

    await asyncio.gather(*map(one, range(connections)))
    return found


def health(port: int, seconds: float) -> int:
    """The status of `/health`; 0 if there was no answer in time."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        except OSError:
            return 0


@pytest.mark.trial
@pytest.mark.timeout(900)
async def test_with_few_descriptors_a_flood_is_refused_and_the_service_recovers(stand, start, trials, tmp_path):
    stand.start_simulator()
    stand.configure()
    stand.relay = start(
        "serve",
        "--config",
        stand.config,
        env={"UPSTREAM_KEY": "sk-simulated-upstream"},
        through=("sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh"),
    )
    stand.address = stand.relay.says(r"OpenAI SDKs +(http://\S+)/v1")[1]
    port = int(stand.address.rpartition(":")[2])
    relay = Resources(stand.relay.process.pid, tmp_path / "tasks")
    assert await asyncio.to_thread(health, port, 20) == 200
    before = relay.descriptors()

    connections = CONNECTIONS_IN_FULL if trials.full else CONNECTIONS
    flooding = asyncio.create_task(flood(port, connections))
    during: Counter[int] = Counter()
    while not flooding.done():
        during[await asyncio.to_thread(health, port, 20)] += 1
        await asyncio.sleep(0.1)
    found = await flooding
    recovered = await at_rest(lambda: health(port, 5), lambda status: status == 200)
    left = await at_rest(gauges(stand), lambda seen: not any(seen))
    after = await flood(port, 8)
    descriptors = await at_rest(relay.descriptors, lambda held: held <= before + MAX_KEPT)
    rows = Counter(row["state"] for row in await asyncio.to_thread(stand.rows))
    finished = stand.relay.end()
    trials.record(
        "128 file descriptors",
        "The service runs under `ulimit -n 128` while more connections than that are opened at once: half send nothing "
        "for a second, the others make a call on a connection of their own.",
        {
            "connections": connections,
            **{f"of them {outcome}": number for outcome, number in sorted(found.items())},
            "health checks during the flood": during.total(),
            "of them answered with 200": during[200],
            "health afterwards": recovered,
            "calls afterwards answered with 200": f"{after['200']} of 4",
            "file descriptors before": before,
            "file descriptors after": descriptors,
        },
    )
    assert found.keys() <= {"200", "429", "503", "closed", "no connection", "sent nothing"}
    assert found["200"] > 0
    assert during == {200: during.total()}
    assert (recovered, after["200"], left) == (200, 4, (0, 0))
    assert rows.keys() == {"settled"}
    assert descriptors <= before + MAX_KEPT
    assert finished.code == 0
    assert "Traceback" not in finished.stderr


def gauges(stand: Any) -> Any:
    return lambda: (stand.total("mcp_active_requests"), stand.total("mcp_ledger_open_rows"))
