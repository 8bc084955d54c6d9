"""uvicorn's HTTP protocol with two holes closed: heads without an end, and refusals that nobody counts.

Neither uvicorn nor httptools bounds a request's head, so that one connection could fill the memory; and what is no HTTP
at all is answered before any application sees it.
"""

from __future__ import annotations

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mcpmeter.catalog import OTHER
from mcpmeter.errors import HeadersTooLarge, InvalidRequest, MeterError
from mcpmeter.meter import Ending, Meter
from mcpmeter.relay.dialects import openai

MOST_HEAD_BYTES: Final = 64 * 1024
MOST_DISCARDED_BYTES: Final = 4 * 1024 * 1024
SECONDS_TO_READ_A_REFUSAL: Final = 2.0
REASONS: Final = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}


def bounded_protocol(meter: Meter) -> type[HttpToolsProtocol]:
    """The protocol class of a listener whose refusals `meter` counts."""

    class BoundedProtocol(HttpToolsProtocol):
        _head_bytes = 0
        _is_in_head = True
        _refused = False

        def data_received(self, data: bytes) -> None:
            if self._refused:
                self._discard(data)
                return
            if self._is_in_head:
                # Counted before it is parsed: an endless header never comes to an end that a callback would see.
                self._head_bytes += len(data)
                if self._head_bytes > MOST_HEAD_BYTES and b"\r\n\r\n" not in data[:MOST_HEAD_BYTES]:
                    limit = f"The request's head is larger than {MOST_HEAD_BYTES} bytes."
                    self._refuse(HeadersTooLarge(limit, hint="Send fewer or shorter headers."))
                    return
            super().data_received(data)

        def on_message_begin(self) -> None:
            self._is_in_head = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._is_in_head, self._head_bytes = False, 0
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._is_in_head, self._head_bytes = True, 0
            super().on_message_complete()

        def send_400_response(self, msg: str) -> None:
            self._refuse(InvalidRequest("This is not a valid HTTP/1.1 request.", hint="Send one."))

        def _refuse(self, error: MeterError) -> None:
            opened = meter.open(OTHER, OTHER)
            opened.count(Ending(status=str(error.http_status), outcome="error", error=error))
            body = openai.error_body(error, opened.call.id)
            head = (
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\nx-mcpmeter-call-id: %s\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n"
            )
            values = (error.http_status, REASONS[error.http_status], opened.call.id.encode(), len(body))
            if not self.transport.is_closing():
                self.transport.write(head % values + body)
                self._end_politely()

        def _end_politely(self) -> None:
            """Closing with bytes unread would reset the connection, and the client would never see its answer."""
            self._refused, self._head_bytes = True, 0
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.loop.call_later(SECONDS_TO_READ_A_REFUSAL, self.transport.abort)

        def _discard(self, data: bytes) -> None:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_DISCARDED_BYTES:
                self.transport.abort()

    return BoundedProtocol
