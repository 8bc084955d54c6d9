"""The interface of a dialect: `Dialect` for whole responses, `StreamingDialect` for those that also stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import msgspec

from mcpmeter.errors import MeterError
from mcpmeter.records import NO_PATH_PARAMS, STANDARD, AddedCall, Conditions, PathParams, Usage, UsageItem


class RequestInfo(msgspec.Struct, frozen=True, gc=False):
    """The metered part of a request."""

    model: str
    """Empty if the request names none."""
    stream: bool = False
    usage_requested: bool = False
    """Whether the stream carries usage without the relay requesting it."""
    prompt_tokens_estimate: int = 0
    max_prompt_tokens: int | None = None
    """None if the size of the body is the bound: no token is shorter than a byte."""
    max_completion_tokens: int | None = None
    """Of all choices together. None if the caller sets no limit."""
    conditions: Conditions = STANDARD
    """As the request asks for them; the response says what was served."""
    references: tuple[str, ...] = ()
    """Fields of the request that stand for a prompt that the body does not hold: `previous_response_id`, a file's id,
    an image's URL, … The body's size bounds nothing then."""
    max_items: tuple[UsageItem, ...] = ()
    """The most that its hosted tools can bill; a quantity of 0 means that the request sets no bound."""
    background: bool = False
    """The provider answers before it works; the call is followed until its usage is known."""
    choices: int = 1
    """Responses that it asks for at once."""
    added_calls: tuple[AddedCall, ...] = ()
    """Model calls that the provider may make beside it."""
    limit_fault: str = ""
    """Why its limits bound nothing: a sentence for the caller. Only a limit that refuses calls needs them."""
    has_bounds: bool = False
    """It holds fields that bound its cost and were not read: `Dialect.bounded` does."""


class ResponseInfo(msgspec.Struct, frozen=True, gc=False):
    """The metered part of a response, or of a stream's events so far."""

    usage: Usage | None = None
    bad_usage: bool = False
    """There is usage, and it is invalid: negative, fractional, text, …"""
    model: str = ""
    finish_reason: str = ""
    is_error: bool = False
    """A success status whose body is the dialect's error object."""
    is_refusal: bool = False
    """The dialect marks the response as a refusal."""
    is_empty: bool = False
    """The response is finished and holds neither text nor a tool call."""
    reported_usd: str = ""
    """The cost of the call as the provider writes it in the body."""
    reported_is_part: bool = False
    """`reported_usd` is a part of the cost only: a fee on top of what another account pays."""
    conditions: Conditions = STANDARD
    """As served. In a stream they may arrive in another event than the usage."""
    lacks_tier: bool = False
    """It does not say which tier served it, although the dialect's responses do: then the requested one counts."""
    items: tuple[UsageItem, ...] = ()
    """What is billed beside the usage object: searches and sessions that the output shows."""
    unknown: tuple[UsageItem, ...] = ()
    """What is billed beside the usage object and is not known."""
    object_id: str = ""
    """The provider's id of the response, of a call that runs in the background or may be continued."""
    is_pending: bool = False
    """The provider has taken the call and has not completed it."""


def merge(before: ResponseInfo, now: ResponseInfo) -> ResponseInfo:
    """Combine two events of a stream. The last usage counts because providers send cumulative counts."""
    return ResponseInfo(
        usage=now.usage or before.usage,
        bad_usage=now.bad_usage or (before.bad_usage and now.usage is None),
        model=now.model or before.model,
        finish_reason=now.finish_reason or before.finish_reason,
        is_error=now.is_error or before.is_error,
        is_refusal=now.is_refusal or before.is_refusal,
        is_empty=now.is_empty or before.is_empty,
        reported_usd=now.reported_usd or before.reported_usd,
        reported_is_part=now.reported_is_part if now.reported_usd else before.reported_is_part,
        conditions=before.conditions if now.conditions == STANDARD else now.conditions,
        lacks_tier=now.lacks_tier and before.lacks_tier,
        items=now.items or before.items,
        unknown=now.unknown or before.unknown,
        object_id=now.object_id or before.object_id,
        is_pending=now.is_pending,
    )


def merge_all(
    infos: Iterable[ResponseInfo | None], merge_two: Callable[[ResponseInfo, ResponseInfo], ResponseInfo] = merge
) -> ResponseInfo | None:
    """Combine the events that report something; None if none does."""
    merged: ResponseInfo | None = None
    for info in infos:
        if info is not None:
            merged = info if merged is None else merge_two(merged, info)
    return merged


class UnreadableResponse(ValueError):
    """The bytes are not a response of the dialect."""


class Dialect(Protocol):
    """One provider API."""

    operation: str
    """OpenTelemetry's `gen_ai.operation.name`."""
    passed_headers: frozenset[bytes]
    """The dialect's own request headers that go upstream, lower case. None of them can carry a credential."""

    def path_name(self, request: RequestInfo) -> str:
        """Key of the provider files' `paths`."""

    def read_request(self, body: bytes, path: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """Read the metered fields. Raises InvalidRequest."""

    def bounded(self, body: bytes, request: RequestInfo, models: Sequence[str]) -> RequestInfo:
        """The request with all that bounds its cost at any of these models; for those that say `has_bounds`.

        Raises InvalidRequest.
        """

    def forwarded(self, body: bytes, request: RequestInfo, model: str) -> bytes:
        """The body for upstream: unchanged except for the model's name and for usage in streams."""

    def read_response(self, body: bytes) -> ResponseInfo:
        """Usage, finish reason and error of a whole response. Raises UnreadableResponse."""

    def response_conditions(self, headers: Mapping[str, str]) -> Conditions:
        """What the response's headers report of the price; names are lower case."""

    def prompt_tokens(self, body: bytes) -> int:
        """Estimate of a prompt's tokens, for responses without usage."""

    def completion_tokens(self, response: bytes) -> int:
        """Estimate of a whole response's completion tokens."""

    def error_body(self, error: MeterError, call_id: str) -> bytes:
        """The error in the dialect's own shape."""

    def error_event(self, error: MeterError, call_id: str) -> bytes:
        """The same as an event, to end a stream that has begun."""


class PricedByBody:
    """For dialects whose headers tell nothing of the price."""

    def response_conditions(self, headers: Mapping[str, str]) -> Conditions:
        """Standard: the body reports them."""
        return STANDARD


class EventReader(Protocol):
    """Reads and filters the events of a stream. A `block` holds whole events, one or more."""

    end_marks: tuple[bytes, ...] = ()
    """The stream's last event contains one of these; `is_end` decides. Empty if no event is always the last."""
    text_mark: bytes = b""
    """The bytes before the text in an event that carries only text, including its opening quote. Empty if unknown."""

    def read_events(self, block: bytes) -> ResponseInfo | None:
        """Usage, finish reason and errors of a block; None if it reports nothing metered. Cheap for most blocks.

        What an event reports must not depend on the others in its block.
        """

    def merge(self, before: ResponseInfo, now: ResponseInfo) -> ResponseInfo:
        """Combine two reports of one stream. Usage of source `partial` is not final."""
        return merge(before, now)

    def has_content(self, block: bytes) -> bool:
        """Whether a block holds text or a tool call; thoughts are neither."""

    def only_usage(self, event: bytes) -> bool:
        """Whether an event holds only the usage that the relay requests."""
        return False

    def without_usage(self, event: bytes) -> bytes:
        """An event that ends a choice, without the usage that the relay's request adds beside it."""
        return event

    def without_null_usage(self, block: bytes) -> bytes:
        """A block without the other changes that requesting usage makes to events."""
        return block

    def is_end(self, event: bytes) -> bool:
        """Whether this is the stream's last event."""
        return False

    def delivered_tokens(self, blocks: Sequence[bytes]) -> int:
        """Estimate of the completion tokens in delivered events."""


@runtime_checkable
class StreamingDialect(Dialect, EventReader, Protocol):
    """A provider API whose responses may be streams."""


@runtime_checkable
class AliasingDialect(Dialect, Protocol):
    """A dialect that reads usage by a table of names, which a provider's own names can extend."""

    def with_aliases(self, aliases: Mapping[str, str]) -> Dialect:
        """This dialect for a provider: paths of fields to names of `items.ITEMS`. Raises ValueError for others."""


def with_aliases(dialect: Dialect, aliases: Mapping[str, str]) -> Dialect:
    """The dialect for a provider's `usage_aliases`; itself if there are none, or if it has no table."""
    return dialect.with_aliases(aliases) if aliases and isinstance(dialect, AliasingDialect) else dialect


class UnreadEvents(EventReader):
    """Reads nothing: for a stream that a provider sends in a dialect that has none. Such a stream is never complete."""

    def read_events(self, block: bytes) -> ResponseInfo | None:
        """None."""
        return None

    def has_content(self, block: bytes) -> bool:
        """False."""
        return False

    def delivered_tokens(self, blocks: Sequence[bytes]) -> int:
        """0."""
        return 0


def event_reader(dialect: Dialect) -> EventReader:
    """The dialect itself if it streams."""
    return dialect if isinstance(dialect, StreamingDialect) else UnreadEvents()
