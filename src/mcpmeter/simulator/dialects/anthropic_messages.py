"""Anthropic's messages (https://docs.claude.com/en/api/messages, …/messages-streaming)."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

import msgspec

from mcpmeter.errors import InvalidRequest
from mcpmeter.simulator.dialects.anthropic_prompt import (
    CustomTool,
    MessagesPrompt,
    Prompt,
    Thinking,
    ToolChoice,
    has_result,
)
from mcpmeter.simulator.dialects.base import DialectResponse, Event, Framing, sse
from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.generation import (
    CACHE_MIN_TOKENS,
    Choice,
    Generation,
    GenerationParams,
    Tool,
    ToolCall,
    generate,
    number,
    pieces,
    with_usage,
)
from mcpmeter.simulator.plan import Plan
from mcpmeter.simulator.request_parsing import Limit, convert, text_tokens
from mcpmeter.simulator.vendors.anthropic import error_object

MIN_THINKING_BUDGET_TOKENS = 1024
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "refusal": "refusal"}


class MessagesRequest(MessagesPrompt, kw_only=True):
    """The body of `POST /v1/messages`."""

    max_tokens: Limit
    stream: bool | None = None

    def respond(self, fault: Fault, plan: Plan, random: Random, repetition: int) -> DialectResponse:
        """Generate the response."""
        prompt = self.prompt()
        generation = generate(self._params(prompt), fault, plan, random, repetition)
        rendering = _Rendering(generation, fault, for_an_hour=prompt.for_an_hour)
        return DialectResponse(
            billed=generation.billed,
            body=rendering.json_body,
            framing=FRAMING if self.stream else None,
            events=rendering.events,
            hidden_tokens=0 if generation.reasoning_text else generation.billed.reasoning,
        )

    def _params(self, prompt: Prompt) -> GenerationParams:
        thinking = self._checked_thinking()
        schema = self.output_config.format if self.output_config else None
        return GenerationParams(
            model=self.model,
            prompt_tokens=prompt.tokens,
            max_tokens=self.max_tokens,
            after_tool=has_result(self.messages[-1]),
            whole_arguments=True,
            text_format="text" if schema is None else "schema",
            schema=None if schema is None else schema.schema,
            reasons=thinking.type in ("enabled", "adaptive"),
            max_reasoning_tokens=thinking.budget_tokens,
            shows_reasoning=thinking.display != "omitted",
            cacheable_tokens=prompt.marked_tokens if prompt.marked_tokens >= CACHE_MIN_TOKENS else 0,
            writes_cache=True,
            **self._tool_params(),
        )

    def _tool_params(self) -> dict[str, Any]:
        given = [convert(tool, CustomTool, "tools") for tool in self.tools or ()]
        choice = self.tool_choice or ToolChoice()
        return {
            "tools": [Tool(tool.name, tool.input_schema) for tool in given if tool.input_schema is not None],
            "tool_choice": {"any": "required", "tool": "required"}.get(choice.type, choice.type),
            "tool_name": choice.name if choice.type == "tool" else "",
        }

    def _checked_thinking(self) -> Thinking:
        thinking = self.thinking or Thinking()
        budget = thinking.budget_tokens
        if thinking.type == "enabled" and (budget is None or budget < MIN_THINKING_BUDGET_TOKENS):
            raise InvalidRequest("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024")
        if thinking.type == "enabled" and budget is not None and budget >= self.max_tokens:
            raise InvalidRequest("`max_tokens` must be greater than `thinking.budget_tokens`.")
        return thinking


class _Rendering(NamedTuple):
    """A generation in Anthropic's format."""

    generation: Generation
    fault: Fault
    for_an_hour: bool

    def json_body(self) -> bytes:
        message = self._message(self._blocks()) | _stop_fields(self._choice)
        return with_usage(msgspec.json.encode(message), self._usage(self.generation.billed.completion), self.fault)

    def events(self, cost: str | None = None) -> Iterator[Event]:
        """From `message_start` to `message_stop`, which the fault may omit."""
        ping = Event(sse("ping", {"type": "ping"}))
        yield self._start()
        for index, block in enumerate(self._blocks()):
            yield from self._block_events(index, block, ping if index == 0 else None)
        for _ in range(2 if self.fault.usage == "twice" else 1):
            yield self._delta(cost)
        if self.fault.done is None:
            yield Event(sse("message_stop", {"type": "message_stop"}), is_last=True)

    @property
    def _choice(self) -> Choice:
        return self.generation.choices[0]

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"msg_01{self.generation.id_bits % 16**22:022x}",
            "type": "message",
            "role": "assistant",
            "model": self.generation.model,
            "content": content,
        }

    def _blocks(self) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = []
        if self.generation.billed.reasoning:
            signature = b64encode(self.generation.id_bits.to_bytes(16, "big") * 4).decode()
            blocks.append({"type": "thinking", "thinking": self.generation.reasoning_text, "signature": signature})
        if self._choice.text:
            blocks.append({"type": "text", "text": self._choice.text})
        return blocks + [_tool_use(call) for call in self._choice.calls]

    def _start(self) -> Event:
        message = self._message([]) | {"stop_reason": None, "stop_sequence": None}
        usage = self._usage(min(1, self.generation.billed.completion), details=False)
        whole = msgspec.json.encode(message)
        if self.fault.usage != "missing":
            whole = whole[:-1] + b',"usage":' + usage + b"}"
        return Event(b'event: message_start\ndata: {"type":"message_start","message":' + whole + b"}\n\n")

    def _block_events(self, index: int, block: dict[str, Any], ping: Event | None) -> Iterator[Event]:
        tokens = text_tokens(block["name"]) if block["type"] == "tool_use" else 0
        start = {"type": "content_block_start", "index": index, "content_block": _emptied(block)}
        yield Event(sse("content_block_start", start), tokens)
        if ping is not None:
            yield ping
        prefix = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":' % index
        for delta, tokens, reasoning_tokens in _deltas(block, self.fault):
            yield Event(prefix + msgspec.json.encode(delta) + b"}\n\n", tokens, reasoning_tokens)
        yield Event(sse("content_block_stop", {"type": "content_block_stop", "index": index}))

    def _delta(self, cost: str | None) -> Event:
        data = msgspec.json.encode({"type": "message_delta", "delta": _stop_fields(self._choice)})
        if self.fault.usage != "missing":
            priced = b"" if cost is None else b',"cost":' + cost.encode()
            usage = self._usage(self.generation.billed.completion)[:-1] + priced + b"}"
            data = data[:-1] + b',"usage":' + usage + b"}"
        return Event(b"event: message_delta\ndata: " + data + b"\n\n")

    def _usage(self, output_tokens: int, *, details: bool = True) -> bytes:
        """The usage object; `input_tokens` excludes cached tokens and cache writes."""
        billed = self.generation.billed
        values = (billed.prompt - billed.cached - billed.cache_write, billed.cache_write, billed.cached, output_tokens)
        fresh, written, cached, output = (number(value, self.fault) for value in values)
        by_ttl = (number(0, self.fault), written) if self.for_an_hour else (written, number(0, self.fault))
        thinking = f'"output_tokens_details":{{"thinking_tokens":{number(billed.reasoning, self.fault)}}},'
        return (
            f'{{"input_tokens":{fresh},"cache_creation_input_tokens":{written},"cache_read_input_tokens":{cached},'
            f'"cache_creation":{{"ephemeral_5m_input_tokens":{by_ttl[0]},"ephemeral_1h_input_tokens":{by_ttl[1]}}},'
            f'"output_tokens":{output},{thinking if details else ""}"service_tier":"standard"}}'
        ).encode()


def _stop_fields(choice: Choice) -> dict[str, Any]:
    fields: dict[str, Any] = {"stop_reason": _STOP_REASONS[choice.finish_reason], "stop_sequence": None}
    if choice.finish_reason == "refusal":
        fields["stop_details"] = {"type": "refusal", "category": None, "explanation": None}
    return fields


def _tool_use(call: ToolCall) -> dict[str, Any]:
    arguments = msgspec.Raw(call.arguments.encode())
    return {"type": "tool_use", "id": f"toolu_01{call.id[:22]}", "name": call.name, "input": arguments}


def _emptied(block: dict[str, Any]) -> dict[str, Any]:
    match block["type"]:
        case "tool_use":
            return block | {"input": {}}
        case "thinking":
            return block | {"thinking": "", "signature": ""}
        case _:
            return block | {"text": ""}


def _deltas(block: dict[str, Any], fault: Fault) -> Iterator[tuple[dict[str, str], int, int]]:
    """Each delta with its tokens of the content and of visible reasoning."""
    match block["type"]:
        case "tool_use":
            yield {"type": "input_json_delta", "partial_json": ""}, 0, 0
            for piece in pieces(bytes(block["input"]).decode(), fault):
                yield {"type": "input_json_delta", "partial_json": piece}, text_tokens(piece), 0
        case "thinking":
            for piece in pieces(block["thinking"], fault):
                yield {"type": "thinking_delta", "thinking": piece}, 0, text_tokens(piece)
            yield {"type": "signature_delta", "signature": block["signature"]}, 0, 0
        case _:
            for piece in pieces(block["text"], fault):
                yield {"type": "text_delta", "text": piece}, text_tokens(piece), 0


FRAMING = Framing(
    broken_json=(
        b"event: content_block_delta\n"
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":\n\n'
    ),
    error=lambda sent: sse("error", error_object(529)),
)
