"""OpenAI's chat completions (https://platform.openai.com/docs/api-reference/chat)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from mcpmeter.simulator.answers import (
    CREATED_UNIX_SECONDS,
    Answer,
    Choice,
    Tally,
    Tool,
    Wanted,
    draw_answer,
    implicitly_cacheable,
    number,
    pieces,
    with_usage,
)
from mcpmeter.simulator.dialects.base import Event, Framing, Reply, Target
from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.plan import Plan
from mcpmeter.simulator.request_parsing import (
    TOKENS_PER_MEDIA_PART,
    TOKENS_PER_MESSAGE,
    Limit,
    Model,
    convert,
    find_fault,
    json_tokens,
    read,
    text_tokens,
)
from mcpmeter.simulator.vendors.openai import OPENAI

DONE = b"data: [DONE]\n\n"
_FINISH = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "refusal": "stop"}


class Part(msgspec.Struct):
    """One part of a message's content."""

    type: str = "text"
    text: str = ""


class Message(msgspec.Struct):
    """One message; what is not counted is not kept."""

    role: str
    content: str | list[Part] | None = None


class StreamOptions(msgspec.Struct):
    """`stream_options` of a request."""

    include_usage: bool = False


class Function(msgspec.Struct):
    """A function that may be called."""

    name: Annotated[str, Meta(min_length=1)]
    parameters: Any = None


class FunctionTool(msgspec.Struct):
    """One of `tools`."""

    function: Function


class JsonSchema(msgspec.Struct):
    """`response_format.json_schema`."""

    schema: Any = None


class ResponseFormat(msgspec.Struct):
    """`response_format` of a request."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None


class ChatAsk(msgspec.Struct):
    """The body of `POST /v1/chat/completions`."""

    model: Model
    messages: Annotated[list[Message], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Limit | None = None
    max_completion_tokens: Limit | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    metadata: dict[str, Any] | None = None

    @property
    def model_name(self) -> str:
        """As `Ask.model_name`."""
        return self.model

    @property
    def is_stream(self) -> bool:
        """As `Ask.is_stream`."""
        return bool(self.stream)

    @property
    def include_usage(self) -> bool:
        """Whether a stream shall end with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def wished_fault(self, body: bytes) -> Fault | None:
        """As `Ask.wished_fault`; asked for by `metadata.simulate`."""
        said = self.metadata.get("simulate") if self.metadata else None
        return find_fault(said, "metadata.simulate", body, self._first_user_text)

    def draw(self, fault: Fault, plan: Plan, random: Random, nth: int) -> Reply:
        """As `Ask.draw`."""
        answer = draw_answer(self.wanted(), fault, plan, random, nth)
        return Reply(
            tally=answer.tally,
            body=partial(json_body, answer, fault),
            framing=FRAMING if self.stream else None,
            events=partial(stream_events, answer, fault, self.include_usage),
            hidden_tokens=answer.tally.reasoning,
        )

    def prompt_tokens(self) -> int:
        """Every text and part, 4 a message, and the tools."""
        total = TOKENS_PER_MESSAGE * len(self.messages)
        for message in self.messages:
            content = message.content
            if isinstance(content, str):
                total += text_tokens(content)
            elif content:
                total += sum(text_tokens(p.text) if p.type == "text" else TOKENS_PER_MEDIA_PART for p in content)
        return total + json_tokens(self.tools) if self.tools else total

    def wanted(self) -> Wanted:
        """What is asked, in no dialect. Raises `InvalidRequest` for tools that are none."""
        prompt_tokens = self.prompt_tokens()
        thinks = self.reasoning_effort not in (None, "none", "minimal") or self.model.startswith(("o1", "o3", "o4"))
        wanted = Wanted(
            model=self.model,
            prompt_tokens=prompt_tokens,
            limit=self.max_completion_tokens or self.max_tokens,
            n=self.n or 1,
            after_tool=self.messages[-1].role == "tool",
            thinks=thinks,
            cacheable_tokens=implicitly_cacheable(prompt_tokens),
        )
        if self.tools:
            wanted = replace(wanted, **self._tools_wanted(self.tools))
        if self.response_format is not None and self.response_format.type != "text":
            wanted = replace(wanted, **_format_wanted(self.response_format))
        return wanted

    def _tools_wanted(self, given: list[dict[str, Any]]) -> dict[str, Any]:
        functions = [convert(tool, FunctionTool, "tools").function for tool in given]
        tools = [Tool(function.name, function.parameters) for function in functions]
        if not isinstance(self.tool_choice, dict):
            choice = self.tool_choice if self.tool_choice in ("none", "required") else "auto"
            return {"tools": tools, "tool_choice": choice}
        function = self.tool_choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        return {"tools": tools, "tool_choice": "required", "tool_name": name if isinstance(name, str) else ""}

    def _first_user_text(self) -> str:
        content = next((message.content for message in self.messages if message.role == "user"), None)
        if isinstance(content, str):
            return content
        return next((part.text for part in content or () if part.type == "text"), "")


class OpenAiChat:
    """`POST /v1/chat/completions`."""

    name = "openai_chat"
    _decoder = msgspec.json.Decoder(ChatAsk)

    def read(self, body: bytes, target: Target = Target()) -> ChatAsk:  # noqa: B008 (immutable)
        """Raises `InvalidRequest` for anything that is not a chat request."""
        return read(self._decoder, body)


def json_body(answer: Answer, fault: Fault) -> bytes:
    """The body of an answer that is not streamed."""
    body: dict[str, Any] = {
        "id": _id(answer),
        "object": "chat.completion",
        "created": CREATED_UNIX_SECONDS,
        "model": answer.model,
        "choices": [
            {"index": index, "message": _message(choice), "logprobs": None, "finish_reason": _finish(choice)}
            for index, choice in enumerate(answer.choices)
        ],
        "service_tier": "default",
        "system_fingerprint": "fp_simulated",
    }
    return with_usage(msgspec.json.encode(body), _usage(answer.tally, fault), fault)


def stream_events(answer: Answer, fault: Fault, include_usage: bool, cost: str | None = None) -> Iterator[Event]:
    """The events of a streamed answer, in order; the last is `[DONE]` unless the fault leaves it out.

    With `include_usage` a chunk without choices carries the usage and all others `"usage":null`; else there is none.
    The fault `usage=with_choices` puts it into the last chunk that has choices, asked for or not.
    """
    usage = _usage(answer.tally, fault, cost)
    head = _chunk_head(answer)
    tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
    for index in range(len(answer.choices)):
        yield Event(head + _choice(index, b'{"role":"assistant","content":"","refusal":null}') + tail)
    for index, choice in enumerate(answer.choices):
        for delta, tokens in _deltas(choice, fault):
            yield Event(head + _choice(index, delta) + tail, tokens)
    for index, choice in enumerate(answer.choices):
        last = index == len(answer.choices) - 1 and fault.usage == "with_choices"
        end = b',"usage":' + usage + b"}\n\n" if last else tail
        yield Event(head + _choice(index, b"{}", _finish(choice)) + end)
    if include_usage and fault.usage not in ("missing", "with_choices"):
        for _ in range(2 if fault.usage == "twice" else 1):
            yield Event(head + b'[],"usage":' + usage + b"}\n\n")
    if fault.done is None:
        yield Event(DONE, is_last=True)


def _id(answer: Answer) -> str:
    return f"chatcmpl-{answer.id_bits:032x}"


def _finish(choice: Choice) -> str:
    return _FINISH[choice.finish_reason]


def _message(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None, "annotations": []}
    if choice.finish_reason == "refusal":
        message |= {"content": None, "refusal": choice.text}
    if choice.calls:
        message["content"] = None
        message["tool_calls"] = [
            {"id": f"call_{call.id}", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.calls
        ]
    return message


def _deltas(choice: Choice, fault: Fault) -> Iterator[tuple[bytes, int]]:
    field = b'{"refusal":' if choice.finish_reason == "refusal" else b'{"content":'
    for piece in pieces(choice.text, fault):
        yield field + msgspec.json.encode(piece) + b"}", text_tokens(piece)
    for place, call in enumerate(choice.calls):
        function = {"name": call.name, "arguments": ""}
        opening = {"index": place, "id": f"call_{call.id}", "type": "function", "function": function}
        yield msgspec.json.encode({"tool_calls": [opening]}), text_tokens(call.name)
        for piece in pieces(call.arguments, fault):
            more = {"index": place, "function": {"arguments": piece}}
            yield msgspec.json.encode({"tool_calls": [more]}), text_tokens(piece)


def _chunk_head(answer: Answer) -> bytes:
    known = {
        "id": _id(answer),
        "object": "chat.completion.chunk",
        "created": CREATED_UNIX_SECONDS,
        "model": answer.model,
        "service_tier": "default",
        "system_fingerprint": "fp_simulated",
    }
    return b"data: " + msgspec.json.encode(known)[:-1] + b',"choices":'


def _choice(index: int, delta: bytes, finish_reason: str | None = None) -> bytes:
    finish = b"null" if finish_reason is None else b'"%s"' % finish_reason.encode()
    return b'[{"index":%d,"delta":%s,"logprobs":null,"finish_reason":%s}]' % (index, delta, finish)


def _usage(tally: Tally, fault: Fault, cost: str | None = None) -> bytes:
    """The usage object with its numbers as the fault wants them written; `cost` (USD) is kept to its last digit."""
    numbers = (tally.prompt, tally.completion, tally.prompt + tally.completion, tally.cached, tally.reasoning)
    p, c, total, cached, reasoning = (number(value, fault) for value in numbers)
    written = f',"cache_write_tokens":{number(tally.cache_write, fault)}' if tally.cache_write else ""
    priced = f',"cost":{cost}' if cost is not None else ""
    return (
        f'{{"prompt_tokens":{p},"completion_tokens":{c},"total_tokens":{total},'
        f'"prompt_tokens_details":{{"cached_tokens":{cached},"audio_tokens":0{written}}},'
        f'"completion_tokens_details":{{"reasoning_tokens":{reasoning},"audio_tokens":0,'
        f'"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}{priced}}}'
    ).encode()


def _format_wanted(wished: ResponseFormat) -> dict[str, Any]:
    if wished.type == "json_schema" and wished.json_schema is not None:
        return {"text_format": "schema", "schema": wished.json_schema.schema}
    return {"text_format": "json"}


FRAMING = Framing(
    broken_json=b'data: {"id":"chatcmpl-broken","choices":[{"index":0,"delta":{"content":\n\n',
    error=lambda sent: b"data: " + OPENAI.typical(500).body + b"\n\n",
)
