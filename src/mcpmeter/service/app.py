"""The application: guards hosts, finds the route, counts each request once, answers errors in the right shape."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from mcpmeter.catalog import OTHER
from mcpmeter.catalog.service import LIMIT_REACHED
from mcpmeter.dialects import openai
from mcpmeter.errors import (
    MeterError,
    MethodNotAllowed,
    NotAllowed,
    RateLimited,
    RouteNotFound,
    ServiceFault,
    UnsupportedMediaType,
)
from mcpmeter.http.asgi import App as AsgiApp
from mcpmeter.http.asgi import Header, Receive, Scope, Send
from mcpmeter.http.exchange import REFUSAL, HttpExchange, direct_response_of, headers_of
from mcpmeter.http.origins import Authority, Origin, authority_of, origin_of
from mcpmeter.meter import CallResult, Meter
from mcpmeter.records import NO_PATH_PARAMS, PathParams
from mcpmeter.relay.pipeline import EndpointConfig, Pipeline, send_error

log = logging.getLogger("mcpmeter")

MAX_SEEN_HOSTS: Final = 1024


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
    """An endpoint that makes a page. `takes` is the media type that a request's body must have, if it may have one."""

    def __init__(
        self, meter: Meter, endpoint: str, make: Callable[[HttpExchange], Awaitable[Page]], *, takes: str = ""
    ) -> None:
        self._meter = meter
        self._endpoint = endpoint
        self._make = make
        self._takes = takes

    async def __call__(self, scope: Scope, _receive: Receive, _send: Send) -> None:
        exchange = HttpExchange(scope, endpoint=self._endpoint)
        opened = self._meter.open(self._endpoint, exchange.method, trace_id=exchange.trace_id)
        try:
            if self._takes:
                _check_media_type(exchange, self._takes)
            page = await self._make(exchange)
        except MeterError as error:
            opened.count(CallResult(status=str(error.http_status), outcome="error", error=error))
            await send_error(exchange, error, openai.error_body(error, opened.call.id), opened.call.id)
            return
        opened.count(CallResult(status=str(page.status)))
        content_type = (b"content-type", page.content_type.encode())
        await exchange.respond(page.status, (content_type, *page.headers), page.body)


def _check_media_type(exchange: HttpExchange, takes: str) -> None:
    """Raises UnsupportedMediaType. Pages send forms and plain text to other origins without a preflight; JSON never."""
    given = exchange.headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
    if given != takes and exchange.has_body:
        raise UnsupportedMediaType("The body has another media type.", hint=f"Send Content-Type: {takes}.")


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
    endpoint: Callable[[re.Match[str], Scope], Endpoint]
    verbs: tuple[str, ...] = ("POST",)


ErrorBody = Callable[[MeterError, str], bytes]
"""Encodes an error and the call's id in a dialect's shape."""

Shapes = Sequence[tuple[re.Pattern[str], ErrorBody]]
"""The shape of errors at unknown paths by their pattern: an SDK reads its own dialect's errors only."""


HEALTH_PATHS: Final = frozenset({"/health", "/-/healthy", "/-/ready"})
"""Kubelets and load balancers call them by address. They disclose nothing but the service's health."""
RESERVED_PATHS: Final = HEALTH_PATHS | {"/metrics"}
"""Answered under any number of connections."""
PAGE_PREFIXES: Final = ("/api/", "/-/", "/metrics", "/health")
"""With `/`, what pages of the service's own origin may call. Everything else spends money or holds sessions."""
NAVIGABLE: Final = frozenset({"/", "/metrics"})
"""Pages that a link of another site may open: the first page, and what Prometheus's list of targets links to."""


class HostGuard:
    """Refuses requests that a browser sends for a page of another origin, also after DNS rebinding.

    `own` are the listener's own names, `allowed` the configured ones; `origins` may call everything. `exempt` are
    paths that any Host may name. Programs, which send neither Origin nor Sec-Fetch-Site, need a listed Host only.
    """

    def __init__(
        self,
        own: Iterable[str],
        allowed: Iterable[str] = (),
        origins: Iterable[str] = (),
        *,
        exempt: frozenset[str] = HEALTH_PATHS,
    ) -> None:
        self._allowed = _authorities(allowed)
        self._hosts = self._allowed | _authorities(own)
        self._origins = frozenset(found for origin in origins if (found := origin_of(origin)) is not None)
        self._exempt = exempt
        self._seen: dict[bytes, frozenset[Origin]] = {}
        """The origins of the service's own pages, by accepted Host header."""

    def check(self, scope: Scope) -> None:
        """Raises NotAllowed."""
        headers = headers_of(scope)
        host = headers.get(b"host", b"")
        if host not in self._seen and scope["path"] not in self._exempt and not self._own_origins(host):
            raise NotAllowed(
                "The Host header names a host that this listener does not serve.",
                hint="Add the name to server.allowed_hosts.",
            )
        if b"origin" in headers or b"sec-fetch-site" in headers:
            self._check_browser(scope, headers, host)

    def _own_origins(self, header: bytes) -> frozenset[Origin]:
        """The origins of pages at this Host; none if it is not listed."""
        if (found := self._seen.get(header)) is not None:
            return found
        host = authority_of(header.decode("latin-1"))
        if host is None or not _is_listed(host, self._hosts):
            return frozenset()
        own = {Origin("http", host.host, host.port or 80)}
        if host.port in (None, 443) and _is_listed(host, self._allowed):
            own.add(Origin("https", host.host, 443))  # the listener is http; a proxy in front ends TLS
        origins = frozenset(own)
        if len(self._seen) < MAX_SEEN_HOSTS:
            self._seen[header] = origins
        return origins

    def _check_browser(self, scope: Scope, headers: Mapping[bytes, bytes], host: bytes) -> None:
        path = scope["path"]
        header = headers.get(b"origin")
        if header is not None:
            origin = origin_of(header.decode("latin-1"))
            if origin in self._origins:
                return
            if not _takes_own_origin(path) or origin not in self._own_origins(host):
                raise _foreign()
        site = headers.get(b"sec-fetch-site", b"none")
        if site not in (b"none", b"same-origin") and not _is_navigation(scope, headers):
            raise _foreign()


def _authorities(entries: Iterable[str]) -> frozenset[Authority]:
    bracketed = (f"[{entry}]" if entry.count(":") > 1 and "[" not in entry else entry for entry in entries)
    return frozenset(found for entry in bracketed if (found := authority_of(entry)) is not None)


def _is_listed(host: Authority, entries: frozenset[Authority]) -> bool:
    """Whether an entry names the host with any port, or with this one. A Host without a port means 80 or 443."""
    ports = (80, 443) if host.port is None else (host.port,)
    return (host.host, None) in entries or any((host.host, port) in entries for port in ports)


def _takes_own_origin(path: str) -> bool:
    return path == "/" or path.startswith(PAGE_PREFIXES)


def _is_navigation(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a person follows a link to a page in a window of its own: the page that links cannot read it."""
    return (
        scope["path"] in NAVIGABLE
        and scope["method"] in ("GET", "HEAD")
        and headers.get(b"sec-fetch-mode") == b"navigate"
        and headers.get(b"sec-fetch-dest") == b"document"
    )


def _foreign() -> NotAllowed:
    return NotAllowed(
        "Pages of this origin may not call this.",
        hint="Call it from a program, or add the origin to server.allowed_origins.",
    )


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
            if scope["path"] in RESERVED_PATHS:
                await self(scope, receive, send)
            else:
                limit = "connections_per_address" if isinstance(error, RateLimited) else "connections"
                self._meter.recorder.add(LIMIT_REACHED, limit=limit)
                await self._refuse(scope, error)

        return answer

    def _find(self, scope: Scope) -> Endpoint:
        if REFUSAL in scope:
            raise scope[REFUSAL]
        self._guard.check(scope)
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
        return dict.fromkeys(found[0].verbs, found[0].endpoint(found[1], scope)) if found else {}

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
