"""OpenAI chat completions (`/chat/completions`): https://platform.openai.com/docs/api-reference/chat"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from mcpmeter.errors import InvalidRequest, MeterError
from mcpmeter.relay.dialects import json_text, openai
from mcpmeter.relay.dialects.base import NOTHING, Asked, Named, NotAnAnswer, Read, merge

BYTES_PER_PROMPT_TOKEN: Final = 4
"""For the estimate at opening, where speed counts: JSON and English both come to about four bytes a token."""

LONGEST_MODEL_NAME: Final = 256
METERED_FIELDS: Final = (b"model", b"stream", b"stream_options", b"messages")
"""What is read of a request; each may be named once."""


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


class _Choice(msgspec.Struct, frozen=True, gc=False):
    finish_reason: str | None = None


class _Answer(msgspec.Struct, frozen=True, gc=False):
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = openai.ABSENT
    error: msgspec.Raw = openai.ABSENT


_request_decoder = msgspec.json.Decoder(_Request)
_answer_decoder = msgspec.json.Decoder(_Answer)
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class OpenAiChat:
    """The chat dialect. Stateless."""

    operation = "chat"
    passed_headers: frozenset[bytes] = frozenset()

    def path_name(self, asked: Asked) -> str:
        """`chat`, streamed or not."""
        return "chat"

    def read_request(self, body: bytes, named: Named = NOTHING) -> Asked:
        """Read model, stream and whether usage was asked for. Raises InvalidRequest."""
        json_text.refuse_bad_text(body)
        request = _decoded(body)
        json_text.refuse_repeated(body, METERED_FIELDS)
        if not request.messages:
            raise InvalidRequest("'messages' is empty.", hint="Send at least one message with a role and content.")
        if request.model is not None:
            _check_model(request.model)
        options = request.stream_options
        return Asked(
            model=request.model or "",
            stream=bool(request.stream),
            usage_asked=bool(options and options.include_usage),
            prompt_tokens_estimate=max(1, len(body) // BYTES_PER_PROMPT_TOKEN),
        )

    def forwarded(self, body: bytes, asked: Asked, model: str) -> bytes:
        """The body unchanged, unless the model's name differs or a stream has to be asked for its usage."""
        additions: dict[str, Any] = {}
        if asked.model != model:
            additions["model"] = model
        if asked.stream and not asked.usage_asked:
            additions["stream_options"] = {"include_usage": True}
        return _with_fields(body, additions) if additions else body

    def read_answer(self, body: bytes) -> Read:
        """Usage, model and finish reason of a JSON answer. Raises NotAnAnswer."""
        answer = _answer_of(body)
        if answer.choices is None and not openai.is_error(answer.error) and not openai.is_told(answer.usage):
            raise NotAnAnswer("no choices")
        return _read(answer)

    def read_events(self, block: bytes) -> Read | None:
        """The last thing that a block of whole events says of usage or finish reason."""
        if (
            block.count(b'"usage"') == block.count(b'"usage":null')
            and block.count(b'"finish_reason"') == block.count(b'"finish_reason":null')
            and b'"error"' not in block
        ):
            return None
        told: Read | None = None
        for payload in openai.events_of(block):
            told = _merged(told, self._read_event(payload))
        return told

    def _read_event(self, payload: bytes) -> Read | None:
        if payload == b"[DONE]":
            return None
        try:
            return self.read_answer(payload)
        except NotAnAnswer:
            # Bytes pass as they came; an event that cannot be read says nothing, and usage will count as missing.
            return None

    def only_usage(self, event: bytes) -> bool:
        """An event with usage and no choices: the one that `include_usage` adds at the end."""
        if b'"usage"' not in event:
            return False
        try:
            answers = [_answer_of(payload) for payload in openai.events_of(event)]
        except NotAnAnswer:
            return False
        return bool(answers) and all(a.choices == [] and openai.is_told(a.usage) for a in answers)

    def is_end(self, event: bytes) -> bool:
        """`data: [DONE]`."""
        return openai.events_of(event) == [b"[DONE]"]

    def prompt_tokens(self, body: bytes) -> int:
        """Estimate from the text of messages and tools, four tokens of framing a message."""
        try:
            request = json_text.parsed(body)
        except InvalidRequest:
            return len(body) // BYTES_PER_PROMPT_TOKEN
        messages = request.get("messages", [])
        text = " ".join(json_text.text_of([messages, request.get("tools", [])]))
        return json_text.estimated_tokens(text) + 4 * len(messages)

    def completion_tokens(self, answer: bytes) -> int:
        """Estimate from the text of the choices."""
        return json_text.estimated_tokens("".join(_texts(answer)))

    def delivered_tokens(self, blocks: Sequence[bytes]) -> int:
        """Estimate from the text of all deltas."""
        return json_text.estimated_tokens("".join(_delivered_texts(blocks)))

    def error_body(self, error: MeterError, call_id: str) -> bytes:
        """OpenAI's error object."""
        return openai.error_body(error, call_id)

    def error_event(self, error: MeterError, call_id: str) -> bytes:
        """The error object as an event; OpenAI's SDKs raise APIError on it."""
        return b"data: " + openai.error_body(error, call_id) + b"\n\n"


def _decoded(body: bytes) -> _Request:
    try:
        return _request_decoder.decode(body)
    except msgspec.ValidationError as fault:
        raise InvalidRequest(f"The request is not a chat completion: {fault}.", hint=_HINT) from None
    except RecursionError:
        raise json_text.too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise json_text.not_json(fault) from None


_HINT: Final = 'The least is {"model": "…", "messages": [{"role": "user", "content": "…"}]}.'


def _check_model(name: str) -> None:
    if not name.strip():
        raise InvalidRequest("'model' is empty.", hint="Name a model of GET /v1/models.")
    if len(name) > LONGEST_MODEL_NAME or not name.isprintable():
        raise InvalidRequest(
            f"'model' is longer than {LONGEST_MODEL_NAME} characters or holds control characters.",
            hint="Name a model of GET /v1/models.",
        )


def _answer_of(body: bytes) -> _Answer:
    """Raises NotAnAnswer."""
    try:
        return _answer_decoder.decode(body)
    except (msgspec.ValidationError, UnicodeDecodeError) as fault:
        raise NotAnAnswer(str(fault)) from None
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return _answer_decoder.decode(openai.lenient(body))
    except (msgspec.DecodeError, RecursionError) as fault:
        raise NotAnAnswer(str(fault)) from None


def _read(answer: _Answer) -> Read:
    usage, bad = openai.read_usage(answer.usage)
    reasons = [choice.finish_reason for choice in answer.choices or () if choice.finish_reason]
    return Read(
        usage=usage,
        bad_usage=bad,
        model=openai.cleaned(answer.model),
        finish_reason=openai.cleaned(reasons[-1]) if reasons else "",
        is_error=openai.is_error(answer.error),
    )


def _merged(before: Read | None, now: Read | None) -> Read | None:
    if before is None or now is None:
        return now or before
    return merge(before, now)


def _with_fields(body: bytes, additions: dict[str, Any]) -> bytes:
    """Set top-level fields. New ones go in front and leave every other byte as it came."""
    present = _fields_decoder.decode(body)
    if not additions.keys() & present.keys():
        brace = body.index(b"{") + 1
        fields = msgspec.json.encode(additions)[1:-1]
        return body[:brace] + fields + b"," + body[brace:]
    merged: dict[str, Any] = {**present, **additions}
    if "stream_options" in additions and "stream_options" in present:
        kept = msgspec.json.decode(present["stream_options"])
        merged["stream_options"] = {**(kept or {}), **additions["stream_options"]}
    return msgspec.json.encode(merged)


def _texts(answer: bytes) -> Iterator[str]:
    try:
        value = _value_of(answer)
    except (NotAnAnswer, msgspec.DecodeError, RecursionError):
        return
    choices = value.get("choices") if isinstance(value, dict) else None
    for choice in choices if isinstance(choices, list) else ():
        written = choice.get("message") or choice.get("delta") if isinstance(choice, dict) else None
        if isinstance(written, dict):
            for name in ("content", "reasoning_content", "refusal", "tool_calls"):
                yield from json_text.text_of(written.get(name))


def _value_of(answer: bytes) -> Any:
    try:
        return msgspec.json.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(openai.lenient(answer))


def _delivered_texts(blocks: Sequence[bytes]) -> Iterator[str]:
    for payload in openai.events_of(b"".join(blocks)):
        yield from _texts(payload)
