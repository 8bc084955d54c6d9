"""What the pipeline asks of a dialect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from mcpmeter.errors import MeterError
from mcpmeter.records import NO_PATH_PARAMS, PathParams, Usage


class RequestInfo(msgspec.Struct, frozen=True, gc=False):
    """What a request asks for, of which only what the meter needs is read."""

    model: str
    """Empty when the request names none."""
    stream: bool = False
    usage_asked: bool = False
    """Whether the client itself asked for usage in the stream."""
    prompt_tokens_estimate: int = 0
    max_prompt_tokens: int | None = None
    """None where the body bounds it, as it does for all that a model reads: no token is shorter than a byte."""
    max_completion_tokens: int | None = None
    """All choices together. None where the caller sets no limit."""


class ResponseInfo(msgspec.Struct, frozen=True, gc=False):
    """What an answer says of itself."""

    usage: Usage | None = None
    bad_usage: bool = False
    """There was usage, and it cannot be: negative, fractional, text, …"""
    model: str = ""
    finish_reason: str = ""
    is_error: bool = False
    """A success status whose body is the dialect's error object."""
    is_refusal: bool = False
    """The dialect marks the answer as a refusal."""
    is_empty: bool = False
    """The answer is finished and holds neither text nor a tool call."""
    reported_usd: str = ""
    """What the provider says the call cost, as it wrote it, where that stands in the body."""


def merge(before: ResponseInfo, now: ResponseInfo) -> ResponseInfo:
    """What a stream says in several events: the last usage counts, as providers send it cumulated."""
    return ResponseInfo(
        usage=now.usage or before.usage,
        bad_usage=now.bad_usage or (before.bad_usage and now.usage is None),
        model=now.model or before.model,
        finish_reason=now.finish_reason or before.finish_reason,
        is_error=now.is_error or before.is_error,
        is_refusal=now.is_refusal or before.is_refusal,
        is_empty=now.is_empty or before.is_empty,
        reported_usd=now.reported_usd or before.reported_usd,
    )


class NotAnAnswer(ValueError):
    """The bytes are not what the dialect promises."""


class Dialect(Protocol):
    """One provider API. Functions of bytes only, so that every recorded body can be a test."""

    operation: str
    """OpenTelemetry's `gen_ai.operation.name`."""
    passed_headers: frozenset[bytes]
    """Request headers of the dialect's own that go upstream, lower case; none of them can carry a credential."""

    def path_name(self, asked: RequestInfo) -> str:
        """Key of the provider files' `paths`."""

    def read_request(self, body: bytes, named: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """Raises InvalidRequest."""

    def forwarded(self, body: bytes, asked: RequestInfo, model: str) -> bytes:
        """The body as it goes upstream: unchanged, but for the model's name and for usage in streams."""

    def read_answer(self, body: bytes) -> ResponseInfo:
        """Raises NotAnAnswer."""

    def read_events(self, block: bytes) -> ResponseInfo | None:
        """What a block of whole SSE events says; None when it says nothing that is metered. Cheap for most blocks."""

    def only_usage(self, event: bytes) -> bool:
        """Whether an event holds nothing but the usage that we asked for."""

    def is_end(self, event: bytes) -> bool:
        """Whether this is the stream's own last event."""

    def prompt_tokens(self, body: bytes) -> int:
        """Estimate of the prompt's tokens, for answers without usage."""

    def completion_tokens(self, answer: bytes) -> int:
        """Estimate of a whole answer's completion tokens."""

    def delivered_tokens(self, blocks: Sequence[bytes]) -> int:
        """Estimate of the completion tokens in the events that were delivered."""

    def error_body(self, error: MeterError, call_id: str) -> bytes:
        """The error in the dialect's own shape."""

    def error_event(self, error: MeterError, call_id: str) -> bytes:
        """The same inside a stream that has begun."""
