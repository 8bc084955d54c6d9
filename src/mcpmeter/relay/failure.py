"""The way out of a call that fails: its client disconnects, the provider fails, the service cuts it off."""

from __future__ import annotations

from typing import Protocol

from mcpmeter.dialects.base import RequestInfo
from mcpmeter.errors import ClientDisconnected, MeterError, UpstreamFault, UpstreamResponseTooLarge
from mcpmeter.http.client.interface import UpstreamResponse
from mcpmeter.http.exchange import Exchange
from mcpmeter.meter import OpenCall
from mcpmeter.providers import Provider
from mcpmeter.relay import result
from mcpmeter.relay.drains import Drain, Drains
from mcpmeter.relay.headers import attempt_headers, send_error
from mcpmeter.relay.result import Exchanged
from mcpmeter.relay.runtime import EndpointConfig, Runtime, off_loop_if_large
from mcpmeter.relay.stream import ForwardedStream
from mcpmeter.routing.attempts import Attempts
from mcpmeter.routing.candidates import Candidate


class StartedCall(Protocol):
    """What the way out needs of a call; see `call.RelayedCall`."""

    drain: Drain | None
    opened: OpenCall
    exchange: Exchange
    endpoint: EndpointConfig
    runtime: Runtime
    attempts: Attempts
    drains: Drains
    request: RequestInfo
    body: bytes
    target: Candidate | None
    response: UpstreamResponse | None
    stream: ForwardedStream | None

    @property
    def provider(self) -> Provider:
        """The provider of the latest attempt."""

    @property
    def exchanged(self) -> Exchanged:
        """What was sent, and what answered."""

    def cut(self, error: MeterError) -> None:
        """End the call now."""


async def settle(call: StartedCall, error: MeterError) -> MeterError:
    """Settle what was delivered, unless the call is settled already. Returns the error to report to the client."""
    if isinstance(error, UpstreamFault) and not isinstance(error, UpstreamResponseTooLarge):
        call.attempts.broke()  # too large is by our own limit, which says nothing against the provider
    if call.opened.is_settled:
        return error
    if isinstance(error, ClientDisconnected) and call.target is not None and call.drain is None:
        call.drains.count(call.provider.name, "cancel")
    dialect, stream = call.endpoint.dialect, call.stream
    reason = result.reason_missing(dialect, call.response, error)
    found = result.unread_usage(call.request, reason)
    try:
        tee = stream.tee if stream else None
        # Not in a thread if no body has to be read: a cancellation there would lose the provider's own count.
        size = len(call.body) if reason and not (tee and tee.counted) else 0
        found = await off_loop_if_large(size, result.usage_of_failure, dialect, call.body, tee, reason)
    finally:  # even if the estimate was cancelled or failed
        ended = result.of_failure(call.exchanged, found, stream, error, has_started=call.exchange.started)
        try:
            await call.opened.settle(ended)
        except MeterError as fault:
            error = fault
    return error


async def report(call: StartedCall, error: MeterError) -> None:
    """Send an error in the way that is still open: as the response, or as a stream's last event."""
    exchange, dialect, call_id = call.exchange, call.endpoint.dialect, call.opened.call.id
    if isinstance(error, ClientDisconnected):
        return
    if exchange.started:
        await exchange.end(dialect.error_event(error, call_id))
        return
    headers = attempt_headers(call.provider.name, call.attempts.made)
    await send_error(exchange, error, dialect.error_body(error, call_id), call_id, headers)


def outlives(call: StartedCall, error: MeterError) -> bool:
    """The client has disconnected: whether the call goes on, for the provider's own count."""
    if call.exchange.direct_response is None:
        return False
    call.drain = call.drains.begin(call.provider.name, error, call.runtime.options.drains, call.cut)
    if call.drain is not None and call.stream is not None:
        call.stream.read_on(call.drain)
    return call.drain is not None
