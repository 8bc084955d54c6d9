"""OpenAI's chat completions (https://platform.openai.com/docs/api-reference/chat)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from mcpmeter.simulator.dialects.base import DialectResponse, Event, Framing
from mcpmeter.simulator.dialects.openai_content import Part, content_tokens, first_text, reasons, tool_params
from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.generation import (
    CREATED_UNIX_SECONDS,
    BilledTokens,
    Choice,
    Generation,
    GenerationParams,
    Tool,
    generate,
    implicitly_cacheable,
    number,
    pieces,
    with_usage,
)
from mcpmeter.simulator.plan import Plan
from mcpmeter.simulator.request_parsing import (
    TOKENS_PER_MESSAGE,
    Limit,
    Model,
    convert,
    find_labelled_fault,
    json_tokens,
    text_tokens,
)
from mcpmeter.simulator.vendors.openai import OPENAI

DONE = b"data: [DONE]\n\n"
_FINISH = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "refusal": "stop"}


class Message(msgspec.Struct):
    """The counted fields of one message."""

    role: str
    content: str | list[Part] | None = None


class StreamOptions(msgspec.Struct):
    """`stream_options` of a request."""

    include_usage: bool = False


class Function(msgspec.Struct):
    """A callable function."""

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


class ChatRequest(msgspec.Struct):
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
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def requested_fault(self, body: bytes) -> Fault | None:
        """The fault in `metadata.simulate` or in the first user text."""
        return find_labelled_fault(self.metadata, "metadata", body, self._first_user_text)

    def respond(self, fault: Fault, plan: Plan, random: Random, repetition: int) -> DialectResponse:
        """Generate the response."""
        generation = generate(self.params(), fault, plan, random, repetition)
        return DialectResponse(
            billed=generation.billed,
            body=partial(json_body, generation, fault),
            framing=FRAMING if self.stream else None,
            events=partial(stream_events, generation, fault, self.include_usage),
            hidden_tokens=generation.billed.reasoning,
        )

    def prompt_tokens(self) -> int:
        """Tokens of all contents and tools, and 4 per message."""
        total = sum(TOKENS_PER_MESSAGE + content_tokens(message.content) for message in self.messages)
        return total + json_tokens(self.tools) if self.tools else total

    def params(self) -> GenerationParams:
        """The request independent of its dialect. Raises `InvalidRequest` for invalid tools."""
        prompt_tokens = self.prompt_tokens()
        params = GenerationParams(
            model=self.model,
            prompt_tokens=prompt_tokens,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            n=self.n or 1,
            after_tool=self.messages[-1].role == "tool",
            reasons=reasons(self.model, self.reasoning_effort),
            cacheable_tokens=implicitly_cacheable(prompt_tokens),
        )
        # Most requests have neither, and save the copies.
        if self.tools:
            params = replace(params, **self._tool_params(self.tools))
        if self.response_format is not None and self.response_format.type != "text":
            params = replace(params, **_format_params(self.response_format))
        return params

    def _tool_params(self, given: list[dict[str, Any]]) -> dict[str, Any]:
        functions = [convert(tool, FunctionTool, "tools").function for tool in given]
        required = self.tool_choice.get("function") if isinstance(self.tool_choice, dict) else None
        name = required.get("name") if isinstance(required, dict) else None
        return tool_params([Tool(function.name, function.parameters) for function in functions], self.tool_choice, name)

    def _first_user_text(self) -> str:
        return first_text(next((message.content for message in self.messages if message.role == "user"), None))


def json_body(generation: Generation, fault: Fault) -> bytes:
    """The body of a response that is not streamed."""
    body: dict[str, Any] = {
        "id": _id(generation),
        "object": "chat.completion",
        "created": CREATED_UNIX_SECONDS,
        "model": generation.model,
        "choices": [
            {"index": index, "message": _message(choice), "logprobs": None, "finish_reason": _finish(choice)}
            for index, choice in enumerate(generation.choices)
        ],
        "service_tier": "default",
        "system_fingerprint": "fp_simulated",
    }
    return with_usage(msgspec.json.encode(body), _usage(generation.billed, fault), fault)


def stream_events(
    generation: Generation, fault: Fault, include_usage: bool, cost: str | None = None
) -> Iterator[Event]:
    """The events of a stream, in order; the last is `[DONE]` unless the fault omits it.

    With `include_usage` a chunk without choices carries the usage and all others `"usage":null`.
    The fault `usage=with_choices` puts the usage into the last chunk with choices in any case.
    """
    usage = _usage(generation.billed, fault, cost)
    prefix = _chunk_prefix(generation)
    tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
    for index in range(len(generation.choices)):
        yield Event(prefix + _choice(index, b'{"role":"assistant","content":"","refusal":null}') + tail)
    for index, choice in enumerate(generation.choices):
        for delta, tokens in _deltas(choice, fault):
            yield Event(prefix + _choice(index, delta) + tail, tokens)
    for index, choice in enumerate(generation.choices):
        last = index == len(generation.choices) - 1 and fault.usage == "with_choices"
        end = b',"usage":' + usage + b"}\n\n" if last else tail
        yield Event(prefix + _choice(index, b"{}", _finish(choice)) + end)
    if include_usage and fault.usage not in ("missing", "with_choices"):
        for _ in range(2 if fault.usage == "twice" else 1):
            yield Event(prefix + b'[],"usage":' + usage + b"}\n\n")
    if fault.done is None:
        yield Event(DONE, is_last=True)


def _id(generation: Generation) -> str:
    return f"chatcmpl-{generation.id_bits:032x}"


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
    for position, call in enumerate(choice.calls):
        function = {"name": call.name, "arguments": ""}
        opening = {"index": position, "id": f"call_{call.id}", "type": "function", "function": function}
        yield msgspec.json.encode({"tool_calls": [opening]}), text_tokens(call.name)
        for piece in pieces(call.arguments, fault):
            more = {"index": position, "function": {"arguments": piece}}
            yield msgspec.json.encode({"tool_calls": [more]}), text_tokens(piece)


def _chunk_prefix(generation: Generation) -> bytes:
    known = {
        "id": _id(generation),
        "object": "chat.completion.chunk",
        "created": CREATED_UNIX_SECONDS,
        "model": generation.model,
        "service_tier": "default",
        "system_fingerprint": "fp_simulated",
    }
    return b"data: " + msgspec.json.encode(known)[:-1] + b',"choices":'


def _choice(index: int, delta: bytes, finish_reason: str | None = None) -> bytes:
    finish = b"null" if finish_reason is None else b'"%s"' % finish_reason.encode()
    return b'[{"index":%d,"delta":%s,"logprobs":null,"finish_reason":%s}]' % (index, delta, finish)


def _usage(billed: BilledTokens, fault: Fault, cost: str | None = None) -> bytes:
    """The usage object, its numbers changed by the fault; `cost` (USD) keeps all digits."""
    numbers = (billed.prompt, billed.completion, billed.prompt + billed.completion, billed.cached, billed.reasoning)
    p, c, total, cached, reasoning = (number(value, fault) for value in numbers)
    written = f',"cache_write_tokens":{number(billed.cache_write, fault)}' if billed.cache_write else ""
    priced = f',"cost":{cost}' if cost is not None else ""
    return (
        f'{{"prompt_tokens":{p},"completion_tokens":{c},"total_tokens":{total},'
        f'"prompt_tokens_details":{{"cached_tokens":{cached},"audio_tokens":0{written}}},'
        f'"completion_tokens_details":{{"reasoning_tokens":{reasoning},"audio_tokens":0,'
        f'"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}{priced}}}'
    ).encode()


def _format_params(requested: ResponseFormat) -> dict[str, Any]:
    if requested.type == "json_schema" and requested.json_schema is not None:
        return {"text_format": "schema", "schema": requested.json_schema.schema}
    return {"text_format": "json"}


FRAMING = Framing(
    broken_json=b'data: {"id":"chatcmpl-broken","choices":[{"index":0,"delta":{"content":\n\n',
    error=lambda sent: b"data: " + OPENAI.typical(500).body + b"\n\n",
)
