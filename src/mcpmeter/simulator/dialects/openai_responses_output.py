"""Renders OpenAI's responses, whole and as typed events (https://platform.openai.com/docs/api-reference).

Events are numbered by `sequence_number`; the last one repeats the whole response with its usage.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from mcpmeter.simulator.dialects.base import Event, Framing, sse
from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.generation import (
    CREATED_UNIX_SECONDS,
    BilledTokens,
    Choice,
    Generation,
    ToolCall,
    number,
    pieces,
    with_usage,
)
from mcpmeter.simulator.request_parsing import text_tokens
from mcpmeter.simulator.vendors.openai import wording


class _BareEvent(NamedTuple):
    """One event without its sequence number."""

    type: str
    fields: dict[str, Any]
    tokens: int = 0
    reasoning_tokens: int = 0
    is_last: bool = False


class ResponseRendering(NamedTuple):
    """A generation in the format of the responses API."""

    generation: Generation
    fault: Fault
    echoed: dict[str, Any]
    """Fields of the request that the response repeats."""

    def json_body(self) -> bytes:
        """The body of a response that is not streamed."""
        return self._finished(None)

    def events(self, cost: str | None = None) -> Iterator[Event]:
        """From `response.created` to `response.completed` or `.incomplete`, which the fault may omit."""
        for position, event in enumerate(self._unnumbered_events(cost)):
            data = {"type": event.type, "sequence_number": position, **event.fields}
            yield Event(sse(event.type, data), event.tokens, event.reasoning_tokens, event.is_last)

    def _unnumbered_events(self, cost: str | None) -> Iterator[_BareEvent]:
        started = self._response("in_progress", []) | {"usage": None}
        yield _BareEvent("response.created", {"response": started})
        yield _BareEvent("response.in_progress", {"response": started})
        for position, item in enumerate(self._output()):
            yield from self._item_events(position, item)
        if self.fault.done is None:
            yield _BareEvent(f"response.{self._status}", {"response": msgspec.Raw(self._finished(cost))}, is_last=True)

    @property
    def _choice(self) -> Choice:
        return self.generation.choices[0]

    @property
    def _status(self) -> str:
        return "incomplete" if self._choice.finish_reason == "length" else "completed"

    def _finished(self, cost: str | None) -> bytes:
        response = msgspec.json.encode(self._response(self._status, self._output()))
        return with_usage(response, _usage(self.generation.billed, self.fault, cost), self.fault)

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"resp_{self.generation.id_bits:032x}",
            "object": "response",
            "created_at": CREATED_UNIX_SECONDS,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.generation.model,
            "output": output,
            "parallel_tool_calls": True,
            "service_tier": "default",
            "store": True,
            "temperature": 1.0,
            "top_p": 1.0,
            "truncation": "disabled",
            **self.echoed,
        }

    def _output(self) -> list[dict[str, Any]]:
        output: list[dict[str, Any]] = []
        if self.generation.billed.reasoning:
            summary = (
                [{"type": "summary_text", "text": self.generation.reasoning_text}]
                if self.generation.reasoning_text
                else []
            )
            output.append({"id": self._item_id("rs"), "type": "reasoning", "summary": summary})
        if self._choice.calls:
            return output + [self._function_call(call) for call in self._choice.calls]
        if self._choice.text or self._choice.finish_reason != "length":
            output.append(self._message())
        return output

    def _message(self) -> dict[str, Any]:
        part: dict[str, Any] = {"type": "output_text", "annotations": [], "logprobs": [], "text": self._choice.text}
        if self._choice.finish_reason == "refusal":
            part = {"type": "refusal", "refusal": self._choice.text}
        base = {"id": self._item_id("msg"), "type": "message", "status": self._status}
        return base | {"role": "assistant", "content": [part]}

    def _function_call(self, call: ToolCall) -> dict[str, Any]:
        return {
            "id": self._item_id("fc"),
            "type": "function_call",
            "status": self._status,
            "arguments": call.arguments,
            "call_id": f"call_{call.id}",
            "name": call.name,
        }

    def _item_id(self, prefix: str) -> str:
        return f"{prefix}_{self.generation.id_bits:032x}"

    def _item_events(self, position: int, item: dict[str, Any]) -> Iterator[_BareEvent]:
        at = {"output_index": position}
        tokens = text_tokens(item["name"]) if item["type"] == "function_call" else 0
        yield _BareEvent("response.output_item.added", at | {"item": _emptied(item)}, tokens)
        item_ref = {"item_id": item["id"], **at}
        match item["type"]:
            case "function_call":
                yield from self._argument_events(item_ref, item["arguments"])
            case "reasoning":
                yield from self._summary_events(item_ref, item["summary"])
            case _:
                yield from self._part_events(item_ref, item["content"][0])
        yield _BareEvent("response.output_item.done", at | {"item": item})

    def _argument_events(self, item_ref: dict[str, Any], arguments: str) -> Iterator[_BareEvent]:
        for piece in pieces(arguments, self.fault):
            yield _BareEvent("response.function_call_arguments.delta", item_ref | {"delta": piece}, text_tokens(piece))
        yield _BareEvent("response.function_call_arguments.done", item_ref | {"arguments": arguments})

    def _summary_events(self, item_ref: dict[str, Any], summary: list[dict[str, Any]]) -> Iterator[_BareEvent]:
        for position, part in enumerate(summary):
            part_ref = item_ref | {"summary_index": position}
            yield _BareEvent("response.reasoning_summary_part.added", part_ref | {"part": part | {"text": ""}})
            for piece in pieces(part["text"], self.fault):
                shown = part_ref | {"delta": piece}
                yield _BareEvent("response.reasoning_summary_text.delta", shown, reasoning_tokens=text_tokens(piece))
            yield _BareEvent("response.reasoning_summary_text.done", part_ref | {"text": part["text"]})
            yield _BareEvent("response.reasoning_summary_part.done", part_ref | {"part": part})

    def _part_events(self, item_ref: dict[str, Any], part: dict[str, Any]) -> Iterator[_BareEvent]:
        part_ref = item_ref | {"content_index": 0}
        field = "refusal" if part["type"] == "refusal" else "text"
        name = "response.refusal" if field == "refusal" else "response.output_text"
        more: dict[str, Any] = {} if field == "refusal" else {"logprobs": []}
        yield _BareEvent("response.content_part.added", part_ref | {"part": part | {field: ""}})
        for piece in pieces(part[field], self.fault):
            yield _BareEvent(f"{name}.delta", part_ref | {"delta": piece} | more, text_tokens(piece))
        yield _BareEvent(f"{name}.done", part_ref | {field: part[field]} | more)
        yield _BareEvent("response.content_part.done", part_ref | {"part": part})


def _emptied(item: dict[str, Any]) -> dict[str, Any]:
    match item["type"]:
        case "function_call":
            return item | {"status": "in_progress", "arguments": ""}
        case "reasoning":
            return item | {"summary": []}
        case _:
            return item | {"status": "in_progress", "content": []}


def _usage(billed: BilledTokens, fault: Fault, cost: str | None) -> bytes:
    """The usage object; `cost` (USD) keeps all digits."""
    values = (billed.prompt, billed.completion, billed.prompt + billed.completion)
    details = (billed.cached, billed.cache_write, billed.reasoning)
    prompt, completion, total = (number(value, fault) for value in values)
    cached, written, reasoning = (number(value, fault) for value in details)
    priced = f',"cost":{cost}' if cost is not None else ""
    return (
        f'{{"input_tokens":{prompt},'
        f'"input_tokens_details":{{"cached_tokens":{cached},"cache_write_tokens":{written}}},'
        f'"output_tokens":{completion},"output_tokens_details":{{"reasoning_tokens":{reasoning}}},'
        f'"total_tokens":{total}{priced}}}'
    ).encode()


def _error_event(sent: int) -> bytes:
    error = wording(500)
    code = error.code or error.type
    data = {"type": "error", "sequence_number": sent, "code": code, "message": error.message, "param": None}
    return sse("error", data)


FRAMING = Framing(
    broken_json=(
        b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","content_index":0,"delta":\n\n'
    ),
    error=_error_event,
)
