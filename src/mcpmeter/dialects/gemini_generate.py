"""Gemini (`models/{model}:generateContent`, `:streamGenerateContent`): https://ai.google.dev/api/generate-content

Model and streaming stand in the path. A stream has no last event of its own: it is whole once a finish reason came.
Each of its events may count the tokens so far; the count that comes with the finish reason, or after it, is final.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from mcpmeter.dialects import gemini, json_text, openai
from mcpmeter.dialects import json_body as bodies
from mcpmeter.dialects.base import NotAnAnswer, RequestInfo, ResponseInfo, merge
from mcpmeter.errors import InvalidRequest, MeterError
from mcpmeter.records import NO_PATH_PARAMS, PathParams

METERED_FIELDS: Final = json_text.quoted(b"contents", b"model")
"""What is read of a request; each may be named once."""

_HINT: Final = 'The least is {"contents": [{"role": "user", "parts": [{"text": "…"}]}]}.'
_UNSPECIFIED: Final = ("FINISH_REASON_UNSPECIFIED", "BLOCKED_REASON_UNSPECIFIED", "BLOCK_REASON_UNSPECIFIED")
_BY_A_FILTER: Final = frozenset(
    ("SAFETY", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "MODEL_ARMOR")
)
"""Finish reasons that say that a filter, not the model, ended the answer."""
_SSE_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")


class _Request(msgspec.Struct, frozen=True, gc=False):
    contents: list[dict[str, msgspec.Raw]] | dict[str, msgspec.Raw]  # Google takes one object for a list of one
    model: str | None = None
    generation_config: msgspec.Raw = msgspec.field(default=openai.ABSENT, name="generationConfig")


class _Limits(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    max_output_tokens: msgspec.Raw = openai.ABSENT
    candidate_count: msgspec.Raw = openai.ABSENT


class _Content(msgspec.Struct, frozen=True, gc=False):
    parts: list[dict[str, msgspec.Raw]] | None = None


class _Candidate(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None


class _Feedback(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    block_reason: str | None = None


class _Answer(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    model_version: str | None = None
    usage_metadata: msgspec.Raw = openai.ABSENT
    error: msgspec.Raw = openai.ABSENT


_request_decoder = msgspec.json.Decoder(_Request)
_limits_decoder = msgspec.json.Decoder(_Limits)
_answer_decoder = msgspec.json.Decoder(_Answer)
_answers_decoder = msgspec.json.Decoder(list[_Answer])


class GeminiGenerate:
    """The generateContent dialect. Stateless. Nothing is injected into a request nor withheld from a stream."""

    operation = "generate_content"
    passed_headers: frozenset[bytes] = frozenset((b"x-server-timeout",))
    end_marks: tuple[bytes, ...] = ()
    text_mark = b'"text": "'

    def path_name(self, asked: RequestInfo) -> str:
        """`generate`, or `generate_stream`."""
        return "generate_stream" if asked.stream else "generate"

    def read_request(self, body: bytes, named: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """Take model and stream from the path, see that there are contents. Raises InvalidRequest."""
        request = bodies.request_of(_request_decoder, body, kind="a generateContent request", hint=_HINT)
        json_text.refuse_repeated(body, METERED_FIELDS)
        if not request.contents:
            raise InvalidRequest("'contents' is empty.", hint="Send at least one content with parts.")
        return RequestInfo(
            model=gemini.model_of(named, request.model),
            stream=named.stream,
            usage_asked=True,  # every stream tells it
            prompt_tokens_estimate=max(1, len(body) // bodies.BYTES_PER_PROMPT_TOKEN),
            max_completion_tokens=_max_tokens(request.generation_config),
        )

    def forwarded(self, body: bytes, asked: RequestInfo, model: str) -> bytes:
        """The body unchanged; only where it repeats the path's model, which upstream differs, it is renamed too."""
        return body if asked.model == model else gemini.renamed(body, model)

    def read_answer(self, body: bytes) -> ResponseInfo:
        """Usage, model and finish reason of a JSON answer, or of a stream that came as one array.

        Raises NotAnAnswer.
        """
        answers = _answers_of(body)
        if not any(map(_is_answer, answers)):
            raise NotAnAnswer("no candidates")
        told = ResponseInfo()
        for answer in answers:
            told = self.joined(told, _read(answer))
        is_empty = not (told.is_error or told.is_refusal or any(map(_has_content, answers)))
        usage = None if told.bad_usage else told.usage
        if usage is not None and not told.is_error:
            usage = msgspec.structs.replace(usage, source="reported")
        return replace(told, usage=usage, is_empty=is_empty)

    def read_events(self, block: bytes) -> ResponseInfo | None:
        """What a block of whole events says of usage, finish reason, a blocked prompt or an error."""
        if block.rfind(b'"usageMetadata"') < 0 and block.rfind(b'Reason"') < 0 and block.rfind(b'"error"') < 0:
            return None
        told: ResponseInfo | None = None
        for answer in _events(block):
            told = bodies.merged(told, _read(answer), self.joined)
        return told

    def joined(self, before: ResponseInfo, now: ResponseInfo) -> ResponseInfo:
        """What two events say together: the last usage counts, and is final when the model has stopped."""
        both = merge(before, now)
        if now.usage is None or not before.finish_reason:
            return both
        return replace(both, usage=msgspec.structs.replace(now.usage, source="reported"))

    def has_content(self, block: bytes) -> bool:
        """Whether a block of whole events holds text or a tool's call; thoughts are neither."""
        return b'"parts"' in block and any(map(_has_content, _events(block)))

    def only_usage(self, event: bytes) -> bool:
        """Never: nothing was asked for that the caller did not ask for."""
        return False

    def is_end(self, event: bytes) -> bool:
        """Never: the last event looks like the others."""
        return False

    def prompt_tokens(self, body: bytes) -> int:
        """Estimate from the text of the instruction, contents and tools, four tokens of framing a content."""
        try:
            request = json_text.parsed(body)
        except InvalidRequest:
            return len(body) // bodies.BYTES_PER_PROMPT_TOKEN
        names = ("contents", "systemInstruction", "system_instruction", "tools")
        told = [bodies.under(request, name) for name in names]
        framing = 4 * sum(1 for _content in bodies.dicts_in(told[0]))
        return gemini.estimated_tokens(told) + framing

    def completion_tokens(self, answer: bytes) -> int:
        """Estimate from the text of the candidates' parts, thoughts and calls too."""
        return json_text.estimated_tokens("".join(_texts(bodies.value_of(answer))))

    def delivered_tokens(self, blocks: Sequence[bytes]) -> int:
        """Estimate from the text of all events."""
        payloads = openai.events_of(b"".join(blocks))
        texts = (text for payload in payloads for text in _texts(bodies.value_of(payload)))
        return json_text.estimated_tokens("".join(texts))

    def error_body(self, error: MeterError, call_id: str) -> bytes:
        """Google's error object."""
        return gemini.error_body(error, call_id)

    def error_event(self, error: MeterError, call_id: str) -> bytes:
        """The error object as an event; Google's SDKs raise APIError on it."""
        return gemini.error_event(error, call_id)


class GeminiGenerateArray(GeminiGenerate):
    """`:streamGenerateContent` without `alt=sse`: the stream's events as one JSON array, read as one body."""

    def path_name(self, asked: RequestInfo) -> str:
        """`generate_array`."""
        return "generate_array"

    def read_request(self, body: bytes, named: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """As for the others, but no stream of events is asked for. Raises InvalidRequest."""
        return replace(super().read_request(body, named), stream=False)

    def error_body(self, error: MeterError, call_id: str) -> bytes:
        """Google's error object, in an array of its own."""
        return b"[" + super().error_body(error, call_id) + b"]"


def _max_tokens(generation_config: msgspec.Raw) -> int | None:
    try:
        limits = _limits_decoder.decode(generation_config)
    except msgspec.DecodeError:  # not there, or not an object: Google's to refuse
        return None
    return bodies.max_tokens(limits.max_output_tokens, choices=limits.candidate_count)


def _answers_of(body: bytes) -> list[_Answer]:
    """Raises NotAnAnswer."""
    if body.lstrip()[:1] == b"[":
        return bodies.answer_of(_answers_decoder, body)
    return [bodies.answer_of(_answer_decoder, body)]


def _events(block: bytes) -> Iterator[_Answer]:
    payloads = openai.events_of(block)
    if b'"error"' in block:
        payloads.append(_bare(block))
    for payload in payloads:
        try:
            yield bodies.answer_of(_answer_decoder, payload)
        except NotAnAnswer:
            # Bytes pass as they came; an event that cannot be read says nothing, and usage will count as missing.
            continue


def _bare(block: bytes) -> bytes:
    """Lines outside of any event: Google breaks a stream off with an error object that stands there alone."""
    return b"\n".join(line for line in block.splitlines() if not line.startswith(_SSE_FIELDS))


def _is_answer(answer: _Answer) -> bool:
    blocked = answer.prompt_feedback is not None and answer.prompt_feedback.block_reason is not None
    told = openai.is_told(answer.usage_metadata) or openai.is_error(answer.error)
    return answer.candidates is not None or blocked or told


def _read(answer: _Answer) -> ResponseInfo:
    reason = blocked = _reason(answer.prompt_feedback.block_reason) if answer.prompt_feedback else ""
    for candidate in answer.candidates or ():
        reason = _reason(candidate.finish_reason) or reason
    usage, bad = gemini.read_usage(answer.usage_metadata, "reported" if reason else "partial")
    return ResponseInfo(
        usage=usage,
        bad_usage=bad,
        model=openai.cleaned(answer.model_version),
        finish_reason=reason,
        is_error=openai.is_error(answer.error),
        is_refusal=bool(blocked) or reason in _BY_A_FILTER,
    )


def _reason(told: str | None) -> str:
    return openai.cleaned(told) if told and told not in _UNSPECIFIED else ""


def _has_content(answer: _Answer) -> bool:
    contents = [candidate.content for candidate in answer.candidates or () if candidate.content is not None]
    return any(_is_content(part) for content in contents for part in content.parts or ())


def _is_content(part: dict[str, msgspec.Raw]) -> bool:
    """Text that is no thought, or anything else than text: a call, code, an image."""
    if bytes(part.get("thought", b"")) == b"true":
        return False
    if bytes(part.get("text", b"")) not in (b"", b'""', b"null"):
        return True
    return bool(part.keys() - {"text", "thought", "thoughtSignature"})


def _texts(value: Any) -> Iterator[str]:
    """What a model wrote; signatures are the service's, and images are not text."""
    for answer in bodies.dicts_in(value if isinstance(value, list) else [value]):
        for candidate in bodies.dicts_in(answer.get("candidates")):
            for part in bodies.dicts_in(bodies.under(candidate, "content", "parts")):
                yield from json_text.text_of(part.get("text"))
                for name in ("functionCall", "executableCode", "codeExecutionResult"):
                    if part.get(name):
                        yield msgspec.json.encode(part[name]).decode()
