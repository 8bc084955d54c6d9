"""OpenAI responses (`/responses`): https://platform.openai.com/docs/api-reference/responses

`store`, `previous_response_id` and `conversation` pass unchanged: the reported usage includes the provider's copy of
earlier turns, and only the estimates cannot. With `background` the provider responds before it works: the
call stays open, and `relay.background` follows it until its usage is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from mcpmeter.dialects import hosted_tools, json_body, openai, request_bounds, sse, tokens
from mcpmeter.dialects.base import RequestInfo, ResponseInfo, StreamingDialect, UnreadableResponse, merge_all
from mcpmeter.errors import InvalidRequest, MeterError
from mcpmeter.records import NO_PATH_PARAMS, PathParams, Usage, UsageItem

METERED_FIELDS: Final = json_body.quoted("model", "stream", "input")
"""The fields of a request that are read; each may be named once."""

LAST_EVENTS: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
"""Each carries the whole response. `error` is not one of them: `response.failed` may follow it."""

TEXTLESS_DELTAS: Final = ("response.reasoning", "response.audio.")
"""Prefixes of delta types that are neither text nor a tool call: thoughts, and sound in base64."""

# Tuples, since a provider may send any type for a text.
PENDING: Final = ("queued", "in_progress")
SILENT_ITEMS: Final = ("reasoning", "compaction", "mcp_list_tools")
"""Items of an output that are neither text nor a tool call."""


class _Request(msgspec.Struct, frozen=True, gc=False):
    input: str | list[msgspec.Raw] | None = None
    model: str | None = None
    stream: bool | None = None
    prompt: msgspec.Raw = json_body.ABSENT
    previous_response_id: msgspec.Raw = json_body.ABSENT
    conversation: msgspec.Raw = json_body.ABSENT
    max_output_tokens: msgspec.Raw = json_body.ABSENT
    service_tier: msgspec.Raw = json_body.ABSENT
    background: msgspec.Raw = json_body.ABSENT
    background_options: msgspec.Raw = json_body.ABSENT


class _Response(msgspec.Struct, frozen=True, gc=False):
    id: Any = None
    model: Any = None
    status: Any = None
    incomplete_details: msgspec.Raw = json_body.ABSENT
    output: msgspec.Raw = json_body.ABSENT
    usage: msgspec.Raw = json_body.ABSENT
    error: msgspec.Raw = json_body.ABSENT
    service_tier: msgspec.Raw = json_body.ABSENT
    tools: msgspec.Raw = json_body.ABSENT
    tool_usage: msgspec.Raw = json_body.ABSENT


class _NoSearches(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    num_requests: openai.Nothing = None


class _NoImages(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    total_tokens: openai.Nothing
    input_tokens: openai.Nothing = None
    output_tokens: openai.Nothing = None
    cached_tokens: openai.Nothing = None
    input_tokens_details: msgspec.Raw = json_body.ABSENT
    output_tokens_details: msgspec.Raw = json_body.ABSENT
    cached_tokens_details: msgspec.Raw = json_body.ABSENT


class _NoToolUsage(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """`tool_usage` of a response without hosted tools, which OpenAI sends with zeros."""

    web_search: _NoSearches | None = None
    image_gen: _NoImages | None = None


class _EventType(msgspec.Struct, frozen=True, gc=False):
    type: Any = None


class _Incomplete(msgspec.Struct, frozen=True, gc=False):
    reason: str | None = None


class _Part(msgspec.Struct, frozen=True, gc=False):
    type: Any = ""
    text: msgspec.Raw = json_body.ABSENT
    refusal: msgspec.Raw = json_body.ABSENT


class _Item(msgspec.Struct, frozen=True, gc=False):
    type: Any = ""
    content: msgspec.Raw = json_body.ABSENT


class _Event(msgspec.Struct, frozen=True, gc=False):
    type: Any = None
    response: _Response | None = None
    item: _Item | None = None
    delta: msgspec.Raw = json_body.ABSENT
    error: msgspec.Raw = json_body.ABSENT


class _AnyEvent(msgspec.Struct, frozen=True, gc=False):
    """An event whose other fields are not what the dialect says."""

    type: Any = None
    response: msgspec.Raw = json_body.ABSENT
    error: msgspec.Raw = json_body.ABSENT


_request_decoder = msgspec.json.Decoder(_Request)
_usage_decoder = msgspec.json.Decoder(openai.CommonResponsesUsage)
_response_decoder = msgspec.json.Decoder(_Response)
_event_decoder = msgspec.json.Decoder(_Event)
_any_event_decoder = msgspec.json.Decoder(_AnyEvent)
_type_decoder = msgspec.json.Decoder(_EventType)
_no_tool_usage_decoder = msgspec.json.Decoder(_NoToolUsage)
_incomplete_decoder = msgspec.json.Decoder(_Incomplete)
_items_decoder = msgspec.json.Decoder(list[_Item])
_raws_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_item_decoder = msgspec.json.Decoder(_Item)
_parts_decoder = msgspec.json.Decoder(list[_Part])
_UNREADABLE_ITEM: Final = _Item()
"""It may be content."""
_NO_REASON: Final = _Incomplete()
_HINT: Final = 'The least is {"model": "…", "input": "…"}.'


class OpenAiResponses(openai.OpenAiDialect, StreamingDialect):
    """The responses dialect. Stateless. A stream's last event always carries the usage, so none is requested."""

    operation = "chat"
    end_marks = (b'"response"', openai.DONE)

    def path_name(self, request: RequestInfo) -> str:
        """`responses`, streamed or not."""
        return "responses"

    def read_request(self, body: bytes, path: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """Read model, stream and limit. Raises InvalidRequest."""
        request = json_body.decode_request(_request_decoder, body, kind="for a response", hint=_HINT)
        json_body.refuse_repeated(body, METERED_FIELDS)
        stored = (request.prompt, request.previous_response_id, request.conversation)
        if not request.input and not any(map(json_body.is_set, stored)):
            raise InvalidRequest("'input' is empty.", hint="Send a text, or a list of at least one item.")
        if request.model is not None:
            json_body.check_model(request.model)
        is_background = bytes(request.background) == b"true"
        info = RequestInfo(
            model=request.model or "",
            stream=bool(request.stream),
            usage_requested=True,
            prompt_tokens_estimate=tokens.quick_estimate(body),
            conditions=request_bounds.conditions(request.service_tier, background=request.background_options),
            has_bounds=True,
            background=is_background,
        )
        # Its limit is kept with it, for the day on which the provider has forgotten the response.
        return self.bounded(body, info, [info.model]) if is_background else info

    def read_response(self, body: bytes) -> ResponseInfo:
        """Usage, status and error of a response object. Raises UnreadableResponse."""
        response = json_body.decode_response(_response_decoder, body)
        if not (
            json_body.is_set(response.output) or json_body.is_set(response.usage) or json_body.is_error(response.error)
        ):
            raise UnreadableResponse("no output")
        info, items = self._info(response), _items(response.output)
        can_be_empty = bool(info.finish_reason) and items is not None and not info.is_error
        return replace(info, is_empty=can_be_empty and all(map(_is_silent, items or ())))

    def read_events(self, block: bytes) -> ResponseInfo | None:
        """The events with a response object or an error; deltas have neither."""
        if _is_delta(block):
            return None
        infos = (self._read_event(payload) for payload in sse.payloads(block) if not _is_delta(payload))
        return merge_all(infos, self.merge)

    def has_content(self, block: bytes) -> bool:
        """Whether a block holds text or a tool call; reasoning is neither."""
        return any(map(_has_content, sse.payloads(block)))

    def is_end(self, event: bytes) -> bool:
        """`response.completed`, `.incomplete`, `.failed` or `.cancelled`; `[DONE]` from relays that send that."""
        return any(payload == openai.DONE or _type_of(payload) in LAST_EVENTS for payload in sse.payloads(event))

    def prompt_tokens(self, body: bytes) -> int:
        """Estimate from the text of input, instructions and tools, plus framing per item."""
        return tokens.estimate_prompt(body, _prompt_tokens)

    def completion_tokens(self, response: bytes) -> int:
        """Estimate from the text of the output."""
        return tokens.estimate_text("".join(_output_texts(json_body.value_of(response))))

    def delivered_tokens(self, blocks: Sequence[bytes]) -> int:
        """Estimate from all deltas except sound."""
        return tokens.estimate_text("".join(map(_delta_of, sse.payloads(b"".join(blocks)))))

    def error_event(self, error: MeterError, call_id: str) -> bytes:
        """An `error` event; the object in it makes OpenAI's SDKs raise APIError."""
        payload = b'{"type":"error",' + openai.error_body(error, call_id)[1:]
        return b"event: error\ndata: " + payload + b"\n\n"

    def _read_event(self, payload: bytes) -> ResponseInfo | None:
        try:
            event = _decoded(payload)
        except UnreadableResponse:
            # The bytes pass anyway; an unreadable event reports nothing, so the usage counts as missing.
            return None
        if event.response is not None:
            return self._info(event.response)
        return (
            ResponseInfo(is_error=True, lacks_tier=True)
            if event.type == "error" or json_body.is_error(event.error)
            else None
        )

    def _read_usage(self, usage: msgspec.Raw) -> tuple[Usage | None, bool]:
        return openai.read_usage(usage, None if self._has_own_names else _usage_decoder.decode, self._table)

    def _info(self, response: _Response) -> ResponseInfo:
        usage, bad = self._read_usage(response.usage)
        items = _items(response.output) or ()
        parts = [part for item in items for part in _parts(item) or ()]
        usd, is_part = openai.reported_cost(response.usage)
        conditions, unknown = openai.conditions_of(response.service_tier, usage)
        billed: tuple[UsageItem, ...] = ()
        if _has_tool_usage(response.tool_usage) or any(item.type in hosted_tools.BILLED for item in items):
            tools = hosted_tools.read(response.output, response.tools, response.tool_usage)
            usage, billed, unknown = tools.beside(usage), tools.items_beside(usage), (*unknown, *tools.unknown)
        elif usage and json_body.is_blank(response.output) and hosted_tools.are_offered(response.tools):
            # Proxies end a stream with an empty output: https://github.com/QuantumNous/new-api/issues/4362
            unknown = (*unknown, UsageItem("output", 1))
        return ResponseInfo(
            usage=usage,
            bad_usage=bad,
            model=json_body.text_of(response.model),
            finish_reason=_finish_reason(response),
            is_error=json_body.is_error(response.error) or response.status == "failed",
            is_refusal=any(part.type == "refusal" for part in parts),
            reported_usd=usd,
            reported_is_part=is_part,
            conditions=conditions,
            lacks_tier=not json_body.is_set(response.service_tier),
            items=billed,
            unknown=unknown,
            object_id=json_body.text_of(response.id),
            is_pending=response.status in PENDING,
        )


def _is_delta(data: bytes) -> bool:
    return data.rfind(b'"response"') < 0 and data.rfind(b'"error"') < 0


def _decoded(payload: bytes) -> _Event:
    """Raises UnreadableResponse."""
    try:
        return json_body.decode_response(_event_decoder, payload)
    except UnreadableResponse:
        found = json_body.decode_response(_any_event_decoder, payload)
    return _Event(found.type, json_body.decode_field(_response_decoder, found.response, None), error=found.error)


def _has_content(payload: bytes) -> bool:
    try:
        event = json_body.decode_response(_event_decoder, payload)
    except UnreadableResponse:
        return False
    kind = event.type if isinstance(event.type, str) else ""
    if kind.endswith(".delta"):
        return not kind.startswith(TEXTLESS_DELTAS) and not json_body.is_blank(event.delta)
    if event.item is not None:
        return not _is_silent(event.item)
    items = _items(event.response.output) if event.response is not None else None
    return not all(map(_is_silent, items or ()))


def _type_of(payload: bytes) -> str | None:
    try:
        kind = json_body.decode_response(_type_decoder, payload).type
    except UnreadableResponse:
        return None
    return kind if isinstance(kind, str) else None


def _has_tool_usage(tool_usage: msgspec.Raw) -> bool:
    return json_body.is_set(tool_usage) and json_body.decode_field(_no_tool_usage_decoder, tool_usage, None) is None


def _finish_reason(response: _Response) -> str:
    """The reason of an incomplete response, otherwise the status; empty while the response is pending."""
    if response.status in PENDING:
        return ""
    if response.status == "incomplete":
        reason = json_body.decode_field(_incomplete_decoder, response.incomplete_details, _NO_REASON).reason
        return json_body.cleaned(reason or "incomplete")
    return json_body.text_of(response.status)


def _items(output: msgspec.Raw) -> list[_Item] | None:
    """None if they are absent or unreadable: they may be content."""
    items = json_body.decode_field(_items_decoder, output, None)
    if items is not None or not json_body.is_set(output):
        return items
    raws = json_body.decode_field(_raws_decoder, output, None)
    return None if raws is None else [json_body.decode_field(_item_decoder, raw, _UNREADABLE_ITEM) for raw in raws]


def _parts(item: _Item) -> list[_Part] | None:
    if item.type != "message":
        return None
    return [] if json_body.is_blank(item.content) else json_body.decode_field(_parts_decoder, item.content, None)


def _is_silent(item: _Item) -> bool:
    parts = _parts(item)
    if parts is None:
        return item.type in SILENT_ITEMS
    return all(
        part.type in ("output_text", "refusal") and json_body.is_blank(part.text) and json_body.is_blank(part.refusal)
        for part in parts
    )


def _prompt_tokens(request: Any) -> int:
    given = request.get("input")
    texts = openai.prompt_texts([given, *map(request.get, ("instructions", "tools", "prompt"))])
    items = len(given) if given and isinstance(given, list) else 1
    return tokens.estimate_text(" ".join(texts)) + tokens.FRAMING_TOKENS * items


def _delta_of(payload: bytes) -> str:
    event = json_body.value_of(payload)
    if not isinstance(event, dict):
        return ""
    kind, delta = event.get("type"), event.get("delta")
    # Sound is base64, not text; its transcript has its own events.
    is_text = isinstance(kind, str) and kind.endswith(".delta") and kind != "response.audio.delta"
    return delta if is_text and isinstance(delta, str) else ""


def _output_texts(response: Any) -> Iterator[str]:
    """The model's texts, refusals, reasoning and arguments of calls; no results, ids or pictures."""
    for item in json_body.dicts_in(json_body.under(response, "output")):
        written = [item.get(name) for name in ("name", "arguments", "input", "code")]
        parts = [part for name in ("content", "summary") for part in json_body.dicts_in(item.get(name))]
        yield from json_body.strings_in(written + [part.get(name) for part in parts for name in ("text", "refusal")])
