"""Requests for background responses: retrieve, cancel, delete. They cost nothing, and the team that made one may make
them, whichever of its keys it uses."""

from __future__ import annotations

import time
from functools import partial
from typing import Final, Literal, NamedTuple
from urllib.parse import parse_qsl, urlencode

from mcpmeter.access.callers import Caller
from mcpmeter.errors import ClientDisconnected, Draining, MeterError, RateLimited, ResponseNotFound
from mcpmeter.http.client.interface import UpstreamResponse
from mcpmeter.http.exchange import CancelOnDisconnect, Exchange
from mcpmeter.ledger.store import Store
from mcpmeter.meter import CallResult, OpenCall
from mcpmeter.records import ProviderObject
from mcpmeter.relay import upstream_errors
from mcpmeter.relay.background import BackgroundCalls, address_of, is_object_id, targets_of
from mcpmeter.relay.headers import response_headers, send_error
from mcpmeter.relay.pipeline import Pipeline
from mcpmeter.relay.runtime import EndpointConfig, Runtime
from mcpmeter.relay.stream import ForwardedStream, StreamTee
from mcpmeter.relay.upstream_errors import Withholding
from mcpmeter.routing.candidates import Candidate

Action = Literal["retrieve", "cancel", "delete"]

VERBS: Final[dict[Action, str]] = {"retrieve": "GET", "cancel": "POST", "delete": "DELETE"}
PARAMETERS: Final = frozenset({"stream", "starting_after", "include", "include[]", "include_obfuscation"})
"""Of the query; others do not go to the provider."""
MAX_QUERY_BYTES: Final = 4096
MAX_PARAMETERS: Final = 64
MINUTE_S: Final = 60


class ObjectRequest(NamedTuple):
    """What a client asks about a response."""

    action: Action
    object_id: str
    query: str = ""


class ObjectRequests:
    """Serves requests for background responses from the provider that has them."""

    def __init__(self, pipeline: Pipeline, background: BackgroundCalls, store: Store) -> None:
        self._pipeline = pipeline
        self._background = background
        self._store = store
        self._endpoint = EndpointConfig(dialect=background.dialect)
        self._minute = 0
        self._by_key: dict[str, int] = {}
        """Requests of this minute by key id, of keys with a limit on requests."""
        self._active: set[CancelOnDisconnect] = set()

    def cut(self) -> None:
        """End all requests now: the service stops."""
        for cancel in list(self._active):
            cancel.cut(Draining("The service is stopping; this response was cut off.", hint="Retry."))

    async def run(self, exchange: Exchange, request: ObjectRequest) -> None:
        """Answer one request and count it."""
        with self._pipeline.using_runtime() as runtime:
            opened = self._pipeline.meter.open(exchange.endpoint, exchange.method, trace_id=exchange.trace_id)
            try:
                caller = self._pipeline.identify(exchange, runtime)
                self._limit(caller)
                kept = None
                if is_object_id(request.object_id):
                    kept = await self._store.find_object(request.object_id, caller.team)
                if kept is None:
                    raise _not_found()
                status = await self._forward(exchange, opened, runtime, kept, request)
            except MeterError as error:
                await self._refuse(exchange, opened, error)
                return
            opened.count(CallResult(status=str(status), outcome="ok" if status < 400 else "error"))

    async def _refuse(self, exchange: Exchange, opened: OpenCall, error: MeterError) -> None:
        opened.count(CallResult(status=str(error.http_status), outcome="error", error=error))
        dialect, call_id = self._endpoint.dialect, opened.call.id
        if isinstance(error, ClientDisconnected):
            return
        if exchange.started:
            await exchange.end(dialect.error_event(error, call_id))
        else:
            await send_error(exchange, error, dialect.error_body(error, call_id), call_id)

    def _limit(self, caller: Caller) -> None:
        """Raises RateLimited. Counted apart from the key's calls, so that waiting for one does not use them up."""
        limit = caller.requests_per_minute
        if limit is None:
            return
        now = int(time.time())
        if now // MINUTE_S != self._minute:
            self._minute, self._by_key = now // MINUTE_S, {}
        count = self._by_key[caller.key_id] = self._by_key.get(caller.key_id, 0) + 1
        if count > limit:
            seconds = MINUTE_S - now % MINUTE_S
            raise RateLimited(
                f"This API key is limited to {limit} requests for responses a minute.",
                hint=f"Retry in {seconds} s, or ask the operator for a higher limit.",
                retry_after=str(seconds),
            )

    async def _forward(
        self, exchange: Exchange, opened: OpenCall, runtime: Runtime, kept: ProviderObject, request: ObjectRequest
    ) -> int:
        """Forward to the provider. Returns the status that the client got."""
        targets = targets_of(kept, runtime)
        if not targets:
            raise _not_found()
        target, response = targets[0], None
        if request.action == "delete" and (followed := await self._background.found(kept)):
            await self._background.look(followed)  # afterwards the provider does not report what it bills
        try:
            with exchange.cancel_on_disconnect() as cancel:
                self._active.add(cancel)
                try:
                    response = await self._send(runtime, target, kept, request)
                    if response.status == 200 and _is_stream(response):
                        stream = await self._stream(exchange, opened, runtime, target, response)
                        body = b""
                    else:
                        stream, body = None, await response.read(runtime.options.max_answer_bytes)
                finally:
                    self._active.discard(cancel)
            response.finish()
            if stream is not None:
                if followed := await self._background.found(kept):
                    await self._background.settle_from_events(followed, target, stream.tee.read)
                await exchange.end(stream.tee.end)
                return 200
            if response.status < 300 and (followed := await self._background.found(kept)):
                await self._background.settle_from_body(followed, target, body)
            return await self._answer(exchange, opened, target, response, body)
        finally:
            if response is not None:
                response.abort()  # does nothing after `finish` but release the body

    async def _send(
        self, runtime: Runtime, target: Candidate, kept: ProviderObject, request: ObjectRequest
    ) -> UpstreamResponse:
        query = _passed(request.query)
        path = "/cancel" if request.action == "cancel" else ""
        is_stream = ("stream", "true") in query
        url, headers = address_of(runtime, target, kept.id, action=path, query=urlencode(query), stream=is_stream)
        name, method = target.upstream.provider.name, VERBS[request.action]
        return await runtime.client.post(name, url, headers, b"", target.upstream.timeouts, method=method)

    async def _stream(
        self, exchange: Exchange, opened: OpenCall, runtime: Runtime, target: Candidate, response: UpstreamResponse
    ) -> ForwardedStream:
        errors = partial(self._withholding, opened, target)
        tee = StreamTee(self._endpoint.events, withhold_usage=False, errors=errors)
        headers = response_headers(opened.call.id, target, 1, response)
        stream = ForwardedStream(exchange, response, tee, headers, opened.elapsed_ns)
        if not await stream.run(runtime.options.max_answer_bytes):
            raise upstream_errors.incomplete_stream(target.upstream.name, has_started=exchange.started)
        return stream

    async def _answer(
        self, exchange: Exchange, opened: OpenCall, target: Candidate, response: UpstreamResponse, body: bytes
    ) -> int:
        status, headers = response.status, response_headers(opened.call.id, target, 1, response)
        if status == 404:
            raise _not_found()
        if status >= 300:
            error = upstream_errors.error_of_response(target.upstream.provider, status, response.headers, body)
            if not upstream_errors.passes_unchanged(error, status, maps_faults=False):
                raise error
            headers, body = self._withholding(opened, target).response(error, status, headers, body)
        await exchange.respond(status, headers, body)
        return status

    def _withholding(self, opened: OpenCall, target: Candidate) -> Withholding:
        return Withholding(self._endpoint.dialect, target.upstream.name, target.credential.secret, opened.call.id)


def _not_found() -> ResponseNotFound:
    """One text for an id that is unknown, another team's or forgotten: the three must look alike."""
    return ResponseNotFound(
        "There is no background response of this id.", hint="Responses without `background: true` are not kept here."
    )


def _is_stream(response: UpstreamResponse) -> bool:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower() == "text/event-stream"


def _passed(query: str) -> list[tuple[str, str]]:
    if len(query) > MAX_QUERY_BYTES or query.count("&") >= MAX_PARAMETERS:
        return []
    return [(name, value) for name, value in parse_qsl(query) if name in PARAMETERS]
