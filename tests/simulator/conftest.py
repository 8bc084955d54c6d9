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
def connect_with():
    """A bare connection over which one request of any dialect was sent."""

    async def send(sim: Simulator, path: str, body: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await connect(sim)
        writer.write(request_bytes(path, json.dumps(body).encode()))
        return reader, writer

    return send


@pytest.fixture
def open_connection():
    """A bare connection and the bytes of a request to send over it."""

    async def send(sim: Simulator, simulate: str, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await connect(sim)
        writer.write(request_bytes("/v1/chat/completions", json.dumps(chat_body(simulate, **options)).encode()))
        return reader, writer

    return send


def sse_data(body: bytes) -> list[bytes]:
    """The data of each server-sent event that has any."""
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
class Told:
    """What an answer says of itself, in words that every dialect shares. Numbers are as they came."""

    text: str
    prompt: Any
    completion: Any
    finish: str | None


class Speaker:
    """How to ask in one dialect for a text, and how to read the answer without any SDK."""

    dialect: str
    path: str
    end: bytes
    """What only a stream that is whole has in it."""

    def body(self, simulate: str, *, stream: bool, **more: Any) -> dict[str, Any]:
        raise NotImplementedError

    def url(self, *, stream: bool) -> str:
        return self.path

    def whole(self, body: Any) -> Told:
        raise NotImplementedError

    def streamed(self, events: list[Any]) -> Told:
        raise NotImplementedError

    def events(self, body: bytes) -> list[Any]:
        return sse_events(body)

    def broken_events(self, body: bytes) -> int:
        return sum(not _parses(data) for data in sse_data(body) if data != b"[DONE]")

    def told(self, answer: RawAnswer, *, stream: bool) -> Told:
        return self.streamed(self.events(answer.body)) if stream else self.whole(answer.json)

    async def ask(self, sim: Simulator, simulate: str = "", *, stream: bool = False, **more: Any) -> RawAnswer:
        body = self.body(simulate, stream=stream, **more)
        return await ask_raw(sim, body, self.url(stream=stream))


class Chat(Speaker):
    dialect = "openai_chat"
    path = "/v1/chat/completions"
    end = b"[DONE]"

    def body(self, simulate: str, *, stream: bool, **more: Any) -> dict[str, Any]:
        return chat_body(simulate, stream=stream, **more)

    def whole(self, body: Any) -> Told:
        (choice,), usage = body["choices"], body.get("usage", {})
        completion = usage.get("completion_tokens")
        return Told(choice["message"]["content"], usage.get("prompt_tokens"), completion, choice["finish_reason"])

    def streamed(self, events: list[Any]) -> Told:
        choices = [choice for event in events for choice in event.get("choices", [])]
        usage: Any = next((event["usage"] for event in events if event.get("usage")), {})
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        finish = next((choice["finish_reason"] for choice in choices if choice["finish_reason"]), None)
        return Told(text, usage.get("prompt_tokens"), usage.get("completion_tokens"), finish)


class Responses(Speaker):
    dialect = "openai_responses"
    path = "/v1/responses"
    end = b"response.completed"

    def body(self, simulate: str, *, stream: bool, **more: Any) -> dict[str, Any]:
        body: dict[str, Any] = {"model": "gpt-4.1", "input": "Hello", "stream": stream, **more}
        return body | {"metadata": {"simulate": simulate}} if simulate else body

    def whole(self, body: Any) -> Told:
        messages = [item for item in body["output"] if item["type"] == "message"]
        text = "".join(part["text"] for item in messages for part in item["content"])
        usage = body.get("usage") or {}
        return Told(text, usage.get("input_tokens"), usage.get("output_tokens"), body["status"])

    def streamed(self, events: list[Any]) -> Told:
        text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
        ends = [event["response"] for event in events if event["type"] in ("response.completed", "response.incomplete")]
        if not ends:
            return Told(text, None, None, None)
        usage = ends[0].get("usage") or {}
        return Told(text, usage.get("input_tokens"), usage.get("output_tokens"), ends[0]["status"])


class Messages(Speaker):
    dialect = "anthropic_messages"
    path = "/v1/messages"
    end = b"message_stop"

    def body(self, simulate: str, *, stream: bool, **more: Any) -> dict[str, Any]:
        asked = [{"role": "user", "content": "Hello"}]
        body: dict[str, Any] = {"model": "claude-sonnet-4.5", "max_tokens": 8192, "messages": asked, "stream": stream}
        return body | more | ({"metadata": {"user_id": f"simulate:{simulate}"}} if simulate else {})

    def whole(self, body: Any) -> Told:
        text = "".join(block["text"] for block in body["content"] if block["type"] == "text")
        usage = body.get("usage", {})
        return Told(text, usage.get("input_tokens"), usage.get("output_tokens"), body["stop_reason"])

    def streamed(self, events: list[Any]) -> Told:
        deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
        text = "".join(delta["text"] for delta in deltas if delta["type"] == "text_delta")
        ends = [event for event in events if event["type"] == "message_delta"]
        usage = ends[0].get("usage", {}) if ends else {}
        finish = ends[0]["delta"]["stop_reason"] if ends else None
        return Told(text, usage.get("input_tokens"), usage.get("output_tokens"), finish)


class Gemini(Speaker):
    dialect = "gemini_generate"
    path = "/v1beta/models/gemini-2.5-flash"
    end = b"finishReason"

    def url(self, *, stream: bool) -> str:
        return f"{self.path}:streamGenerateContent?alt=sse" if stream else f"{self.path}:generateContent"

    def body(self, simulate: str, *, stream: bool, **more: Any) -> dict[str, Any]:
        body: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}], **more}
        return body | {"labels": {"simulate": simulate}} if simulate else body

    def whole(self, body: Any) -> Told:
        return self.streamed([body])

    def streamed(self, events: list[Any]) -> Told:
        candidates = [candidate for event in events for candidate in event["candidates"]]
        parts = [part for candidate in candidates for part in candidate.get("content", {}).get("parts", [])]
        text = "".join(part["text"] for part in parts if "text" in part and not part.get("thought"))
        usage = events[-1].get("usageMetadata", {})
        finish = candidates[-1].get("finishReason")
        return Told(text, usage.get("promptTokenCount"), usage.get("candidatesTokenCount"), finish)


class GeminiArray(Gemini):
    def broken_events(self, body: bytes) -> int:
        return not _parses(body)

    def url(self, *, stream: bool) -> str:
        return f"{self.path}:streamGenerateContent" if stream else f"{self.path}:generateContent"

    def events(self, body: bytes) -> list[Any]:
        events: list[Any] = json.loads(body)
        return events


SPEAKERS = [Chat(), Responses(), Messages(), Gemini(), GeminiArray()]


@pytest.fixture(params=SPEAKERS, ids=lambda speaker: type(speaker).__name__)
def speaker(request) -> Speaker:
    """Each dialect that has streams, one after the other; Gemini's two forms of a stream count as two."""
    return request.param
