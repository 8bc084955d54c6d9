"""Gemini generation (`:generateContent`, `:streamGenerateContent`): https://ai.google.dev/api/generate-content

The path names the model and chooses streaming. No event marks the end of a stream: it is complete after a finish
reason. Each event may count the tokens so far; the count that arrives with the finish reason, or after it, is final.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from mcpmeter.dialects import gemini, json_body, request_bounds, sse, tokens
from mcpmeter.dialects.base import RequestInfo, ResponseInfo, StreamingDialect, UnreadableResponse, merge, merge_all
from mcpmeter.errors import InvalidRequest, MeterError
from mcpmeter.records import NO_PATH_PARAMS, PathParams

METERED_FIELDS: Final = json_body.quoted("contents", "model")
"""The fields of a request that are read; each may be named once."""

_HINT: Final = 'The least is {"contents": [{"role": "user", "parts": [{"text": "…"}]}]}.'
_UNSPECIFIED: Final = ("FINISH_REASON_UNSPECIFIED", "BLOCKED_REASON_UNSPECIFIED", "BLOCK_REASON_UNSPECIFIED")
_FILTERED: Final = frozenset(
    ("SAFETY", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "MODEL_ARMOR")
)
"""Finish reasons with which a filter, not the model, ends the response."""


class _Request(msgspec.Struct, frozen=True, gc=False):
    contents: list[dict[str, msgspec.Raw]] | dict[str, msgspec.Raw]  # Google accepts one object for a list of one
    model: str | None = None
    service_tier: msgspec.Raw = msgspec.field(default=json_body.ABSENT, name="serviceTier")


class _Content(msgspec.Struct, frozen=True, gc=False):
    parts: list[dict[str, msgspec.Raw]] | None = None


class _Candidate(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None


class _Feedback(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    block_reason: str | None = None


class _Response(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    model_version: str | None = None
    usage_metadata: msgspec.Raw = json_body.ABSENT
    error: msgspec.Raw = json_body.ABSENT


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
            conditions=request_bounds.conditions(request.service_tier),
            has_bounds=True,
        )

    def read_response(self, body: bytes) -> ResponseInfo:
        """Usage, finish reason and error of a JSON response, or of a stream sent as one array.

        Raises UnreadableResponse.
        """
        responses = _decoded(body)
        if not any(map(_is_response, responses)):
            raise UnreadableResponse("no candidates")
        info = ResponseInfo()
        for response in responses:
            info = self.merge(info, _info(response))
        is_empty = not (info.is_error or info.is_refusal or any(map(_has_content, responses)))
        usage = None if info.bad_usage else info.usage
        if usage is not None and not info.is_error:
            usage = replace(usage, source="reported")
        return replace(info, usage=usage, is_empty=is_empty)

    def read_events(self, block: bytes) -> ResponseInfo | None:
        """Usage, finish reason, blocked prompt or error of a block."""
        if block.rfind(b'"usageMetadata"') < 0 and block.rfind(b'Reason"') < 0 and block.rfind(b'"error"') < 0:
            return None
        return merge_all(map(_info, _events(block, b'"usageMetadata"', b'Reason"', b'"error"')), self.merge)

    def merge(self, before: ResponseInfo, now: ResponseInfo) -> ResponseInfo:
        """Combine two reports; the last usage counts, and is final after a finish reason."""
        both = merge(before, now)
        if now.usage is None or not before.finish_reason:
            return both
        return replace(both, usage=replace(now.usage, source="reported"))

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
        payloads += map(sse.lines_outside_events, sse.split_events(block))
    for payload in payloads:
        if not any(mark in payload for mark in marks):
            continue
        try:
            yield json_body.decode_response(_response_decoder, payload)
        except UnreadableResponse:
            # The bytes pass anyway; an unreadable event reports nothing, so the usage counts as missing.
            continue


def _is_response(response: _Response) -> bool:
    is_blocked = response.prompt_feedback is not None and response.prompt_feedback.block_reason is not None
    has_report = json_body.is_set(response.usage_metadata) or json_body.is_error(response.error)
    return response.candidates is not None or is_blocked or has_report


def _info(response: _Response) -> ResponseInfo:
    blocked = _reason(response.prompt_feedback.block_reason) if response.prompt_feedback else ""
    reason = blocked
    for candidate in response.candidates or ():
        reason = _reason(candidate.finish_reason) or reason
    usage, bad = gemini.read_usage(response.usage_metadata, "reported" if reason else "partial")
    return ResponseInfo(
        usage=usage,
        bad_usage=bad,
        model=json_body.cleaned(response.model_version),
        finish_reason=reason,
        is_error=json_body.is_error(response.error),
        is_refusal=bool(blocked) or reason in _FILTERED,
    )


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
