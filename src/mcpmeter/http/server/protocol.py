"""The server's side of a connection: bytes in, bounded requests out; responses in the order of their requests.

Reading: a connection is between requests, in a request's headers, or in its body. httptools calls back `on_…` at each
step. httptools bounds neither headers nor chunk extensions nor trailers, so the balance of `http.framing` does; a
request over the bound, or that is not HTTP, is *refused*: nothing behind it is parsed. If its application has not
answered yet, reading its body raises the error; if no application has seen it, the protocol answers itself and counts
the refusal by the function it was given.

After a refusal, or a response before the request's body has ended, what still arrives is discarded (`lingering.py`).

Answering: one request at a time. Requests that a client pipelines wait in `_pipeline`, with reading paused. A response
that is complete starts the next request, or closes the connection if it does not keep alive, or makes it idle.

Deadlines: `ServerTimeouts` limits each phase: headers, body, idle, and a response that the client leaves unread. One
timer per connection, set in `connection_made`, serves all of them: when it fires, it looks which phase the connection
is in, and what is left of its time. A phase whose deadline is earlier moves the timer.

Caps: `Connections` may put a new connection into its reserve; then `_app` refuses all but health checks. Bodies and
unread responses above `FREE_BYTES` are counted in the `MemoryBudget`, which may evict them.

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

from mcpmeter.errors import BodyTooSlow, HeadersTooLarge, InvalidRequest, MeterError
from mcpmeter.http.asgi import App, Header, Scope
from mcpmeter.http.exchange import HEADERS, REFUSAL
from mcpmeter.http.framing import FREE_BYTES_PER_PART, MAX_HEADER_BYTES
from mcpmeter.http.memory import FREE_BYTES, Hold
from mcpmeter.http.server.connections import ServerBounds
from mcpmeter.http.server.cycle import Flow, RequestCycle, response_headers
from mcpmeter.http.server.lingering import Lingering
from mcpmeter.http.server.request_headers import (
    check_framing,
    expects_100_continue,
    joined,
    repeated,
    size_of,
    unsupported_coding,
    without_upgrade,
)
from mcpmeter.http.server.unread import CHECKS_PER_TIMEOUT, UnreadResponse

MAX_BUFFERED_BYTES: Final = 64 * 1024
"""Above this a connection is not read until the application has taken the body's parts."""

Refuse = Callable[[MeterError], tuple[list[Header], bytes]]
"""Counts a request that no application sees; returns headers and body of the response."""

Overload = Callable[[MeterError], App]
"""Returns an application that answers health checks, refuses everything else with the error, and closes."""


class ServerConfig(Protocol):
    """What a connection needs of uvicorn's configuration."""

    loaded_app: App


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
    _lingering: Lingering | None = None
    """Discards what arrives, after a refusal or the last response."""
    _received: RequestCycle | None = None
    """The request whose headers were read last."""
    _answered: RequestCycle | None = None
    """The request that was given to the application last."""
    _idle_since = 0.0
    """When the connection was made, or its last response was complete."""
    _headers_since = 0.0
    _timer: asyncio.TimerHandle | None = None
    _unread: UnreadResponse | None = None

    def __init__(
        self,
        refuse: Refuse,
        config: ServerConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        bounds: ServerBounds | None = None,
        overload: Overload | None = None,
    ) -> None:
        self._refuse_unseen = refuse
        self._app = config.loaded_app
        self._bounds = bounds or ServerBounds()
        self._timeouts = self._bounds.timeouts
        self._overload = overload
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
        now = self._idle_since = self._loop.time()
        self._set_timer(now + min(self._timeouts.headers_seconds, self._timeouts.idle_seconds))
        excess = self._bounds.connections.admit(self, self._client[0] if self._client else "", now)
        if excess is not None and self._overload is not None:
            self._app = self._overload(excess)

    def data_received(self, data: bytes) -> None:
        if self._lingering is not None:
            self._lingering.discard(data)
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
            elif self._overhead_bytes or not self._is_in_headers:
                self._await_rest()

    def pause_writing(self) -> None:
        self._flow.pause_writing()
        if self._answered is not None and self._answered.on_pause is not None:
            self._answered.on_pause()
        self._count_unread()
        self._loop.call_soon(self._count_unread)  # of the parts of a stream that are written from the same read

    def resume_writing(self) -> None:
        self._flow.resume_writing()
        self._all_read()
        if self._answered is not None and self._answered.on_drain is not None:
            self._answered.on_drain()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server_state.connections.discard(self)
        self._bounds.connections.remove(self, self._client[0] if self._client else "")
        if self._timer is not None:
            self._timer.cancel()
        self._clear_pipeline()
        self._flow.resume_writing()
        self._all_read()
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
        if self._overhead_bytes > MAX_HEADER_BYTES:
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
        headers = dict(received)
        values = b"\n".join((*headers.values(), b""))
        if (
            headers.get(b"host") != self._known_host
            or len(headers) != len(received)
            or b" \n" in values
            or b"\t\n" in values
            or b"transfer-encoding" in headers
            or version != "1.1"
        ):
            check_framing(received, version, self._url)
            headers, error = joined(received), repeated(received)
            received = list(headers.items())
            self._known_host = headers.get(b"host", self._known_host)
        scope = self._new_scope(version, received)
        scope[HEADERS] = headers
        if error is not None:
            scope[REFUSAL] = error
        cycle = RequestCycle(
            scope,
            self._transport,
            self._flow,
            default_headers=self._server_state.default_headers,
            expects_100_continue=b"expect" in headers and expects_100_continue(headers, version),
            keep_alive=version != "1.0" and self._parser.should_keep_alive(),
            on_complete=self._on_response_complete,
        )
        cycle.memory = self._bounds.memory
        return cycle

    def _new_scope(self, version: str, headers: list[Header]) -> Scope:
        url = self._url
        if url[:1] == b"/" and not _NEEDS_PARSING(url):
            path, raw_path, query = url.decode("ascii"), url, b""
        elif b"#" in url:
            raise _not_http()  # RFC 9112, 3.2: a target has no fragment, and proxies differ in what they make of one
        else:
            if url[:1] != b"/":
                check_framing(headers, version, url)
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
            "headers": headers,
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
        if cycle.received_bytes > FREE_BYTES:
            self._count_body(cycle, len(body))

    def on_message_complete(self) -> None:
        if self._headers_to_repeat:
            return  # the first reading of the headers ends; the request does not
        if self._headers:
            self._check_trailers()
        self._is_in_headers, self._overhead_bytes = True, 0
        cycle = self._received
        if cycle is not None and not cycle.response_complete:
            if cycle.hold is None or self._bounds.memory.keep(cycle.hold):
                cycle.end_body()
            else:
                cycle.refuse(self._bounds.memory.error())

    def _check_trailers(self) -> None:
        if self._overhead_bytes > MAX_HEADER_BYTES:
            self._check_size(self._headers)
        # The parser obeys it and skips all that follows, on a connection that its headers keep alive.
        if any(name == b"connection" and b"close" in value.lower() for name, value in self._headers):
            raise _not_http()

    def _check_size(self, headers: list[Header], url: bytes = b"") -> None:
        """Refuse headers or trailers that are too large, even if they and their end arrive in one read."""
        if size_of(headers, url) > MAX_HEADER_BYTES:
            raise _headers_too_large()

    # Responses ----------------------------------------------------------------------------------------------------

    def _answer(self, cycle: RequestCycle) -> None:
        self._answered = cycle
        cycle.run(self._app, self._loop, self._server_state.tasks)

    def _on_response_complete(self) -> None:
        self._server_state.total_requests += 1
        if self._answered is not None and not self._answered.keep_alive:
            self._clear_pipeline()  # no response follows one that closes
            self._close()
        if self._unread is not None and self._unread.hold is not None:
            memory = self._bounds.memory
            memory.make_evictable(self._unread.hold, memory.unread, self._transport.abort)
        self._idle_since = self._loop.time()
        if self._transport.is_closing():
            return
        self._flow.resume_reading()
        if self._pipeline:
            self._answer(self._pipeline.popleft())

    def _clear_pipeline(self) -> None:
        for cycle in self._pipeline:
            cycle.release()
        self._pipeline.clear()

    def _close(self) -> None:
        if self._lingering is not None or not self._is_in_headers or self._received is not self._answered:
            self._linger()
        else:
            self._transport.close()

    # Refusals -----------------------------------------------------------------------------------------------------

    def _refuse(self, error: MeterError) -> None:
        """Parse no more of this connection. The request in hand is answered and counted as any other."""
        if isinstance(error, HeadersTooLarge):
            self._bounds.connections.on_limit("headers")
        self._discard_rest()
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

    def _discard_rest(self) -> Lingering:
        self._overhead_bytes = 0
        if self._lingering is None:
            self._lingering = Lingering(self._transport, self._loop)
        return self._lingering

    def _linger(self) -> None:
        if self._discard_rest().end_writing():
            self._flow.resume_reading()

    # Deadlines ----------------------------------------------------------------------------------------------------

    def _set_timer(self, at: float) -> None:
        """Look at the connection at `at`, or earlier."""
        if self._timer is None:
            self._timer = self._loop.call_at(at, self._check_deadlines)
        elif self._timer.when() > at:
            self._timer.cancel()
            self._timer = self._loop.call_at(at, self._check_deadlines)

    def _await_rest(self) -> None:
        """Headers or a body have begun and not ended."""
        cycle, now = self._received, self._loop.time()
        if self._is_in_headers:
            if self._headers_since <= self._idle_since:
                self._headers_since = now
                self._set_timer(now + self._timeouts.headers_seconds)
        elif cycle is not None and not cycle.body_since:
            cycle.body_since = now
            self._set_timer(now + self._timeouts.body_seconds)

    def _check_deadlines(self) -> None:
        self._timer = None
        now = self._loop.time()
        if (at := self._response_deadline(now)) <= now:
            self._transport.abort()
        elif (request_at := self._request_deadline(now)) > now:
            self._set_timer(min(at, request_at))
        elif self._is_in_headers:
            self._transport.close()
        else:
            self._set_timer(at)
            self._refuse(_body_too_slow(self._timeouts.body_seconds))

    def _request_deadline(self, now: float) -> float:
        """Until when the client has to send; later than now if it is the service's turn."""
        timeouts, cycle = self._timeouts, self._received
        if not self._is_in_headers and self._lingering is None and cycle is not None:
            if self._flow.is_reading_paused or not cycle.body_since:
                cycle.body_since = now  # time in which nothing is read is not the client's
            return cycle.body_since + timeouts.body_seconds
        if self._lingering is not None or (cycle is not None and not cycle.response_complete):
            return now + timeouts.idle_seconds
        if self._overhead_bytes > 0:
            return self._headers_since + timeouts.headers_seconds
        return self._idle_since + (timeouts.headers_seconds if cycle is None else timeouts.idle_seconds)

    def waiting_since(self) -> float | None:
        """Since when the connection waits for a request or for the rest of its headers; None while it has one."""
        if not self._is_in_headers or (self._received is not None and not self._received.response_complete):
            return None
        return self._headers_since if self._overhead_bytes > 0 else self._idle_since

    def evict(self) -> None:
        """Close now, in favour of another connection."""
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()

    # Bodies and responses in memory -------------------------------------------------------------------------------

    def _count_body(self, cycle: RequestCycle, size: int) -> None:
        memory = self._bounds.memory
        if cycle.hold is None:
            cycle.hold, size = Hold(), cycle.received_bytes
            memory.make_evictable(cycle.hold, memory.uploads, self._evict_upload)
        if cycle.hold.share is not None:
            memory.grow(cycle.hold, size)
        if cycle.body_bytes > MAX_BUFFERED_BYTES:
            self._flow.pause_reading()

    def _evict_upload(self) -> None:
        # Not at once: the budget may evict from inside the parser's callback.
        self._loop.call_soon(self._refuse_upload, self._received)

    def _refuse_upload(self, cycle: RequestCycle | None) -> None:
        if cycle is self._received and not self._is_in_headers and self._lingering is None:
            self._refuse(self._bounds.memory.error())

    def _count_unread(self) -> None:
        """Take the client for one that is behind with reading, if it is."""
        unsent_bytes = self._transport.get_write_buffer_size()
        if not unsent_bytes or not self._flow.is_writing_paused:
            return
        memory, size = self._bounds.memory, max(unsent_bytes, self._flow.pinned_bytes)
        hold = None if self._unread is None else self._unread.hold
        if self._unread is None or hold is None:
            now, hold = self._loop.time(), Hold()
            self._unread = UnreadResponse(unsent_bytes, now, hold)
            self._set_timer(now + self._timeouts.response_seconds / CHECKS_PER_TIMEOUT)
            if self._answered is not None and self._answered.response_complete:
                memory.make_evictable(hold, memory.unread, self._transport.abort)
        memory.grow(hold, size - hold.size)
        self._unread.grow_to(size)

    def _all_read(self) -> None:
        if self._unread is not None and self._unread.hold is not None:
            self._bounds.memory.release(self._unread.hold)
        self._unread = None

    def _response_deadline(self, now: float) -> float:
        """Until when the client has to read; later than now if nothing is left unread."""
        size = self._transport.get_write_buffer_size()
        is_answering = self._answered is not None and not self._answered.response_complete
        if not size or (is_answering and not self._flow.is_writing_paused):
            self._all_read()
            return now + self._timeouts.idle_seconds
        if self._unread is None:
            self._unread = UnreadResponse(size, now)
        return self._unread.deadline(size, now, self._timeouts.response_seconds)


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


def _body_too_slow(seconds: float) -> MeterError:
    return BodyTooSlow(f"The body did not arrive within {seconds:g} s.", hint="Send it without pauses.")


def _headers_too_large() -> MeterError:
    limit = f"The request's headers, chunk extensions or trailers are larger than {MAX_HEADER_BYTES} bytes."
    return HeadersTooLarge(limit, hint="Send fewer or shorter ones.")
