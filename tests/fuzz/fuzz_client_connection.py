"""Any bytes in any segments as a provider's response: a response or the provider's fault, and nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.fuzz.harness import Target, pieces, segmentations
from tests.http.client.responses import CHUNKED, INVALID, INVALID_BODY, TOO_SHORT, UNTIL_CLOSED, WHOLE
from tests.http.client.scripted_server import (
    BODY,
    HEADERS,
    LIMIT,
    PATIENT,
    assert_nothing_is_left,
    connection_in_memory,
)

from mcpmeter.errors import MeterError, UpstreamFault
from mcpmeter.http.client import MAX_BUFFERED_BYTES, Http1Client

WORDS = (
    *(wire for wire, *_ in WHOLE.values()), *(wire for wire, _ in UNTIL_CLOSED.values()),
    *(wire[:400] for wire in INVALID.values()), *(wire[:400] for wire in INVALID_BODY.values()), *TOO_SHORT.values(),
    b"HTTP/1.1 ", b"HTTP/1.0 ", b"200 OK\r\n", b"100 Continue\r\n\r\n", b"101 Switching\r\n", b"\r\n", b"\r\n\r\n",
    b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"Content-Encoding: gzip\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n",
    b"0\r\nX: 1\r\n\r\n", b"5;ext=1\r\n", b"ffffffff\r\n", b"X-A: 1\r\n", b" folded\r\n", b"\n", b"hello", CHUNKED,
)  # fmt: skip
Outcome = tuple[int, dict[str, str], bytes] | type[MeterError]


async def outcome_of(parts: Sequence[bytes], *, piped: bool) -> Outcome:
    """What a call makes of a response that arrives in these parts and ends with its connection."""
    client = Http1Client(PATIENT, max_connections=1)
    connection, wire = connection_in_memory(client)
    task = asyncio.ensure_future(_call(client, piped=piped))
    await asyncio.sleep(0)
    for part in parts:
        if wire.is_closing() or connection.is_complete:
            break
        wire.receive(part)
        assert connection._buffered_bytes <= MAX_BUFFERED_BYTES + len(part)
        await asyncio.sleep(0)
    if not task.done():
        wire.end()
    try:
        return await task
    except MeterError as error:
        return type(error)
    finally:
        await client.close()
        assert_nothing_is_left(client, 1)


async def _call(client: Http1Client, *, piped: bool) -> Outcome:
    response = await client.post("acme", "http://wire.example/", HEADERS, BODY)
    try:
        if piped and response.is_plain:
            taken: list[bytes] = []
            await response.pipe(lambda part: not taken.append(part), LIMIT)
            body = b"".join(taken)
        else:
            body = await response.read(LIMIT)
        response.finish()
        return response.status, dict(response.headers), body
    finally:
        response.abort()


def _run(parts: Sequence[bytes], *, piped: bool) -> Outcome:
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(outcome_of(parts, piped=piped))
    finally:
        loop.close()


def check(data: bytes) -> None:
    """Every segmentation, read and piped, comes to the same."""
    whole = _run([data] if data else [], piped=False)
    assert isinstance(whole, tuple) or issubclass(whole, UpstreamFault), whole
    for parts in segmentations(data):
        for piped in (False, True):
            cut = _run(parts, piped=piped)
            assert cut == whole, f"piped={piped}: {cut} is not {whole}"


def cost(data: bytes) -> None:
    _run(pieces(data), piped=False)
    _run([data], piped=True)


TARGET = Target("client_connection", check, cost, WORDS)
