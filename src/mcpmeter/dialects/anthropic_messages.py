"""Anthropic Messages (`/messages`): https://platform.claude.com/docs/en/api/messages

`input_tokens` excludes cache writes and cache reads, so the prompt is the sum of the three. A stream reports its usage
in parts: the prompt in `message_start`, the completion in `message_delta`. Counts are cumulative, so of several
reports of a count the greatest holds. Usage is `partial` until the completion is counted together with the stop
reason or after it; from then on it is `reported`.

A usage object of plain counts is decoded into a struct. One that holds more is read by `anthropic_usage`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec.structs import replace

from mcpmeter.dialects import anthropic, anthropic_usage, json_body, request_bounds, sse, tokens
from mcpmeter.dialects.base import RequestInfo, ResponseInfo, StreamingDialect, UnreadableResponse, merge, merge_all
from mcpmeter.dialects.cumulative import greatest
from mcpmeter.dialects.tokens import Tokens
from mcpmeter.dialects.usage_fields import OwnNames
from mcpmeter.records import NO_PATH_PARAMS, PathParams, TokenSource, Usage

TOKENS_PER_MEDIUM: Final = 1600
"""Anthropic's figure for an image of about one megapixel; a page of a document costs about as much."""

_THINKING: Final = ("thinking", "redacted_thinking")


class _OutputDetails(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    thinking_tokens: Tokens = 0


class _CacheCreation(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    ephemeral_5m_input_tokens: Tokens = 0
    ephemeral_1h_input_tokens: Literal[0] = 0


class _ServerTools(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    web_search_requests: Literal[0] = 0
    web_fetch_requests: Tokens = 0


class _Counts(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """Plain counts: nothing but what costs as the model's ordinary tokens do. None if an event leaves one out."""

    input_tokens: Tokens | None = None
    cache_creation_input_tokens: Tokens | None = None
    cache_read_input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    output_tokens_details: _OutputDetails | None = None
    cache_creation: _CacheCreation | None = None
    server_tool_use: _ServerTools | None = None
    service_tier: Literal["standard"] | None = None
    speed: Literal["standard"] | None = None
    inference_geo: Literal["global", "not_available"] | None = None
    iterations: Annotated[list[msgspec.Raw], msgspec.Meta(max_length=0)] | None = None

    def is_plain(self) -> bool:
        """Whether there is a count, and no time to live beyond the cache writes."""
        if self.input_tokens is None and self.output_tokens is None:
            return False
        written = self.cache_creation
        return written is None or written.ephemeral_5m_input_tokens <= (self.cache_creation_input_tokens or 0)


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
_usage_decoder = msgspec.json.Decoder(_Counts)
_NO_MESSAGE: Final = _Message()
_NO_DELTA: Final = _Delta()


class _EventInfo(ResponseInfo, frozen=True, gc=False):
    """The report of one or more events, with the counts still separate."""

    counts: _Counts | dict[str, Any] | None = None
    """The fields of a usage object that is not plain."""
    is_final: bool = False
    """The completion was counted together with the stop reason or after it."""


class AnthropicMessages(anthropic.AnthropicDialect, OwnNames, StreamingDialect):
    """The messages dialect. Stateless. Every stream carries its usage, so none is requested."""

    operation = "chat"
    end_marks = (b"message_stop",)
    text_mark = b'"text":"'
    names_of_counts = anthropic_usage.NAMES

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
        try:
            message = json_body.decode_response(_message_decoder, body)
        except UnreadableResponse:
            message = _odd_message(json_body.value_of(body))
        has_error = json_body.is_error(message.error)
        if message.content is None and not has_error and not json_body.is_set(message.usage):
            raise UnreadableResponse("no content")
        counts, bad = _counts_of(self.renamed_usage(message.usage) if self._own else message.usage)
        model, refused = json_body.cleaned(message.model), message.stop_reason == "refusal"
        usage = _usage(counts, "reported", model, is_refusal=refused)
        return ResponseInfo(
            usage=usage,
            bad_usage=bad or (usage is None and counts is not None),
            model=model,
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
        events = _events(block, b'"message_', b'"error"')
        return merge_all(map(_read_event, map(self._renamed, events) if self._own else events), self.merge)

    def _renamed(self, event: _Event) -> _Event:
        message = event.message and replace(event.message, usage=self.renamed_usage(event.message.usage))
        return replace(event, usage=self.renamed_usage(event.usage), message=message)

    def merge(self, before: ResponseInfo, now: ResponseInfo) -> ResponseInfo:
        """Combine two reports; a count that the later one leaves out or lowers keeps its value."""
        both = merge(before, now)
        counts, is_final = None, False
        if isinstance(before, _EventInfo):
            counts, is_final = before.counts, before.is_final
        if isinstance(now, _EventInfo):
            is_final = is_final or now.is_final or (bool(before.finish_reason) and _has_output(now.counts))
            counts = now.counts if counts is None else _combined(counts, now.counts)
        usage = _usage(counts, "reported" if is_final else "partial", both.model, is_refusal=both.is_refusal)
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
            if (event := _odd_event(json_body.value_of(payload))) is not None:
                yield event


def _odd_message(value: Any) -> _Message:
    """A message with a field of another type than the documented one. Raises UnreadableResponse."""
    if not isinstance(value, dict):
        raise UnreadableResponse("no object")
    content = value.get("content")
    return _Message(
        model=json_body.text_of(value.get("model")) or None,
        content=[_odd_block(block) for block in content] if isinstance(content, list) else None,
        stop_reason=json_body.text_of(value.get("stop_reason")) or None,
        usage=json_body.raw(value.get("usage")),
        error=json_body.raw(value.get("error")),
    )


def _odd_block(value: Any) -> _Block:
    kind = json_body.under(value, "type")
    return _Block(type=kind if isinstance(kind, str) else None, text=json_body.under(value, "text"))


def _odd_event(value: Any) -> _Event | None:
    if not isinstance(value, dict):
        return None
    kind, message, delta = value.get("type"), value.get("message"), value.get("delta")
    return _Event(
        type=kind if isinstance(kind, str) else None,
        message=_odd_message(message) if isinstance(message, dict) else None,
        delta=_Delta(json_body.text_of(delta.get("stop_reason")) or None, delta.get("text"))
        if isinstance(delta, dict)
        else None,
        content_block=_odd_block(value["content_block"]) if isinstance(value.get("content_block"), dict) else None,
        usage=json_body.raw(value.get("usage")),
        error=json_body.raw(value.get("error")),
    )


def _read_event(event: _Event) -> ResponseInfo | None:
    """The report of one event; None if it carries only content."""
    message, delta = event.message or _NO_MESSAGE, event.delta or _NO_DELTA
    counts, bad = _counts_of(event.usage if json_body.is_set(event.usage) else message.usage)
    reason = json_body.cleaned(delta.stop_reason or message.stop_reason)
    has_error = json_body.is_error(event.error)
    if counts is None and not (bad or reason or has_error or message.model):
        return None
    is_final, refused = bool(reason) and _has_output(counts), reason == "refusal"
    model = json_body.cleaned(message.model)
    return _EventInfo(
        usage=_usage(counts, "reported" if is_final else "partial", model, is_refusal=refused),
        bad_usage=bad,
        model=model,
        finish_reason=reason,
        is_error=has_error,
        is_refusal=refused,
        counts=counts,
        is_final=is_final,
    )


def _counts_of(raw: msgspec.Raw) -> tuple[_Counts | dict[str, Any] | None, bool]:
    """(counts, whether they are present and invalid). An explicit zero is kept: the provider reports it."""
    if not json_body.is_set(raw) or bytes(raw) == b"{}":
        return None, False
    try:
        counts = _usage_decoder.decode(raw)
        if counts.is_plain():
            return counts, False
    except json_body.UNREADABLE:
        pass
    fields = anthropic_usage.decoded(raw)
    return fields, fields is None


def _has_output(counts: _Counts | dict[str, Any] | None) -> bool:
    if isinstance(counts, _Counts):
        return counts.output_tokens is not None
    return counts is not None and (counts.get("output_tokens") is not None or bool(counts.get("iterations")))


def _combined(before: _Counts | dict[str, Any], now: _Counts | dict[str, Any] | None) -> _Counts | dict[str, Any]:
    if now is None:
        return before
    if isinstance(before, _Counts) and isinstance(now, _Counts):
        thinking = _greater(_thinking(before), _thinking(now))
        return _Counts(
            input_tokens=_greater(before.input_tokens, now.input_tokens),
            cache_creation_input_tokens=_greater(before.cache_creation_input_tokens, now.cache_creation_input_tokens),
            cache_read_input_tokens=_greater(before.cache_read_input_tokens, now.cache_read_input_tokens),
            output_tokens=_output(before.output_tokens, now.output_tokens),
            output_tokens_details=_OutputDetails(thinking) if thinking else None,
            cache_creation=now.cache_creation or before.cache_creation,
        )
    first, last = _fields(before), _fields(now)
    output = {"output_tokens": 0} if _is_placeholder(first.get("output_tokens"), last.get("output_tokens")) else {}
    return greatest(first, last) | output


def _output(before: int | None, now: int | None) -> int | None:
    return 0 if _is_placeholder(before, now) else _greater(before, now)


def _is_placeholder(before: Any, now: Any) -> bool:
    """Whether a count of 1 is not a true one: `message_start` counts a token before there is any."""
    return bool(before == 1 and now == 0)


def _greater(before: int | None, now: int | None) -> int | None:
    return now if before is None or (now is not None and now > before) else before


def _thinking(counts: _Counts) -> int:
    return counts.output_tokens_details.thinking_tokens if counts.output_tokens_details else 0


def _fields(counts: _Counts | dict[str, Any]) -> dict[str, Any]:
    return msgspec.to_builtins(counts) if isinstance(counts, _Counts) else counts


def _usage(
    counts: _Counts | dict[str, Any] | None, source: TokenSource, model: str, *, is_refusal: bool
) -> Usage | None:
    """The counts as one usage; None while the prompt or the completion is missing."""
    if counts is None:
        return None
    if is_refusal or not isinstance(counts, _Counts):
        return anthropic_usage.usage_of(_fields(counts), source=source, model=model, is_refusal=is_refusal)
    if counts.input_tokens is None or counts.output_tokens is None:
        return None
    cache_write, cache_read = counts.cache_creation_input_tokens or 0, counts.cache_read_input_tokens or 0
    return Usage(
        prompt_tokens=counts.input_tokens + cache_write + cache_read,
        completion_tokens=counts.output_tokens,
        cached_read_tokens=cache_read,
        cache_write_tokens=cache_write,
        reasoning_tokens=min(_thinking(counts), counts.output_tokens),
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
