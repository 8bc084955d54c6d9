"""OpenAI chat completions (`/chat/completions`): https://platform.openai.com/docs/api-reference/chat"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final

import msgspec

from mcpmeter.dialects import json_body as bodies
from mcpmeter.dialects import json_text, openai
from mcpmeter.dialects.base import NotAnAnswer, RequestInfo, ResponseInfo
from mcpmeter.errors import InvalidRequest, MeterError
from mcpmeter.records import NO_PATH_PARAMS, PathParams

METERED_FIELDS: Final = json_text.quoted(b"model", b"stream", b"stream_options", b"messages")
"""What is read of a request; each may be named once."""

_NULL_USAGE: Final = re.compile(
    rb', ?"usage": ?null(?=(?:, ?"obfuscation": ?"[^"\\]*")?\}(?:\r\n(?!data:)|\n(?!data:)|\r(?!\n|data:)))'
)
"""At the end of an event's last line of data, where OpenAI puts it: the brace behind it is the outermost object's. In a
text its quotes would be escaped."""

ERROR: Final = "error"
"""The finish reason of an answer that broke off (Mistral, Together, vLLM)."""

QUOTE: Final = ord('"')
NO_TEXT: Final = len('""')


class _Message(msgspec.Struct, frozen=True, gc=False):
    role: str
    content: str | list[msgspec.Raw] | None = None


class _StreamOptions(msgspec.Struct, frozen=True, gc=False):
    include_usage: bool | None = None


class _Request(msgspec.Struct, frozen=True, gc=False):
    messages: list[_Message]
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_completion_tokens: msgspec.Raw = openai.ABSENT
    max_tokens: msgspec.Raw = openai.ABSENT
    n: msgspec.Raw = openai.ABSENT


class _Said(msgspec.Struct, frozen=True, gc=False):
    """An answer's message, or the part of one that an event adds."""

    content: msgspec.Raw = openai.ABSENT
    refusal: msgspec.Raw = openai.ABSENT
    tool_calls: msgspec.Raw = openai.ABSENT
    function_call: msgspec.Raw = openai.ABSENT
    audio: msgspec.Raw = openai.ABSENT
    images: msgspec.Raw = openai.ABSENT


class _Choice(msgspec.Struct, frozen=True, gc=False):
    finish_reason: str | None = None
    message: msgspec.Raw = openai.ABSENT
    messages: msgspec.Raw = openai.ABSENT
    """Mistral's, in place of one message."""
    delta: msgspec.Raw = openai.ABSENT
    usage: msgspec.Raw = openai.ABSENT
    """Moonshot's, at the end of a stream."""


class _XGroq(msgspec.Struct, frozen=True, gc=False):
    """Groq's own object: in the last event of a stream it tells the usage, or what has ended it."""

    usage: msgspec.Raw = openai.ABSENT
    error: msgspec.Raw = openai.ABSENT


class _Part(msgspec.Struct, frozen=True, gc=False):
    type: str = ""


class _Answer(msgspec.Struct, frozen=True, gc=False):
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = openai.ABSENT
    error: msgspec.Raw = openai.ABSENT
    x_groq: msgspec.Raw = openai.ABSENT


class _UsualMessage(msgspec.Struct, frozen=True, gc=False):
    content: msgspec.Raw
    refusal: None = None


class _UsualChoice(msgspec.Struct, frozen=True, gc=False):
    message: _UsualMessage
    finish_reason: str | None = None


class _Usual(msgspec.Struct, frozen=True, gc=False):
    """An answer as most are: it fails to decode where anything in it needs a closer look."""

    choices: Annotated[list[_UsualChoice], msgspec.Meta(min_length=1, max_length=1)]
    usage: openai.UsualUsage
    model: str | None = None
    error: None = None


_request_decoder = msgspec.json.Decoder(_Request)
_usual_decoder = msgspec.json.Decoder(_Usual)
_answer_decoder = msgspec.json.Decoder(_Answer)
_said_decoder = msgspec.json.Decoder(_Said)
_groq_decoder = msgspec.json.Decoder(_XGroq)
_parts_decoder = msgspec.json.Decoder(list[_Part])
_NO_GROQ: Final = _XGroq()
_NOTHING_SAID: Final = _Said()
_HINT: Final = 'The least is {"model": "…", "messages": [{"role": "user", "content": "…"}]}.'


class OpenAiChat:
    """The chat dialect. Stateless."""

    operation = "chat"
    passed_headers = openai.PASSED_HEADERS
    text_mark = b'"content":"'

    def path_name(self, asked: RequestInfo) -> str:
        """`chat`, streamed or not."""
        return "chat"

    def read_request(self, body: bytes, named: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """Read model, stream and whether usage was asked for. Raises InvalidRequest."""
        request = bodies.request_of(_request_decoder, body, kind="a chat completion", hint=_HINT)
        json_text.refuse_repeated(body, METERED_FIELDS)
        if not request.messages:
            raise InvalidRequest("'messages' is empty.", hint="Send at least one message with a role and content.")
        if request.model is not None:
            bodies.check_model(request.model)
        options = request.stream_options
        return RequestInfo(
            model=request.model or "",
            stream=bool(request.stream),
            usage_asked=bool(options and options.include_usage),
            prompt_tokens_estimate=max(1, len(body) // bodies.BYTES_PER_PROMPT_TOKEN),
            max_completion_tokens=bodies.max_tokens(
                request.max_completion_tokens, request.max_tokens, choices=request.n
            ),
        )

    def forwarded(self, body: bytes, asked: RequestInfo, model: str) -> bytes:
        """The body unchanged, unless the model's name differs or a stream has to be asked for its usage."""
        additions: dict[str, Any] = {}
        if asked.model != model:
            additions["model"] = model
        if asked.stream and not asked.usage_asked:
            additions["stream_options"] = {"include_usage": True}
        return openai.with_fields(body, additions)

    def read_answer(self, body: bytes) -> ResponseInfo:
        """What a JSON answer says of itself. Raises NotAnAnswer."""
        usual = _read_usual(body)
        if usual is not None:
            return usual
        answer = _answer_of(body)
        said = [_said_in_all(choice) for choice in answer.choices or ()]
        return _read(answer, said, is_empty=answer.choices is not None and all(map(_is_silent, said)))

    def read_events(self, block: bytes) -> ResponseInfo | None:
        """The last thing that a block of whole events says of usage, finish reason or refusal."""
        if (
            (block.rfind(b'"usage"') < 0 or block.count(b'"usage"') == block.count(b'"usage":null'))
            and block.count(b'"finish_reason"') == block.count(b'"finish_reason":null')
            and (block.rfind(b'"refusal"') < 0 or block.count(b'"refusal"') == block.count(b'"refusal":null'))
            and block.rfind(b'"error"') < 0
        ):
            return None
        return openai.told_by([_read_event(payload) for payload in openai.events_of(block)])

    def has_content(self, block: bytes) -> bool:
        """Whether a block of events holds text or a tool's call; reasoning is neither."""
        return any(map(_has_content, openai.events_of(block)))

    def only_usage(self, event: bytes) -> bool:
        """An event with usage and no choices: the one that `include_usage` adds at the end."""
        if b'"usage"' not in event:
            return False
        try:
            answers = [bodies.answer_of(_answer_decoder, payload) for payload in openai.events_of(event)]
        except NotAnAnswer:
            return False
        return bool(answers) and all(a.choices == [] and openai.is_told(a.usage) for a in answers)

    def without_null_usage(self, block: bytes) -> bytes:
        """A block without the `"usage":null` that `include_usage` adds to each event; every other byte stays."""
        at = block.rfind(b'"usage":')
        if at < 0:
            return block
        if block.find(b'"usage":') < at:
            return _NULL_USAGE.sub(b"", block)
        # There is one only, and looking at its place is sooner done than looking for it.
        found = _NULL_USAGE.match(block, max(0, at - 1)) or _NULL_USAGE.match(block, max(0, at - 2))
        return block[: found.start()] + block[found.end() :] if found else block

    def is_end(self, event: bytes) -> bool:
        """`data: [DONE]`."""
        return openai.events_of(event) == [openai.DONE]

    def prompt_tokens(self, body: bytes) -> int:
        """Estimate from the text of messages and tools, four tokens of framing a message."""
        try:
            request = json_text.parsed(body)
        except InvalidRequest:
            return len(body) // bodies.BYTES_PER_PROMPT_TOKEN
        messages = request.get("messages", [])
        text = " ".join(openai.prompt_texts([messages, request.get("tools", [])]))
        return json_text.estimated_tokens(text) + 4 * len(messages)

    def completion_tokens(self, answer: bytes) -> int:
        """Estimate from the text of the choices."""
        return json_text.estimated_tokens("".join(_texts(answer)))

    def delivered_tokens(self, blocks: Sequence[bytes]) -> int:
        """Estimate from the text of all deltas."""
        payloads = openai.events_of(b"".join(blocks))
        return json_text.estimated_tokens("".join(text for payload in payloads for text in _texts(payload)))

    def error_body(self, error: MeterError, call_id: str) -> bytes:
        """OpenAI's error object."""
        return openai.error_body(error, call_id)

    def error_event(self, error: MeterError, call_id: str) -> bytes:
        """The error object as an event; OpenAI's SDKs raise APIError on it."""
        return b"data: " + openai.error_body(error, call_id) + b"\n\n"


def _read_usual(body: bytes) -> ResponseInfo | None:
    """An answer with one choice, its text and its usage, read in one decoding; None for all others."""
    try:
        answer = _usual_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    choice, told = answer.choices[0], answer.usage
    content, ended = choice.message.content, choice.finish_reason
    # Content may be a list, and hold nothing but thoughts.
    if len(content) <= NO_TEXT or memoryview(content)[0] != QUOTE or ended == ERROR:
        return None
    return ResponseInfo(
        usage=openai.usage_of(told),
        model=openai.cleaned(answer.model),
        finish_reason=openai.cleaned(ended),
        reported_usd=openai.usd_of(told.cost),
    )


def _answer_of(body: bytes) -> _Answer:
    """Raises NotAnAnswer."""
    answer = bodies.answer_of(_answer_decoder, body)
    if answer.choices is None and not openai.is_error(answer.error) and not openai.is_told(answer.usage):
        raise NotAnAnswer("no choices")
    return answer


def _read_event(payload: bytes) -> ResponseInfo | None:
    if payload == openai.DONE:
        return None
    try:
        answer = _answer_of(payload)
    except NotAnAnswer:
        # Bytes pass as they came; an event that cannot be read says nothing, and usage will count as missing.
        return None
    return _read(answer, [_said(choice.delta) for choice in answer.choices or ()])


def _has_content(payload: bytes) -> bool:
    try:
        choices = bodies.answer_of(_answer_decoder, payload).choices or ()
    except NotAnAnswer:
        return False
    return not all(_is_silent(_said(choice.delta)) for choice in choices)


def _read(answer: _Answer, said: Sequence[_Said | None], *, is_empty: bool = False) -> ResponseInfo:
    groq = _groq(answer.x_groq)
    told = _told_usage(answer, groq)
    usage, bad = openai.read_usage(told)
    reasons = [choice.finish_reason for choice in answer.choices or () if choice.finish_reason]
    refusals = [part for part in said if part is not None and not openai.is_blank(part.refusal)]
    is_error = openai.is_error(answer.error) or openai.is_error(groq.error) or ERROR in reasons
    return ResponseInfo(
        usage=usage,
        bad_usage=bad,
        model=openai.cleaned(answer.model),
        finish_reason=openai.cleaned(reasons[-1]) if reasons else "",
        is_error=is_error,
        is_refusal=bool(refusals),
        is_empty=is_empty and not is_error,
        reported_usd=openai.reported_usd(told),
    )


def _groq(raw: msgspec.Raw) -> _XGroq:
    if not openai.is_told(raw):
        return _NO_GROQ
    try:
        return _groq_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _NO_GROQ


def _told_usage(answer: _Answer, groq: _XGroq) -> msgspec.Raw:
    """The answer's usage; where it has none, what stands elsewhere for it."""
    if openai.is_told(answer.usage):
        return answer.usage
    # In a JSON answer, Groq's own usage counts caches alone.
    elsewhere = (groq.usage, *(choice.usage for choice in answer.choices or ()))
    return next((usage for usage in elsewhere if b'"prompt_tokens"' in bytes(usage)), answer.usage)


def _said_in_all(choice: _Choice) -> _Said | None:
    return _said(choice.message) if openai.is_blank(choice.messages) else None


def _said(raw: msgspec.Raw) -> _Said | None:
    """None for what cannot be read: then nothing is claimed of it."""
    if not openai.is_told(raw):
        return _NOTHING_SAID
    try:
        return _said_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _is_silent(said: _Said | None) -> bool:
    # What cannot be read may be content: an answer is called empty only where it is known to be.
    if said is None or not (openai.is_blank(said.content) or _is_thought(said.content)):
        return False
    # Reasoning alone is no answer: that is what a model says which ran out of tokens while it thought.
    others = (said.tool_calls, said.refusal, said.function_call, said.audio, said.images)
    return all(map(openai.is_blank, others))


def _is_thought(content: msgspec.Raw) -> bool:
    """Whether it is a list of parts, as Mistral writes them, and all of them are thoughts."""
    if not bytes(content).startswith(b"["):
        return False
    try:
        return all(part.type == "thinking" for part in _parts_decoder.decode(content))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _texts(answer: bytes) -> Iterator[str]:
    for choice in bodies.dicts_in(bodies.under(bodies.value_of(answer), "choices")):
        messages = choice.get("messages")
        said = messages if isinstance(messages, list) else [choice.get("message") or choice.get("delta")]
        for written in bodies.dicts_in(said):
            yield from _written(written.get("content"))
            # Some servers tell what was thought under both names.
            yield from json_text.text_of(written.get("reasoning_content") or written.get("reasoning"))
            yield from json_text.text_of([written.get("refusal"), written.get("tool_calls")])


def _written(content: Any) -> Iterator[str]:
    """A text, or those of a list of parts and of the thoughts in it, without what the parts are called."""
    if isinstance(content, str):
        yield content
    for part in bodies.dicts_in(content):
        for inner in (part, *bodies.dicts_in(part.get("thinking"))):
            yield from (text for text in map(inner.get, ("text", "thinking", "refusal")) if isinstance(text, str))
