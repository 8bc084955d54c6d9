"""Gemini generation (`:generateContent`, `:streamGenerateContent`): https://ai.google.dev/api/generate-content

The path names the model and chooses streaming. No event marks the end of a stream: it is complete after a finish
reason. Each event may count the tokens so far; the count that arrives with the finish reason, or after it, is final.
Counts are cumulative, so none falls. Grounding may come in parts, and parts may repeat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from mcpmeter.dialects import gemini, gemini_grounding, gemini_usage, json_body, request_bounds, sse, tokens
from mcpmeter.dialects.base import RequestInfo, ResponseInfo, StreamingDialect, UnreadableResponse, merge, merge_all
from mcpmeter.dialects.cumulative import greatest
from mcpmeter.dialects.gemini_grounding import NO_GROUNDING, Grounding, grounding_of
from mcpmeter.errors import InvalidRequest, MeterError
from mcpmeter.records import NO_PATH_PARAMS, STANDARD, PathParams, Usage, UsageItem

METERED_FIELDS: Final = json_body.quoted("contents", "model")
"""The fields of a request that are read; each may be named once."""

_HINT: Final = 'The least is {"contents": [{"role": "user", "parts": [{"text": "…"}]}]}.'
_UNSPECIFIED: Final = ("FINISH_REASON_UNSPECIFIED", "BLOCKED_REASON_UNSPECIFIED", "BLOCK_REASON_UNSPECIFIED")
_READ_MARKS: Final = (
    b'"usageMetadata"',
    b'Reason"',
    b'"error"',
    b'"groundingMetadata"',
    b'"urlContextMetadata"',
    b'"executableCode"',
)
_FILTERED: Final = frozenset(
    ("SAFETY", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "MODEL_ARMOR")
)
"""Finish reasons with which a filter, not the model, ends the response."""


class _Request(msgspec.Struct, frozen=True, gc=False):
    contents: list[dict[str, msgspec.Raw]] | dict[str, msgspec.Raw]  # Google accepts one object for a list of one
    model: str | None = None
    service_tier: msgspec.Raw = msgspec.field(default=json_body.ABSENT, name="serviceTier")
    tier_in_snake_case: msgspec.Raw = msgspec.field(default=json_body.ABSENT, name="service_tier")


class _Content(msgspec.Struct, frozen=True, gc=False):
    parts: list[dict[str, msgspec.Raw]] | None = None


class _Candidate(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None
    grounding_metadata: msgspec.Raw = json_body.ABSENT
    url_context_metadata: msgspec.Raw = json_body.ABSENT


class _Feedback(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    block_reason: str | None = None


class _Response(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    model_version: str | None = None
    usage_metadata: msgspec.Raw = json_body.ABSENT
    service_tier: str | None = None
    tier_in_snake_case: str | None = msgspec.field(default=None, name="service_tier")
    error: msgspec.Raw = json_body.ABSENT


class _EventInfo(ResponseInfo, frozen=True, gc=False):
    """The report of one or more events, with what its usage is made of."""

    counts: gemini.Counts | dict[str, Any] | None = None
    """The fields of a usage object that is not plain."""
    grounding: Grounding = NO_GROUNDING


_request_decoder = msgspec.json.Decoder(_Request)
_response_decoder = msgspec.json.Decoder(_Response)
_array_decoder = msgspec.json.Decoder(list[_Response])


class GeminiGenerate(gemini.GeminiDialect, StreamingDialect):
    """The generateContent dialect. Stateless. Every stream carries its usage, so none is requested."""

    operation = "generate_content"
    text_mark = b'"text": "'

    def path_name(self, request: RequestInfo) -> str:
        """`generate`, or `generate_stream`."""
        return "generate_stream" if request.stream else "generate"

    def read_request(self, body: bytes, path: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """Take model and stream from the path, check the contents, read the limits. Raises InvalidRequest."""
        request = json_body.decode_request(_request_decoder, body, kind="a generateContent request", hint=_HINT)
        json_body.refuse_repeated(body, METERED_FIELDS)
        if not request.contents:
            raise InvalidRequest("'contents' is empty.", hint="Send at least one content with parts.")
        return RequestInfo(
            model=gemini.model_of(path, request.model),
            stream=path.stream,
            usage_requested=True,
            prompt_tokens_estimate=tokens.quick_estimate(body),
            conditions=request_bounds.conditions(
                request.service_tier if json_body.is_set(request.service_tier) else request.tier_in_snake_case
            ),
            has_bounds=True,
        )

    def read_response(self, body: bytes) -> ResponseInfo:
        """Usage, finish reason and error of a JSON response, or of a stream sent as one array.

        Raises UnreadableResponse.
        """
        try:
            responses = _decoded(body)
        except UnreadableResponse:
            responses = _odd_responses(json_body.value_of(body))
        if not any(map(_is_response, responses)):
            raise UnreadableResponse("no candidates")
        if self._own:
            responses = [self._renamed(response) for response in responses]
        info = _info(responses[0])
        for response in responses[1:]:
            info = self.merge(info, _info(response))
        is_empty = not (info.is_error or info.is_refusal or any(map(_has_content, responses)))
        usage = None if info.bad_usage else info.usage
        if usage is not None and not info.is_error:
            usage = replace(usage, source="reported")
        return replace(info, usage=usage, is_empty=is_empty)

    def read_events(self, block: bytes) -> ResponseInfo | None:
        """Usage, finish reason, blocked prompt, error or tools of a block."""
        if (
            block.rfind(b'"usageMetadata"') < 0
            and block.rfind(b'Reason"') < 0
            and block.rfind(b'"error"') < 0
            and block.rfind(b'"groundingMetadata"') < 0
            and block.rfind(b'"urlContextMetadata"') < 0
            and block.rfind(b'"executableCode"') < 0
        ):
            return None
        events = _events(block, *_READ_MARKS)
        return merge_all(map(_info, map(self._renamed, events) if self._own else events), self.merge)

    def _renamed(self, response: _Response) -> _Response:
        return replace(response, usage_metadata=self.renamed_usage(response.usage_metadata))

    def merge(self, before: ResponseInfo, now: ResponseInfo) -> ResponseInfo:
        """Combine two reports. No count falls; the last one is final after a finish reason."""
        if not isinstance(before, _EventInfo) or not isinstance(now, _EventInfo):
            return now if isinstance(now, _EventInfo) else merge(before, now)
        usage, counts = now.usage or before.usage, now.counts
        if usage is now.usage and usage is not None and before.finish_reason:
            usage = replace(usage, source="reported")
        if before.counts is not None:
            counts = _combined(before.counts, now.counts)
            if usage is not None and counts is not now.counts and counts is not before.counts:
                usage = gemini.usage_of(counts, usage.source)
        merged = _EventInfo(
            usage=usage,
            bad_usage=now.bad_usage or (before.bad_usage and now.usage is None),
            model=now.model or before.model,
            finish_reason=now.finish_reason or before.finish_reason,
            is_error=now.is_error or before.is_error,
            is_refusal=now.is_refusal or before.is_refusal,
            counts=counts,
        )
        is_plain = before.grounding is now.grounding is NO_GROUNDING and before.conditions is now.conditions
        return merged if is_plain else _regrounded(merged, before, now)

    def has_content(self, block: bytes) -> bool:
        """Whether a block holds text or a tool call; thoughts are neither."""
        return b'"parts"' in block and any(map(_has_content, _events(block, b'"parts"')))

    def prompt_tokens(self, body: bytes) -> int:
        """Estimate from the text of the instruction, contents and tools, plus framing per content."""
        return tokens.estimate_prompt(body, _prompt_tokens)

    def completion_tokens(self, response: bytes) -> int:
        """Estimate from the text of the candidates' parts, including thoughts and calls."""
        return tokens.estimate_text("".join(_texts(json_body.value_of(response))))

    def delivered_tokens(self, blocks: Sequence[bytes]) -> int:
        """Estimate from the text of all events."""
        payloads = sse.payloads(b"".join(blocks))
        return tokens.estimate_text(
            "".join(text for payload in payloads for text in _texts(json_body.value_of(payload)))
        )


class GeminiGenerateArray(GeminiGenerate):
    """`:streamGenerateContent` without `alt=sse`: the stream's events as one JSON array, read as one body."""

    def path_name(self, request: RequestInfo) -> str:
        """`generate_array`."""
        return "generate_array"

    def read_request(self, body: bytes, path: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """As generateContent, but without a stream of events. Raises InvalidRequest."""
        return replace(super().read_request(body, path), stream=False)

    def error_body(self, error: MeterError, call_id: str) -> bytes:
        """Google's error object in an array."""
        return b"[" + super().error_body(error, call_id) + b"]"


def _decoded(body: bytes) -> list[_Response]:
    """Raises UnreadableResponse."""
    if body.lstrip()[:1] == b"[":
        return json_body.decode_response(_array_decoder, body)
    return [json_body.decode_response(_response_decoder, body)]


def _events(block: bytes, *marks: bytes) -> Iterator[_Response]:
    """The events of a block whose data holds one of these marks."""
    payloads = sse.payloads(block)
    if b'"error"' in block:
        # Google breaks a stream off with an error object that stands outside any event.
        payloads += (sse.lines_outside_events(event) for event in sse.split_events(block) if b'"error"' in event)
    for payload in payloads:
        if not any(mark in payload for mark in marks):
            continue
        try:
            yield json_body.decode_response(_response_decoder, payload)
        except UnreadableResponse:
            # The bytes pass anyway; an unreadable event reports nothing, so the usage counts as missing.
            value = json_body.value_of(payload)
            if isinstance(value, dict):
                yield _odd_response(value)


def _odd_responses(value: Any) -> list[_Response]:
    """Responses with a field of another type than the documented one. Raises UnreadableResponse."""
    responses = [
        _odd_response(response)
        for response in (value if isinstance(value, list) else [value])
        if isinstance(response, dict)
    ]
    if not responses:
        raise UnreadableResponse("no object")
    return responses


def _odd_response(value: dict[str, Any]) -> _Response:
    candidates = value.get("candidates")
    return _Response(
        candidates=[*map(_odd_candidate, json_body.dicts_in(candidates))] if isinstance(candidates, list) else None,
        prompt_feedback=_Feedback(json_body.text_of(json_body.under(value, "promptFeedback", "blockReason")) or None),
        model_version=json_body.text_of(value.get("modelVersion")) or None,
        usage_metadata=json_body.raw(value.get("usageMetadata")),
        service_tier=json_body.text_of(value.get("serviceTier") or value.get("service_tier")) or None,
        error=json_body.raw(value.get("error")),
    )


def _odd_candidate(value: dict[str, Any]) -> _Candidate:
    parts = json_body.dicts_in(json_body.under(value, "content", "parts"))
    return _Candidate(
        content=_Content([{name: json_body.raw(inner) for name, inner in part.items()} for part in parts]),
        finish_reason=json_body.text_of(value.get("finishReason")) or None,
        grounding_metadata=json_body.raw(value.get("groundingMetadata")),
        url_context_metadata=json_body.raw(value.get("urlContextMetadata")),
    )


def _is_response(response: _Response) -> bool:
    is_blocked = response.prompt_feedback is not None and response.prompt_feedback.block_reason is not None
    has_report = json_body.is_set(response.usage_metadata) or json_body.is_error(response.error)
    return response.candidates is not None or is_blocked or has_report


def _info(response: _Response) -> ResponseInfo:
    blocked = _reason(response.prompt_feedback.block_reason) if response.prompt_feedback else ""
    reason, has_tools = blocked, False
    for candidate in response.candidates or ():
        reason = _reason(candidate.finish_reason) or reason
        has_tools = has_tools or _has_tools(candidate)
    counts, bad = gemini.counts_of(response.usage_metadata)
    info = _EventInfo(
        usage=gemini.usage_of(counts, "reported" if reason else "partial"),
        bad_usage=bad,
        model=json_body.cleaned(response.model_version),
        finish_reason=reason,
        is_error=json_body.is_error(response.error),
        is_refusal=bool(blocked) or reason in _FILTERED,
        counts=counts,
    )
    tier = response.service_tier or response.tier_in_snake_case
    is_plain = not (has_tools or tier or isinstance(counts, dict))
    return info if is_plain else _detailed(info, response.candidates or (), tier or "")


def _detailed(info: _EventInfo, candidates: Sequence[_Candidate], tier: str) -> _EventInfo:
    grounding = _grounding(candidates)
    usage, items, unknown = _grounded(info.usage, info.counts, grounding, info.model)
    conditions = gemini_usage.conditions_of(tier)
    return replace(info, usage=usage, items=items, unknown=unknown, conditions=conditions, grounding=grounding)


def _regrounded(merged: _EventInfo, before: _EventInfo, now: _EventInfo) -> _EventInfo:
    grounding = before.grounding.joined(now.grounding)
    usage, items, unknown = _grounded(merged.usage, merged.counts, grounding, merged.model)
    conditions = before.conditions if now.conditions == STANDARD else now.conditions
    return replace(merged, usage=usage, items=items, unknown=unknown, conditions=conditions, grounding=grounding)


def _combined(
    before: gemini.Counts | dict[str, Any], now: gemini.Counts | dict[str, Any] | None
) -> gemini.Counts | dict[str, Any]:
    if now is None:
        return before
    if isinstance(before, gemini.Counts) and isinstance(now, gemini.Counts) and now.covers(before):
        return now
    return greatest(gemini.fields_of(before), gemini.fields_of(now))


def _has_tools(candidate: _Candidate) -> bool:
    if candidate.grounding_metadata is not json_body.ABSENT or candidate.url_context_metadata is not json_body.ABSENT:
        return True
    return _has_code(candidate)


def _has_code(candidate: _Candidate) -> bool:
    """Whether it holds a tool whose results are billed as input."""
    parts = candidate.content.parts if candidate.content is not None else None
    # A loop is twice as fast here as `any` over one or two parts.
    for part in parts or ():  # noqa: SIM110
        if "executableCode" in part or "codeExecutionResult" in part:
            return True
    return False


def _grounding(candidates: Sequence[_Candidate]) -> Grounding:
    return grounding_of(
        (candidate.grounding_metadata for candidate in candidates if json_body.is_set(candidate.grounding_metadata)),
        has_other_tools=any(
            json_body.is_set(candidate.url_context_metadata) or _has_code(candidate) for candidate in candidates
        ),
    )


def _grounded(
    usage: Usage | None, counts: gemini.Counts | dict[str, Any] | None, grounding: Grounding, model: str
) -> tuple[Usage | None, tuple[UsageItem, ...], tuple[UsageItem, ...]]:
    """(usage, what is billed beside it, what is unknown beside it)."""
    fields = counts if isinstance(counts, dict) else {}
    if usage is not None and fields:
        are_billed = gemini_grounding.are_tools_billed(grounding, fields)
        usage = gemini.usage_of(fields, usage.source, are_tools_billed=are_billed)
    return usage, *gemini_grounding.billed_items(grounding, fields, model)


def _reason(name: str | None) -> str:
    return json_body.cleaned(name) if name and name not in _UNSPECIFIED else ""


def _has_content(response: _Response) -> bool:
    contents = [candidate.content for candidate in response.candidates or () if candidate.content is not None]
    return any(_is_content(part) for content in contents for part in content.parts or ())


def _is_content(part: dict[str, msgspec.Raw]) -> bool:
    """Text that is not a thought, or anything other than text: a call, code, an image."""
    if bytes(part.get("thought", b"")) == b"true":
        return False
    if bytes(part.get("text", b"")) not in (b"", b'""', b"null"):
        return True
    return bool(part.keys() - {"text", "thought", "thoughtSignature"})


def _prompt_tokens(request: Any) -> int:
    names = ("contents", "systemInstruction", "system_instruction", "tools")
    parts = [json_body.under(request, name) for name in names]
    contents = sum(1 for _content in json_body.dicts_in(parts[0]))
    return gemini.estimated_tokens(parts) + tokens.FRAMING_TOKENS * contents


def _texts(value: Any) -> Iterator[str]:
    """The text that a model wrote; signatures are the service's, and images are not text."""
    for response in json_body.dicts_in(value if isinstance(value, list) else [value]):
        for candidate in json_body.dicts_in(response.get("candidates")):
            for part in json_body.dicts_in(json_body.under(candidate, "content", "parts")):
                yield from json_body.strings_in(part.get("text"))
                for name in ("functionCall", "executableCode", "codeExecutionResult"):
                    if part.get(name):
                        yield msgspec.json.encode(part[name]).decode()
