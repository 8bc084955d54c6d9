"""A connection: requests in order, reading paused where memory would fill, and every way it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tests.http.fakes import Transport

from mcpmeter.errors import ClientDisconnected
from mcpmeter.http.exchange import DIRECT_RESPONSE
from mcpmeter.http.server import lingering
from mcpmeter.http.server.connections import ServerBounds, ServerTimeouts
from mcpmeter.http.server.protocol import MAX_BUFFERED_BYTES, ServerProtocol

GET = b"GET %b HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"


class Server:
    """One connection, whose requests are answered when a test says so."""

    def __init__(self, bounds: ServerBounds | None = None) -> None:
        self.scopes: list[Any] = []
        self.answer: dict[str, asyncio.Event] = {}
        self.transport = Transport()
        self.state = SimpleNamespace(total_requests=0, connections=set(), tasks=set(), default_headers=[])
        config: Any = SimpleNamespace(loaded_app=self.app)
        state: Any = self.state
        self.protocol = ServerProtocol(lambda error: ([], b"refused"), config, state, {}, bounds=bounds)
        self.protocol.connection_made(self.transport)  # type: ignore[arg-type]

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        await self.answer.setdefault(scope["path"], asyncio.Event()).wait()
        scope["extensions"][DIRECT_RESPONSE].respond(200, [], scope["path"].encode())

    def let(self, path: str) -> None:
        """Answer requests for a path."""
        self.answer.setdefault(path, asyncio.Event()).set()

    async def until(self, is_so: Callable[[], Any]) -> None:
        """Let the event loop run until something holds."""
        async with asyncio.timeout(120):
            while not is_so():
                await asyncio.sleep(0)

    @property
    def responses(self) -> list[bytes]:
        return [part[-2:] for part in self.transport.writes]


async def test_pipelined_requests_are_answered_in_order() -> None:
    server = Server()
    server.let("/b")
    server.protocol.data_received(GET % b"/a" + GET % b"/b" + GET % b"/c")
    await server.until(lambda: server.scopes)
    assert (server.responses, server.transport.calls) == ([], ["pause_reading"])
    server.let("/a")
    server.let("/c")
    await server.until(lambda: server.state.total_requests == 3)
    assert server.responses == [b"/a", b"/b", b"/c"]
    assert server.transport.calls[-1] == "resume_reading"


async def test_an_unread_body_pauses_the_connection() -> None:
    server = Server()
    server.protocol.data_received(POST % 1_000_000 + b"x" * (MAX_BUFFERED_BYTES + 1))
    assert server.transport.calls == ["pause_reading"]
    await server.until(lambda: server.scopes)
    cycle = server.scopes[0]["extensions"][DIRECT_RESPONSE]
    assert len(await cycle.next_body_part()) == MAX_BUFFERED_BYTES + 1
    waiting = asyncio.ensure_future(cycle.next_body_part())
    await server.until(lambda: server.transport.calls == ["pause_reading", "resume_reading"])
    server.protocol.connection_lost(None)
    with pytest.raises(ClientDisconnected):
        await waiting


async def test_an_unread_response_is_backpressure_until_it_drains() -> None:
    server = Server()
    server.protocol.data_received(GET % b"/a")
    await server.until(lambda: server.scopes)
    cycle = server.scopes[0]["extensions"][DIRECT_RESPONSE]
    changes: list[bool] = []
    cycle.on_pause = cycle.on_drain = lambda: changes.append(cycle.is_backpressured)
    server.protocol.pause_writing()
    assert cycle.is_backpressured
    waiting = asyncio.ensure_future(cycle.drain())
    server.protocol.resume_writing()
    await waiting
    assert changes == [True, False]


@pytest.mark.parametrize("is_busy", [False, True])
async def test_a_shutdown_closes_after_the_response_in_hand(is_busy: bool) -> None:
    server = Server()
    server.protocol.data_received(GET % b"/a" if is_busy else b"")
    server.protocol.shutdown()
    assert server.transport.closings == ([] if is_busy else ["close"])
    server.let("/a")
    if is_busy:
        await server.until(lambda: server.transport.writes)
        assert b"connection: close" in server.transport.written
        assert server.transport.closings == ["close"]


async def test_a_lost_connection_ends_its_request_and_pipeline() -> None:
    server = Server()
    server.protocol.data_received(GET % b"/a" + GET % b"/b")
    await server.until(lambda: server.scopes)
    reports: list[str] = []
    server.scopes[0]["extensions"][DIRECT_RESPONSE].watch(lambda: reports.append("disconnected"))
    server.protocol.connection_lost(ConnectionResetError())
    assert (reports, server.state.connections) == (["disconnected"], set())
    server.let("/a")
    await server.until(lambda: not server.state.tasks)
    assert (len(server.scopes), server.transport.writes) == (1, [])


async def test_an_idle_connection_is_closed() -> None:
    server = Server(ServerBounds(ServerTimeouts(idle_seconds=0.01)))
    server.let("/a")
    server.protocol.data_received(GET % b"/a")
    await server.until(lambda: server.transport.closings == ["close"])
    assert server.responses == [b"/a"]


async def test_a_connection_has_one_timer_however_many_requests() -> None:
    server = Server()
    server.let("/a")
    timers = set()
    for count in (1, 2, 3):
        server.protocol.data_received(GET % b"/a")
        await server.until(lambda count=count: server.state.total_requests == count)
        timers.add(server.protocol._timer)
    assert len(timers) == 1
    server.protocol.connection_lost(None)
    assert timers.pop().cancelled()


JUNK = b"POST /b HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi\x00junk\r\n\r\n"


async def test_no_request_runs_behind_a_response_that_closes() -> None:
    server = Server()
    server.let("/b")
    server.protocol.data_received(b"GET /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\n" + JUNK)
    server.let("/a")
    await server.until(lambda: server.transport.closings)
    await server.until(lambda: not server.state.tasks)
    assert [scope["path"] for scope in server.scopes] == ["/a"]


@pytest.fixture
def lingers_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingering, "LINGER_SECONDS", 0.02)
    monkeypatch.setattr(lingering, "MAX_LINGER_SECONDS", 0.1)


@pytest.mark.usefixtures("lingers_briefly")
async def test_junk_behind_a_request_cuts_no_unsent_response() -> None:
    server = Server()
    server.protocol.data_received(GET % b"/a" + b"\x00junk\r\n\r\n")
    server.transport.unsent_bytes = 9
    server.let("/a")
    await server.until(lambda: server.transport.closings)
    lingered = asyncio.get_running_loop().time()
    while "abort" not in server.transport.closings:
        server.transport.unsent_bytes = max(1, server.transport.unsent_bytes - 1)
        await asyncio.sleep(0.02)
    assert server.transport.closings == ["write_eof", "abort"]
    assert asyncio.get_running_loop().time() - lingered > 0.05  # while the client reads, longer than LINGER_SECONDS


@pytest.mark.usefixtures("lingers_briefly")
@pytest.mark.parametrize("sends", [True, False])
async def test_a_body_behind_its_response_is_discarded_for_a_while(sends: bool) -> None:
    server = Server()
    server.let("/")
    server.protocol.data_received(POST % 1_000_000 + b"x")
    await server.until(lambda: server.transport.closings)
    pieces = 0
    while "abort" not in server.transport.closings:
        if sends:
            server.protocol.data_received(b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n")
        pieces += 1
        await asyncio.sleep(0.005)
    assert server.transport.closings == ["write_eof", "abort"]
    assert [scope["path"] for scope in server.scopes] == ["/"]
    assert (pieces > 8) is sends


async def test_an_endless_body_behind_its_response_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lingering, "MAX_DISCARDED_BYTES", 100_000)
    server = Server()
    server.let("/")
    server.protocol.data_received(POST % 10**12)
    await server.until(lambda: server.transport.closings)
    sent = 0
    while "abort" not in server.transport.closings:
        server.protocol.data_received(b"x" * 10_000)
        sent += 10_000
    assert sent == 110_000
