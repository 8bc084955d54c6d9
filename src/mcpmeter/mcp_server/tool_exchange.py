"""The exchange of a call made by an MCP tool: its response is collected instead of sent to a client."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import anyio

from mcpmeter.dialects import sse
from mcpmeter.errors import BodyTooLarge, ClientDisconnected
from mcpmeter.http.asgi import Header
from mcpmeter.http.exchange import CancelOnDisconnect
from mcpmeter.records import NO_PATH_PARAMS

ENDPOINT: Final = "/mcp"


class ToolExchange:
    """Collects the response of a call made in this process; `on_text` receives each part of a streamed text."""

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
        self.path_params = NO_PATH_PARAMS
        self.started = False
        self.response = ResponseText()
        self._body = body
        self._on_text = on_text
        self._is_disconnected = False
        self._on_disconnect: Callable[[], None] | None = None

    def disconnect(self) -> None:
        """Cancel the upstream call, as if an HTTP client had disconnected; the delivered part is settled."""
        self._is_disconnected = True
        if self._on_disconnect is not None:
            self._on_disconnect()

    def _watch(self, on_disconnect: Callable[[], None] | None) -> None:
        self._on_disconnect = on_disconnect
        if on_disconnect is not None and self._is_disconnected:
            on_disconnect()

    @property
    def direct_response(self) -> None:
        """None: there is no connection."""

    async def read_body(self, limit_bytes: int) -> bytes:
        """Raises BodyTooLarge."""
        if len(self._body) > limit_bytes:
            raise BodyTooLarge(f"The messages are larger than {limit_bytes} bytes.", hint="Send less.")
        return self._body

    def cancel_on_disconnect(self) -> CancelOnDisconnect:
        """Inside the block, `disconnect` raises ClientDisconnected."""
        return CancelOnDisconnect(self._watch)

    async def respond(self, status: int, headers: Iterable[Header], body: bytes) -> None:
        """Collect a complete response."""
        await self.start(status, headers)
        await self.end(body)

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        """Take the headers, of which only the content type matters."""
        self.started = True
        content_type = next((value for name, value in headers if name == b"content-type"), b"")
        self.response.is_stream = content_type.partition(b";")[0].strip().lower() == b"text/event-stream"

    async def send(self, data: bytes) -> None:
        """Collect a part of the body. Waits until the client has read its text."""
        text = self.response.feed(data)
        if text:
            try:
                await self._on_text(text)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                raise ClientDisconnected("The client closed the connection before the response was complete.") from None

    async def end(self, data: bytes = b"") -> None:
        """Collect the last part; its text appears only in the result."""
        self.response.feed(data)


class ResponseText:
    """Collects the text or the error message of a response in OpenAI's chat dialect, whole or streamed."""

    def __init__(self) -> None:
        self.is_stream = False
        self.error_message = ""
        self._parts: list[str] = []
        self._body = bytearray()
        self._events = sse.EventSplitter()

    def feed(self, data: bytes) -> str:
        """Add a part of the body; returns the text in it if the response is a stream."""
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
            return ""  # `[DONE]`, or invalid data, which the pipeline counts
        if not isinstance(value, dict):
            return ""
        error = value.get("error")
        if isinstance(error, dict) and isinstance(error.get("message"), str):
            self.error_message = clean(error["message"])
        return clean("".join(_texts(value.get("choices"))))


def _texts(choices: Any) -> Iterator[str]:
    for choice in choices if isinstance(choices, list) else ():
        message = (choice.get("delta") or choice.get("message")) if isinstance(choice, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            yield content


def clean(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")
