"""A request that proposes an upgrade is served as the same request without the proposal."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from tests.http.fakes import Transport
from uvicorn.server import ServerState

from mcpmeter.errors import MeterError
from mcpmeter.http.server.protocol import ServerProtocol
from mcpmeter.http.server.request_headers import without_upgrade

PROPOSALS = (b"upgrade: h2c\r\n", b"UPGRADE:websocket\r\n", b"Upgrade: h2c, x/1 \r\nUpgrade:\r\n")
CONNECTIONS = (
    b"connection: Upgrade\r\n",
    b"Connection: upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n",
    b"connection: keep-alive\r\nCONNECTION: UPGRADE\r\n",
    b"connection: close, upgrade\r\n",
)
CONTENT = b"GET /smuggled HTTP/1.1\r\nupgrade: x\r\n\r\n"
FRAMED = {
    "none": b"\r\n",
    "length": b"content-length: %d\r\n\r\n%b" % (len(CONTENT), CONTENT),
    "no length": b"content-length: 0\r\n\r\n",
    "chunked": b"transfer-encoding: chunked\r\n\r\n%x;a=b\r\n%b\r\n0\r\n\r\n" % (len(CONTENT), CONTENT),
    "trailers": b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
    "expected": b"expect: 100-continue\r\ncontent-length: 2\r\n\r\nhi",
    "two lengths": b"content-length: 2\r\ncontent-length: 3\r\n\r\nhi!",
    "length and chunked": b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "another coding": b"transfer-encoding: gzip\r\n\r\nhi",
    "a broken chunk": b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    "a folded header": b"x: a\r\n upgrade: b\r\n\r\n",
    "half a body": b"content-length: 9\r\n\r\nhi",
}


@dataclass
class Served:
    """What a connection's bytes came to."""

    requests: list[tuple[Any, ...]] = field(default_factory=list)
    written: bytes = b""
    closings: list[str] = field(default_factory=list)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        status = 200
        try:
            await self._read(scope, receive)
        except MeterError as error:
            status = error.http_status
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def _read(self, scope: Any, receive: Any) -> None:
        headers = [header for header in scope["headers"] if header[0] != b"upgrade"]
        request = (scope["method"], scope["path"], scope["query_string"], scope["http_version"], headers)
        self.requests.append(request)
        body, has_more = b"", True
        while has_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, has_more = body + message["body"], message["more_body"]
        self.requests[-1] = (*request, body)


async def _serve(pieces: Sequence[bytes], is_slow: bool) -> Served:
    served, transport, state = Served(), Transport(), ServerState()
    config = uvicorn.Config(served.app, interface="asgi3", proxy_headers=False, ws="none", log_config=None)
    config.load()
    protocol = ServerProtocol(lambda error: ([], b"{}"), config, state, {})
    protocol.connection_made(transport)  # type: ignore[arg-type]
    for piece in pieces:
        if transport.is_closing():
            break
        protocol.data_received(piece)
        if is_slow:
            await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    served.written = re.sub(rb"call_[0-9a-f]+", b"call", transport.written)
    served.closings = transport.closings
    protocol.connection_lost(None)
    await asyncio.gather(*state.tasks, return_exceptions=True)
    return served


def serve(sent: bytes, cuts: Sequence[int] = (), *, is_slow: bool = False) -> Served:
    """Feed a connection in pieces; `is_slow`: the application runs between two of them."""
    bounds = [0, *sorted(cut % (len(sent) + 1) for cut in cuts), len(sent)]
    return asyncio.run(_serve([sent[a:b] for a, b in itertools.pairwise(bounds) if a < b], is_slow))


def without(proposal: bytes, sent: bytes) -> bytes:
    return sent.replace(proposal + b"x-end: 1\r\n", b"x-end: 1\r\n")


requests = st.builds(
    lambda method, version, connection, proposal, framed, is_first: (
        proposal,
        method
        + b" /a?b HTTP/1.%d\r\nHost: a\r\n" % version
        + (proposal + b"x-end: 1\r\n" + connection if is_first else connection + proposal + b"x-end: 1\r\n")
        + framed,
    ),
    st.sampled_from([b"POST", b"GET", b"DELETE"]),
    st.sampled_from([1, 1, 1, 0]),
    st.sampled_from(CONNECTIONS),
    st.sampled_from(PROPOSALS),
    st.sampled_from(list(FRAMED.values())),
    st.booleans(),
)


@given(pipeline=st.lists(requests, min_size=1, max_size=3), cuts=st.lists(st.integers(0, 2000), max_size=4))
def test_a_proposed_upgrade_changes_nothing(pipeline: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    plain = serve(b"".join(without(proposal, sent) for proposal, sent in pipeline))
    sent = b"".join(sent for _, sent in pipeline)
    assert serve(sent, cuts) == plain


@pytest.mark.parametrize("name", FRAMED)
def test_a_proposed_upgrade_changes_nothing_byte_by_byte(name: str) -> None:
    sent = b"POST /a HTTP/1.1\r\nHost: a\r\n" + CONNECTIONS[0] + PROPOSALS[0] + b"x-end: 1\r\n" + FRAMED[name]
    after = b"GET /after HTTP/1.1\r\nHost: a\r\n\r\n"
    plain = serve(without(PROPOSALS[0], sent) + after)
    assert serve(sent + after, range(len(sent + after))) == serve(sent + after) == plain
    if name in ("none", "length", "no length", "chunked", "trailers", "expected"):
        assert serve(sent + after, range(len(sent + after)), is_slow=True).requests == plain.requests
        assert [request[1] for request in plain.requests] == ["/a", "/after"]
        assert plain.written.count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize("more", [b"", CONNECTIONS[0] + PROPOSALS[0]])
def test_connect_is_refused_and_nothing_behind_it_is_read(more: bytes) -> None:
    served = serve(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n" + more + b"\r\nGET /after HTTP/1.1\r\nHost: a\r\n\r\n")
    assert served.requests == []
    assert served.written.startswith(b"HTTP/1.1 400 ")
    assert served.closings == ["write_eof"]


def test_headers_are_repeated_without_their_upgrade() -> None:
    headers = [(b"host", b"a"), (b"upgrade", b"h2c"), (b"x", b"\xff "), (b"y", b"")]
    head = without_upgrade(b"GET", b"/a", "1.0", headers)
    assert head == b"GET /a HTTP/1.0\r\nhost: a\r\nx: \xff \r\ny: \r\n\r\n"
