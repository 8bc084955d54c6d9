"""A client on a bare socket: the effect of a fault on the bytes is visible only below an HTTP library."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from mcpmeter.simulator import Simulator


@dataclass
class RawResponse:
    """All bytes of one connection."""

    received: bytes
    was_reset: bool

    @property
    def header_block(self) -> bytes:
        return self.received.partition(b"\r\n\r\n")[0]

    @property
    def status(self) -> int:
        return int(self.header_block.split(b" ", 2)[1])

    @property
    def headers(self) -> dict[str, str]:
        lines = self.header_block.decode().split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @property
    def content(self) -> bytes:
        """The bytes after the headers."""
        return self.received.partition(b"\r\n\r\n")[2]

    @property
    def body(self) -> bytes:
        """The content without its transfer encoding, up to the received part of an incomplete chunk."""
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


Post = Callable[..., Awaitable[RawResponse]]


def chat_body(simulate: str = "", *, stream: bool = False, text: str = "Hello", **more: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "gpt-4.1", "messages": [{"role": "user", "content": text}]}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    body |= more
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


async def request_raw(
    sim: Simulator,
    body: Any,
    path: str = "/v1/chat/completions",
    *,
    method: str = "POST",
    headers: str = "",
) -> RawResponse:
    reader, writer = await connect(sim)
    writer.write(
        request_bytes(
            path, body if isinstance(body, bytes) else json.dumps(body).encode(), method=method, headers=headers
        )
    )
    received, was_reset = b"", False
    try:
        while data := await asyncio.wait_for(reader.read(65536), 120):
            received += data
    except ConnectionResetError:
        was_reset = True
    finally:
        writer.transport.abort()
    return RawResponse(received, was_reset)


@pytest.fixture
async def sim():
    async with Simulator(seed=1) as running:
        yield running


@pytest.fixture
def post(sim) -> Post:
    """POSTs a dict, bytes or the parameters of `chat_body` to the simulator."""

    async def send(body: Any = "", **options: Any) -> RawResponse:
        given = body if isinstance(body, bytes | dict) else chat_body(body, **options)
        return await request_raw(sim, given)

    return send


@pytest.fixture
def raw():
    """`request_raw`, for any simulator."""
    return request_raw


@pytest.fixture
def connect_with():
    """Sends one request and returns the open connection."""

    async def send(sim: Simulator, path: str, body: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await connect(sim)
        writer.write(request_bytes(path, json.dumps(body).encode()))
        return reader, writer

    return send


@pytest.fixture
def open_connection(connect_with):
    """Sends one chat request and returns the open connection."""

    async def send(sim: Simulator, simulate: str, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await connect_with(sim, "/v1/chat/completions", chat_body(simulate, **options))

    return send


def sse_data(body: bytes) -> list[bytes]:
    """The data of all server-sent events."""
    return [line[6:] for line in body.replace(b"\r\n", b"\n").split(b"\n") if line.startswith(b"data: ")]


def sse_events(body: bytes) -> list[Any]:
    return [json.loads(data) for data in sse_data(body) if data != b"[DONE]"]


def _parses(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class Reported:
    """The text, usage and finish reason of a response in any dialect; numbers with the types they had in its JSON."""

    text: str
    prompt: Any
    completion: Any
    finish: str | None


class DialectClient:
    """Requests a text in one dialect, and reads the response without an SDK."""

    dialect: str
    path: str
    end: bytes
    """Bytes that only a complete stream has."""

    def body(self, simulate: str, *, stream: bool, **more: Any) -> dict[str, Any]:
        raise NotImplementedError

    def url(self, *, stream: bool) -> str:
        return self.path

    def whole(self, body: Any) -> Reported:
        raise NotImplementedError

    def streamed(self, events: list[Any]) -> Reported:
        raise NotImplementedError

    def events(self, body: bytes) -> list[Any]:
        return sse_events(body)

    def broken_events(self, body: bytes) -> int:
        return sum(not _parses(data) for data in sse_data(body) if data != b"[DONE]")

    def reported(self, response: RawResponse, *, stream: bool) -> Reported:
        return self.streamed(self.events(response.body)) if stream else self.whole(response.json)

    async def post(self, sim: Simulator, simulate: str = "", *, stream: bool = False, **more: Any) -> RawResponse:
        body = self.body(simulate, stream=stream, **more)
        return await request_raw(sim, body, self.url(stream=stream))


class Chat(DialectClient):
    dialect = "openai_chat"
    path = "/v1/chat/completions"
    end = b"[DONE]"

    def body(self, simulate: str, *, stream: bool, **more: Any) -> dict[str, Any]:
        return chat_body(simulate, stream=stream, **more)

    def whole(self, body: Any) -> Reported:
        (choice,), usage = body["choices"], body.get("usage", {})
        completion = usage.get("completion_tokens")
        return Reported(choice["message"]["content"], usage.get("prompt_tokens"), completion, choice["finish_reason"])

    def streamed(self, events: list[Any]) -> Reported:
        choices = [choice for event in events for choice in event.get("choices", [])]
        usage: Any = next((event["usage"] for event in events if event.get("usage")), {})
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        finish = next((choice["finish_reason"] for choice in choices if choice["finish_reason"]), None)
        return Reported(text, usage.get("prompt_tokens"), usage.get("completion_tokens"), finish)


class Responses(DialectClient):
    dialect = "openai_responses"
    path = "/v1/responses"
    end = b"response.completed"

    def body(self, simulate: str, *, stream: bool, **more: Any) -> dict[str, Any]:
        body: dict[str, Any] = {"model": "gpt-4.1", "input": "Hello", "stream": stream, **more}
        return body | {"metadata": {"simulate": simulate}} if simulate else body

    def whole(self, body: Any) -> Reported:
        messages = [item for item in body["output"] if item["type"] == "message"]
        text = "".join(part["text"] for item in messages for part in item["content"])
        usage = body.get("usage") or {}
        return Reported(text, usage.get("input_tokens"), usage.get("output_tokens"), body["status"])

    def streamed(self, events: list[Any]) -> Reported:
        text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
        ends = [event["response"] for event in events if event["type"] in ("response.completed", "response.incomplete")]
        if not ends:
            return Reported(text, None, None, None)
        usage = ends[0].get("usage") or {}
        return Reported(text, usage.get("input_tokens"), usage.get("output_tokens"), ends[0]["status"])


class Messages(DialectClient):
    dialect = "anthropic_messages"
    path = "/v1/messages"
    end = b"message_stop"

    def body(self, simulate: str, *, stream: bool, **more: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": "Hello"}]
        body: dict[str, Any] = {
            "model": "claude-sonnet-4.5",
            "max_tokens": 8192,
            "messages": messages,
            "stream": stream,
        }
        return body | more | ({"metadata": {"user_id": f"simulate:{simulate}"}} if simulate else {})

    def whole(self, body: Any) -> Reported:
        text = "".join(block["text"] for block in body["content"] if block["type"] == "text")
        usage = body.get("usage", {})
        return Reported(text, usage.get("input_tokens"), usage.get("output_tokens"), body["stop_reason"])

    def streamed(self, events: list[Any]) -> Reported:
        deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
        text = "".join(delta["text"] for delta in deltas if delta["type"] == "text_delta")
        ends = [event for event in events if event["type"] == "message_delta"]
        usage = ends[0].get("usage", {}) if ends else {}
        finish = ends[0]["delta"]["stop_reason"] if ends else None
        return Reported(text, usage.get("input_tokens"), usage.get("output_tokens"), finish)


class Gemini(DialectClient):
    dialect = "gemini_generate"
    path = "/v1beta/models/gemini-2.5-flash"
    end = b"finishReason"

    def url(self, *, stream: bool) -> str:
        return f"{self.path}:streamGenerateContent?alt=sse" if stream else f"{self.path}:generateContent"

    def body(self, simulate: str, *, stream: bool, **more: Any) -> dict[str, Any]:
        body: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}], **more}
        return body | {"labels": {"simulate": simulate}} if simulate else body

    def whole(self, body: Any) -> Reported:
        return self.streamed([body])

    def streamed(self, events: list[Any]) -> Reported:
        candidates = [candidate for event in events for candidate in event["candidates"]]
        parts = [part for candidate in candidates for part in candidate.get("content", {}).get("parts", [])]
        text = "".join(part["text"] for part in parts if "text" in part and not part.get("thought"))
        usage = events[-1].get("usageMetadata", {})
        finish = candidates[-1].get("finishReason")
        return Reported(text, usage.get("promptTokenCount"), usage.get("candidatesTokenCount"), finish)


class GeminiArray(Gemini):
    def broken_events(self, body: bytes) -> int:
        return not _parses(body)

    def url(self, *, stream: bool) -> str:
        return f"{self.path}:streamGenerateContent" if stream else f"{self.path}:generateContent"

    def events(self, body: bytes) -> list[Any]:
        events: list[Any] = json.loads(body)
        return events


CLIENTS = [Chat(), Responses(), Messages(), Gemini(), GeminiArray()]


@pytest.fixture(params=CLIENTS, ids=lambda client: type(client).__name__)
def client(request) -> DialectClient:
    """Each dialect with streams; Gemini's two stream formats count as two."""
    return request.param
