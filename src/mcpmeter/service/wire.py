"""A request and its answer on a connection: uvicorn's ASGI cycle, and a `relay.exchange.Wire` besides."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from mcpmeter.relay.exchange import Header

NO_STATUS_BODY = (204, 304)


class Cycle(RequestResponseCycle):
    """Answers by ASGI's messages, or by a wire's methods; one request never mixes the two."""

    on_gone: Callable[[], None] | None = None
    on_room: Callable[[], None] | None = None
    is_full = False
    """Whether the client does not read: what is written now only fills our memory."""
    _head = b""
    """The head until something of the body goes with it: one write is the dearest step of a small answer."""

    # What was asked -----------------------------------------------------------------------------------------------

    def whole_body(self) -> bytes | None:
        """The request's body if all of it is there. Not asked again once it was given."""
        if self.more_body or self.disconnected:
            return None
        body, self.body = bytes(self.body), bytearray()
        self.message_event.clear()
        return body

    def watch(self, on_gone: Callable[[], None] | None) -> None:
        """Tell when the client has gone, at once if it has; None: no more."""
        self.on_gone = on_gone
        if on_gone is None:
            return
        self.flow.resume_reading()  # a connection that is not read does not tell its end
        if self.disconnected:
            on_gone()

    def tell_gone(self) -> None:
        """The connection is lost."""
        self.disconnected, self.is_full = True, False
        self.message_event.set()
        if self.on_gone is not None:
            self.on_gone()

    # The answer ---------------------------------------------------------------------------------------------------

    async def room(self) -> None:
        """Wait until the client reads, or has gone."""
        if self.is_full:
            await self.flow.drain()

    def tell_room(self) -> None:
        """The client reads again."""
        self.is_full = False
        if self.on_room is not None:
            self.on_room()

    def start(self, status: int, headers: Iterable[Header]) -> None:
        """The head of the answer; goes with the first part of the body."""
        self.response_started = True
        self.waiting_for_100_continue = False
        lines = [STATUS_LINE[status]]
        for name, value in (*self.default_headers, *headers):
            if name == b"content-length":
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif name == b"connection" and value == b"close":
                self.keep_alive = False
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in NO_STATUS_BODY:
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
        head = b"".join(lines)
        if head.count(b"\r") != len(lines) or head.count(b"\n") != len(lines) or b"\0" in head:
            raise RuntimeError("a header holds a line break")
        self._head = head + b"\r\n"

    def write(self, data: bytes) -> None:
        """A part of the body."""
        if not self._head and data and self.chunked_encoding:
            if not self.disconnected:
                self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        elif self.chunked_encoding:
            self._write(b"%b%x\r\n%b\r\n" % (self._head, len(data), data) if data else self._head)
        else:
            self._write(self._counted(data))

    def end(self, data: bytes) -> None:
        """The last part; the answer is complete."""
        if self.chunked_encoding:
            last = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            self._write(b"%b%b0\r\n\r\n" % (self._head, last))
        else:
            self._write(self._counted(data))
        if self.disconnected:
            return
        if self.expected_content_length:
            raise RuntimeError("an answer is shorter than its content-length")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def _counted(self, data: bytes) -> bytes:
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            return self._head
        self.expected_content_length -= len(data)
        if self.expected_content_length < 0:
            raise RuntimeError("an answer is longer than its content-length")
        return self._head + data

    def _write(self, data: bytes) -> None:
        self._head = b""
        if data and not self.disconnected:
            self.transport.write(data)
