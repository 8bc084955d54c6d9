"""A raw client: what a fault does to the bytes is only visible below any HTTP library."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from mcpmeter.simulator import Simulator


@dataclass
class RawAnswer:
    """What came out of the socket until it ended."""

    received: bytes
    was_reset: bool

    @property
    def head(self) -> bytes:
        return self.received.partition(b"\r\n\r\n")[0]

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode().split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @property
    def content(self) -> bytes:
        """The bytes behind the head as they came."""
        return self.received.partition(b"\r\n\r\n")[2]

    @property
    def body(self) -> bytes:
        """The content without its transfer encoding; an unfinished chunk is given as far as it came."""
        if self.headers.get("transfer-encoding") != "chunked":
            return self.content
        body, rest = b"", self.content
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size or b"0", 16)
            body, rest = body + rest[:length], rest[length + 2 :]
        return body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[bytes]:
        return [line.removeprefix(b"data: ") for line in self.body.split(b"\n\n") if line.startswith(b"data: ")]

    @property
    def chunks(self) -> list[Any]:
        return [json.loads(event) for event in self.events if event != b"[DONE]"]

    @property
    def usages(self) -> list[Any]:
        return [chunk["usage"] for chunk in self.chunks if chunk.get("usage") is not None]


Post = Callable[..., Awaitable[RawAnswer]]


def chat_body(simulate: str = "", *, stream: bool = False, text: str = "Hello", **more: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "gpt-4.1", "messages": [{"role": "user", "content": text}], **more}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if simulate:
        body["metadata"] = {"simulate": simulate}
    return body


async def connect(sim: Simulator) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = sim.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port), limit=2**24)


def request_bytes(path: str, body: bytes, *, method: str = "POST", headers: str = "") -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def ask_raw(
    sim: Simulator,
    body: Any,
    path: str = "/v1/chat/completions",
    *,
    method: str = "POST",
    headers: str = "",
) -> RawAnswer:
    reader, writer = await connect(sim)
    writer.write(
        request_bytes(
            path, body if isinstance(body, bytes) else json.dumps(body).encode(), method=method, headers=headers
        )
    )
    received, was_reset = b"", False
    try:
        while data := await asyncio.wait_for(reader.read(65536), 20):
            received += data
    except ConnectionResetError:
        was_reset = True
    finally:
        writer.transport.abort()
    return RawAnswer(received, was_reset)


@pytest.fixture
async def sim():
    async with Simulator(seed=1) as running:
        yield running


@pytest.fixture
def post(sim) -> Post:
    """POST to the simulator and read until its end: a dict (or bytes), or what `chat_body` takes."""

    async def send(body: Any = "", **options: Any) -> RawAnswer:
        given = body if isinstance(body, bytes | dict) else chat_body(body, **options)
        return await ask_raw(sim, given)

    return send


@pytest.fixture
def raw():
    """`ask_raw` for simulators other than the fixture's."""
    return ask_raw


@pytest.fixture
def open_connection():
    """A bare connection and the bytes of a request to send over it."""

    async def send(sim: Simulator, simulate: str, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await connect(sim)
        writer.write(request_bytes("/v1/chat/completions", json.dumps(chat_body(simulate, **options)).encode()))
        return reader, writer

    return send
