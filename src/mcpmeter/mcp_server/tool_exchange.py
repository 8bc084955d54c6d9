"""The pipeline's other end inside the process: a call whose answer is collected instead of sent."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import anyio

from mcpmeter.dialects import sse
from mcpmeter.errors import BodyTooLarge, ClientDisconnected
from mcpmeter.http.exchange import CancelOnDisconnect, Header
from mcpmeter.records import NO_PATH_PARAMS

ENDPOINT: Final = "/mcp"


class ToolExchange:
    """A call made from inside: the body is given, the answer is collected, its text is told as it comes."""

    def __init__(
        self,
        body: bytes,
        *,
        secret: str | None,
        parent_id: str,
        trace_id: str,
        on_text: Callable[[str], Awaitable[None]],
    ) -> None:
        self.endpoint = ENDPOINT
        self.method = "tools/call"
        self.trace_id = trace_id
        self.parent_id = parent_id
        self.secret = secret
        self.headers: Mapping[bytes, bytes] = {}
        self.named = NO_PATH_PARAMS
        self.started = False
        self.answer = AnswerText()
        self._body = body
        self._on_text = on_text
        self._is_gone = False
        self._on_gone: Callable[[], None] | None = None

    def hang_up(self) -> None:
        """The caller has left: the call upstream is cancelled, and what was delivered is settled."""
        self._is_gone = True
        if self._on_gone is not None:
            self._on_gone()

    def _watch(self, on_disconnect: Callable[[], None] | None) -> None:
        self._on_gone = on_disconnect
        if on_disconnect is not None and self._is_gone:
            on_disconnect()

    @property
    def wire(self) -> None:
        """There is none."""

    async def read_body(self, limit_bytes: int) -> bytes:
        """Raises BodyTooLarge."""
        if len(self._body) > limit_bytes:
            raise BodyTooLarge(f"The messages are larger than {limit_bytes} bytes.", hint="Send less.")
        return self._body

    def listening(self) -> CancelOnDisconnect:
        """While inside, `hang_up` is raised as ClientDisconnected."""
        return CancelOnDisconnect(self._watch)

    async def whole(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """An answer that is there in full."""
        await self.start(status, headers)
        await self.end(body)

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        """The head of the answer, of which only the kind of body matters."""
        self.started = True
        kind = next((value for name, value in headers if name == b"content-type"), b"")
        self.answer.is_stream = kind.partition(b";")[0].strip().lower() == b"text/event-stream"

    async def send(self, data: bytes) -> None:
        """A part of the body. Waits while the caller does not read what it is told."""
        text = self.answer.feed(data)
        if text:
            try:
                await self._on_text(text)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                raise ClientDisconnected("The client closed the connection before the answer was complete.") from None

    async def end(self, data: bytes = b"") -> None:
        """The last part. Its text, if any, is in the result."""
        self.answer.feed(data)


class AnswerText:
    """Collects the text of an answer in OpenAI's chat dialect, whole or streamed, and the message of its error."""

    def __init__(self) -> None:
        self.is_stream = False
        self.error_message = ""
        self._parts: list[str] = []
        self._body = bytearray()
        self._events = sse.EventSplitter()

    def feed(self, data: bytes) -> str:
        """Take a part; return the text that it adds, if it is a stream's."""
        if self.is_stream:
            return self._read_events(self._events.feed(data))
        self._body += data
        return ""

    def finish(self) -> str:
        """The whole text."""
        if self.is_stream:
            self._read_events(self._events.take())
        else:
            self._parts.append(self._read_payload(bytes(self._body)))
        return "".join(self._parts)

    def _read_events(self, block: bytes) -> str:
        text = "".join(map(self._read_payload, sse.payloads(block)))
        self._parts.append(text)
        return text

    def _read_payload(self, payload: bytes) -> str:
        try:
            value = json.loads(payload)
        except (ValueError, RecursionError):
            return ""  # `[DONE]`, or what the pipeline has refused or counted already
        if not isinstance(value, dict):
            return ""
        error = value.get("error")
        if isinstance(error, dict) and isinstance(error.get("message"), str):
            self.error_message = clean(error["message"])
        return clean("".join(_texts(value.get("choices"))))


def _texts(choices: Any) -> Iterator[str]:
    for choice in choices if isinstance(choices, list) else ():
        written = (choice.get("delta") or choice.get("message")) if isinstance(choice, dict) else None
        content = written.get("content") if isinstance(written, dict) else None
        if isinstance(content, str):
            yield content


def clean(text: str) -> str:
    """Without lone surrogates, which no answer of ours could carry."""
    return text.encode("utf-8", "replace").decode("utf-8")
