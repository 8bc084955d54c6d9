"""Gemini's generateContent, streamGenerateContent and countTokens (https://ai.google.dev/api/generate-content)."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from mcpmeter.errors import InvalidRequest
from mcpmeter.simulator.answers import (
    Answer,
    Choice,
    Tally,
    Tool,
    ToolCall,
    Wanted,
    draw_answer,
    implicitly_cacheable,
    number,
    pieces,
    with_usage,
)
from mcpmeter.simulator.dialects.base import Event, Framing, Reply, Target
from mcpmeter.simulator.dialects.gemini_content import Content, named_model, read_proto
from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.plan import Plan
from mcpmeter.simulator.request_parsing import Limit, convert, find_fault, json_tokens, text_tokens
from mcpmeter.simulator.vendors.google import JSON_UTF8, error_object

_FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP", "refusal": "SAFETY"}
_MIME_FORMATS = {"application/json": "json", "text/x.enum": "enum"}
_ODD_USAGES = ("zero", "negative", "string", "nan", "overflow")
_USAGE_KEY = b"usageMetadata"


class Declaration(msgspec.Struct, rename="camel"):
    """A function that may be called."""

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
    """0 thinks not at all, -1 as long as the model likes."""


class GenerationConfig(msgspec.Struct, rename="camel"):
    """`generationConfig` of a request."""

    max_output_tokens: Limit | None = None
    candidate_count: Annotated[int, Meta(ge=1, le=8)] | None = None
    response_mime_type: str | None = None
    response_schema: Any = None
    response_json_schema: Any = None
    thinking_config: ThinkingConfig | None = None


class PromptBody(msgspec.Struct, rename="camel"):
    """What is counted, generated from and streamed from alike."""

    contents: Annotated[list[Content], Meta(min_length=1)]
    system_instruction: Content | None = None
    tools: list[dict[str, Any]] | None = None
    tool_config: ToolConfig | None = None
    generation_config: GenerationConfig | None = None
    labels: dict[str, Any] | None = None

    def prompt_tokens(self) -> int:
        """Every content, the system instruction as one more, and the tools."""
        total = sum(content.tokens() for content in self.contents)
        if self.system_instruction is not None:
            total += self.system_instruction.tokens()
        return total + json_tokens(self.tools) if self.tools else total

    def wished_fault(self, body: bytes) -> Fault | None:
        """What `labels.simulate` or the first user text asks for. Raises `InvalidRequest`."""
        said = self.labels.get("simulate") if self.labels else None
        return find_fault(said, "labels.simulate", body, self._first_user_text)

    def _first_user_text(self) -> str:
        return next((content.text() for content in self.contents if content.role == "user"), "")


class CountBody(msgspec.Struct, rename="camel"):
    """The body of `:countTokens`: contents, or a whole request."""

    contents: list[Content] = []
    generate_content_request: PromptBody | None = None


class GenerateAsk(NamedTuple):
    """One request for content."""

    model_name: str
    given: PromptBody
    framing: Framing | None

    @property
    def is_stream(self) -> bool:
        """As `Ask.is_stream`."""
        return self.framing is not None

    def wished_fault(self, body: bytes) -> Fault | None:
        """As `Ask.wished_fault`."""
        return self.given.wished_fault(body)

    def draw(self, fault: Fault, plan: Plan, random: Random, nth: int) -> Reply:
        """As `Ask.draw`."""
        answer = draw_answer(self._wanted(), fault, plan, random, nth)
        written = _Written(answer, fault)
        return Reply(
            tally=answer.tally,
            body=written.json_body,
            framing=self.framing,
            events=written.array_events if self.framing is ARRAY else written.events,
            hidden_tokens=written.hidden_tokens,
            content_type=JSON_UTF8,
        )

    def _wanted(self) -> Wanted:
        config = self.given.generation_config or GenerationConfig()
        thinking = config.thinking_config or ThinkingConfig(thinking_budget=0)
        prompt_tokens = self.given.prompt_tokens()
        return Wanted(
            model=self.model_name,
            prompt_tokens=prompt_tokens,
            limit=config.max_output_tokens,
            n=config.candidate_count or 1,
            after_tool=any(part.function_response is not None for part in self.given.contents[-1].parts),
            whole_arguments=True,
            thinks=thinking.thinking_budget != 0,
            thought_limit=thinking.thinking_budget if (thinking.thinking_budget or 0) > 0 else None,
            shows_thoughts=thinking.include_thoughts,
            cacheable_tokens=implicitly_cacheable(prompt_tokens),
            tells_cache_writes=False,
            is_silent_refusing=True,
            **_format_wanted(config),
            **self._tools_wanted(),
        )

    def _tools_wanted(self) -> dict[str, Any]:
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


class CountAsk(NamedTuple):
    """A request to count tokens. It costs nothing."""

    model_name: str
    given: PromptBody
    is_stream: bool = False

    def wished_fault(self, body: bytes) -> Fault | None:
        """As `Ask.wished_fault`."""
        return self.given.wished_fault(body)

    def draw(self, fault: Fault, plan: Plan, random: Random, nth: int) -> Reply:
        """As `Ask.draw`."""
        told = number(self.given.prompt_tokens(), fault)
        details = f'[{{"modality":"TEXT","tokenCount":{told}}}]'
        body = f'{{"totalTokens":{told},"promptTokensDetails":{details}}}'.encode()
        return Reply(Tally(0, 0), lambda: body, content_type=JSON_UTF8)


class GeminiGenerate:
    """`POST /v1beta/models/{model}:generateContent`, or `:streamGenerateContent` where there is a framing."""

    name = "gemini_generate"
    _decoder = msgspec.json.Decoder(PromptBody)

    def __init__(self, framing: Framing | None = None) -> None:
        self._framing = framing

    def read(self, body: bytes, target: Target) -> GenerateAsk:
        """Raises `InvalidRequest` for anything that is not a request for content."""
        return GenerateAsk(named_model(target), read_proto(self._decoder, PromptBody, body), self._framing)


class GeminiCountTokens:
    """`POST /v1beta/models/{model}:countTokens`."""

    name = "gemini_count_tokens"
    _decoder = msgspec.json.Decoder(CountBody)

    def read(self, body: bytes, target: Target) -> CountAsk:
        """Raises `InvalidRequest` for anything that has nothing to count."""
        asked = read_proto(self._decoder, CountBody, body)
        if asked.generate_content_request is None and not asked.contents:
            raise InvalidRequest("contents is not specified")
        return CountAsk(named_model(target), asked.generate_content_request or PromptBody(contents=asked.contents))


class _Written(NamedTuple):
    """An answer in Gemini's words."""

    answer: Answer
    fault: Fault

    @property
    def hidden_tokens(self) -> int:
        """Thoughts that are not shown."""
        return 0 if self.answer.thoughts else self.answer.tally.reasoning

    def json_body(self) -> bytes:
        candidates = [self._candidate(index, choice) for index, choice in enumerate(self.answer.choices)]
        tally = self.answer.tally
        return self._chunk(candidates, tally.completion - tally.reasoning, tally.reasoning)

    def events(self, cost: str | None = None) -> Iterator[Event]:
        """Chunk after chunk, each with the usage so far. There is no room for a cost in it."""
        return (replace(event, data=b"data: " + event.data + b"\r\n\r\n") for event in self._chunks())

    def array_events(self, cost: str | None = None) -> Iterator[Event]:
        """The same chunks as one JSON array."""
        for place, event in enumerate(self._chunks()):
            yield replace(event, data=(b"\n,\r\n" if place else b"[") + event.data, is_last=False)
        if self.fault.done is None:
            yield Event(b"\n]\n", is_last=True)

    def _chunks(self) -> Iterator[Event]:
        made, thought = 0, self.hidden_tokens
        for index, part, tokens, thoughts in self._parts():
            made, thought = made + tokens, thought + thoughts
            candidate = {"content": {"parts": [part], "role": "model"}, "index": index}
            yield Event(self._chunk([candidate], made, thought), tokens, thoughts)
        if self.fault.done is not None:
            return
        for index, choice in enumerate(self.answer.choices):
            end = {"finishReason": _FINISH[choice.finish_reason], "index": index}
            if choice.finish_reason != "refusal":
                end = {"content": {"parts": [{"text": ""}], "role": "model"}, **end}
            yield Event(self._chunk([end], made, thought), is_last=index == len(self.answer.choices) - 1)

    def _parts(self) -> Iterator[tuple[int, dict[str, Any], int, int]]:
        """The candidate's index, a part, its tokens of the answer and of shown thoughts."""
        for piece in pieces(self.answer.thoughts, self.fault):
            yield 0, {"text": piece, "thought": True}, 0, text_tokens(piece)
        for index, choice in enumerate(self.answer.choices):
            for piece in pieces(choice.text, self.fault):
                yield index, {"text": piece}, text_tokens(piece), 0
            for call in choice.calls:
                yield index, _function_call(call), call.tokens, 0

    def _candidate(self, index: int, choice: Choice) -> dict[str, Any]:
        end = {"finishReason": _FINISH[choice.finish_reason], "index": index}
        if choice.finish_reason == "refusal":
            return end
        parts: list[dict[str, Any]] = []
        if self.answer.thoughts and index == 0:
            parts.append({"text": self.answer.thoughts, "thought": True})
        if choice.text:
            parts.append({"text": choice.text})
        parts += [_function_call(call) for call in choice.calls]
        # As Gemini does: a candidate that used up its tokens for thoughts has a content without parts.
        return {"content": {"parts": parts, "role": "model"} if parts else {"role": "model"}, **end}

    def _chunk(self, candidates: list[dict[str, Any]], made: int, thought: int) -> bytes:
        known = {
            "candidates": candidates,
            "modelVersion": self.answer.model,
            "responseId": f"{self.answer.id_bits % 16**20:020x}",
        }
        return with_usage(msgspec.json.encode(known), self._usage(made, thought), self.fault, _USAGE_KEY)

    def _usage(self, made: int, thought: int) -> bytes:
        """The usage object. As in all of Google's JSON a number that is 0 is left out; thoughts are a count apart."""
        tally, fault = self.answer.tally, self.fault
        prompt = number(tally.prompt, fault)
        counts = {
            "candidatesTokenCount": made,
            "totalTokenCount": tally.prompt + made + thought,
            "cachedContentTokenCount": tally.cached,
            "thoughtsTokenCount": thought,
        }
        told = [f'"{key}":{number(n, fault)}' for key, n in counts.items() if n or fault.usage in _ODD_USAGES]
        details = f'"promptTokensDetails":[{{"modality":"TEXT","tokenCount":{prompt}}}]'
        return f'{{"promptTokenCount":{prompt},{",".join(told)},{details}}}'.encode()


def _function_call(call: ToolCall) -> dict[str, Any]:
    arguments = msgspec.Raw(call.arguments.encode())
    return {"functionCall": {"id": call.id[:16], "name": call.name, "args": arguments}}


def _format_wanted(config: GenerationConfig) -> dict[str, Any]:
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
