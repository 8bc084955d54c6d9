"""The application: guards hosts, finds the route, counts each request once, answers errors in the right shape."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit

import msgspec

from mcpmeter.catalog import OTHER
from mcpmeter.catalog.service import LIMIT_REACHED
from mcpmeter.dialects import openai
from mcpmeter.errors import MeterError, MethodNotAllowed, NotAllowed, RateLimited, RouteNotFound, ServiceFault
from mcpmeter.http.asgi import App as AsgiApp
from mcpmeter.http.asgi import Header, Receive, Scope, Send
from mcpmeter.http.exchange import HttpExchange, direct_response_of, headers_of
from mcpmeter.meter import CallResult, Meter
from mcpmeter.records import NO_PATH_PARAMS, PathParams
from mcpmeter.relay.pipeline import EndpointConfig, Pipeline, send_error

log = logging.getLogger("mcpmeter")

HEALTH_PATHS: Final = frozenset(("/health", "/-/healthy", "/-/ready", "/metrics"))
"""Answered under any number of connections."""


@dataclass(frozen=True, slots=True)
class Page:
    """A complete response that is not relayed."""

    body: bytes
    content_type: str = "application/json"
    status: int = 200
    headers: tuple[Header, ...] = ()

    @classmethod
    def of_jsonrpc_error(cls, error: MeterError) -> Page:
        """An error object of JSON-RPC 2.0, for a request whose id is unknown."""
        error_object = {"jsonrpc": "2.0", "id": None, "error": {"code": error.jsonrpc_code, "message": str(error)}}
        return cls(msgspec.json.encode(error_object), status=error.http_status)


class Endpoint(Protocol):
    """The handler of a route. It counts the request itself, once."""

    def __call__(self, scope: Scope, receive: Receive, send: Send, /) -> Awaitable[object]:
        """Answer by the scope's `DirectResponse`, or by ASGI's messages."""


class PageEndpoint:
    """An endpoint that makes a page from the request line and headers."""

    def __init__(self, meter: Meter, endpoint: str, make: Callable[[HttpExchange], Awaitable[Page]]) -> None:
        self._meter = meter
        self._endpoint = endpoint
        self._make = make

    async def __call__(self, scope: Scope, _receive: Receive, _send: Send) -> None:
        exchange = HttpExchange(scope, endpoint=self._endpoint)
        opened = self._meter.open(self._endpoint, exchange.method, trace_id=exchange.trace_id)
        try:
            page = await self._make(exchange)
        except MeterError as error:
            opened.count(CallResult(status=str(error.http_status), outcome="error", error=error))
            await send_error(exchange, error, openai.error_body(error, opened.call.id), opened.call.id)
            return
        opened.count(CallResult(status=str(page.status)))
        content_type = (b"content-type", page.content_type.encode())
        await exchange.respond(page.status, (content_type, *page.headers), page.body)


class RelayEndpoint:
    """An endpoint whose response comes from a provider."""

    def __init__(
        self,
        pipeline: Pipeline,
        endpoint: str,
        service: EndpointConfig,
        *,
        path_params: PathParams = NO_PATH_PARAMS,
        secret: str = "",
    ) -> None:
        self._pipeline = pipeline
        self._endpoint = endpoint
        self._service = service
        self._path_params = path_params
        self._secret = secret
        self.error_body = service.dialect.error_body

    def __call__(self, scope: Scope, _receive: Receive, _send: Send) -> Awaitable[object]:
        exchange = HttpExchange(scope, endpoint=self._endpoint, path_params=self._path_params)
        if exchange.secret is None and self._secret:
            exchange.secret = self._secret
        return self._pipeline.run(exchange, self._service)


Routes = Mapping[str, Mapping[str, Endpoint]]
"""Path to verb to endpoint. `*` stands for every verb."""


@dataclass(frozen=True, slots=True)
class PathTemplate:
    """Routes that differ in a part of their path. `endpoint` makes the endpoint of a request."""

    pattern: re.Pattern[str]
    label: str
    """The template as metrics show it: `/v1beta/models/{model}:generateContent`."""
    endpoint: Callable[[re.Match[str], Scope], RelayEndpoint]


ErrorBody = Callable[[MeterError, str], bytes]
"""Encodes an error and the call's id in a dialect's shape."""

Shapes = Sequence[tuple[re.Pattern[str], ErrorBody]]
"""The shape of errors at unknown paths by their pattern: an SDK reads its own dialect's errors only."""


class HostGuard:
    """Refuses requests with a foreign Host or Origin, which browsers send after DNS rebinding.

    `allowed` None accepts every host: for a listener beyond loopback, which requires keys.
    """

    def __init__(self, allowed: Iterable[str] | None) -> None:
        self._hosts = None if allowed is None else frozenset(host.strip("[]").lower() for host in allowed)
        self._seen: set[bytes] = set()

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises NotAllowed."""
        if self._hosts is None:
            return
        host = headers.get(b"host", b"")
        if host not in self._seen:
            self._check_host(host)
        origin = headers.get(b"origin")
        if origin is not None and _host_of(origin) not in self._hosts:
            raise NotAllowed("Pages of other origins may not call this.", hint="Call it from a program.")

    def _check_host(self, host: bytes) -> None:
        if self._hosts is not None and _host_of(b"//" + host) not in self._hosts:
            raise NotAllowed(
                "The Host header names a host that this listener does not serve.",
                hint="Add the name to server.allowed_hosts.",
            )
        if len(self._seen) < 1024:
            self._seen.add(host)


def _host_of(url: bytes) -> str:
    try:
        return urlsplit(url.decode("latin-1")).hostname or ""
    except ValueError:
        return ""


class App:
    """Dispatches by path. Every request is counted, and no fault leaves as a traceback."""

    def __init__(
        self,
        meter: Meter,
        routes: Routes,
        guard: HostGuard,
        templates: Sequence[PathTemplate] = (),
        shapes: Shapes = (),
    ) -> None:
        self._meter = meter
        self._routes = routes
        self._guard = guard
        self._templates = templates
        self._shapes = shapes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        recorder = None if _only_listens(scope) else self._meter.recorder
        if recorder is not None:
            recorder.begin_request()
        try:
            await self._find(scope)(scope, receive, send)
        except MeterError as error:
            await self._refuse(scope, error)
        except Exception as fault:
            await self._answer_fault(scope, fault)
        finally:
            if recorder is not None:
                recorder.end_request()

    def overloaded(self, error: MeterError) -> AsgiApp:
        """This application for a connection above the limit: health checks, else the error; then it closes."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            direct_response_of(scope).keep_alive = False
            if scope["path"] in HEALTH_PATHS:
                await self(scope, receive, send)
            else:
                limit = "connections_per_address" if isinstance(error, RateLimited) else "connections"
                self._meter.recorder.add(LIMIT_REACHED, limit=limit)
                await self._refuse(scope, error)

        return answer

    def _find(self, scope: Scope) -> Endpoint:
        self._guard.check(headers_of(scope))
        verbs = self._routes.get(scope["path"]) or self._verbs_of(scope)
        if not verbs:
            raise RouteNotFound("There is no route at this path.", hint="GET / lists the routes.")
        endpoint = verbs.get(scope["method"]) or verbs.get("*")
        if endpoint is None:
            raise MethodNotAllowed(f"{self._route_of(scope)} takes {_allowed(verbs)} only.", hint="Use that verb.")
        return endpoint

    def _verbs_of(self, scope: Scope) -> Mapping[str, Endpoint]:
        verbs = self._routes.get(scope["path"])
        if verbs is not None:
            return verbs
        found = self._template_of(scope)
        return {"POST": found[0].endpoint(found[1], scope)} if found else {}

    def _template_of(self, scope: Scope) -> tuple[PathTemplate, re.Match[str]] | None:
        for template in self._templates:
            if (match := template.pattern.fullmatch(scope["path"])) is not None:
                return template, match
        return None

    def _route_of(self, scope: Scope) -> str:
        """The route's path or template, else `other`: an unknown path is a caller's text, unfit for logs and labels."""
        path: str = scope["path"]
        if path in self._routes:
            return path
        found = self._template_of(scope)
        return found[0].label if found else OTHER

    async def _answer_fault(self, scope: Scope, fault: Exception) -> None:
        log.error("fault while serving %s: %s", self._route_of(scope), _where(fault))
        if not direct_response_of(scope).response_started:
            ours = ServiceFault("The service failed.", hint="See the service's log.")
            await self._refuse(scope, ours)

    async def _refuse(self, scope: Scope, error: MeterError) -> None:
        path = self._route_of(scope)
        exchange = HttpExchange(scope, endpoint=path)
        opened = self._meter.open(path, exchange.method, trace_id=exchange.trace_id)
        opened.count(CallResult(status=str(error.http_status), outcome="error", error=error))
        verbs = self._verbs_of(scope)
        allow = [(b"allow", _allowed(verbs).encode())] if isinstance(error, MethodNotAllowed) else []
        body_of = self._error_body(scope["path"], verbs)
        await send_error(exchange, error, body_of(error, opened.call.id), opened.call.id, allow)

    def _error_body(self, path: str, verbs: Mapping[str, Endpoint]) -> ErrorBody:
        """The error shape of the route's dialect, or of the dialect that the path resembles."""
        for endpoint in verbs.values():
            if isinstance(endpoint, RelayEndpoint):
                return endpoint.error_body
        return next((body_of for pattern, body_of in self._shapes if pattern.fullmatch(path)), openai.error_body)


def _allowed(verbs: Iterable[str]) -> str:
    return ", ".join(sorted(verbs))


def _only_listens(scope: Scope) -> bool:
    """Whether this is a stream of MCP's that stays open for hours: it does not count as an active request."""
    if scope["path"] != "/mcp":
        return False
    return scope["method"] == "GET" or headers_of(scope).get(b"mcp-method") == b"subscriptions/listen"


def _where(fault: Exception) -> str:
    """The type of a fault and its place in the code; never its text, which may hold caller input."""
    trace = fault.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace is not None else "unknown"
    return f"{type(fault).__name__} in {place}"
