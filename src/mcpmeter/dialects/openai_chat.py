"""OpenAI chat completions (`/chat/completions`): https://platform.openai.com/docs/api-reference/chat

A stream reports usage only on request (`stream_options.include_usage`), in its last event before `[DONE]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from mcpmeter.dialects import hosted_tools, json_body, openai, openai_usage_event, request_bounds, sse, tokens
from mcpmeter.dialects.base import RequestInfo, ResponseInfo, StreamingDialect, UnreadableResponse, merge_all
from mcpmeter.errors import InvalidRequest
from mcpmeter.records import NO_PATH_PARAMS, STANDARD, PathParams, UsageItem

METERED_FIELDS: Final = json_body.quoted("model", "stream", "stream_options", "messages")
"""The fields of a request that are read; each may be named once."""

_NULL_USAGE: Final = re.compile(
    rb', ?"usage": ?null(?=(?:, ?"obfuscation": ?"[^"\\\r\n]*")?\}(?:\r\n(?!data:)|\n(?!data:)|\r(?!\n|data:)))'
)
"""At the end of an event's last data line, where OpenAI writes it: the brace after it closes the outermost object.
Inside a text its quotes would be escaped."""

ERROR: Final = "error"
"""The finish reason of a response that broke off (Mistral, Together, vLLM)."""

SEARCH_MODELS: Final = {"-search-preview": "web_search_preview", "-search-api": "web_search"}
"""Marks of models that search the web once for each response: https://platform.openai.com/docs/guides/tools-web-search"""

SEARCH_MARK: Final = "-search-"
_Limit = Annotated[int, msgspec.Meta(ge=1, le=tokens.MAX_TOKENS)]
PlainTier = Literal["default", "auto", "standard", "on_demand"] | None

QUOTE: Final = ord('"')
EMPTY_STRING_BYTES: Final = len('""')


class _RequestMessage(msgspec.Struct, frozen=True, gc=False):
    role: str
    content: str | list[msgspec.Raw] | None = None


class _StreamOptions(msgspec.Struct, frozen=True, gc=False):
    include_usage: bool | None = None


class _Request(msgspec.Struct, frozen=True, gc=False):
    messages: list[_RequestMessage]
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    service_tier: msgspec.Raw = json_body.ABSENT


class _PlainMessage(msgspec.Struct, frozen=True, gc=False):
    role: str
    content: str | None = None
    audio: None = None


class _PlainRequest(msgspec.Struct, frozen=True, gc=False):
    """The most frequent form of a request: texts, and limits that bound its cost alone.

    Decoding fails if it has a field that `bounded` has to read; so the plain form costs no look at each of them.
    """

    messages: list[_PlainMessage]
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_completion_tokens: _Limit | None = None
    max_tokens: _Limit | None = None
    service_tier: Literal["auto", "default"] | None = None
    n: Literal[1] | None = None
    best_of: None = None
    max_output_tokens: None = None
    max_new_tokens: None = None
    max_gen_len: None = None
    max_length: None = None
    n_predict: None = None
    num_predict: None = None
    thinking_budget: None = None
    thinking: None = None
    reasoning: None = None
    tools: None = None
    models: None = None
    plugins: None = None
    prediction: None = None
    web_search_options: None = None
    search_parameters: None = None
    enable_search: Literal[False] | None = None
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None
    preset: None = None
    data_sources: None = None
    extra_body: None = None
    google: None = None


class _Message(msgspec.Struct, frozen=True, gc=False):
    """A response's message, or the delta of an event."""

    content: msgspec.Raw = json_body.ABSENT
    refusal: msgspec.Raw = json_body.ABSENT
    tool_calls: msgspec.Raw = json_body.ABSENT
    function_call: msgspec.Raw = json_body.ABSENT
    audio: msgspec.Raw = json_body.ABSENT
    images: msgspec.Raw = json_body.ABSENT
    executed_tools: msgspec.Raw = json_body.ABSENT
    """Groq's own tools."""


class _Choice(msgspec.Struct, frozen=True, gc=False):
    finish_reason: Any = None
    message: msgspec.Raw = json_body.ABSENT
    messages: msgspec.Raw = json_body.ABSENT
    """Mistral's, instead of one message."""
    delta: msgspec.Raw = json_body.ABSENT
    usage: msgspec.Raw = json_body.ABSENT
    """Moonshot's, at the end of a stream."""


class _XGroq(msgspec.Struct, frozen=True, gc=False):
    """Groq's own object: the last event of a stream reports usage, or an error, in it."""

    usage: msgspec.Raw = json_body.ABSENT
    error: msgspec.Raw = json_body.ABSENT


class _Part(msgspec.Struct, frozen=True, gc=False):
    type: str = ""


class _Response(msgspec.Struct, frozen=True, gc=False):
    model: Any = None
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = json_body.ABSENT
    error: msgspec.Raw = json_body.ABSENT
    x_groq: msgspec.Raw = json_body.ABSENT
    service_tier: msgspec.Raw = json_body.ABSENT


class _AnyResponse(msgspec.Struct, frozen=True, gc=False):
    """A response whose choices are not what the dialect says."""

    model: Any = None
    choices: msgspec.Raw = json_body.ABSENT
    usage: msgspec.Raw = json_body.ABSENT
    error: msgspec.Raw = json_body.ABSENT
    x_groq: msgspec.Raw = json_body.ABSENT
    service_tier: msgspec.Raw = json_body.ABSENT


class _CommonMessage(msgspec.Struct, frozen=True, gc=False):
    content: msgspec.Raw
    refusal: None = None
    executed_tools: None = None


class _CommonChoice(msgspec.Struct, frozen=True, gc=False):
    message: _CommonMessage
    finish_reason: str | None = None


class _CommonResponse(msgspec.Struct, frozen=True, gc=False):
    """The most frequent form of a response. Decoding fails if anything in it needs a closer look."""

    choices: Annotated[list[_CommonChoice], msgspec.Meta(min_length=1, max_length=1)]
    usage: openai.CommonUsage
    model: str | None = None
    error: None = None
    service_tier: PlainTier = None


_plain_decoder = msgspec.json.Decoder(_PlainRequest)
_request_decoder = msgspec.json.Decoder(_Request)
_common_decoder = msgspec.json.Decoder(_CommonResponse)
_response_decoder = msgspec.json.Decoder(_Response)
_any_response_decoder = msgspec.json.Decoder(_AnyResponse)
_choices_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_choice_decoder = msgspec.json.Decoder(_Choice)
_message_decoder = msgspec.json.Decoder(_Message)
_groq_decoder = msgspec.json.Decoder(_XGroq)
_parts_decoder = msgspec.json.Decoder(list[_Part])
_NO_GROQ: Final = _XGroq()
_NO_MESSAGE: Final = _Message()
_UNREADABLE_CHOICE: Final = _Choice(message=msgspec.Raw(b"0"), delta=msgspec.Raw(b"0"))
"""It may be content."""
_HINT: Final = 'The least is {"model": "…", "messages": [{"role": "user", "content": "…"}]}.'


class OpenAiChat(openai.OpenAiDialect, StreamingDialect):
    """The chat dialect. Stateless."""

    operation = "chat"
    end_marks = (openai.DONE,)
    text_mark = b'"content":"'

    def path_name(self, request: RequestInfo) -> str:
        """`chat`, streamed or not."""
        return "chat"

    def read_request(self, body: bytes, path: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """Read model, stream, limits and whether usage is requested. Raises InvalidRequest."""
        plain = json_body.decode_if_it_fits(_plain_decoder, body)
        request = plain or json_body.decode_request(_request_decoder, body, kind="a chat completion", hint=_HINT)
        is_spelled_otherwise = json_body.refuse_repeated(body, METERED_FIELDS)
        if not request.messages:
            raise InvalidRequest("'messages' is empty.", hint="Send at least one message with a role and content.")
        if request.model is not None:
            json_body.check_model(request.model)
        options = request.stream_options
        return RequestInfo(
            model=request.model or "",
            stream=bool(request.stream),
            usage_requested=bool(options and options.include_usage),
            prompt_tokens_estimate=tokens.quick_estimate(body),
            max_completion_tokens=_limit(plain) if plain else None,
            conditions=request_bounds.conditions(request.service_tier) if isinstance(request, _Request) else STANDARD,
            has_bounds=plain is None or is_spelled_otherwise or _has_bounds(body, plain),
        )

    def forwarded(self, body: bytes, request: RequestInfo, model: str) -> bytes:
        """The body unchanged, unless the model's name differs or a stream does not request its usage."""
        additions: dict[str, Any] = {}
        if request.model != model:
            additions["model"] = model
        if request.stream and not request.usage_requested:
            additions["stream_options"] = {"include_usage": True}
        return json_body.with_fields(body, additions)

    def read_response(self, body: bytes) -> ResponseInfo:
        """Usage, finish reason and error of a JSON response. Raises UnreadableResponse."""
        common = None if self._has_own_names else _read_common(body)
        if common is not None:
            return common
        response = _decoded(body)
        messages = [_only_message(choice) for choice in response.choices or ()]
        return self._info(response, messages, is_empty=response.choices is not None and all(map(_is_silent, messages)))

    def read_events(self, block: bytes) -> ResponseInfo | None:
        """Usage, finish reason, refusal or error of a block. Most deltas are recognised by counting field names."""
        if _is_delta(block):
            return None
        infos = (self._read_event(payload) for payload in sse.payloads(block) if not _is_delta(payload))
        return merge_all(infos, self.merge)

    def has_content(self, block: bytes) -> bool:
        """Whether a block holds text or a tool call; reasoning is neither."""
        return any(map(_has_content, sse.payloads(block)))

    def only_usage(self, event: bytes) -> bool:
        """Whether an event has usage and no choices: `include_usage` adds it at the end."""
        if b'"usage"' not in event:
            return False
        try:
            responses = [json_body.decode_response(_any_response_decoder, payload) for payload in sse.payloads(event)]
        except UnreadableResponse:
            return False
        return bool(responses) and all(map(_has_only_usage, responses))

    def without_usage(self, event: bytes) -> bytes:
        """An event that ends a choice, without the usage beside it; every other byte stays."""
        return openai_usage_event.without_usage(event)

    def without_null_usage(self, block: bytes) -> bytes:
        """A block without the `"usage":null` that `include_usage` adds to each event; every other byte stays."""
        at = block.rfind(b'"usage":')
        if at < 0:
            return block
        if block.find(b'"usage":') < at:
            return _NULL_USAGE.sub(b"", block)
        # There is only one; matching at its position is faster than searching the block.
        found = _NULL_USAGE.match(block, max(0, at - 1)) or _NULL_USAGE.match(block, max(0, at - 2))
        return block[: found.start()] + block[found.end() :] if found else block

    def is_end(self, event: bytes) -> bool:
        """`data: [DONE]`."""
        return sse.payloads(event) == [openai.DONE]

    def prompt_tokens(self, body: bytes) -> int:
        """Estimate from the text of messages and tools, plus framing per message."""
        return tokens.estimate_prompt(body, _prompt_tokens)

    def completion_tokens(self, response: bytes) -> int:
        """Estimate from the text of the choices."""
        return tokens.estimate_text("".join(_texts(response)))

    def delivered_tokens(self, blocks: Sequence[bytes]) -> int:
        """Estimate from the text of all deltas."""
        payloads = sse.payloads(b"".join(blocks))
        return tokens.estimate_text("".join(text for payload in payloads for text in _texts(payload)))

    def _read_event(self, payload: bytes) -> ResponseInfo | None:
        if payload == openai.DONE:
            return None
        try:
            response = _decoded(payload)
        except UnreadableResponse:
            # The bytes pass anyway; an unreadable event reports nothing, so the usage counts as missing.
            return None
        return self._info(response, [_message(choice.delta) for choice in response.choices or ()], is_stream=True)

    def _info(
        self,
        response: _Response,
        messages: Sequence[_Message | None],
        *,
        is_empty: bool = False,
        is_stream: bool = False,
    ) -> ResponseInfo:
        groq = json_body.decode_field(_groq_decoder, response.x_groq, _NO_GROQ)
        reported = _reported_usage(response, groq)
        usage, bad = self._read_usage(reported)
        reasons = [reason for choice in response.choices or () if (reason := json_body.text_of(choice.finish_reason))]
        has_error = json_body.is_error(response.error) or json_body.is_error(groq.error) or ERROR in reasons
        model = json_body.text_of(response.model)
        usd, is_part = openai.reported_cost(reported)
        conditions, unknown = openai.conditions_of(response.service_tier, usage)
        items = _searches(model) if usage else ()
        if tools := [one.executed_tools for one in messages if one and not json_body.is_blank(one.executed_tools)]:
            executed, strange = hosted_tools.executed(tools, is_stream=is_stream)
            items, unknown = (*items, *executed), (*unknown, *strange)
        return ResponseInfo(
            usage=usage,
            bad_usage=bad,
            model=model,
            finish_reason=reasons[-1] if reasons else "",
            is_error=has_error,
            is_refusal=any(message is not None and not json_body.is_blank(message.refusal) for message in messages),
            is_empty=is_empty and not has_error,
            reported_usd=usd,
            reported_is_part=is_part,
            conditions=conditions,
            lacks_tier=not json_body.is_set(response.service_tier),
            items=items,
            unknown=unknown,
        )


def _is_delta(data: bytes) -> bool:
    """Whether a block or a payload reports nothing that is metered."""
    return (
        (data.rfind(b'"usage"') < 0 or data.count(b'"usage"') == data.count(b'"usage":null'))
        and data.count(b'"finish_reason"') == data.count(b'"finish_reason":null')
        and (data.rfind(b'"refusal"') < 0 or data.count(b'"refusal"') == data.count(b'"refusal":null'))
        and data.rfind(b'"error"') < 0
        and data.rfind(b'"executed_tools"') < 0
    )


def _read_common(body: bytes) -> ResponseInfo | None:
    """Read a response with one choice, its text and its usage in one decoding; None for all others."""
    try:
        response = _common_decoder.decode(body)
    except json_body.UNREADABLE:
        return None
    choice = response.choices[0]
    content = choice.message.content
    # Content may be a list, and hold only thoughts.
    is_text = len(content) > EMPTY_STRING_BYTES and memoryview(content)[0] == QUOTE
    if not is_text or choice.finish_reason == ERROR or response.usage.is_byok:
        return None
    usage, model = openai.usage_of(response.usage), json_body.cleaned(response.model)
    if usage is None or SEARCH_MARK in model:
        return None
    return ResponseInfo(
        usage=usage,
        model=model,
        finish_reason=json_body.cleaned(choice.finish_reason),
        reported_usd=openai.usd_of(response.usage.cost),
        lacks_tier=response.service_tier is None,
    )


def _decoded(body: bytes) -> _Response:
    """Raises UnreadableResponse."""
    try:
        response = json_body.decode_response(_response_decoder, body)
    except UnreadableResponse:
        response = _decoded_anyhow(body)
    if response.choices is None and not json_body.is_error(response.error) and not json_body.is_set(response.usage):
        raise UnreadableResponse("no choices")
    return response


def _decoded_anyhow(body: bytes) -> _Response:
    """The readable part of a response whose choices have unexpected types. Raises UnreadableResponse."""
    found = json_body.decode_response(_any_response_decoder, body)
    raws = json_body.decode_field(_choices_decoder, found.choices, None)
    choices = None
    if raws is not None:
        choices = [json_body.decode_field(_choice_decoder, raw, _UNREADABLE_CHOICE) for raw in raws]
    return _Response(found.model, choices, found.usage, found.error, found.x_groq, found.service_tier)


def _has_only_usage(response: _AnyResponse) -> bool:
    return (
        json_body.is_blank(response.choices)
        and json_body.is_set(response.usage)
        and not json_body.is_error(response.error)
    )


def _searches(model: str) -> tuple[UsageItem, ...]:
    """The search of a model that makes one for each response, which no usage counts."""
    return tuple(UsageItem(item, 1) for mark, item in SEARCH_MODELS.items() if mark in model)


def _has_content(payload: bytes) -> bool:
    try:
        choices = json_body.decode_response(_response_decoder, payload).choices or ()
    except UnreadableResponse:
        return False
    return not all(_is_silent(_message(choice.delta)) for choice in choices)


def _reported_usage(response: _Response, groq: _XGroq) -> msgspec.Raw:
    """The response's usage, or the one that Groq and Moonshot put elsewhere."""
    if json_body.is_set(response.usage):
        return response.usage
    # In a JSON response, Groq's own usage counts only caches.
    elsewhere = (groq.usage, *(choice.usage for choice in response.choices or ()))
    return next((usage for usage in elsewhere if b'"prompt_tokens"' in bytes(usage)), response.usage)


def _only_message(choice: _Choice) -> _Message | None:
    return _message(choice.message) if json_body.is_blank(choice.messages) else None


def _message(raw: msgspec.Raw) -> _Message | None:
    """None if it is unreadable: it may be content."""
    return json_body.decode_field(_message_decoder, raw, None) if json_body.is_set(raw) else _NO_MESSAGE


def _is_silent(message: _Message | None) -> bool:
    # A response is called empty only if it is known to be.
    if message is None or not (json_body.is_blank(message.content) or _is_thought(message.content)):
        return False
    # Reasoning alone counts as empty: the model ran out of tokens before it wrote a response.
    others = (message.tool_calls, message.refusal, message.function_call, message.audio, message.images)
    return all(map(json_body.is_blank, others))


def _is_thought(content: msgspec.Raw) -> bool:
    """Whether it is a list of parts, as Mistral writes them, that holds only thoughts."""
    if not bytes(content).startswith(b"["):
        return False
    parts = json_body.decode_field(_parts_decoder, content, None)
    return parts is not None and all(part.type == "thinking" for part in parts)


def _limit(request: _PlainRequest) -> int | None:
    """A provider may read either field, so that only the greater one bounds the response."""
    one, other = request.max_completion_tokens, request.max_tokens
    return other if one is None else one if other is None else max(one, other)


def _has_bounds(body: bytes, request: _PlainRequest) -> bool:
    """Whether a plain request names a limit twice, or a model that searches without a tool."""
    if request.max_tokens is not None and body.count(b'"max_tokens"') > 1:
        return True
    if request.max_completion_tokens is not None and body.count(b'"max_completion_tokens"') > 1:
        return True
    return request.model is not None and request_bounds.SEARCHING_MODEL.search(request.model) is not None


def _prompt_tokens(request: Any) -> int:
    messages = request.get("messages", [])
    text = " ".join(openai.prompt_texts([messages, request.get("tools", [])]))
    return tokens.estimate_text(text) + tokens.FRAMING_TOKENS * len(messages)


def _texts(response: bytes) -> Iterator[str]:
    for choice in json_body.dicts_in(json_body.under(json_body.value_of(response), "choices")):
        several = choice.get("messages")
        messages = several if isinstance(several, list) else [choice.get("message") or choice.get("delta")]
        for message in json_body.dicts_in(messages):
            yield from _written(message.get("content"))
            # Some servers send the thoughts under both names.
            yield from json_body.strings_in(message.get("reasoning_content") or message.get("reasoning"))
            yield from json_body.strings_in([message.get("refusal"), message.get("tool_calls")])


def _written(content: Any) -> Iterator[str]:
    """A text, or the texts of a list of parts and of the thoughts in it, without the parts' types."""
    if isinstance(content, str):
        yield content
    for part in json_body.dicts_in(content):
        for inner in (part, *json_body.dicts_in(part.get("thinking"))):
            yield from (text for text in map(inner.get, ("text", "thinking", "refusal")) if isinstance(text, str))
