"""Anthropic Messages (`/messages`): https://platform.claude.com/docs/en/api/messages

`input_tokens` excludes cache writes and cache reads, so the prompt is the sum of the three. A stream reports its usage
in parts: the prompt in `message_start`, the completion, cumulative, in `message_delta`. A part leaves out counts that
did not change, so each count keeps its last value. Usage is `partial` until the completion is counted together with
the stop reason or after it; from then on it is `reported`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import msgspec

from mcpmeter.dialects import anthropic, json_body, request_bounds, sse, tokens
from mcpmeter.dialects.base import RequestInfo, ResponseInfo, StreamingDialect, UnreadableResponse, merge, merge_all
from mcpmeter.dialects.tokens import Tokens
from mcpmeter.records import NO_PATH_PARAMS, PathParams, TokenSource, Usage

TOKENS_PER_MEDIUM: Final = 1600
"""Anthropic's figure for an image of about one megapixel; a page of a document costs about as much."""

_THINKING: Final = ("thinking", "redacted_thinking")


class _OutputDetails(msgspec.Struct, frozen=True, gc=False):
    thinking_tokens: Tokens | None = None


class _Usage(msgspec.Struct, frozen=True, gc=False):
    input_tokens: Tokens | None = None
    cache_creation_input_tokens: Tokens | None = None
    cache_read_input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    output_tokens_details: msgspec.Raw = json_body.ABSENT


class _Block(msgspec.Struct, frozen=True, gc=False):
    type: str | None = None
    text: Any = None  # not a string in every type of block


class _Message(msgspec.Struct, frozen=True, gc=False):
    model: str | None = None
    content: list[_Block] | None = None
    stop_reason: str | None = None
    usage: msgspec.Raw = json_body.ABSENT
    error: msgspec.Raw = json_body.ABSENT


class _Delta(msgspec.Struct, frozen=True, gc=False):
    stop_reason: str | None = None
    text: Any = None


class _Event(msgspec.Struct, frozen=True, gc=False):
    type: str | None = None
    message: _Message | None = None
    delta: _Delta | None = None
    content_block: _Block | None = None
    usage: msgspec.Raw = json_body.ABSENT
    error: msgspec.Raw = json_body.ABSENT


_message_decoder = msgspec.json.Decoder(_Message)
_event_decoder = msgspec.json.Decoder(_Event)
_usage_decoder = msgspec.json.Decoder(_Usage)
_details_decoder = msgspec.json.Decoder(_OutputDetails)
_NO_DETAILS: Final = _OutputDetails()
_NO_MESSAGE: Final = _Message()
_NO_DELTA: Final = _Delta()


@dataclass(frozen=True, slots=True)
class _Counts:
    """Reported token counts; None if an event leaves one out."""

    uncached: int | None = None
    cache_write: int | None = None
    cache_read: int | None = None
    output: int | None = None
    thinking: int | None = None


_NO_COUNTS: Final = _Counts()


class _EventInfo(ResponseInfo, frozen=True, gc=False):
    """The report of one or more events, with the counts still separate."""

    counts: _Counts = _NO_COUNTS
    is_final: bool = False
    """The completion was counted together with the stop reason or after it."""


class AnthropicMessages(anthropic.AnthropicDialect, StreamingDialect):
    """The messages dialect. Stateless. Every stream carries its usage, so none is requested."""

    operation = "chat"
    end_marks = (b"message_stop",)
    text_mark = b'"text":"'

    def path_name(self, request: RequestInfo) -> str:
        """`messages`, streamed or not."""
        return "messages"

    def read_request(self, body: bytes, path: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """Read model, stream and limit. Raises InvalidRequest."""
        request = anthropic.read_request(body, "a message")
        return RequestInfo(
            model=request.model or "",
            stream=bool(request.stream),
            usage_requested=True,
            prompt_tokens_estimate=tokens.quick_estimate(body),
            conditions=request_bounds.conditions(json_body.ABSENT, speed=request.speed, region=request.inference_geo),
            has_bounds=True,
        )

    def read_response(self, body: bytes) -> ResponseInfo:
        """Usage, model, stop reason and error of a JSON response. Raises UnreadableResponse."""
        message = json_body.decode_response(_message_decoder, body)
        has_error = json_body.is_error(message.error)
        if message.content is None and not has_error and not json_body.is_set(message.usage):
            raise UnreadableResponse("no content")
        counts, bad = _counts_of(message.usage)
        usage = _usage(counts, "reported")
        refused = message.stop_reason == "refusal"
        return ResponseInfo(
            usage=usage,
            bad_usage=bad or (usage is None and counts is not _NO_COUNTS),
            model=json_body.cleaned(message.model),
            finish_reason=json_body.cleaned(message.stop_reason),
            is_error=has_error,
            is_refusal=refused,
            is_empty=not (has_error or refused or any(map(_is_content, message.content or ()))),
        )

    def read_events(self, block: bytes) -> ResponseInfo | None:
        """Usage, stop reason or error of a block."""
        # message_start, message_delta and message_stop; inside a text the quote before it would be escaped.
        if block.rfind(b'"message_') < 0 and block.rfind(b'"error"') < 0:
            return None
        return merge_all(map(_read_event, _events(block, b'"message_', b'"error"')), self.merge)

    def merge(self, before: ResponseInfo, now: ResponseInfo) -> ResponseInfo:
        """Combine two reports; a count that the later one leaves out keeps its value."""
        both = merge(before, now)
        counts, is_final = _NO_COUNTS, False
        if isinstance(before, _EventInfo):
            counts, is_final = before.counts, before.is_final
        if isinstance(now, _EventInfo):
            counts = _latest(counts, now.counts)
            counted_after_reason = bool(before.finish_reason) and now.counts.output is not None
            is_final = is_final or now.is_final or counted_after_reason
        usage = _usage(counts, "reported" if is_final else "partial")
        return _EventInfo(
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
        """Whether a block holds text or a tool call; thinking is neither."""
        return b'"content_block' in block and any(map(_has_content, _events(block, b'"content_block')))

    def is_end(self, event: bytes) -> bool:
        """`message_stop`."""
        return b"message_stop" in event and any(item.type == "message_stop" for item in _events(event, b""))

    def prompt_tokens(self, body: bytes) -> int:
        """Estimate from the text of system, messages and tools, plus framing per message."""
        return tokens.estimate_prompt(body, _prompt_tokens)

    def completion_tokens(self, response: bytes) -> int:
        """Estimate from the text of the content blocks, including thinking and the tools' input."""
        content = json_body.dicts_in(json_body.under(json_body.value_of(response), "content"))
        return tokens.estimate_text("".join(text for block in content for text in _written(block)))

    def delivered_tokens(self, blocks: Sequence[bytes]) -> int:
        """Estimate from the text of all deltas."""
        return tokens.estimate_text("".join(_delivered_texts(blocks)))


def _events(block: bytes, *marks: bytes) -> Iterator[_Event]:
    """The events of a block whose data holds one of these marks."""
    for payload in sse.payloads(block):
        if not any(mark in payload for mark in marks):
            continue
        try:
            yield json_body.decode_response(_event_decoder, payload)
        except UnreadableResponse:
            # The bytes pass anyway; an unreadable event reports nothing, so the usage counts as missing.
            continue


def _read_event(event: _Event) -> ResponseInfo | None:
    """The report of one event; None if it carries only content."""
    message, delta = event.message or _NO_MESSAGE, event.delta or _NO_DELTA
    counts, bad = _counts_of(event.usage if json_body.is_set(event.usage) else message.usage)
    reason = json_body.cleaned(delta.stop_reason or message.stop_reason)
    has_error = json_body.is_error(event.error)
    if counts is _NO_COUNTS and not (bad or reason or has_error or message.model):
        return None
    is_final = bool(reason) and counts.output is not None
    return _EventInfo(
        usage=_usage(counts, "reported" if is_final else "partial"),
        bad_usage=bad,
        model=json_body.cleaned(message.model),
        finish_reason=reason,
        is_error=has_error,
        is_refusal=reason == "refusal",
        counts=counts,
        is_final=is_final,
    )


def _counts_of(raw: msgspec.Raw) -> tuple[_Counts, bool]:
    """(counts, whether they are present and invalid). An explicit zero is kept: the provider reports it."""
    if not json_body.is_set(raw) or bytes(raw) == b"{}":
        return _NO_COUNTS, False
    try:
        reported = _usage_decoder.decode(raw)
    except json_body.UNREADABLE:
        return _NO_COUNTS, True
    if reported.input_tokens is None and reported.output_tokens is None:
        return _NO_COUNTS, True
    counts = _Counts(
        uncached=reported.input_tokens,
        cache_write=reported.cache_creation_input_tokens,
        cache_read=reported.cache_read_input_tokens,
        output=reported.output_tokens,
        thinking=json_body.decode_field(_details_decoder, reported.output_tokens_details, _NO_DETAILS).thinking_tokens,
    )
    return counts, False


def _latest(before: _Counts, now: _Counts) -> _Counts:
    counts = {field.name: getattr(now, field.name) for field in fields(_Counts)}
    return _Counts(**{name: getattr(before, name) if count is None else count for name, count in counts.items()})


def _usage(counts: _Counts, source: TokenSource) -> Usage | None:
    """The counts as one usage; None while the prompt or the completion is missing."""
    if counts.uncached is None or counts.output is None:
        return None
    cache_write, cache_read = counts.cache_write or 0, counts.cache_read or 0
    return Usage(
        prompt_tokens=counts.uncached + cache_write + cache_read,
        completion_tokens=counts.output,
        cached_read_tokens=cache_read,
        cache_write_tokens=cache_write,
        reasoning_tokens=min(counts.thinking or 0, counts.output),
        source=source,
    )


def _is_content(block: _Block) -> bool:
    return bool(block.text) if block.type == "text" else block.type not in _THINKING


def _has_content(event: _Event) -> bool:
    started = event.content_block is not None and _is_content(event.content_block)
    return started or bool(event.delta and event.delta.text)


def _prompt_tokens(request: Any) -> int:
    parts = [json_body.under(request, name) for name in ("system", "messages", "tools")]
    text, media = tokens.prompt_parts(parts, _is_media)
    messages = sum(1 for _message in json_body.dicts_in(parts[1]))
    return tokens.estimate_text(text) + TOKENS_PER_MEDIUM * media + tokens.FRAMING_TOKENS * messages


def _is_media(part: dict[str, Any]) -> bool:
    kind = json_body.under(part, "source", "type")
    return part.get("type") in ("image", "document") and kind in ("base64", "url", "file")


def _written(block: dict[str, Any]) -> Iterator[str]:
    """The text that a model wrote into a block or a delta; signatures and ids are the service's."""
    for name in ("text", "thinking", "partial_json", "name"):
        yield from json_body.strings_in(block.get(name))
    if block.get("input"):
        yield msgspec.json.encode(block["input"]).decode()


def _delivered_texts(blocks: Sequence[bytes]) -> Iterator[str]:
    for payload in sse.payloads(b"".join(blocks)):
        event = json_body.value_of(payload)
        for name in ("delta", "content_block"):
            part = json_body.under(event, name)
            if isinstance(part, dict):
                yield from _written(part)
