"""uvicorn's HTTP protocol with two holes closed, heads without an end and refusals that nobody counts, and with a wire:
answers of the relay go out by it in one write, without ASGI's messages.

Neither uvicorn nor httptools bounds a request's headers, chunk extensions or trailers, so that one connection could
fill the memory; and what is no HTTP at all is answered before any application sees it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, cast
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mcpmeter.errors import HeadersTooLarge, InvalidRequest, MeterError
from mcpmeter.http.client import FREE_BYTES_PER_PART, MAX_HEADER_BYTES
from mcpmeter.http.exchange import DIRECT_RESPONSE, Header
from mcpmeter.http.server.cycle import RequestCycle
from mcpmeter.http.server.request_head import size_of, without_upgrade

MAX_DISCARDED_BYTES: Final = 4 * 1024 * 1024
SECONDS_TO_READ_A_REFUSAL: Final = 2.0
REASONS: Final = {400: b"Bad Request", 431: b"Request Header Fields Too Large"}


Refuse = Callable[[MeterError], tuple[str, bytes]]
"""Counts a request that no application sees; returns its call id and the body of the response."""


def bounded_protocol(refuse: Refuse) -> type[HttpToolsProtocol]:
    """The protocol class of a listener; `refuse` is called once for each request that is refused here."""

    class BoundedProtocol(_WiredProtocol):
        _refused = False

        def data_received(self, data: bytes) -> None:
            if self._refused:
                self._discard(data)
                return
            overhead = self._overhead_bytes
            self._overhead_bytes = (overhead if overhead > 0 else 0) + len(data)
            try:
                self._parse(data)
            except httptools.HttpParserError as fault:
                self._refuse(fault.__context__ if isinstance(fault.__context__, MeterError) else _not_http())
            else:
                if self._overhead_bytes > MAX_HEADER_BYTES:
                    # The parser collects a line until it ends: a callback never sees one that does not.
                    self._refuse(_headers_too_large())

        def _refuse(self, error: MeterError) -> None:
            """Read no more of this connection. The request in hand is answered and counted as any other."""
            self._refused, self._overhead_bytes = True, 0
            cycle = self.cycle
            if self._is_in_head:
                self._refuse_next(cycle, error)
            elif cycle is not None and not cycle.response_started:
                cycle.refuse(error, self._end_politely)
            else:
                self.transport.abort()

        def _refuse_next(self, last: RequestCycle | None, error: MeterError) -> None:
            call_id, body = refuse(error)
            if last is not None and not last.response_complete:
                last.keep_alive = False  # responses go out in order, and after this one there is none
            elif not self.transport.is_closing():
                self.transport.write(_refusal(error, call_id, body))
                self._end_politely()

        def _end_politely(self) -> None:
            """Closing with bytes unread would reset the connection, and the client would never see its answer."""
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.loop.call_later(SECONDS_TO_READ_A_REFUSAL, self.transport.abort)

        def _discard(self, data: bytes) -> None:
            self._overhead_bytes += len(data)
            if self._overhead_bytes > MAX_DISCARDED_BYTES:
                self.transport.abort()

    return BoundedProtocol


class _WiredProtocol(HttpToolsProtocol):
    """Gives each request a `RequestCycle`, and looks for idle connections by one timer each.

    uvicorn makes and cancels a timer for each request, parses each address anew and tells nobody of a lost connection.
    """

    cycle: RequestCycle | None  # type: ignore[assignment]
    _answering: RequestCycle | None = None
    _overhead_bytes = 0
    """The balance that `relay.http1.framing` describes."""
    _is_in_head = True
    _head_without_upgrade = b""
    _idle_since = 0.0

    def _parse(self, data: bytes) -> None:
        rest: bytes | memoryview = data
        while rest:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as end_of_head:
                rest = memoryview(rest)[end_of_head.args[0] :]
                head, self._head_without_upgrade = self._head_without_upgrade, b""
                # Another parser: after `Connection: close` this one takes no more.
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
                self.parser.feed_data(head)
            else:
                return

    def on_message_begin(self) -> None:
        self._is_in_head = True
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        self._check_size(self.headers, self.url)
        if self.parser.should_upgrade():
            self._ignore_upgrade()
            return
        before = self.cycle
        self.cycle = cycle = self._new_cycle()
        self._is_in_head = False
        self.headers = []  # for the trailers: the request's own are in its scope
        if before is None or before.response_complete:
            self._answer(cycle)
        else:
            self.flow.pause_reading()  # what is pipelined waits for its turn
            self.pipeline.appendleft((cycle, self.app))

    def _ignore_upgrade(self) -> None:
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise _not_http()  # a tunnel has no body that could be read past
        version = self.parser.get_http_version()
        self._head_without_upgrade = without_upgrade(method, self.url, version, self.headers)

    def _answer(self, cycle: RequestCycle) -> None:
        self._answering = cycle
        cycle.is_backpressured = self.flow.write_paused
        cycle.run(self.app, self.loop, self.tasks)

    def _new_cycle(self) -> RequestCycle:
        version = self.parser.get_http_version()
        scope = self._new_scope(version)
        cycle = RequestCycle(
            scope,
            self.transport,
            self.flow,
            default_headers=self.server_state.default_headers,
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        scope["extensions"] = {DIRECT_RESPONSE: cycle}
        return cycle

    def _new_scope(self, version: str) -> Any:
        url = self.url
        if url[:1] == b"/" and not _NEEDS_PARSING(url):
            path, raw_path, query = url.decode("ascii"), url, b""
        else:
            parsed = httptools.parse_url(url)
            path, raw_path, query = parsed.path.decode("ascii"), parsed.path, parsed.query or b""
            path = unquote(path) if "%" in path else path
        self.scope = scope = {  # type: ignore[assignment]
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "headers": self.headers,
            "state": self.app_state.copy(),
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "method": self.parser.get_method().decode("ascii"),
        }
        return scope

    def on_body(self, body: bytes) -> None:
        self._overhead_bytes -= 2 * len(body) + FREE_BYTES_PER_PART
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return
        cycle.has_come(body)
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()

    def on_message_complete(self) -> None:
        if self._head_without_upgrade:
            return  # the head's first reading ends; its message does not
        self._check_size(self.headers)
        self._is_in_head, self._overhead_bytes = True, 0
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.more_body = False
            cycle.has_come()

    def _check_size(self, headers: list[Header], url: bytes = b"") -> None:
        """Refuse headers or trailers that are too large, though one read brought them and their end."""
        if self._overhead_bytes > MAX_HEADER_BYTES and size_of(headers, url) > MAX_HEADER_BYTES:
            raise _headers_too_large()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._answering is not None:
            self._answering.is_backpressured = True

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._answering is not None:
            self._answering.tell_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        # uvicorn tells the request that came last, which need not be the one that is being answered.
        if self._answering is not None and not self._answering.response_complete:
            self._answering.tell_gone()
        self.pipeline.clear()

    # Idle connections ---------------------------------------------------------------------------------------------

    def _unset_keepalive_if_required(self) -> None:
        """Called whenever something comes or goes: the timer looks itself whether the connection is idle."""

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._answer(cast("RequestCycle", self.pipeline.pop()[0]))
        else:
            self._idle_since = self.loop.time()
            if self.timeout_keep_alive_task is None:
                self._look_again_in(self.timeout_keep_alive)

    def _look_again_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        is_busy = self._overhead_bytes > 0 or not self._is_in_head or (self.cycle and not self.cycle.response_complete)
        seconds_left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if is_busy or seconds_left > 0:
            self._look_again_in(self.timeout_keep_alive if is_busy else seconds_left)
        else:
            super().timeout_keep_alive_handler()


_NEEDS_PARSING: Final = re.compile(rb"[%?#]").search


def _not_http() -> MeterError:
    return InvalidRequest("This is not a valid HTTP/1.1 request.", hint="Send one.")


def _refusal(error: MeterError, call_id: str, body: bytes) -> bytes:
    head = (
        b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\nx-mcpmeter-call-id: %s\r\n"
        b"content-length: %d\r\nconnection: close\r\n\r\n"
    )
    return head % (error.http_status, REASONS[error.http_status], call_id.encode(), len(body)) + body


def _headers_too_large() -> MeterError:
    limit = f"The request's headers, chunk extensions or trailers are larger than {MAX_HEADER_BYTES} bytes."
    return HeadersTooLarge(limit, hint="Send fewer or shorter ones.")
