"""Anthropic Messages (`/messages`, `/messages/count_tokens`): https://platform.claude.com/docs/en/api/messages

`input_tokens` excludes what the cache wrote and read, so a prompt is the sum of the three. A stream tells its usage in
instalments: the prompt in `message_start`, the completion, cumulated, in `message_delta`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import msgspec

from mcpmeter.dialects import json_body as bodies
from mcpmeter.dialects import json_text, openai
from mcpmeter.dialects.base import NotAnAnswer, RequestInfo, ResponseInfo, merge
from mcpmeter.dialects.openai import Tokens
from mcpmeter.errors import InvalidRequest, MeterError
from mcpmeter.records import NO_PATH_PARAMS, PathParams, TokenSource, Usage

METERED_FIELDS: Final = json_text.quoted(b"model", b"stream", b"messages")
"""What is read of a request; each may be named once."""

TOKENS_PER_MEDIUM: Final = 1600
"""What Anthropic gives for an image of about one megapixel; a page of a document comes to as much."""

PASSED_HEADERS: Final = frozenset((b"anthropic-version", b"anthropic-beta"))

_HINT: Final = 'The least is {"model": "…", "max_tokens": 1024, "messages": [{"role": "user", "content": "…"}]}.'
_THINKING: Final = ("thinking", "redacted_thinking")


class _RequestMessage(msgspec.Struct, frozen=True, gc=False):
    role: str
    content: str | list[msgspec.Raw]


class _Request(msgspec.Struct, frozen=True, gc=False):
    messages: list[_RequestMessage]
    model: str | None = None
    stream: bool | None = None
    max_tokens: msgspec.Raw = openai.ABSENT


class _OutputDetails(msgspec.Struct, frozen=True, gc=False):
    thinking_tokens: Tokens | None = None


class _Usage(msgspec.Struct, frozen=True, gc=False):
    input_tokens: Tokens | None = None
    cache_creation_input_tokens: Tokens | None = None
    cache_read_input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    output_tokens_details: msgspec.Raw = openai.ABSENT


class _Block(msgspec.Struct, frozen=True, gc=False):
    type: str | None = None
    text: Any = None  # not always a string in blocks that are yet to come


class _Message(msgspec.Struct, frozen=True, gc=False):
    model: str | None = None
    content: list[_Block] | None = None
    stop_reason: str | None = None
    usage: msgspec.Raw = openai.ABSENT
    error: msgspec.Raw = openai.ABSENT


class _Delta(msgspec.Struct, frozen=True, gc=False):
    stop_reason: str | None = None
    text: Any = None


class _Event(msgspec.Struct, frozen=True, gc=False):
    type: str | None = None
    message: _Message | None = None
    delta: _Delta | None = None
    content_block: _Block | None = None
    usage: msgspec.Raw = openai.ABSENT
    error: msgspec.Raw = openai.ABSENT


class _Counted(msgspec.Struct, frozen=True, gc=False):
    input_tokens: Tokens
    error: msgspec.Raw = openai.ABSENT


class _CountError(msgspec.Struct, frozen=True, gc=False):
    error: msgspec.Raw


_request_decoder = msgspec.json.Decoder(_Request)
_message_decoder = msgspec.json.Decoder(_Message)
_event_decoder = msgspec.json.Decoder(_Event)
_usage_decoder = msgspec.json.Decoder(_Usage)
_details_decoder = msgspec.json.Decoder(_OutputDetails)
_counted_decoder = msgspec.json.Decoder(_Counted)
_count_error_decoder = msgspec.json.Decoder(_CountError)


@dataclass(frozen=True, slots=True)
class _Counts:
    """Token counts as they were told; None where an event did not tell one."""

    uncached: int | None = None
    cache_write: int | None = None
    cache_read: int | None = None
    output: int | None = None
    thinking: int | None = None


_NOTHING_COUNTED: Final = _Counts()


class _Instalment(ResponseInfo, frozen=True, gc=False):
    """What an event says, with its counts still apart."""

    counts: _Counts = _NOTHING_COUNTED
    is_final: bool = False
    """The completion was counted when the model had stopped."""


class AnthropicMessages:
    """The messages dialect. Stateless. Nothing is injected into a request nor withheld from a stream."""

    operation = "chat"
    passed_headers: frozenset[bytes] = PASSED_HEADERS
    end_marks: tuple[bytes, ...] = (b"message_stop",)
    text_mark = b'"text":"'

    def path_name(self, asked: RequestInfo) -> str:
        """`messages`, streamed or not."""
        return "messages"

    def read_request(self, body: bytes, named: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """Read model and stream. Raises InvalidRequest."""
        request = _request_of(body, "a message")
        return RequestInfo(
            model=request.model or "",
            stream=bool(request.stream),
            usage_asked=True,  # every stream tells it
            prompt_tokens_estimate=max(1, len(body) // bodies.BYTES_PER_PROMPT_TOKEN),
            max_completion_tokens=bodies.max_tokens(request.max_tokens),
        )

    def forwarded(self, body: bytes, asked: RequestInfo, model: str) -> bytes:
        """The body unchanged, unless the model's name differs."""
        return body if asked.model == model else bodies.with_model(body, model)

    def read_answer(self, body: bytes) -> ResponseInfo:
        """Usage, model and stop reason of a JSON answer. Raises NotAnAnswer."""
        answer = bodies.answer_of(_message_decoder, body)
        is_error = openai.is_error(answer.error)
        if answer.content is None and not is_error and not openai.is_told(answer.usage):
            raise NotAnAnswer("no content")
        counts, bad = _counts_of(answer.usage)
        usage = _usage(counts, "reported")
        refused = answer.stop_reason == "refusal"
        return ResponseInfo(
            usage=usage,
            bad_usage=bad or (usage is None and counts is not _NOTHING_COUNTED),
            model=openai.cleaned(answer.model),
            finish_reason=openai.cleaned(answer.stop_reason),
            is_error=is_error,
            is_refusal=refused,
            is_empty=not (is_error or refused or any(map(_is_content, answer.content or ()))),
        )

    def read_events(self, block: bytes) -> ResponseInfo | None:
        """What a block of whole events says of usage, stop reason or an error."""
        # message_start, message_delta and message_stop; inside a text the quote before it would be escaped.
        if block.rfind(b'"message_') < 0 and block.rfind(b'"error"') < 0:
            return None
        told: ResponseInfo | None = None
        for event in _events(block):
            told = bodies.merged(told, _read(event), self.joined)
        return told

    def joined(self, before: ResponseInfo, now: ResponseInfo) -> ResponseInfo:
        """What two events say together: a count that the later one does not tell stands as it was."""
        both = merge(before, now)
        counts, is_final = _NOTHING_COUNTED, False
        if isinstance(before, _Instalment):
            counts, is_final = before.counts, before.is_final
        if isinstance(now, _Instalment):
            counts = _latest(counts, now.counts)
            counted_after_the_reason = bool(before.finish_reason) and now.counts.output is not None
            is_final = is_final or now.is_final or counted_after_the_reason
        usage = _usage(counts, "reported" if is_final else "partial")
        return _Instalment(
            usage=usage,
            bad_usage=both.bad_usage and not (is_final and usage),
            model=both.model,
            finish_reason=both.finish_reason,
            is_error=both.is_error,
            is_refusal=both.is_refusal,
            counts=counts,
            is_final=is_final,
        )

    def has_content(self, block: bytes) -> bool:
        """Whether a block of whole events holds text or a tool's call; thinking is neither."""
        return b'"content_block' in block and any(map(_writes, _events(block)))

    def only_usage(self, event: bytes) -> bool:
        """Never: nothing was asked for that the caller did not ask for."""
        return False

    def is_end(self, event: bytes) -> bool:
        """`message_stop`."""
        return b"message_stop" in event and any(told.type == "message_stop" for told in _events(event))

    def prompt_tokens(self, body: bytes) -> int:
        """Estimate from the text of system, messages and tools, four tokens of framing a message."""
        try:
            request = json_text.parsed(body)
        except InvalidRequest:
            return len(body) // bodies.BYTES_PER_PROMPT_TOKEN
        told = [bodies.under(request, name) for name in ("system", "messages", "tools")]
        text, media = bodies.prompt_parts(told, _is_media)
        framing = 4 * sum(1 for _message in bodies.dicts_in(told[1]))
        return json_text.estimated_tokens(text) + TOKENS_PER_MEDIUM * media + framing

    def completion_tokens(self, answer: bytes) -> int:
        """Estimate from the text of the content blocks, thinking and tools' input too."""
        content = bodies.dicts_in(bodies.under(bodies.value_of(answer), "content"))
        return json_text.estimated_tokens("".join(text for block in content for text in _written(block)))

    def delivered_tokens(self, blocks: Sequence[bytes]) -> int:
        """Estimate from the text of all deltas."""
        return json_text.estimated_tokens("".join(_delivered_texts(blocks)))

    def error_body(self, error: MeterError, call_id: str) -> bytes:
        """Anthropic's error object."""
        return _error_body(error, call_id)

    def error_event(self, error: MeterError, call_id: str) -> bytes:
        """The error object as an `error` event; Anthropic's SDKs raise APIStatusError on it."""
        return _error_event(error, call_id)


class AnthropicCountTokens:
    """Counting a prompt without sending it to a model. Not billed, so its usage is zero and reported. Stateless."""

    operation = "count_tokens"
    passed_headers: frozenset[bytes] = PASSED_HEADERS

    def path_name(self, asked: RequestInfo) -> str:
        """`count_tokens`."""
        return "count_tokens"

    def read_request(self, body: bytes, named: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """Read the model. Raises InvalidRequest."""
        model = _request_of(body, "a message to count").model or ""
        return RequestInfo(model=model, max_prompt_tokens=0, max_completion_tokens=0)

    def forwarded(self, body: bytes, asked: RequestInfo, model: str) -> bytes:
        """The body unchanged, unless the model's name differs."""
        return body if asked.model == model else bodies.with_model(body, model)

    def read_answer(self, body: bytes) -> ResponseInfo:
        """Zero usage; what was counted is the caller's. Raises NotAnAnswer."""
        try:
            bodies.answer_of(_counted_decoder, body)
        except NotAnAnswer:
            if not openai.is_error(bodies.answer_of(_count_error_decoder, body).error):
                raise
            return ResponseInfo(is_error=True)
        return ResponseInfo(usage=Usage(source="reported"))

    def read_events(self, block: bytes) -> ResponseInfo | None:
        """Nothing: it never streams."""
        return None

    def only_usage(self, event: bytes) -> bool:
        """Never."""
        return False

    def is_end(self, event: bytes) -> bool:
        """Never."""
        return False

    def prompt_tokens(self, body: bytes) -> int:
        """0: no model reads the prompt."""
        return 0

    def completion_tokens(self, answer: bytes) -> int:
        """0: no model writes."""
        return 0

    def delivered_tokens(self, blocks: Sequence[bytes]) -> int:
        """0: no model writes."""
        return 0

    def error_body(self, error: MeterError, call_id: str) -> bytes:
        """Anthropic's error object."""
        return _error_body(error, call_id)

    def error_event(self, error: MeterError, call_id: str) -> bytes:
        """The error object as an `error` event."""
        return _error_event(error, call_id)


def _request_of(body: bytes, kind: str) -> _Request:
    request = bodies.request_of(_request_decoder, body, kind=kind, hint=_HINT)
    json_text.refuse_repeated(body, METERED_FIELDS)
    if not request.messages:
        raise InvalidRequest("'messages' is empty.", hint="Send at least one message with a role and content.")
    if request.model is not None:
        bodies.check_model(request.model)
    return request


def _events(block: bytes) -> Iterator[_Event]:
    for payload in openai.events_of(block):
        try:
            yield bodies.answer_of(_event_decoder, payload)
        except NotAnAnswer:
            # Bytes pass as they came; an event that cannot be read says nothing, and usage will count as missing.
            continue


def _read(event: _Event) -> ResponseInfo | None:
    """What one event says; None for those that carry content only."""
    message, delta = event.message or _Message(), event.delta or _Delta()
    counts, bad = _counts_of(event.usage if openai.is_told(event.usage) else message.usage)
    reason = openai.cleaned(delta.stop_reason or message.stop_reason)
    is_error = openai.is_error(event.error)
    if counts is _NOTHING_COUNTED and not (bad or reason or is_error or message.model):
        return None
    is_final = bool(reason) and counts.output is not None
    return _Instalment(
        usage=_usage(counts, "reported" if is_final else "partial"),
        bad_usage=bad,
        model=openai.cleaned(message.model),
        finish_reason=reason,
        is_error=is_error,
        is_refusal=reason == "refusal",
        counts=counts,
        is_final=is_final,
    )


def _counts_of(raw: msgspec.Raw) -> tuple[_Counts, bool]:
    """(counts, whether they were there and cannot be). An explicit zero is kept: it is what the provider says."""
    if not openai.is_told(raw) or bytes(raw) == b"{}":
        return _NOTHING_COUNTED, False
    try:
        told = _usage_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _NOTHING_COUNTED, True
    if told.input_tokens is None and told.output_tokens is None:
        return _NOTHING_COUNTED, True
    return (
        _Counts(
            uncached=told.input_tokens,
            cache_write=told.cache_creation_input_tokens,
            cache_read=told.cache_read_input_tokens,
            output=told.output_tokens,
            thinking=_thinking(told.output_tokens_details),
        ),
        False,
    )


def _thinking(raw: msgspec.Raw) -> int | None:
    # A detail that cannot be is left out; the totals beside it still count.
    if not openai.is_told(raw):
        return None
    try:
        return _details_decoder.decode(raw).thinking_tokens
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _latest(before: _Counts, now: _Counts) -> _Counts:
    told = {field.name: getattr(now, field.name) for field in fields(_Counts)}
    return _Counts(**{name: getattr(before, name) if count is None else count for name, count in told.items()})


def _usage(counts: _Counts, source: TokenSource) -> Usage | None:
    """The counts as one usage; None while the prompt or the completion was not told."""
    if counts.uncached is None or counts.output is None:
        return None
    written, cached = counts.cache_write or 0, counts.cache_read or 0
    return Usage(
        prompt_tokens=counts.uncached + written + cached,
        completion_tokens=counts.output,
        cached_read_tokens=cached,
        cache_write_tokens=written,
        reasoning_tokens=min(counts.thinking or 0, counts.output),
        source=source,
    )


def _is_content(block: _Block) -> bool:
    return bool(block.text) if block.type == "text" else block.type not in _THINKING


def _writes(event: _Event) -> bool:
    started = event.content_block is not None and _is_content(event.content_block)
    return started or bool(event.delta and event.delta.text)


def _is_media(part: dict[str, Any]) -> bool:
    kind = bodies.under(part, "source", "type")
    return part.get("type") in ("image", "document") and kind in ("base64", "url", "file")


def _written(block: dict[str, Any]) -> Iterator[str]:
    """What a model wrote into a block or a delta; signatures and ids are the service's."""
    for name in ("text", "thinking", "partial_json", "name"):
        yield from json_text.text_of(block.get(name))
    if block.get("input"):
        yield msgspec.json.encode(block["input"]).decode()


def _delivered_texts(blocks: Sequence[bytes]) -> Iterator[str]:
    for payload in openai.events_of(b"".join(blocks)):
        event = bodies.value_of(payload)
        for name in ("delta", "content_block"):
            part = bodies.under(event, name)
            if isinstance(part, dict):
                yield from _written(part)


_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def _error_body(error: MeterError, call_id: str) -> bytes:
    other = "invalid_request_error" if error.http_status < 500 else "api_error"
    return msgspec.json.encode(
        {
            "type": "error",
            "error": {
                "type": _TYPES.get(error.http_status, other),
                "message": str(error),
                "code": error.id,
                "call_id": call_id,
            },
            "request_id": call_id,
        }
    )


def _error_event(error: MeterError, call_id: str) -> bytes:
    return b"event: error\ndata: " + _error_body(error, call_id) + b"\n\n"
