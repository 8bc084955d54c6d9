"""A connection of our server before an application that keeps what it is given: on a fake transport, or listening."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from tests.http.fakes import Transport

from mcpmeter.errors import MeterError
from mcpmeter.http.exchange import REFUSAL
from mcpmeter.http.server.protocol import ServerProtocol


@dataclass
class Request:
    """A request that arrived whole."""

    path: str
    headers: dict[bytes, bytes]
    body: bytes


@dataclass
class Keeper:
    """An application that reads each request and answers 200, or the status of the error that reading it raises."""

    requests: list[Request] = field(default_factory=list)
    refusals: list[MeterError] = field(default_factory=list)
    """Of requests that reached no application, or were refused by it."""

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        status = 200
        try:
            if REFUSAL in scope:
                raise scope[REFUSAL]
            body = await _body_of(receive)
            if body is None:
                return
            self.requests.append(Request(scope["path"], dict(scope["headers"]), body))
        except MeterError as error:
            self.refusals.append(error)
            status = error.http_status
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    def refuse(self, error: MeterError) -> tuple[list[tuple[bytes, bytes]], bytes]:
        self.refusals.append(error)
        return [], b"refused"

    def protocol(self) -> ServerProtocol:
        """A connection of its own."""
        config: Any = SimpleNamespace(loaded_app=self.app, timeout_keep_alive=60)
        state: Any = SimpleNamespace(total_requests=0, connections=set(), tasks=set(), default_headers=[])
        return ServerProtocol(self.refuse, config, state, {})


async def _body_of(receive: Any) -> bytes | None:
    body, has_more = b"", True
    while has_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body, has_more = body + message["body"], message["more_body"]
    return body


@dataclass
class Served:
    """What a connection's bytes were."""

    bodies: list[bytes]
    statuses: list[int]
    is_open: bool


def serve(sent: bytes, cuts: Sequence[int] = ()) -> Served:
    """Feed a connection with bytes, cut in pieces."""
    edges = [0, *sorted(cut % (len(sent) + 1) for cut in cuts), len(sent)]
    return asyncio.run(_serve([sent[a:b] for a, b in itertools.pairwise(edges) if a < b]))


async def _serve(pieces: Sequence[bytes]) -> Served:
    keeper, transport = Keeper(), Transport()
    protocol = keeper.protocol()
    protocol.connection_made(transport)  # type: ignore[arg-type]
    for piece in pieces:
        if transport.is_closing():
            break
        protocol.data_received(piece)
    for _ in range(40):
        await asyncio.sleep(0)
    served = Served(
        [request.body for request in keeper.requests],
        [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", transport.written) if status != b"100"],
        not transport.closings,
    )
    protocol.connection_lost(None)
    await asyncio.sleep(0)
    return served


@asynccontextmanager
async def listening(keeper: Keeper) -> AsyncIterator[int]:
    """Serve on a port of loopback."""
    server = await asyncio.get_running_loop().create_server(keeper.protocol, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
