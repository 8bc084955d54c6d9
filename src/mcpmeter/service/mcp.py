"""`/mcp`: the MCP server behind the service's keys, its sessions bound to the key that opened them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser, AuthorizationContext
from mcp.server.auth.provider import AccessToken
from mcp.server.lowlevel import Server
from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings

from mcpmeter.access.callers import Caller
from mcpmeter.catalog.service import LIMIT_REACHED
from mcpmeter.errors import Draining, MeterError, NotAuthenticated, RateLimited, UnsupportedContentEncoding
from mcpmeter.http.asgi import Receive, Scope, Send
from mcpmeter.http.exchange import CancelOnDisconnect, direct_response_of, headers_of, secret_of
from mcpmeter.instrument.asgi import TransportMeter
from mcpmeter.instrument.http_request import PRINCIPAL_KEY, metered_request
from mcpmeter.instrument.sdk_v2 import instrument_with
from mcpmeter.ledger.location import Location
from mcpmeter.mcp_server import ModelInfo, build_mcp_server
from mcpmeter.meter import Meter
from mcpmeter.pricing import PriceBook
from mcpmeter.relay.pipeline import EndpointConfig, Pipeline
from mcpmeter.service.app import Page
from mcpmeter.usage import UsageQuery, UsageReport, usage_report

log = logging.getLogger("mcpmeter")

PATH = "/mcp"


class BoundedSessionManager(StreamableHTTPSessionManager):
    """The SDK's sessions, which expire after 30 idle minutes, with a cap for each key. No key counts as one key."""

    def __init__(self, max_per_key: int, on_limit: Callable[[], None], app: Server[Any], **options: Any) -> None:
        super().__init__(app, **options)
        self._max_per_key = max_per_key
        self._on_limit = on_limit

    def _admit_session(self, requestor: AuthorizationContext | None) -> StreamableHTTPServerTransport | None:
        owner_of = self._session_owners.get
        if sum(owner_of(session) == requestor for session in self._server_instances) >= self._max_per_key:
            self._on_limit()
            raise RateLimited(
                f"{self._max_per_key} MCP sessions of this key are open.",
                hint="Close one by DELETE; the operator can raise server.limits.mcp_sessions_per_key.",
                retry_after="60",
            )
        return super()._admit_session(requestor)


class McpEndpoint:
    """The MCP server as an endpoint of the service. `async with running()` while it may be called."""

    def __init__(
        self,
        *,
        meter: Meter,
        pipeline: Pipeline,
        service: EndpointConfig,
        list_models: Callable[[], list[ModelInfo]],
        price_book: Callable[[], PriceBook],
        ledger_path: Location,
        version: str,
        max_sessions_per_key: int = 1000,
    ) -> None:
        async def ask(query: UsageQuery) -> UsageReport:
            return await asyncio.to_thread(usage_report, ledger_path, query)

        server = build_mcp_server(
            pipeline=pipeline,
            service=service,
            list_models=list_models,
            price_book=price_book,
            usage_report=ask,
            version=version,
        )
        # The App keeps mcp_active_requests, and this endpoint puts the transport's counter in front itself.
        instrument_with(meter, server, endpoint=PATH, counts_active=False, counts_transport=False)
        self._pipeline = pipeline
        self._sessions = BoundedSessionManager(
            max_sessions_per_key,
            partial(meter.recorder.add, LIMIT_REACHED, limit="mcp_sessions"),
            server._lowlevel_server,
            # The service has looked at Host and Origin before a request comes here.
            security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
            max_request_body_size=pipeline.runtime.options.max_body_bytes,
        )
        self._open: set[tuple[str, CancelOnDisconnect]] = set()
        """Requests of keys that are being served, streams among them."""
        self._counted = TransportMeter(self._authenticated, meter, endpoint=PATH)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve sessions until the block ends, which ends their streams."""
        async with self._sessions.run():
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One HTTP request; counted once, as the message that it carries or as what became of it."""
        await self._counted(scope, receive, send)

    async def _authenticated(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._pipeline.draining:
                raise Draining("The service is stopping.", hint="Retry; another replica may answer.")
            headers = headers_of(scope)
            caller = self._pipeline.runtime.identify(secret_of(headers))
            if b"content-encoding" in headers:
                _require_plain(headers[b"content-encoding"])
            await self._serve(caller, scope, receive, send)
        except MeterError as error:
            if (request := metered_request(scope)) is not None:
                request.refusal = error
            _refuse(scope, error)

    async def _serve(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})[PRINCIPAL_KEY] = (caller.team, caller.key_id)
        key_id = caller.key_id
        if not key_id:
            await self._sessions.handle_request(scope, receive, send)
            return
        # The SDK binds a session to this user and asks for the same one at each request.
        scope["user"] = AuthenticatedUser(AccessToken(token=key_id, client_id=key_id, scopes=[], subject=caller.team))
        with CancelOnDisconnect(lambda _: None) as cancel:  # the SDK itself notices a disconnect
            request = key_id, cancel
            self._open.add(request)
            try:
                await self._sessions.handle_request(scope, receive, send)
            finally:
                self._open.discard(request)

    async def end_sessions(self, keeps: Callable[[str], bool]) -> None:
        """End the requests, streams and sessions of keys that are no longer valid, by `keeps`."""
        owners = {session: owner["client_id"] for session, owner in self._sessions._session_owners.items()}
        ended = {key_id for key_id in {*owners.values(), *(key_id for key_id, _ in self._open)} if not keeps(key_id)}
        if not ended:
            return
        for key_id, cancel in list(self._open):
            if key_id in ended:
                cancel.cut(NotAuthenticated("This API key was revoked or has expired.", hint="Ask for another one."))
        for session, key_id in owners.items():
            if key_id in ended and (transport := self._sessions._server_instances.get(session)) is not None:
                await self._sessions._discard_session(session, transport)


def _require_plain(encoding: bytes) -> None:
    if encoding.lower() not in (b"", b"identity"):
        raise UnsupportedContentEncoding("MCP messages may not be compressed here.", hint="Send them plain.")


def _refuse(scope: Scope, error: MeterError) -> None:
    response = direct_response_of(scope)
    if response.response_started:  # a stream whose key was revoked
        if not response.response_complete:
            response.end(b"")
        return
    page = Page.of_jsonrpc_error(error)
    headers = [(b"content-type", b"application/json")]
    if isinstance(error, NotAuthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    elif isinstance(error, UnsupportedContentEncoding):
        headers.append((b"accept-encoding", b"identity"))
    if error.retry_after is not None:
        headers.append((b"retry-after", error.retry_after.encode()))
    response.respond(page.status, headers, page.body)
