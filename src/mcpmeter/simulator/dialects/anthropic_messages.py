"""Anthropic's messages (https://docs.claude.com/en/api/messages, …/messages-streaming)."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

import msgspec

from mcpmeter.errors import InvalidRequest
from mcpmeter.simulator.answers import (
    CACHE_MIN_TOKENS,
    Answer,
    Choice,
    Tool,
    ToolCall,
    Wanted,
    draw_answer,
    number,
    pieces,
    with_usage,
)
from mcpmeter.simulator.dialects.anthropic_prompt import (
    CustomTool,
    Prompt,
    PromptBody,
    Thinking,
    ToolChoice,
    has_result,
)
from mcpmeter.simulator.dialects.base import Event, Framing, Reply, Target, sse
from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.plan import Plan
from mcpmeter.simulator.request_parsing import Limit, convert, read, text_tokens
from mcpmeter.simulator.vendors.anthropic import error_object

MIN_THINKING_BUDGET_TOKENS = 1024
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "refusal": "refusal"}


class MessagesAsk(PromptBody, kw_only=True):
    """The body of `POST /v1/messages`."""

    max_tokens: Limit
    stream: bool | None = None

    @property
    def is_stream(self) -> bool:
        """As `Ask.is_stream`."""
        return bool(self.stream)

    def draw(self, fault: Fault, plan: Plan, random: Random, nth: int) -> Reply:
        """As `Ask.draw`."""
        prompt = self.prompt()
        answer = draw_answer(self._wanted(prompt), fault, plan, random, nth)
        written = _Written(answer, fault, is_thinking=answer.tally.reasoning > 0, for_an_hour=prompt.for_an_hour)
        return Reply(
            tally=answer.tally,
            body=written.json_body,
            framing=FRAMING if self.stream else None,
            events=written.events,
            hidden_tokens=0 if answer.thoughts else answer.tally.reasoning,
        )

    def _wanted(self, prompt: Prompt) -> Wanted:
        thinking = self._checked_thinking()
        schema = self.output_config.format if self.output_config else None
        return Wanted(
            model=self.model,
            prompt_tokens=prompt.tokens,
            limit=self.max_tokens,
            after_tool=has_result(self.messages[-1]),
            whole_arguments=True,
            text_format="text" if schema is None else "schema",
            schema=None if schema is None else schema.schema,
            thinks=thinking.type in ("enabled", "adaptive"),
            thought_limit=thinking.budget_tokens,
            shows_thoughts=thinking.display != "omitted",
            cacheable_tokens=prompt.marked_tokens if prompt.marked_tokens >= CACHE_MIN_TOKENS else 0,
            writes_cache=True,
            **self._tools_wanted(),
        )

    def _tools_wanted(self) -> dict[str, Any]:
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


class AnthropicMessages:
    """`POST /v1/messages`."""

    name = "anthropic_messages"
    _decoder = msgspec.json.Decoder(MessagesAsk)

    def read(self, body: bytes, target: Target = Target()) -> MessagesAsk:  # noqa: B008 (immutable)
        """Raises `InvalidRequest` for anything that is not a request for a message."""
        return read(self._decoder, body)


class _Written(NamedTuple):
    """An answer in Anthropic's words."""

    answer: Answer
    fault: Fault
    is_thinking: bool
    for_an_hour: bool

    def json_body(self) -> bytes:
        message = self._message(self._blocks()) | _stopped(self._choice)
        return with_usage(msgspec.json.encode(message), self._usage(self.answer.tally.completion), self.fault)

    def events(self, cost: str | None = None) -> Iterator[Event]:
        """From `message_start` to `message_stop`, which the fault may leave out."""
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
        return self.answer.choices[0]

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"msg_01{self.answer.id_bits % 16**22:022x}",
            "type": "message",
            "role": "assistant",
            "model": self.answer.model,
            "content": content,
        }

    def _blocks(self) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = []
        if self.is_thinking:
            signature = b64encode(self.answer.id_bits.to_bytes(16, "big") * 4).decode()
            blocks.append({"type": "thinking", "thinking": self.answer.thoughts, "signature": signature})
        if self._choice.text:
            blocks.append({"type": "text", "text": self._choice.text})
        return blocks + [_tool_use(call) for call in self._choice.calls]

    def _start(self) -> Event:
        message = self._message([]) | {"stop_reason": None, "stop_sequence": None}
        usage = self._usage(min(1, self.answer.tally.completion), details=False)
        whole = msgspec.json.encode(message)
        if self.fault.usage != "missing":
            whole = whole[:-1] + b',"usage":' + usage + b"}"
        return Event(b'event: message_start\ndata: {"type":"message_start","message":' + whole + b"}\n\n")

    def _block_events(self, index: int, block: dict[str, Any], ping: Event | None) -> Iterator[Event]:
        tokens = text_tokens(block["name"]) if block["type"] == "tool_use" else 0
        opened = {"type": "content_block_start", "index": index, "content_block": _emptied(block)}
        yield Event(sse("content_block_start", opened), tokens)
        if ping is not None:
            yield ping
        head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":' % index
        for delta, shown, thought in _deltas(block, self.fault):
            yield Event(head + msgspec.json.encode(delta) + b"}\n\n", shown, thought)
        yield Event(sse("content_block_stop", {"type": "content_block_stop", "index": index}))

    def _delta(self, cost: str | None) -> Event:
        data = msgspec.json.encode({"type": "message_delta", "delta": _stopped(self._choice)})
        if self.fault.usage != "missing":
            priced = b"" if cost is None else b',"cost":' + cost.encode()
            usage = self._usage(self.answer.tally.completion)[:-1] + priced + b"}"
            data = data[:-1] + b',"usage":' + usage + b"}"
        return Event(b"event: message_delta\ndata: " + data + b"\n\n")

    def _usage(self, output_tokens: int, *, details: bool = True) -> bytes:
        """The usage object; cached tokens and those written to the cache are not in `input_tokens`."""
        tally = self.answer.tally
        values = (tally.prompt - tally.cached - tally.cache_write, tally.cache_write, tally.cached, output_tokens)
        fresh, written, cached, output = (number(value, self.fault) for value in values)
        by_ttl = (number(0, self.fault), written) if self.for_an_hour else (written, number(0, self.fault))
        thinking = f'"output_tokens_details":{{"thinking_tokens":{number(tally.reasoning, self.fault)}}},'
        return (
            f'{{"input_tokens":{fresh},"cache_creation_input_tokens":{written},"cache_read_input_tokens":{cached},'
            f'"cache_creation":{{"ephemeral_5m_input_tokens":{by_ttl[0]},"ephemeral_1h_input_tokens":{by_ttl[1]}}},'
            f'"output_tokens":{output},{thinking if details else ""}"service_tier":"standard"}}'
        ).encode()


def _stopped(choice: Choice) -> dict[str, Any]:
    stopped: dict[str, Any] = {"stop_reason": _STOP_REASONS[choice.finish_reason], "stop_sequence": None}
    if choice.finish_reason == "refusal":
        stopped["stop_details"] = {"type": "refusal", "category": None, "explanation": None}
    return stopped


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
    """Each delta with the tokens of the answer and of shown thoughts in it."""
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
