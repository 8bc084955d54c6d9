"""An exchange over plain ASGI, as a server without our wire offers it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mcpmeter.errors import ClientDisconnected
from mcpmeter.http.exchange import HttpExchange

SCOPE = {"type": "http", "method": "POST", "headers": [(b"host", b"localhost")]}


class Asgi:
    """A server's side: what it has received, and what it is sent."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for message in messages:
            self.received.put_nowait(message)
        self.sent: list[Any] = []

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    def exchange(self) -> HttpExchange:
        return HttpExchange(SCOPE, self.received.get, self.send, endpoint="/v1/chat/completions")


async def test_a_body_is_read_and_an_answer_sent_by_messages() -> None:
    server = Asgi({"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.request", "body": b"}"})
    exchange = server.exchange()
    assert await exchange.read_body(2) == b"{}"
    await exchange.start(200, [(b"x", b"y")])
    await exchange.send(b"a")
    await exchange.end(b"b")
    assert server.sent == [
        {"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]},
        {"type": "http.response.body", "body": b"a", "more_body": True},
        {"type": "http.response.body", "body": b"b"},
    ]


async def test_a_client_that_leaves_ends_the_block() -> None:
    server = Asgi()

    async def wait_inside() -> None:
        with server.exchange().cancel_on_disconnect():
            server.received.put_nowait({"type": "http.disconnect"})
            await asyncio.Event().wait()

    with pytest.raises(ClientDisconnected):
        await wait_inside()


async def test_a_block_that_ends_first_leaves_no_watcher() -> None:
    tasks = asyncio.all_tasks()
    with Asgi().exchange().cancel_on_disconnect():
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == tasks


async def test_a_client_that_never_reads_counts_as_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcpmeter.http.exchange.DRAIN_TIMEOUT_SECONDS", 0.01)
    server = Asgi()

    async def stuck(message: Any) -> None:
        await asyncio.Event().wait()

    exchange = HttpExchange(SCOPE, server.received.get, stuck, endpoint="/")
    with pytest.raises(ClientDisconnected, match="stopped reading"):
        await exchange.send(b"a")
