"""Reads the start of an error's body before failover decides: what it amounts to, and how long to wait."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, NamedTuple

from msgspec.structs import replace

from mcpmeter.dialects.base import Dialect, RequestInfo
from mcpmeter.errors import UpstreamFault
from mcpmeter.http.client.interface import UpstreamResponse
from mcpmeter.providers import Provider
from mcpmeter.relay import error_meaning
from mcpmeter.relay.error_meaning import EFFECTIVE_STATUS, MAX_BODY_BYTES, READ_STATUSES
from mcpmeter.relay.runtime import Runtime

log = logging.getLogger("mcpmeter")

MAX_SECONDS: Final = 2.0
"""How long the next attempt waits for the body of an error."""


class ErrorResponse(NamedTuple):
    """An error response as failover sees it."""

    response: UpstreamResponse
    status: int
    """What it amounts to."""
    body: bytes = b""
    """The body, if it had to be taken."""


class SentRequest(NamedTuple):
    """What was sent to a provider, and how to send it without what the relay has added."""

    provider: Provider
    dialect: Dialect
    request: RequestInfo
    body: bytes
    model: str
    post_unchanged: Callable[[], Awaitable[UpstreamResponse]]


async def read(sent: SentRequest, runtime: Runtime, response: UpstreamResponse) -> ErrorResponse:
    """Read an error response, or the response to the same request without what the relay has added to it."""
    provider, name = sent.provider, sent.provider.name
    if response.status not in READ_STATUSES:
        return ErrorResponse(response, response.status)
    body = b"" if response.is_plain else await _read_or_abort(response, runtime.options.max_answer_bytes)
    start = body or await _start_of(response)
    if response.status in (400, 422) and runtime.asks_usage(provider) and _adds_usage(sent):
        again = await _ask_without_usage(response, start, sent.post_unchanged)
        if again is not None:
            log.warning("%s refuses stream_options, so the usage of its streams is not requested", name)
            runtime.usage_refusers.add(name)
            return ErrorResponse(again, again.status)
    return _meant(provider, response, start, body)


def _meant(provider: Provider, response: UpstreamResponse, start: bytes, body: bytes) -> ErrorResponse:
    """What an error response amounts to. A wait that its body asks for is added to its headers."""
    meaning = error_meaning.meaning_of(provider, response.status, response.headers, start)
    status = EFFECTIVE_STATUS.get(meaning, response.status)
    if status in (429, 503) and (seconds := error_meaning.retry_seconds(start)) is not None:
        response.headers = error_meaning.with_retry_after(response.headers, seconds)
    return ErrorResponse(response, status, body)


def _adds_usage(sent: SentRequest) -> bool:
    """Whether the request holds `stream_options` that only the relay has added."""
    if not sent.request.stream or sent.request.usage_requested:
        return False
    forwarded = partial(sent.dialect.forwarded, sent.body, model=sent.model)
    return forwarded(sent.request) != forwarded(replace(sent.request, usage_requested=True))


async def _ask_without_usage(
    response: UpstreamResponse, start: bytes, post_again: Callable[[], Awaitable[UpstreamResponse]]
) -> UpstreamResponse | None:
    """The response to the request without `stream_options`, if the provider refused these and the response is good.

    An error may repeat the prompt: the text alone must not end the counting of a provider's streams.
    """
    if not error_meaning.names_stream_options(start):
        return None
    try:
        again = await post_again()
    except BaseException:
        response.abort()
        raise
    if again.status >= 300:
        again.abort()
        return None
    response.finish()
    response.release()
    return again


async def _start_of(response: UpstreamResponse) -> bytes:
    """The body as far as it arrives in time. A fault is raised when the rest is read."""
    try:
        async with asyncio.timeout(MAX_SECONDS):
            return await response.peek(MAX_BODY_BYTES)
    except (TimeoutError, UpstreamFault):
        return b""


async def _read_or_abort(response: UpstreamResponse, limit_bytes: int) -> bytes:
    try:
        return await response.read(limit_bytes)
    except BaseException:
        response.abort()
        raise
