"""One call that has its row in the ledger: attempts, the provider's response, the settlement, the last byte."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from functools import partial

from msgspec.structs import replace

from mcpmeter.dialects.base import Dialect, RequestInfo, ResponseInfo, UnreadableResponse
from mcpmeter.errors import (
    MeterError,
    ServiceFault,
)
from mcpmeter.http.client.interface import UpstreamResponse
from mcpmeter.http.exchange import CancelOnDisconnect, Exchange
from mcpmeter.meter import OpenCall
from mcpmeter.providers import Provider
from mcpmeter.quota.tracker import QuotaTracker
from mcpmeter.records import LlmTarget, Settlement
from mcpmeter.relay import error_bodies, failure, result, upstream_errors
from mcpmeter.relay.body_kind import BOM, is_events, json_alone, kind_of, relabel
from mcpmeter.relay.drains import Drain, Drains
from mcpmeter.relay.error_bodies import SentRequest
from mcpmeter.relay.headers import (
    cost_headers,
    passed_request_headers,
    response_headers,
)
from mcpmeter.relay.result import Exchanged
from mcpmeter.relay.runtime import MAX_ON_LOOP_BYTES, EndpointConfig, Runtime, off_loop_if_large
from mcpmeter.relay.stream import ForwardedStream, StreamTee
from mcpmeter.relay.upstream_errors import Withholding
from mcpmeter.routing.attempts import Attempts, Send, Wait
from mcpmeter.routing.candidates import Candidate


@dataclass(eq=False, kw_only=True, slots=True)
class RelayedCall:
    """A call on its way through attempts, response and settlement.

    It may end at any await: the client disconnects, the service cuts it off, the provider fails. What the settlement
    then needs is kept as soon as it is known: `target` of the latest attempt; `response`, the one that is forwarded,
    from its headers on; `stream`, what was delivered of it. `cancel` is the block that `cut` ends, `drain` what keeps
    it running although the client has disconnected. Steps hand each other values; only the way out reads this state.
    """

    target: Candidate | None = field(default=None, init=False)
    response: UpstreamResponse | None = field(default=None, init=False)
    stream: ForwardedStream | None = field(default=None, init=False)
    cancel: CancelOnDisconnect | None = field(default=None, init=False)
    drain: Drain | None = field(default=None, init=False)

    opened: OpenCall
    exchange: Exchange
    endpoint: EndpointConfig
    runtime: Runtime
    attempts: Attempts
    quota: QuotaTracker
    drains: Drains
    request: RequestInfo
    body: bytes

    @property
    def provider(self) -> Provider:
        """The provider of the latest attempt."""
        return self.target.upstream.provider if self.target else self.attempts.first

    @property
    def exchanged(self) -> Exchanged:
        """What was sent, and what answered."""
        target = self.target
        provider = target.upstream.provider if target else self.attempts.first
        return Exchanged(provider, self.request, self.response, self.endpoint.read_headers)

    def cut(self, error: MeterError) -> None:
        """End the call now, for a reason of the service's own."""
        if self.cancel is not None:
            self.cancel.cut(error)

    async def run(self) -> Settlement:
        """Send the request, forward the response, settle, send the last byte."""
        try:
            with self.exchange.cancel_on_disconnect() as self.cancel:
                target, response, body = await self._send()
                received = body or await self._receive(target, response)
            if isinstance(received, ForwardedStream):
                return await self._end_stream(response, received)
            if response.status >= 300:
                return await self._forward_error(target, response, received)
            return await self._forward_response(target, response, received)
        except MeterError as error:
            await failure.report(self, await failure.settle(self, error))
            return self.opened.settled
        except BaseException:  # a fault of ours, or the event loop is closing
            was_settled = self.opened.is_settled
            # Shielded: a cancelled wait would not see that the ledger failed, and recovery would count the call again.
            reported = await asyncio.shield(failure.settle(self, _fault_of_ours()))
            if not was_settled and not self.exchange.started:
                await failure.report(self, reported)
            raise
        finally:
            self.attempts.close()
            if self.response is not None:
                self.response.abort()
            if self.drain is not None:
                self.drains.end(self.drain)

    # Attempts ---------------------------------------------------------------------------------------------------------

    async def _send(self) -> tuple[Candidate, UpstreamResponse, bytes]:
        """Send until a response is to be forwarded. Returns its target and the body, if that had to be read already."""
        attempts = self.attempts
        while True:
            if self.drain is not None:
                raise self.drain.error
            step = attempts.next()
            if isinstance(step, Send):
                target = self.target = step.candidate
                if self.cancel is not None:
                    self.cancel.outlives = partial(failure.outlives, self) if target.upstream.provider.drains else None
                self._update_row(target)
                body = b""
                try:
                    response = await self._post(target)
                    status = response.status
                    if status >= 400:
                        response, status, body = await error_bodies.read(self._sent(target), self.runtime, response)
                except BaseException as fault:
                    if not attempts.failed(fault):
                        raise
                    continue
                self._note_quota(target, response)
                if not attempts.answered(status, response.headers):
                    self.response = response
                    return target, response, body
                response.finish()
                response.release()
            elif isinstance(step, Wait):
                await asyncio.sleep(step.seconds)
            else:
                raise step.error

    def _update_row(self, target: Candidate) -> None:
        provider, row = target.upstream.provider, self.opened.call.llm  # another one by weight, or by an open circuit
        if row is None or row.provider != provider.name or row.model != target.model:
            self.opened.goes_to(target_of(provider, target.model, self.endpoint.dialect, self.request))

    def _sent(self, target: Candidate) -> SentRequest:
        provider, post_unchanged = target.upstream.provider, partial(self._post, target, adds_usage=False)
        return SentRequest(provider, self.endpoint.dialect, self.request, self.body, target.model, post_unchanged)

    async def _post(self, target: Candidate, *, adds_usage: bool = True) -> UpstreamResponse:
        provider, dialect, request = target.upstream.provider, self.endpoint.dialect, self.request
        path_name = dialect.path_name(request)
        url, headers = self.runtime.request_headers.of(target, path_name, stream=request.stream)
        if passed := passed_request_headers(dialect.passed_headers, self.exchange.headers):
            headers = {**passed, **headers}  # in this order: the client cannot replace our headers, above all the key
        if request.stream and not request.usage_requested and not (adds_usage and self.runtime.asks_usage(provider)):
            request = replace(request, usage_requested=True)
        body = dialect.forwarded(self.body, request, target.model)
        timeouts, attempts = target.upstream.timeouts, self.attempts
        # The first attempt is sent at once, with all of the call's time.
        if attempts.made > 1 and attempts.seconds_left < timeouts.total_seconds:
            timeouts = replace(timeouts, total_seconds=attempts.seconds_left)
        return await self.runtime.client.post(provider.name, url, headers, body, timeouts)

    def _note_quota(self, target: Candidate, response: UpstreamResponse) -> None:
        provider, key_id, now_ns = target.upstream.provider, target.credential.id, time.time_ns()
        # Providers keep a quota per model, so each model is a pool of its own.
        self.quota.note(provider.name, key_id, response.headers, provider.quota, now=now_ns, pool=target.model)

    # The response -----------------------------------------------------------------------------------------------------

    async def _receive(self, target: Candidate, response: UpstreamResponse) -> bytes | ForwardedStream:
        """The whole body; or a stream, which has been forwarded but for its last event."""
        max_bytes, request, provider = self.runtime.options.max_answer_bytes, self.request, target.upstream.provider
        if response.status >= 300 or not (_is_stream(response) or (request.stream and await _is_unlabelled(response))):
            return await response.read(max_bytes)
        errors = partial(withholding, self, target)
        endpoint = self.endpoint.of(provider) if provider.usage_aliases else self.endpoint
        only_we_ask_usage = self.runtime.only_relay_asks_usage(provider, request)
        tee = StreamTee(endpoint.events, withhold_usage=only_we_ask_usage, errors=errors)
        headers = response_headers(self.opened.call.id, target, self.attempts.made, response)
        stream = self.stream = ForwardedStream(self.exchange, response, tee, headers, self.opened.elapsed_ns)
        if self.drain is not None:
            stream.read_on(self.drain)
        if not await stream.run(max_bytes):
            if stream.other_body:
                self.stream = None
                relabel(response, "application/json")
                return stream.other_body
            raise upstream_errors.incomplete_stream(provider.name, has_started=self.exchange.started)
        return stream

    async def _end_stream(self, response: UpstreamResponse, stream: ForwardedStream) -> Settlement:
        response.finish()
        info, dialect = stream.tee.read, self.endpoint.dialect
        size = 0 if info.usage else len(self.body)
        found = await off_loop_if_large(size, result.usage_of_stream, dialect, self.body, stream.tee)
        ended = result.of_success(self.exchanged, info, found, stream, self.drain)
        settlement = await self.opened.settle(ended)
        await self.exchange.end(stream.tee.end)
        return settlement

    async def _forward_response(self, target: Candidate, response: UpstreamResponse, body: bytes) -> Settlement:
        provider, large = target.upstream.provider, len(body) > MAX_ON_LOOP_BYTES
        dialect = (self.endpoint.of(provider) if provider.usage_aliases else self.endpoint).dialect
        try:
            info = await asyncio.to_thread(dialect.read_response, body) if large else dialect.read_response(body)
        except UnreadableResponse:
            body = await off_loop_if_large(len(body), json_alone, received := body)
            if len(body) < len(received) and kind_of(body) == "json":
                return await self._forward_response(target, response, body)
            if kind_of(received) == "events":
                return await _forward_events(self, target, response, received)
            raise upstream_errors.unreadable_response(provider.name, response.status, received) from None
        response.finish()
        body = withholding(self, target).success(body) if info.is_error else body
        found = result.reported(info.usage) if info.usage else await _estimated_usage(self, body, info)
        ended = result.of_success(self.exchanged, info, found, None, self.drain)
        settlement = await self.opened.settle(ended)
        headers = response_headers(self.opened.call.id, target, self.attempts.made, response)
        await self.exchange.respond(response.status, [*headers, *cost_headers(settlement)], body)
        return settlement

    async def _forward_error(self, target: Candidate, response: UpstreamResponse, body: bytes) -> Settlement:
        """Forward a provider's error unchanged, unless it is about our account, shows a key, or is to be mapped."""
        error = upstream_errors.error_of_response(target.upstream.provider, response.status, response.headers, body)
        if not upstream_errors.passes_unchanged(error, response.status, maps_faults=self.endpoint.maps_upstream_faults):
            raise error
        response.finish()
        settlement = await self.opened.settle(result.of_refusal(self.exchanged, response.status, error))
        headers = response_headers(self.opened.call.id, target, self.attempts.made, response)
        headers, body = withholding(self, target).response(error, response.status, headers, body)
        await self.exchange.respond(response.status, headers, body)
        return settlement


async def _estimated_usage(call: RelayedCall, body: bytes, info: ResponseInfo) -> result.CallUsage:
    """The usage of a response that does not report it."""
    size = len(call.body) + len(body)
    return await off_loop_if_large(size, result.usage_of_response, call.endpoint.dialect, call.body, body, info)


def withholding(call: RelayedCall, target: Candidate) -> Withholding:
    """Replaces the provider's errors that show a credential."""
    name, secret = target.upstream.provider.name, target.credential.secret
    return Withholding(call.endpoint.dialect, name, secret, call.opened.call.id)


async def _forward_events(call: RelayedCall, target: Candidate, response: UpstreamResponse, body: bytes) -> Settlement:
    """Forward a stream that was not requested and did not say that it is one."""
    provider = target.upstream.provider
    errors, endpoint = partial(withholding, call, target), call.endpoint.of(provider)
    only_we_ask_usage = call.runtime.only_relay_asks_usage(provider, call.request)
    tee = StreamTee(endpoint.events, withhold_usage=only_we_ask_usage, errors=errors)
    events = await off_loop_if_large(len(body), tee.feed_all, body.removeprefix(BOM))
    if not tee.is_whole:
        raise upstream_errors.unreadable_response(provider.name, response.status, body)
    response.finish()
    relabel(response, "text/event-stream")
    found = await off_loop_if_large(len(call.body), result.usage_of_stream, call.endpoint.dialect, call.body, tee)
    await call.opened.settle(result.of_success(call.exchanged, tee.read, found, None, call.drain))
    headers = response_headers(call.opened.call.id, target, call.attempts.made, response)
    await call.exchange.respond(response.status, [*headers, *cost_headers(call.opened.settled)], events)
    return call.opened.settled


def target_of(provider: Provider, model: str, dialect: Dialect, request: RequestInfo) -> LlmTarget:
    """The model call that goes to a provider."""
    return LlmTarget(
        provider=provider.name,
        model=model,
        operation=dialect.operation,
        stream=request.stream,
        prompt_tokens_estimate=request.prompt_tokens_estimate,
        otel_provider=provider.otel_name,
    )


def _is_stream(response: UpstreamResponse) -> bool:
    content_type = response.headers.get("content-type", "")
    if content_type == "application/json":
        return False
    return content_type.partition(";")[0].strip().lower() == "text/event-stream"


def _fault_of_ours() -> ServiceFault:
    return ServiceFault("The service failed while relaying.", hint="It is our fault; the service's log says where.")


async def _is_unlabelled(response: UpstreamResponse) -> bool:
    """Whether the response to a request for a stream is one under another Content-Type."""
    if not await is_events(response):
        return False
    relabel(response, "text/event-stream")
    return True
