"""What a call used, why its usage is missing, and the `CallResult` of it. Pure.

Tokens are `reported` by the provider if it says how many, `estimated` if a complete response does not say, and
`partial` if the response broke off: then what was delivered is estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from msgspec.structs import replace

from mcpmeter.dialects.base import Dialect, RequestInfo, ResponseInfo
from mcpmeter.errors import (
    ClientDisconnected,
    Draining,
    MeterError,
    NotAuthenticated,
    Overloaded,
    ServiceFault,
    UpstreamFault,
    UpstreamRateLimited,
    UpstreamRefusedAccount,
    UpstreamUnreachable,
)
from mcpmeter.http.client.interface import UpstreamResponse
from mcpmeter.meter import CallResult
from mcpmeter.money import usd_to_nanousd
from mcpmeter.providers import Provider
from mcpmeter.records import STANDARD, Conditions, Outcome, Usage
from mcpmeter.relay import usage_parts
from mcpmeter.relay.drains import Drain
from mcpmeter.relay.headers import request_id
from mcpmeter.relay.stream import ForwardedStream, StreamTee


class CallUsage(NamedTuple):
    """A call's tokens, and why the provider's own count is missing (empty if it is not)."""

    usage: Usage | None = None
    missing_reason: str = ""


NO_USAGE: Final = CallUsage()
"""Of a call for which the provider did no work."""


def usage_of_response(dialect: Dialect, request_body: bytes, response_body: bytes, info: ResponseInfo) -> CallUsage:
    """The usage of a whole response."""
    if info.usage is not None:
        return reported(info.usage)
    if info.is_error:
        return NO_USAGE
    return _estimated(dialect, request_body, dialect.completion_tokens(response_body), info)


def usage_of_stream(dialect: Dialect, request_body: bytes, tee: StreamTee) -> CallUsage:
    """The usage of a complete stream. One that ends in the provider's own error is charged what it delivered."""
    info = tee.read
    if info.usage is not None:
        return reported(info.usage)
    if not info.is_error and tee.counted is not None:
        used = usage_parts.with_completion(tee.counted, tee.delivered_tokens(), "estimated")
        return CallUsage(used, _missing_reason(info))
    if not info.is_error:
        return _estimated(dialect, request_body, tee.delivered_tokens(), info)
    delivered = _delivered(dialect, request_body, tee)
    return CallUsage(delivered, "upstream_broke") if delivered.completion_tokens else NO_USAGE


def usage_of_failure(dialect: Dialect, request_body: bytes, tee: StreamTee | None, reason: str) -> CallUsage:
    """The usage of a call that failed, for `reason` of `reason_missing`: what was delivered before the failure."""
    if tee is not None and tee.read.usage is not None:
        return CallUsage(tee.read.usage)
    return CallUsage(_delivered(dialect, request_body, tee), reason) if reason else NO_USAGE


def unread_usage(request: RequestInfo, reason: str) -> CallUsage:
    """As `usage_of_failure`, without reading any body: the prompt as its row estimates it."""
    if not reason:
        return NO_USAGE
    return CallUsage(Usage(prompt_tokens=request.prompt_tokens_estimate, source="partial"), reason)


def reason_missing(dialect: Dialect, response: UpstreamResponse | None, error: MeterError) -> str:
    """Why a failed call has no reported usage; empty if the provider cannot have worked for it."""
    if dialect.operation == "count_tokens" or (response is not None and response.status >= 300):
        return ""  # counting tokens is free, and a provider that refused has not worked
    if isinstance(error, ClientDisconnected):
        return "client_gone"
    if isinstance(error, Overloaded | UpstreamUnreachable | UpstreamRefusedAccount | UpstreamRateLimited):
        return ""
    if isinstance(error, NotAuthenticated):
        return "key_ended"
    return "service_stopped" if isinstance(error, ServiceFault) else "upstream_broke"


HeaderReader = Callable[[Mapping[str, str]], Conditions]
"""Reads the conditions of the price from a response's headers."""


class Exchanged(NamedTuple):
    """What was sent to a provider, and what answered."""

    provider: Provider
    request: RequestInfo
    response: UpstreamResponse | None
    read_headers: HeaderReader | None


def of_success(
    call: Exchanged,
    info: ResponseInfo,
    found: CallUsage,
    stream: ForwardedStream | None,
    drain: Drain | None,
) -> CallResult:
    """The result of a response that was read to its end. A success status may carry the provider's error.

    `drain`: the client had disconnected before the end.
    """
    status = call.response.status if call.response else 0
    outcome: Outcome = "ok"
    error: MeterError | None = None
    if drain is not None:
        status, outcome, error = drain.error.http_status, "partial", drain.error
    elif info.is_error:
        error = UpstreamFault(f"{call.provider.name} answered an error with a success status.")
        outcome = "error"
    return _result(call, info, found, stream, status=status, outcome=outcome, error=error)


def of_refusal(call: Exchanged, status: int, error: MeterError) -> CallResult:
    """The result of a provider's error response that was forwarded."""
    return _result(call, ResponseInfo(), NO_USAGE, None, status=status, outcome="error", error=error)


def of_failure(
    call: Exchanged, found: CallUsage, stream: ForwardedStream | None, error: MeterError, *, has_started: bool
) -> CallResult:
    """The result of a call that ended in an error of ours. `has_started`: the client has a response's headers."""
    info, response = stream.tee.read if stream else ResponseInfo(), call.response
    is_disconnected = isinstance(error, ClientDisconnected)
    status = response.status if has_started and response and not is_disconnected else error.http_status
    outcome: Outcome = "partial" if has_started or is_disconnected or isinstance(error, Draining) else "error"
    return _result(call, info, found, stream, status=status, outcome=outcome, error=error)


def _result(
    call: Exchanged,
    info: ResponseInfo,
    found: CallUsage,
    stream: ForwardedStream | None,
    *,
    status: int,
    outcome: Outcome,
    error: MeterError | None,
) -> CallResult:
    response = call.response
    return CallResult(
        status=str(status),
        outcome=outcome,
        error=error,
        usage=_usage(call, info, found.usage),
        missing_reason=found.missing_reason,
        response_model=info.model,
        finish_reason=info.finish_reason,
        is_refusal=info.is_refusal,
        is_empty=info.is_empty,
        reported_nanousd=_reported_nanousd(call, info.reported_usd, is_stream=stream is not None),
        reported_is_part=info.reported_is_part,
        upstream_status=response.status if response else 0,
        upstream_request_id=request_id(response.headers) if response else "",
        time_to_first_chunk_ns=stream.first_chunk_ns if stream else 0,
        chunks=stream.tee.chunks if stream else 0,
        object_id=info.object_id,
        is_pending=info.is_pending,
    )


def reported(usage: Usage) -> CallUsage:
    return CallUsage(usage, "upstream_broke" if usage.source == "partial" else "")


def _usage(call: Exchanged, info: ResponseInfo, usage: Usage | None) -> Usage | None:
    """The usage with what the response reports elsewhere, which for most responses is nothing."""
    if usage is None:
        return None
    requested, read = call.request.conditions, call.read_headers
    in_headers = read(call.response.headers) if read is not None and call.response is not None else STANDARD
    if requested is info.conditions is in_headers is STANDARD and not info.items and not info.unknown:
        return usage
    if info.lacks_tier and not call.provider.genai_prices_id:
        info = replace(info, lacks_tier=False)  # lists of the user's own have no tiers
    return usage_parts.joined(usage, info, requested, in_headers)


def _reported_nanousd(call: Exchanged, in_body: str, *, is_stream: bool) -> int | None:
    """The cost in dollars that a response reports. A zero in a stream's header is none: it is older than the work."""
    provider, response = call.provider, call.response
    amount = response.headers.get(provider.cost_header) if response and provider.cost_header else None
    nanousd = usd_to_nanousd(amount) if amount else None
    if not nanousd and provider.cost_in_body and in_body:
        return usd_to_nanousd(in_body)
    return None if is_stream and not nanousd else nanousd


def _estimated(dialect: Dialect, request_body: bytes, completion_tokens: int, info: ResponseInfo) -> CallUsage:
    prompt_tokens = dialect.prompt_tokens(request_body)
    usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, source="estimated")
    return CallUsage(usage, _missing_reason(info))


def _missing_reason(info: ResponseInfo) -> str:
    return "bad_usage" if info.bad_usage else "no_usage"


def _delivered(dialect: Dialect, request_body: bytes, tee: StreamTee | None) -> Usage:
    completion_tokens = tee.delivered_tokens() if tee is not None else 0
    if tee is not None and tee.counted is not None:
        # The provider's own count of the prompt, if it sent one at the beginning, is exact.
        return usage_parts.with_completion(tee.counted, completion_tokens, "partial")
    prompt_tokens = dialect.prompt_tokens(request_body)
    return Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, source="partial")
