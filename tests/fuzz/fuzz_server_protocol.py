"""Any bytes in any segments on a connection of our server: requests in order, each answered once at most."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from tests.fuzz.harness import Target, pieces, segmentations
from tests.http.fakes import Transport

from mcpmeter.errors import MeterError
from mcpmeter.http.exchange import DIRECT_RESPONSE
from mcpmeter.http.framing import MAX_HEADER_BYTES
from mcpmeter.http.server.protocol import MAX_BUFFERED_BYTES, ServerProtocol

WORDS = (
    b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\n", b"POST /v1/chat HTTP/1.0\r\n", b"HEAD /a?b=c HTTP/1.1\r\n",
    b"CONNECT a:1 HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"Host: a\r\n", b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n", b"Content-Length: +5\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding : chunked\r\n", b"Connection: close\r\n",
    b"Connection: keep-alive\r\n", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"Expect: 100-continue\r\n", b"\r\n", b"\r\n\r\n", b"hello",
    b"5\r\nhello\r\n", b"0\r\n\r\n", b"0\r\nX: 1\r\n\r\n", b"5;a=b\r\nhello\r\n", b"ffffffffffffffff\r\n",
    b"X-A: 1\r\n", b" folded\r\n", b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", b"GET http://a/b HTTP/1.1\r\n", b"\n",
    b"\r", b"\t", b"\0", b": ", b" HTTP/1.1",
)  # fmt: skip
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
FRAMING = (b"content-length", b"transfer-encoding")
TURNS = 40
"""Steps of the event loop after which the application has answered all that it can."""


@dataclass
class Connection:
    """A connection to an application that reads each body and answers; what it saw, and what was refused."""

    seen: list[tuple[str, str, bytes]] = field(default_factory=list)
    """Method, target and body of each whole request."""
    failed: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        self.transport = Transport()
        self.state = SimpleNamespace(total_requests=0, connections=set(), tasks=set(), default_headers=[])
        self.faults: list[dict[str, Any]] = []
        config: Any = SimpleNamespace(loaded_app=self._app, timeout_keep_alive=60)
        state: Any = self.state
        self.protocol = ServerProtocol(self._refuse, config, state, {})
        self.protocol.connection_made(self.transport)  # type: ignore[arg-type]

    def _refuse(self, error: MeterError) -> tuple[list[Any], bytes]:
        self.refused += 1
        return [], b"refused"

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        direct = scope["extensions"][DIRECT_RESPONSE]
        parts: list[bytes] = []
        try:
            while part := await direct.next_body_part():
                parts.append(part)
        except MeterError as error:
            self.failed += 1
            if not direct.disconnected:
                direct.respond(error.http_status, [], b"refused")
            return
        self.seen.append((scope["method"], scope["path"], b"".join(parts)))
        direct.respond(200, [], b"answered")

    @property
    def is_reading(self) -> bool:
        paused = [call for call in self.transport.calls if call in ("pause_reading", "resume_reading")]
        return not (self.transport.is_closing() or (paused and paused[-1] == "pause_reading"))

    async def feed(self, part: bytes) -> None:
        """Give it a part as an event loop does: not while it is paused, and not after it was closed."""
        if not self.is_reading:
            await self.settle()
        if self.is_reading:
            self.protocol.data_received(part)
            self._check_bounds(part)
            await asyncio.sleep(0)

    def _check_bounds(self, part: bytes) -> None:
        protocol = self.protocol
        assert protocol._lingering is not None or protocol._overhead_bytes <= MAX_HEADER_BYTES
        if protocol._received is not None:
            assert protocol._received.body_bytes <= MAX_BUFFERED_BYTES + len(part)

    async def settle(self) -> None:
        """Let the application answer."""
        for _ in range(TURNS):
            before = (len(self.seen), self.failed)
            for _ in range(3):
                await asyncio.sleep(0)
            if (len(self.seen), self.failed) == before:
                return

    @property
    def is_refused(self) -> bool:
        return bool(self.refused or self.failed or self.transport.closings)

    async def end(self) -> None:
        self.protocol.connection_lost(None)
        while self.state.tasks:
            await asyncio.sleep(0)


async def outcome_of(parts: Sequence[bytes]) -> Connection:
    """Feed a connection, then check what no input may break."""
    connection = Connection()
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context))
    for part in parts:
        await connection.feed(part)
    await connection.settle()
    responses = connection.transport.written.count(b"HTTP/1.1 ") - connection.transport.written.count(b"HTTP/1.1 100 ")
    assert responses <= len(connection.seen) + connection.failed + connection.refused
    assert connection.refused <= 1
    if connection.is_refused:
        await connection.feed(SMUGGLED)
        await connection.settle()
        assert all(path != "/smuggled" for _method, path, _body in connection.seen)
    await connection.end()
    assert not faults
    return connection


HEAD = re.compile(rb"([A-Z]+) (/[\w/.-]*) HTTP/1\.1\r\n((?:[A-Za-z0-9-]+:[ -~]*\r\n)*)\r\n")
CHUNK = re.compile(rb"([0-9a-fA-F]{1,7})\r\n")


def plain_requests(data: bytes) -> list[tuple[str, str, bytes]]:
    """The requests at the beginning, read by RFC 9112 alone, up to the first that is not of the plainest form."""
    found: list[tuple[str, str, bytes]] = []
    while head := HEAD.match(data):
        lines = [line.lower().split(b":", 1) for line in head[3].splitlines()]
        framing = [(name, value.strip(b" ")) for name, value in lines if name in FRAMING]
        body, rest = _plain_body(framing, data[head.end() :])
        if body is None or head[1] == b"CONNECT":
            break
        found.append((head[1].decode(), head[2].decode(), body))
        data = rest
    return found


def _plain_body(framing: list[tuple[bytes, bytes]], data: bytes) -> tuple[bytes | None, bytes]:
    match framing:
        case []:
            return b"", data
        case [(b"content-length", length)] if length.isdigit() and len(length) < 8 and int(length) <= len(data):
            return data[: int(length)], data[int(length) :]
        case [(b"transfer-encoding", b"chunked")]:
            return _plain_chunks(data)
    return None, b""


def _plain_chunks(data: bytes) -> tuple[bytes | None, bytes]:
    body = b""
    while chunk := CHUNK.match(data):
        size = int(chunk[1], 16)
        part, end, data = data[chunk.end() :][:size], data[chunk.end() + size :][:2], data[chunk.end() + size + 2 :]
        if end != b"\r\n":
            break
        if not size:
            return body, data
        body += part
    return None, b""


def _run(parts: Sequence[bytes]) -> Connection:
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(outcome_of(parts))
    finally:
        loop.close()


def check(data: bytes) -> None:
    """Every segmentation comes to the same requests, and to those of an independent reading."""
    whole = _run([data] if data else [])
    for seen, plain in zip(whole.seen, plain_requests(data), strict=False):
        assert seen == plain, f"{seen} is not {plain}"
    for parts in segmentations(data):
        cut = _run(parts)
        assert cut.seen == whole.seen, f"{cut.seen} is not {whole.seen}"
        assert cut.is_refused == whole.is_refused


def cost(data: bytes) -> None:
    _run(pieces(data))


TARGET = Target("server_protocol", check, cost, WORDS)
