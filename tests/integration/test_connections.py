"""Connections that clients keep."""

from __future__ import annotations

import asyncio
import json
from typing import Any

HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"


async def test_an_idle_connection_is_closed_but_not_a_waiting_one(start_relay: Any) -> None:
    relay = await start_relay(server={"timeouts": {"idle_seconds": 0.1}})
    reader, writer = await asyncio.open_connection(*relay.address)
    writer.write(HEALTH)
    assert b'"healthy"' in await asyncio.wait_for(reader.read(), 120)  # which reads up to the end of the connection
    writer.close()
    message = {"role": "user", "content": "Hi"}
    body = json.dumps({"model": "gpt-4.1", "messages": [message], "metadata": {"simulate": "latency_ms=400"}}).encode()
    reader, writer = await asyncio.open_connection(*relay.address)
    writer.write(HEALTH)
    await asyncio.wait_for(reader.readuntil(b"}"), 5)
    writer.write(POST % len(body) + body)
    assert b"HTTP/1.1 200" in await asyncio.wait_for(reader.read(), 120)
    writer.close()
