"""The server's side of a connection: bytes in, bounded requests out; responses in the order of their requests.

Reading: a connection is between requests, in a request's headers, or in its body. httptools calls back `on_…` at each
step. httptools bounds neither headers nor chunk extensions nor trailers, so the balance of `http.framing` does; a
request over the bound, or that is not HTTP, is *refused*: nothing behind it is parsed. If its application has not
answered yet, reading its body raises the error; if no application has seen it, the protocol answers itself and counts
the refusal by the function it was given.

Lingering: closing a connection with bytes unread would reset it, and a client that is still sending would not see its
response. So after a refusal, or a response before the request's body has ended, our side ends with the response, and
what still arrives is discarded: until the client closes, makes no progress for `LINGER_SECONDS`, or has had
`MAX_LINGER_SECONDS` or `MAX_DISCARDED_BYTES` (RFC 9112, 9.6).

Answering: one request at a time. Requests that a client pipelines wait in `_pipeline`, with reading paused. A response
that is complete starts the next request, or closes the connection if it does not keep alive, or makes it idle.

Idle: one timer per connection looks whether it has been idle for long enough, instead of one timer per request.
Deadlines of other phases belong there, caps on connections into `connection_made`.

Ending: the client closes (`connection_lost` cancels what is being answered), uvicorn calls `shutdown` (idle connections
close, others after their last response), or one of the above.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, cast
from urllib.parse import unquote

import httptools

from mcpmeter.errors import HeadersTooLarge, InvalidRequest, MeterError
from mcpmeter.http.asgi import App, Header, Scope
from mcpmeter.http.exchange import HEADERS, REFUSAL
from mcpmeter.http.framing import FREE_BYTES_PER_PART, MAX_HEADER_BYTES
from mcpmeter.http.server.cycle import Flow, RequestCycle, response_headers
from mcpmeter.http.server.request_headers import (
    check_framing,
    expects_100_continue,
    joined,
    repeated,
    size_of,
    unsupported_coding,
    without_upgrade,
)

MAX_BUFFERED_BYTES: Final = 64 * 1024
"""Above this a connection is not read until the application has taken the body's parts."""

MAX_DISCARDED_BYTES: Final = 256 * 1024 * 1024
"""Most clients read a response only after they have sent their whole body; discarding is as cheap as the read."""

LINGER_SECONDS: Final = 5.0
MAX_LINGER_SECONDS: Final = 60.0

Refuse = Callable[[MeterError], tuple[list[Header], bytes]]
"""Counts a request that no application sees; returns headers and body of the response."""


class ServerConfig(Protocol):
    """What a connection needs of uvicorn's configuration."""

    loaded_app: App
    timeout_keep_alive: int


class ServerState(Protocol):
    """What uvicorn shares between its connections."""

    total_requests: int
    connections: set[Any]
    tasks: set[asyncio.Task[None]]
    default_headers: list[Header]


class ServerProtocol(asyncio.Protocol):
    """A connection. `refuse` is called once for each request that is refused before an application sees it."""

    # The state in which a connection begins.
    _url = b""
    _is_in_headers = True
    """Between requests, or in one's headers."""
    _headers_to_repeat = b""
    """The request's headers without `Upgrade`, between the two times that the parser reads them."""
    _known_host = b" "
    """A valid host that this connection has named. A blank is none, and no header's value without blanks around it."""
    _overhead_bytes = 0
    """The balance that `http.framing` describes."""
    _is_refused = False
    """Whether what arrives is discarded."""
    _received: RequestCycle | None = None
    """The request whose headers were read last."""
    _answered: RequestCycle | None = None
    """The request that was given to the application last."""
    _idle_since = 0.0
    _idle_timer: asyncio.TimerHandle | None = None

    def __init__(
        self,
        refuse: Refuse,
        config: ServerConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._refuse_unseen = refuse
        self._app = config.loaded_app
        self._keep_alive_seconds = config.timeout_keep_alive
        self._server_state = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._parser = self._new_parser()
        self._headers: list[Header] = []
        self._pipeline: deque[RequestCycle] = deque()

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # Requests behind one with `Connection: close` are no error; they get no response.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    # The event loop calls -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._flow = Flow(self._transport)
        self._server = _address(transport.get_extra_info("sockname"))
        self._client = _address(transport.get_extra_info("peername"))
        self._scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        self._server_state.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            self._discard(data)
            return
        overhead = self._overhead_bytes
        self._overhead_bytes = (overhead if overhead > 0 else 0) + len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as fault:
            self._refuse(_error_of(fault))
        else:
            if self._overhead_bytes > MAX_HEADER_BYTES:
                # The parser collects a line until it ends: no callback sees a line that does not.
                self._refuse(_headers_too_large())

    def pause_writing(self) -> None:
        self._flow.pause_writing()

    def resume_writing(self) -> None:
        self._flow.resume_writing()
        if self._answered is not None and self._answered.on_drain is not None:
            self._answered.on_drain()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server_state.connections.discard(self)
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._pipeline.clear()
        self._flow.resume_writing()
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnect()
        # These refer to this object: a circle, which only the garbage collector finds.
        self._received = None
        del self._parser

    # uvicorn calls ------------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Close now, or after the last response."""
        if self._received is None or self._received.response_complete:
            self._transport.close()
        else:
            self._received.keep_alive = False

    # Requests -----------------------------------------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
        rest: bytes | memoryview = data
        while rest:
            try:
                self._parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as upgrade:
                end_of_headers = upgrade.args[0]
            rest = memoryview(rest)[end_of_headers:]
            headers, self._headers_to_repeat = self._headers_to_repeat, b""
            self._parser = self._new_parser()  # after `Connection: close` the old one takes no more
            self._parser.feed_data(headers)

    def on_message_begin(self) -> None:
        self._is_in_headers = True
        self._url = b""
        self._headers = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._check_size(self._headers, self._url)
        if self._parser.should_upgrade():
            self._ignore_upgrade()
            return
        before = self._received
        cycle = self._received = self._new_cycle(self._parser.get_http_version())
        self._is_in_headers = False
        self._headers = []  # for the trailers
        if before is None or before.response_complete:
            self._answer(cycle)
        else:
            self._flow.pause_reading()
            self._pipeline.append(cycle)

    def _ignore_upgrade(self) -> None:
        method = self._parser.get_method()
        if method == b"CONNECT":
            raise _not_http()  # a tunnel has no body after which the next request could begin
        version = self._parser.get_http_version()
        self._headers_to_repeat = without_upgrade(method, self._url, version, self._headers)

    def _new_cycle(self, version: str) -> RequestCycle:
        received, error = self._headers, None
        headers = {name: value.rstrip() for name, value in received}
        host = headers.get(b"host")
        if (
            host != self._known_host
            or len(headers) != len(received)
            or b"transfer-encoding" in headers
            or self._url[:1] != b"/"
            or version != "1.1"
        ):
            check_framing(received, version, self._url)
            self._known_host = host or self._known_host
            headers, error = joined(received), repeated(received)
        scope = self._new_scope(version, headers)
        if error is not None:
            scope[REFUSAL] = error
        return RequestCycle(
            scope,
            self._transport,
            self._flow,
            default_headers=self._server_state.default_headers,
            expects_100_continue=b"expect" in headers and expects_100_continue(headers, version),
            keep_alive=version != "1.0" and self._parser.should_keep_alive(),
            on_complete=self._on_response_complete,
        )

    def _new_scope(self, version: str, headers: dict[bytes, bytes]) -> Scope:
        url = self._url
        if url[:1] == b"/" and not _NEEDS_PARSING(url):
            path, raw_path, query = url.decode("ascii"), url, b""
        elif b"#" in url:
            raise _not_http()  # RFC 9112, 3.2: a target has no fragment, and proxies differ in what they make of one
        else:
            parsed = httptools.parse_url(url)
            raw_path, query = parsed.path or b"/", parsed.query or b""
            path = unquote(raw_path.decode("ascii"))
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "server": self._server,
            "client": self._client,
            "scheme": self._scheme,
            "root_path": "",
            "headers": list(headers.items()),
            HEADERS: headers,
            "state": self._app_state.copy(),
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "method": self._parser.get_method().decode("ascii"),
        }

    def on_body(self, body: bytes) -> None:
        self._overhead_bytes -= 2 * len(body) + FREE_BYTES_PER_PART
        cycle = self._received
        if cycle is None or cycle.response_complete:
            return
        cycle.add_body(body)
        if cycle.body_bytes > MAX_BUFFERED_BYTES:
            self._flow.pause_reading()

    def on_message_complete(self) -> None:
        if self._headers_to_repeat:
            return  # the first reading of the headers ends; the request does not
        if self._headers:
            self._check_trailers()
        self._is_in_headers, self._overhead_bytes = True, 0
        if self._received is not None and not self._received.response_complete:
            self._received.end_body()

    def _check_trailers(self) -> None:
        self._check_size(self._headers)
        # The parser obeys it and skips all that follows, on a connection that its headers keep alive.
        if any(name == b"connection" and b"close" in value.lower() for name, value in self._headers):
            raise _not_http()

    def _check_size(self, headers: list[Header], url: bytes = b"") -> None:
        """Refuse headers or trailers that are too large, even if they and their end arrive in one read."""
        if self._overhead_bytes > MAX_HEADER_BYTES and size_of(headers, url) > MAX_HEADER_BYTES:
            raise _headers_too_large()

    # Responses ----------------------------------------------------------------------------------------------------

    def _answer(self, cycle: RequestCycle) -> None:
        self._answered = cycle
        cycle.run(self._app, self._loop, self._server_state.tasks)

    def _on_response_complete(self) -> None:
        self._server_state.total_requests += 1
        if self._answered is not None and not self._answered.keep_alive:
            self._pipeline.clear()  # no response follows one that closes
            self._close()
        if self._transport.is_closing():
            return
        self._flow.resume_reading()
        if self._pipeline:
            self._answer(self._pipeline.popleft())
        else:
            self._idle_since = self._loop.time()
            if self._idle_timer is None:
                self._check_idle_in(self._keep_alive_seconds)

    def _close(self) -> None:
        if self._is_refused or not self._is_in_headers or self._received is not self._answered:
            self._linger()
        else:
            self._transport.close()

    # Refusals -----------------------------------------------------------------------------------------------------

    def _refuse(self, error: MeterError) -> None:
        """Parse no more of this connection. The request in hand is answered and counted as any other."""
        self._is_refused, self._overhead_bytes = True, 0
        cycle = self._received
        if self._is_in_headers:
            self._refuse_unseen_request(cycle, error)
        elif cycle is not None and not cycle.response_started:
            cycle.refuse(error)
        else:
            self._transport.abort()

    def _refuse_unseen_request(self, before: RequestCycle | None, error: MeterError) -> None:
        headers, body = self._refuse_unseen(error)
        if before is not None and not before.response_complete:
            before.keep_alive = False  # responses are in order, and after this one there is none
        elif not self._transport.is_closing():
            framing = [(b"content-length", b"%d" % len(body)), (b"connection", b"close")]
            self._transport.write(response_headers(error.http_status, [*headers, *framing]) + body)
            self._linger()

    def _linger(self) -> None:
        if not self._transport.can_write_eof():
            self._transport.close()
            return
        self._is_refused, self._overhead_bytes = True, 0
        try:
            self._transport.write_eof()
        except OSError:  # the client has reset the connection, which the event loop has yet to notice
            self._transport.abort()
            return
        self._flow.resume_reading()
        unsent_bytes = self._transport.get_write_buffer_size()
        self._loop.call_later(LINGER_SECONDS, self._check_lingering, 0, unsent_bytes, MAX_LINGER_SECONDS)

    def _check_lingering(self, discarded_before: int, unsent_before: int, seconds_left: float) -> None:
        discarded, unsent = self._overhead_bytes, self._transport.get_write_buffer_size()
        seconds_left -= LINGER_SECONDS
        if seconds_left > 0 and (discarded > discarded_before or unsent < unsent_before):
            self._loop.call_later(LINGER_SECONDS, self._check_lingering, discarded, unsent, seconds_left)
        else:
            self._transport.abort()

    def _discard(self, data: bytes) -> None:
        self._overhead_bytes += len(data)
        if self._overhead_bytes > MAX_DISCARDED_BYTES:
            self._transport.abort()

    # Idle connections ---------------------------------------------------------------------------------------------

    def _check_idle_in(self, seconds: float) -> None:
        self._idle_timer = self._loop.call_later(seconds, self._check_idle)

    def _check_idle(self) -> None:
        is_busy = (
            self._overhead_bytes > 0
            or not self._is_in_headers
            or (self._received is not None and not self._received.response_complete)
        )
        seconds_left = self._idle_since + self._keep_alive_seconds - self._loop.time()
        if is_busy or seconds_left > 0:
            self._check_idle_in(self._keep_alive_seconds if is_busy else seconds_left)
        else:
            self._transport.close()


_NEEDS_PARSING: Final = re.compile(rb"[%?#]").search


def _address(found: object) -> tuple[str, int] | None:
    """Host and port of a socket; None for a Unix socket, or for a connection that is lost already."""
    return (str(found[0]), int(found[1])) if isinstance(found, tuple) else None


def _error_of(fault: httptools.HttpParserError) -> MeterError:
    """The error of ours that a callback raised, or the one for what the parser refuses itself."""
    if isinstance(fault.__context__, MeterError):
        return fault.__context__
    return unsupported_coding() if "Invalid `Transfer-Encoding`" in str(fault) else _not_http()


def _not_http() -> MeterError:
    return InvalidRequest("This is not a valid HTTP/1.1 request.", hint="Send one.")


def _headers_too_large() -> MeterError:
    limit = f"The request's headers, chunk extensions or trailers are larger than {MAX_HEADER_BYTES} bytes."
    return HeadersTooLarge(limit, hint="Send fewer or shorter ones.")
