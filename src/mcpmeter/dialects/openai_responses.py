"""OpenAI responses (`/responses`): https://platform.openai.com/docs/api-reference/responses

`store`, `previous_response_id` and `conversation` pass as they are: what the provider keeps of earlier turns is in the
usage that it reports, and only the estimates cannot know it. With `background` the provider answers before it works,
so there is no usage yet: the call passes and counts as one whose usage is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from mcpmeter.dialects import json_body as bodies
from mcpmeter.dialects import json_text, openai
from mcpmeter.dialects.base import NotAnAnswer, RequestInfo, ResponseInfo
from mcpmeter.errors import InvalidRequest, MeterError
from mcpmeter.records import NO_PATH_PARAMS, PathParams

METERED_FIELDS: Final = json_text.quoted(b"model", b"stream", b"input")
"""What is read of a request; each may be named once."""

LAST_EVENTS: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
"""Each carries the whole answer. `error` is not one of them: `response.failed` may follow it."""

TEXTLESS_DELTAS: Final = ("response.reasoning", "response.audio.")
"""How the types of deltas begin that are neither text nor a tool's call: thoughts, and sound in base64."""

PENDING: Final = frozenset({"queued", "in_progress"})
SILENT_ITEMS: Final = frozenset({"reasoning", "compaction", "mcp_list_tools"})
"""Items of an output that are neither text nor a tool call."""


class _Request(msgspec.Struct, frozen=True, gc=False):
    input: str | list[msgspec.Raw] | None = None
    model: str | None = None
    stream: bool | None = None
    prompt: msgspec.Raw = openai.ABSENT
    previous_response_id: msgspec.Raw = openai.ABSENT
    conversation: msgspec.Raw = openai.ABSENT
    max_output_tokens: msgspec.Raw = openai.ABSENT


class _Usage(openai.ToldUsage, frozen=True, gc=False):
    prompt_tokens: openai.Tokens | None = msgspec.field(default=None, name="input_tokens")
    completion_tokens: openai.Tokens | None = msgspec.field(default=None, name="output_tokens")
    prompt_tokens_details: msgspec.Raw = msgspec.field(default=openai.ABSENT, name="input_tokens_details")
    completion_tokens_details: msgspec.Raw = msgspec.field(default=openai.ABSENT, name="output_tokens_details")


class _Response(msgspec.Struct, frozen=True, gc=False):
    model: str | None = None
    status: str | None = None
    incomplete_details: msgspec.Raw = openai.ABSENT
    output: msgspec.Raw = openai.ABSENT
    usage: msgspec.Raw = openai.ABSENT
    error: msgspec.Raw = openai.ABSENT


class _EventType(msgspec.Struct, frozen=True, gc=False):
    type: str | None = None


class _Incomplete(msgspec.Struct, frozen=True, gc=False):
    reason: str | None = None


class _Part(msgspec.Struct, frozen=True, gc=False):
    type: str = ""
    text: msgspec.Raw = openai.ABSENT
    refusal: msgspec.Raw = openai.ABSENT


class _Item(msgspec.Struct, frozen=True, gc=False):
    type: str = ""
    content: msgspec.Raw = openai.ABSENT


class _Event(msgspec.Struct, frozen=True, gc=False):
    type: str | None = None
    response: _Response | None = None
    item: _Item | None = None
    delta: msgspec.Raw = openai.ABSENT
    error: msgspec.Raw = openai.ABSENT


_request_decoder = msgspec.json.Decoder(_Request)
_usage_decoder = msgspec.json.Decoder(_Usage)
_response_decoder = msgspec.json.Decoder(_Response)
_event_decoder = msgspec.json.Decoder(_Event)
_type_decoder = msgspec.json.Decoder(_EventType)
_incomplete_decoder = msgspec.json.Decoder(_Incomplete)
_items_decoder = msgspec.json.Decoder(list[_Item])
_parts_decoder = msgspec.json.Decoder(list[_Part])
_HINT: Final = 'The least is {"model": "…", "input": "…"}.'


class OpenAiResponses:
    """The responses dialect. Stateless. Nothing is added to a stream, as its last event always carries the usage."""

    operation = "chat"
    passed_headers = openai.PASSED_HEADERS
    end_marks = (b'"response"', openai.DONE)

    def path_name(self, asked: RequestInfo) -> str:
        """`responses`, streamed or not."""
        return "responses"

    def read_request(self, body: bytes, named: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """Read model and stream. Raises InvalidRequest."""
        request = bodies.request_of(_request_decoder, body, kind="for a response", hint=_HINT)
        json_text.refuse_repeated(body, METERED_FIELDS)
        kept_elsewhere = (request.prompt, request.previous_response_id, request.conversation)
        if not request.input and not any(map(openai.is_told, kept_elsewhere)):
            raise InvalidRequest("'input' is empty.", hint="Send a text, or a list of at least one item.")
        if request.model is not None:
            bodies.check_model(request.model)
        return RequestInfo(
            model=request.model or "",
            stream=bool(request.stream),
            usage_asked=True,
            prompt_tokens_estimate=max(1, len(body) // bodies.BYTES_PER_PROMPT_TOKEN),
            max_completion_tokens=bodies.max_tokens(request.max_output_tokens),
        )

    def forwarded(self, body: bytes, asked: RequestInfo, model: str) -> bytes:
        """The body unchanged, unless the model's name differs."""
        return openai.with_fields(body, {"model": model} if asked.model != model else {})

    def read_answer(self, body: bytes) -> ResponseInfo:
        """What a response object says of itself. Raises NotAnAnswer."""
        response = bodies.answer_of(_response_decoder, body)
        is_error = openai.is_error(response.error)
        if not (openai.is_told(response.output) or openai.is_told(response.usage) or is_error):
            raise NotAnAnswer("no output")
        read, items = _read(response), _items(response.output)
        can_be_empty = bool(read.finish_reason) and items is not None and not read.is_error
        return replace(read, is_empty=can_be_empty and all(map(_is_silent, items or ())))

    def read_events(self, block: bytes) -> ResponseInfo | None:
        """What the events with a response object, or an error, say; deltas have neither."""
        if block.rfind(b'"response"') < 0 and block.rfind(b'"error"') < 0:
            return None
        return openai.told_by([_read_event(payload) for payload in openai.events_of(block)])

    def has_content(self, block: bytes) -> bool:
        """Whether a block of events holds text or a tool's call; reasoning is neither."""
        return any(map(_has_content, openai.events_of(block)))

    def only_usage(self, event: bytes) -> bool:
        """Never: nothing is asked for that the client did not ask for."""
        return False

    def is_end(self, event: bytes) -> bool:
        """`response.completed`, `.incomplete`, `.failed` or `.cancelled`; `[DONE]` where a relay sends that instead."""
        return any(payload == openai.DONE or _type_of(payload) in LAST_EVENTS for payload in openai.events_of(event))

    def prompt_tokens(self, body: bytes) -> int:
        """Estimate from the text of input, instructions and tools, four tokens of framing an item."""
        try:
            request = json_text.parsed(body)
        except InvalidRequest:
            return len(body) // bodies.BYTES_PER_PROMPT_TOKEN
        given = request.get("input")
        told = [given, request.get("instructions"), request.get("tools"), request.get("prompt")]
        items = len(given) if given and isinstance(given, list) else 1
        return json_text.estimated_tokens(" ".join(openai.prompt_texts(told))) + 4 * items

    def completion_tokens(self, answer: bytes) -> int:
        """Estimate from the text of the output."""
        return json_text.estimated_tokens("".join(_output_texts(bodies.value_of(answer))))

    def delivered_tokens(self, blocks: Sequence[bytes]) -> int:
        """Estimate from all deltas but those of sound."""
        payloads = openai.events_of(b"".join(blocks))
        return json_text.estimated_tokens("".join(map(_delta_of, payloads)))

    def error_body(self, error: MeterError, call_id: str) -> bytes:
        """OpenAI's error object."""
        return openai.error_body(error, call_id)

    def error_event(self, error: MeterError, call_id: str) -> bytes:
        """An `error` event; the object in it is what makes OpenAI's SDKs raise APIError."""
        told = b'{"type":"error",' + openai.error_body(error, call_id)[1:]
        return b"event: error\ndata: " + told + b"\n\n"


def _read_event(payload: bytes) -> ResponseInfo | None:
    try:
        event = bodies.answer_of(_event_decoder, payload)
    except NotAnAnswer:
        # Bytes pass as they came; an event that cannot be read says nothing, and usage will count as missing.
        return None
    if event.response is not None:
        return _read(event.response)
    return ResponseInfo(is_error=True) if event.type == "error" or openai.is_error(event.error) else None


def _has_content(payload: bytes) -> bool:
    try:
        event = bodies.answer_of(_event_decoder, payload)
    except NotAnAnswer:
        return False
    kind = event.type or ""
    if kind.endswith(".delta"):
        return not kind.startswith(TEXTLESS_DELTAS) and not openai.is_blank(event.delta)
    if event.item is not None:
        return not _is_silent(event.item)
    items = _items(event.response.output) if event.response is not None else None
    return not all(map(_is_silent, items or ()))


def _read(response: _Response) -> ResponseInfo:
    usage, bad = openai.read_usage(response.usage, _usage_decoder.decode)
    parts = [part for item in _items(response.output) or () for part in _parts(item) or ()]
    return ResponseInfo(
        usage=usage,
        bad_usage=bad,
        model=openai.cleaned(response.model),
        finish_reason=_finish_reason(response),
        is_error=openai.is_error(response.error) or response.status == "failed",
        is_refusal=any(part.type == "refusal" for part in parts),
        reported_usd=openai.reported_usd(response.usage),
    )


def _finish_reason(response: _Response) -> str:
    """Why an incomplete answer ends, else its status; empty while it goes on."""
    if response.status in PENDING:
        return ""
    if response.status == "incomplete" and openai.is_told(response.incomplete_details):
        try:
            reason = _incomplete_decoder.decode(response.incomplete_details).reason
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            reason = None
        return openai.cleaned(reason or response.status)
    return openai.cleaned(response.status)


def _items(output: msgspec.Raw) -> list[_Item] | None:
    """None for what cannot be read: then nothing is claimed of it."""
    try:
        return _items_decoder.decode(output) if openai.is_told(output) else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _parts(item: _Item) -> list[_Part] | None:
    if item.type != "message":
        return None
    try:
        return [] if openai.is_blank(item.content) else _parts_decoder.decode(item.content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _is_silent(item: _Item) -> bool:
    parts = _parts(item)
    if parts is None:
        return item.type in SILENT_ITEMS
    return all(part.type in ("output_text", "refusal") and _is_blank(part) for part in parts)


def _is_blank(part: _Part) -> bool:
    return openai.is_blank(part.text) and openai.is_blank(part.refusal)


def _type_of(payload: bytes) -> str | None:
    try:
        return bodies.answer_of(_type_decoder, payload).type
    except NotAnAnswer:
        return None


def _delta_of(payload: bytes) -> str:
    event = bodies.value_of(payload)
    if not isinstance(event, dict):
        return ""
    kind, delta = event.get("type"), event.get("delta")
    # Sound comes as base64, which is no text; its transcript has events of its own.
    is_text = isinstance(kind, str) and kind.endswith(".delta") and kind != "response.audio.delta"
    return delta if is_text and isinstance(delta, str) else ""


def _output_texts(response: Any) -> Iterator[str]:
    """What the model wrote: texts, refusals, reasoning and the arguments of calls; no results, ids or pictures."""
    for item in bodies.dicts_in(bodies.under(response, "output")):
        written = [item.get(name) for name in ("name", "arguments", "input", "code")]
        parts = [part for name in ("content", "summary") for part in bodies.dicts_in(item.get(name))]
        yield from json_text.text_of(written + [part.get(name) for part in parts for name in ("text", "refusal")])
