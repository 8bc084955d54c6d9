"""The dialects from a client's side: the request of each, and where its responses hold text and errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

OPENAI, ANTHROPIC, GEMINI = "openai", "anthropic", "gemini"


@dataclass(frozen=True)
class DialectError:
    """An error of ours in a dialect's shape."""

    code: str
    call_id: str
    message: str


class Speaker:
    """A dialect's requests and responses; one class per form of response."""

    name: str
    path: str
    endpoint: str
    """The route as metrics and the ledger label it."""
    provider = OPENAI
    model = "gpt-4.1"
    streams = False
    """Whether the response is a stream of events that pass one by one."""

    def url(self, model: str) -> str:
        return self.path

    def upstream_url(self, model: str) -> str:
        """The URL of the same request at a provider."""
        return self.url(model)

    def body(self, simulate: str, model: str) -> dict[str, Any]:
        raise NotImplementedError

    def error(self, body: Any) -> DialectError:
        """The error in a body. Fails for any shape but the dialect's."""
        assert set(body) == {"error"}
        error = body["error"]
        assert set(error) == {"message", "type", "param", "code", "call_id"}
        return DialectError(error["code"], error["call_id"], error["message"])

    def last_error(self, body: bytes) -> DialectError:
        """The error in the last event of a stream."""
        return self.error(json.loads(list(data_of(body))[-1]))

    def text(self, body: bytes) -> str:
        """The model's text in a stream."""
        raise NotImplementedError


def data_of(body: bytes) -> Iterator[bytes]:
    return (line[6:] for line in body.replace(b"\r\n", b"\n").split(b"\n") if line.startswith(b"data: "))


def events_of(body: bytes) -> Iterator[Any]:
    for data in data_of(body):
        try:
            yield json.loads(data)
        except ValueError:
            continue


class Chat(Speaker):
    name = "chat"
    path = endpoint = "/v1/chat/completions"

    def body(self, simulate: str, model: str) -> dict[str, Any]:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "metadata": {"simulate": simulate}}
        # The client requests usage itself, so that bytes can be compared; test_fidelity.py has streams without.
        return {**body, "stream": True, "stream_options": {"include_usage": True}} if self.streams else body


class ChatStream(Chat):
    name = "chat stream"
    streams = True

    def text(self, body: bytes) -> str:
        choices = (choice for event in events_of(body) for choice in event.get("choices", ()))
        return "".join(choice["delta"].get("content") or "" for choice in choices)


class Guide(Chat):
    """The guide's endpoint, which maps a provider's faults to 502."""

    name = "guide"
    path = endpoint = "/mcp/chat"

    def upstream_url(self, model: str) -> str:
        return Chat.path


class Embeddings(Speaker):
    name = "embeddings"
    path = endpoint = "/v1/embeddings"
    model = "text-embedding-3-small"

    def body(self, simulate: str, model: str) -> dict[str, Any]:
        return {"model": model, "input": "Hello", "metadata": {"simulate": simulate}}


class Responses(Speaker):
    name = "responses"
    path = endpoint = "/v1/responses"

    def body(self, simulate: str, model: str) -> dict[str, Any]:
        return {"model": model, "input": "Hello", "stream": self.streams, "metadata": {"simulate": simulate}}


class ResponsesStream(Responses):
    name = "responses stream"
    streams = True

    def last_error(self, body: bytes) -> DialectError:
        event = list(events_of(body))[-1]
        assert event.pop("type") == "error"
        return self.error(event)

    def text(self, body: bytes) -> str:
        return "".join(e["delta"] for e in events_of(body) if e["type"] == "response.output_text.delta")


class Messages(Speaker):
    name = "messages"
    path = endpoint = "/v1/messages"
    provider = ANTHROPIC
    model = "claude-sonnet-4.5"

    def body(self, simulate: str, model: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": "Hello"}]
        metadata = {"user_id": f"simulate:{simulate}"} if simulate else {}
        return {"model": model, "max_tokens": 8192, "messages": messages, "stream": self.streams, "metadata": metadata}

    def error(self, body: Any) -> DialectError:
        assert set(body) == {"type", "error", "request_id"}
        assert body["type"] == "error"
        error = body["error"]
        return DialectError(error["code"], body["request_id"], error["message"])


class MessagesStream(Messages):
    name = "messages stream"
    streams = True

    def last_error(self, body: bytes) -> DialectError:
        assert b"event: error\n" in body
        return self.error(list(events_of(body))[-1])

    def text(self, body: bytes) -> str:
        deltas = (e["delta"] for e in events_of(body) if e["type"] == "content_block_delta")
        return "".join(delta.get("text", "") for delta in deltas)


class Generate(Speaker):
    name = "gemini"
    provider = GEMINI
    model = "gemini-2.5-flash"
    action = "generateContent"
    endpoint = "/v1beta/models/{model}:generateContent"

    def url(self, model: str) -> str:
        return f"/v1beta/models/{model}:{self.action}"

    def body(self, simulate: str, model: str) -> dict[str, Any]:
        contents = [{"role": "user", "parts": [{"text": "Hello"}]}]
        return {"contents": contents, "labels": {"simulate": simulate}} if simulate else {"contents": contents}

    def error(self, body: Any) -> DialectError:
        assert set(body) == {"error"}
        error = body["error"]
        assert set(error) == {"code", "message", "status", "details"}
        assert error["status"].isupper()
        (detail,) = error["details"]
        return DialectError(detail["metadata"]["code"], detail["metadata"]["call_id"], error["message"])


class GenerateStream(Generate):
    name = "gemini stream"
    action = "streamGenerateContent?alt=sse"
    endpoint = "/v1beta/models/{model}:streamGenerateContent"
    streams = True

    def text(self, body: bytes) -> str:
        candidates = (c for event in events_of(body) for c in event.get("candidates", ()))
        return "".join(p.get("text", "") for c in candidates for p in c.get("content", {}).get("parts", ()))


class GenerateArray(Generate):
    name = "gemini array"
    action = "streamGenerateContent"
    endpoint = "/v1beta/models/{model}:streamGenerateContent"

    def error(self, body: Any) -> DialectError:
        (error,) = body
        return super().error(error)


class CountTokens(Messages):
    name = "count_tokens"
    path = endpoint = "/v1/messages/count_tokens"

    def body(self, simulate: str, model: str) -> dict[str, Any]:
        return {"model": model, "messages": [{"role": "user", "content": _text_with(simulate)}]}


class GeminiCountTokens(Generate):
    name = "gemini count"
    action = "countTokens"
    endpoint = "/v1beta/models/{model}:countTokens"

    def body(self, simulate: str, model: str) -> dict[str, Any]:
        return {"contents": [{"role": "user", "parts": [{"text": _text_with(simulate)}]}]}


class GeminiEmbed(Generate):
    name = "gemini embed"
    model = "gemini-embedding-001"
    action = "embedContent"
    endpoint = "/v1beta/models/{model}:embedContent"

    def body(self, simulate: str, model: str) -> dict[str, Any]:
        return {"content": {"parts": [{"text": _text_with(simulate)}]}, "outputDimensionality": 8}


class GeminiBatchEmbed(GeminiEmbed):
    name = "gemini batch"
    action = "batchEmbedContents"
    endpoint = "/v1beta/models/{model}:batchEmbedContents"

    def body(self, simulate: str, model: str) -> dict[str, Any]:
        return {"requests": [super().body(simulate, model), super().body("", model)]}


def _text_with(simulate: str) -> str:
    """The text that requests a fault, in dialects without another field for it."""
    return f"[[simulate {simulate}]] Hello" if simulate else "Hello"


CHAT, CHAT_STREAM, GUIDE = Chat(), ChatStream(), Guide()
RESPONSES, RESPONSES_STREAM = Responses(), ResponsesStream()
MESSAGES, MESSAGES_STREAM = Messages(), MessagesStream()
GENERATE, GENERATE_STREAM, GENERATE_ARRAY = Generate(), GenerateStream(), GenerateArray()
EMBEDDINGS, EMBED, BATCH_EMBED = Embeddings(), GeminiEmbed(), GeminiBatchEmbed()
COUNTS = (CountTokens(), GeminiCountTokens())
"""Requests that reach no model and cost nothing."""

WHOLE = (CHAT, RESPONSES, MESSAGES, GENERATE, GENERATE_ARRAY, EMBEDDINGS, EMBED, BATCH_EMBED)
STREAMS = (CHAT_STREAM, RESPONSES_STREAM, MESSAGES_STREAM, GENERATE_STREAM)
EVERY = (*WHOLE, *STREAMS, *COUNTS)
by_name = {"ids": lambda speaker: speaker.name}
