"""Gemini's generateContent, streamGenerateContent and countTokens (https://ai.google.dev/api/generate-content)."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from mcpmeter.errors import InvalidRequest
from mcpmeter.simulator.dialects.base import DialectResponse, Event, Framing, UrlParams
from mcpmeter.simulator.dialects.gemini_content import Content, model_of, read_proto
from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.generation import (
    BilledTokens,
    Choice,
    Generation,
    GenerationParams,
    Tool,
    ToolCall,
    generate,
    implicitly_cacheable,
    number,
    pieces,
    with_usage,
)
from mcpmeter.simulator.plan import Plan
from mcpmeter.simulator.request_parsing import Limit, convert, find_labelled_fault, json_tokens, text_tokens
from mcpmeter.simulator.vendors.google import JSON_UTF8, error_object

_FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP", "refusal": "SAFETY"}
_MIME_FORMATS = {"application/json": "json", "text/x.enum": "enum"}
_WRONG_USAGES = ("zero", "negative", "string", "nan", "overflow")
_USAGE_KEY = b"usageMetadata"


class Declaration(msgspec.Struct, rename="camel"):
    """A callable function."""

    name: Annotated[str, Meta(min_length=1)]
    parameters: Any = None
    parameters_json_schema: Any = None


class ToolSet(msgspec.Struct, rename="camel"):
    """One of `tools`."""

    function_declarations: list[Declaration] = []


class CallingConfig(msgspec.Struct, rename="camel"):
    """`toolConfig.functionCallingConfig`."""

    mode: str = "AUTO"
    allowed_function_names: list[str] = []


class ToolConfig(msgspec.Struct, rename="camel"):
    """`toolConfig` of a request."""

    function_calling_config: CallingConfig | None = None


class ThinkingConfig(msgspec.Struct, rename="camel"):
    """`generationConfig.thinkingConfig`."""

    include_thoughts: bool = False
    thinking_budget: int | None = None
    """0 turns reasoning off, -1 leaves its length to the model."""


class GenerationConfig(msgspec.Struct, rename="camel"):
    """`generationConfig` of a request."""

    max_output_tokens: Limit | None = None
    candidate_count: Annotated[int, Meta(ge=1, le=8)] | None = None
    response_mime_type: str | None = None
    response_schema: Any = None
    response_json_schema: Any = None
    thinking_config: ThinkingConfig | None = None


class ContentBody(msgspec.Struct, rename="camel"):
    """The body of `:generateContent` and `:streamGenerateContent`."""

    contents: Annotated[list[Content], Meta(min_length=1)]
    system_instruction: Content | None = None
    tools: list[dict[str, Any]] | None = None
    tool_config: ToolConfig | None = None
    generation_config: GenerationConfig | None = None
    labels: dict[str, Any] | None = None

    def prompt_tokens(self) -> int:
        """Tokens of all contents, of the system instruction as one more content, and of the tools."""
        total = sum(content.tokens() for content in self.contents)
        if self.system_instruction is not None:
            total += self.system_instruction.tokens()
        return total + json_tokens(self.tools) if self.tools else total

    def requested_fault(self, body: bytes) -> Fault | None:
        """The fault in `labels.simulate` or in the first user text. Raises `InvalidRequest`."""
        return find_labelled_fault(self.labels, "labels", body, self._first_user_text)

    def _first_user_text(self) -> str:
        return next((content.text() for content in self.contents if content.role == "user"), "")


class CountBody(msgspec.Struct, rename="camel"):
    """The body of `:countTokens`: contents or a whole request."""

    contents: list[Content] = []
    generate_content_request: ContentBody | None = None


class GenerateRequest(NamedTuple):
    """One request for content."""

    model: str
    given: ContentBody
    framing: Framing | None

    def requested_fault(self, body: bytes) -> Fault | None:
        """As `ContentBody.requested_fault`."""
        return self.given.requested_fault(body)

    def respond(self, fault: Fault, plan: Plan, random: Random, repetition: int) -> DialectResponse:
        """Generate the response."""
        generation = generate(self._params(), fault, plan, random, repetition)
        rendering = _Rendering(generation, fault)
        return DialectResponse(
            billed=generation.billed,
            body=rendering.json_body,
            framing=self.framing,
            events=rendering.array_events if self.framing is ARRAY else rendering.events,
            hidden_tokens=rendering.hidden_tokens,
            content_type=JSON_UTF8,
        )

    def _params(self) -> GenerationParams:
        config = self.given.generation_config or GenerationConfig()
        thinking = config.thinking_config or ThinkingConfig(thinking_budget=0)
        prompt_tokens = self.given.prompt_tokens()
        return GenerationParams(
            model=self.model,
            prompt_tokens=prompt_tokens,
            max_tokens=config.max_output_tokens,
            n=config.candidate_count or 1,
            after_tool=any(part.function_response is not None for part in self.given.contents[-1].parts),
            whole_arguments=True,
            reasons=thinking.thinking_budget != 0,
            max_reasoning_tokens=thinking.thinking_budget if (thinking.thinking_budget or 0) > 0 else None,
            shows_reasoning=thinking.include_thoughts,
            cacheable_tokens=implicitly_cacheable(prompt_tokens),
            reports_cache_writes=False,
            refuses_without_text=True,
            **_format_params(config),
            **self._tool_params(),
        )

    def _tool_params(self) -> dict[str, Any]:
        sets = [convert(tool, ToolSet, "tools") for tool in self.given.tools or ()]
        declared = [one for tool_set in sets for one in tool_set.function_declarations]
        tools = [Tool(one.name, one.parameters_json_schema or one.parameters) for one in declared]
        calling = (self.given.tool_config and self.given.tool_config.function_calling_config) or CallingConfig()
        names = calling.allowed_function_names
        return {
            "tools": tools,
            "tool_choice": {"ANY": "required", "NONE": "none"}.get(calling.mode.upper(), "auto"),
            "tool_name": names[0] if names and calling.mode.upper() == "ANY" else "",
        }


class CountRequest(NamedTuple):
    """A request to count tokens, which costs nothing."""

    model: str
    given: ContentBody

    def requested_fault(self, body: bytes) -> Fault | None:
        """As `ContentBody.requested_fault`."""
        return self.given.requested_fault(body)

    def respond(self, fault: Fault, plan: Plan, random: Random, repetition: int) -> DialectResponse:
        """Count the tokens."""
        tokens = number(self.given.prompt_tokens(), fault)
        details = f'[{{"modality":"TEXT","tokenCount":{tokens}}}]'
        body = f'{{"totalTokens":{tokens},"promptTokensDetails":{details}}}'.encode()
        return DialectResponse(BilledTokens(0, 0), lambda: body, content_type=JSON_UTF8)


class GenerateContentDialect:
    """`POST /v1beta/models/{model}:generateContent`, or `:streamGenerateContent` with a framing."""

    name = "gemini_generate"
    _decoder = msgspec.json.Decoder(ContentBody)

    def __init__(self, framing: Framing | None = None) -> None:
        self._framing = framing

    def read(self, body: bytes, url: UrlParams) -> GenerateRequest:
        """Parse a request. Raises `InvalidRequest`."""
        return GenerateRequest(model_of(url), read_proto(self._decoder, body), self._framing)


class CountTokensDialect:
    """`POST /v1beta/models/{model}:countTokens`."""

    name = "gemini_count_tokens"
    _decoder = msgspec.json.Decoder(CountBody)

    def read(self, body: bytes, url: UrlParams) -> CountRequest:
        """Parse a request. Raises `InvalidRequest`."""
        count = read_proto(self._decoder, body)
        if count.generate_content_request is None and not count.contents:
            raise InvalidRequest("contents is not specified")
        return CountRequest(model_of(url), count.generate_content_request or ContentBody(contents=count.contents))


class _Rendering(NamedTuple):
    """A generation in Gemini's format."""

    generation: Generation
    fault: Fault

    @property
    def hidden_tokens(self) -> int:
        """Tokens of reasoning that is not shown."""
        return 0 if self.generation.reasoning_text else self.generation.billed.reasoning

    def json_body(self) -> bytes:
        candidates = [self._candidate(index, choice) for index, choice in enumerate(self.generation.choices)]
        billed = self.generation.billed
        return self._chunk(candidates, billed.completion - billed.reasoning, billed.reasoning)

    def events(self, cost: str | None = None) -> Iterator[Event]:
        """Chunks, each with the usage so far. The format has no field for a cost."""
        return (replace(event, data=b"data: " + event.data + b"\r\n\r\n") for event in self._chunks())

    def array_events(self, cost: str | None = None) -> Iterator[Event]:
        """The chunks as one JSON array."""
        for position, event in enumerate(self._chunks()):
            yield replace(event, data=(b"\n,\r\n" if position else b"[") + event.data, is_last=False)
        if self.fault.done is None:
            yield Event(b"\n]\n", is_last=True)

    def _chunks(self) -> Iterator[Event]:
        visible, reasoning = 0, self.hidden_tokens
        for index, part, tokens, reasoning_tokens in self._parts():
            visible, reasoning = visible + tokens, reasoning + reasoning_tokens
            candidate = {"content": {"parts": [part], "role": "model"}, "index": index}
            yield Event(self._chunk([candidate], visible, reasoning), tokens, reasoning_tokens)
        if self.fault.done is not None:
            return
        for index, choice in enumerate(self.generation.choices):
            end = {"finishReason": _FINISH[choice.finish_reason], "index": index}
            if choice.finish_reason != "refusal":
                end = {"content": {"parts": [{"text": ""}], "role": "model"}, **end}
            yield Event(self._chunk([end], visible, reasoning), is_last=index == len(self.generation.choices) - 1)

    def _parts(self) -> Iterator[tuple[int, dict[str, Any], int, int]]:
        """The candidate's index, a part, its tokens of the content and of visible reasoning."""
        for piece in pieces(self.generation.reasoning_text, self.fault):
            yield 0, {"text": piece, "thought": True}, 0, text_tokens(piece)
        for index, choice in enumerate(self.generation.choices):
            for piece in pieces(choice.text, self.fault):
                yield index, {"text": piece}, text_tokens(piece), 0
            for call in choice.calls:
                yield index, _function_call(call), call.tokens, 0

    def _candidate(self, index: int, choice: Choice) -> dict[str, Any]:
        end = {"finishReason": _FINISH[choice.finish_reason], "index": index}
        if choice.finish_reason == "refusal":
            return end
        parts: list[dict[str, Any]] = []
        if self.generation.reasoning_text and index == 0:
            parts.append({"text": self.generation.reasoning_text, "thought": True})
        if choice.text:
            parts.append({"text": choice.text})
        parts += [_function_call(call) for call in choice.calls]
        # As in Gemini, a candidate that spent all its tokens on reasoning has a content without parts.
        return {"content": {"parts": parts, "role": "model"} if parts else {"role": "model"}, **end}

    def _chunk(self, candidates: list[dict[str, Any]], visible: int, reasoning: int) -> bytes:
        chunk = {
            "candidates": candidates,
            "modelVersion": self.generation.model,
            "responseId": f"{self.generation.id_bits % 16**20:020x}",
        }
        return with_usage(msgspec.json.encode(chunk), self._usage(visible, reasoning), self.fault, _USAGE_KEY)

    def _usage(self, visible: int, reasoning: int) -> bytes:
        """The usage object. Google's JSON omits a number that is 0, and counts reasoning separately."""
        billed, fault = self.generation.billed, self.fault
        prompt = number(billed.prompt, fault)
        counts = {
            "candidatesTokenCount": visible,
            "totalTokenCount": billed.prompt + visible + reasoning,
            "cachedContentTokenCount": billed.cached,
            "thoughtsTokenCount": reasoning,
        }
        fields = [
            f'"{key}":{number(count, fault)}' for key, count in counts.items() if count or fault.usage in _WRONG_USAGES
        ]
        details = f'"promptTokensDetails":[{{"modality":"TEXT","tokenCount":{prompt}}}]'
        return f'{{"promptTokenCount":{prompt},{",".join(fields)},{details}}}'.encode()


def _function_call(call: ToolCall) -> dict[str, Any]:
    arguments = msgspec.Raw(call.arguments.encode())
    return {"functionCall": {"id": call.id[:16], "name": call.name, "args": arguments}}


def _format_params(config: GenerationConfig) -> dict[str, Any]:
    schema = config.response_json_schema or config.response_schema
    text_format = _MIME_FORMATS.get(config.response_mime_type or "", "text")
    if text_format == "json" and schema is not None:
        text_format = "schema"
    return {"text_format": text_format, "schema": schema}


def _encoded_error() -> bytes:
    return msgspec.json.encode(error_object(500))


SSE = Framing(
    broken_json=b'data: {"candidates":[{"content":{"parts":[{"text":\r\n\r\n',
    error=lambda sent: b"data: " + _encoded_error() + b"\r\n\r\n",
)
ARRAY = Framing(
    broken_json=b'\n,\r\n{"candidates":[{"content":{"parts":[{"text":',
    error=lambda sent: (b"\n,\r\n" if sent else b"[") + _encoded_error() + b"\n]\n",
    content_type=JSON_UTF8,
)
