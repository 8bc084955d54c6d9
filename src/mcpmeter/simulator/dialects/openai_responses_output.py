"""The output of OpenAI's responses, whole and as typed events (https://platform.openai.com/docs/api-reference).

Events are numbered by `sequence_number`; the last one holds the whole response once more, with its usage.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from mcpmeter.simulator.answers import (
    CREATED_UNIX_SECONDS,
    Answer,
    Choice,
    Tally,
    ToolCall,
    number,
    pieces,
    with_usage,
)
from mcpmeter.simulator.dialects.base import Event, Framing, sse
from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.request_parsing import text_tokens
from mcpmeter.simulator.vendors.openai import wording


class _Said(NamedTuple):
    """One event before it gets its number."""

    type: str
    fields: dict[str, Any]
    tokens: int = 0
    thoughts: int = 0
    is_last: bool = False


class Written(NamedTuple):
    """An answer in the words of the responses API."""

    answer: Answer
    fault: Fault
    echoed: dict[str, Any]
    """What the response repeats of the request."""

    def json_body(self) -> bytes:
        """The body of an answer that is not streamed."""
        return self._finished(None)

    def events(self, cost: str | None = None) -> Iterator[Event]:
        """From `response.created` to `response.completed` or `.incomplete`, which the fault may leave out."""
        for place, said in enumerate(self._story(cost)):
            data = {"type": said.type, "sequence_number": place, **said.fields}
            yield Event(sse(said.type, data), said.tokens, said.thoughts, said.is_last)

    def _story(self, cost: str | None) -> Iterator[_Said]:
        begun = self._response("in_progress", []) | {"usage": None}
        yield _Said("response.created", {"response": begun})
        yield _Said("response.in_progress", {"response": begun})
        for place, item in enumerate(self._output()):
            yield from self._item_events(place, item)
        if self.fault.done is None:
            yield _Said(f"response.{self._status}", {"response": msgspec.Raw(self._finished(cost))}, is_last=True)

    @property
    def _choice(self) -> Choice:
        return self.answer.choices[0]

    @property
    def _status(self) -> str:
        return "incomplete" if self._choice.finish_reason == "length" else "completed"

    def _finished(self, cost: str | None) -> bytes:
        response = msgspec.json.encode(self._response(self._status, self._output()))
        return with_usage(response, _usage(self.answer.tally, self.fault, cost), self.fault)

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"resp_{self.answer.id_bits:032x}",
            "object": "response",
            "created_at": CREATED_UNIX_SECONDS,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.answer.model,
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
        if self.answer.tally.reasoning:
            summary = [{"type": "summary_text", "text": self.answer.thoughts}] if self.answer.thoughts else []
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
        known = {"id": self._item_id("msg"), "type": "message", "status": self._status}
        return known | {"role": "assistant", "content": [part]}

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
        return f"{prefix}_{self.answer.id_bits:032x}"

    def _item_events(self, place: int, item: dict[str, Any]) -> Iterator[_Said]:
        at = {"output_index": place}
        tokens = text_tokens(item["name"]) if item["type"] == "function_call" else 0
        yield _Said("response.output_item.added", at | {"item": _emptied(item)}, tokens)
        inside = {"item_id": item["id"], **at}
        match item["type"]:
            case "function_call":
                yield from self._argument_events(inside, item["arguments"])
            case "reasoning":
                yield from self._summary_events(inside, item["summary"])
            case _:
                yield from self._part_events(inside, item["content"][0])
        yield _Said("response.output_item.done", at | {"item": item})

    def _argument_events(self, inside: dict[str, Any], arguments: str) -> Iterator[_Said]:
        for piece in pieces(arguments, self.fault):
            yield _Said("response.function_call_arguments.delta", inside | {"delta": piece}, text_tokens(piece))
        yield _Said("response.function_call_arguments.done", inside | {"arguments": arguments})

    def _summary_events(self, inside: dict[str, Any], summary: list[dict[str, Any]]) -> Iterator[_Said]:
        for place, part in enumerate(summary):
            within = inside | {"summary_index": place}
            yield _Said("response.reasoning_summary_part.added", within | {"part": part | {"text": ""}})
            for piece in pieces(part["text"], self.fault):
                shown = within | {"delta": piece}
                yield _Said("response.reasoning_summary_text.delta", shown, thoughts=text_tokens(piece))
            yield _Said("response.reasoning_summary_text.done", within | {"text": part["text"]})
            yield _Said("response.reasoning_summary_part.done", within | {"part": part})

    def _part_events(self, inside: dict[str, Any], part: dict[str, Any]) -> Iterator[_Said]:
        within = inside | {"content_index": 0}
        field = "refusal" if part["type"] == "refusal" else "text"
        name = "response.refusal" if field == "refusal" else "response.output_text"
        more: dict[str, Any] = {} if field == "refusal" else {"logprobs": []}
        yield _Said("response.content_part.added", within | {"part": part | {field: ""}})
        for piece in pieces(part[field], self.fault):
            yield _Said(f"{name}.delta", within | {"delta": piece} | more, text_tokens(piece))
        yield _Said(f"{name}.done", within | {field: part[field]} | more)
        yield _Said("response.content_part.done", within | {"part": part})


def _emptied(item: dict[str, Any]) -> dict[str, Any]:
    match item["type"]:
        case "function_call":
            return item | {"status": "in_progress", "arguments": ""}
        case "reasoning":
            return item | {"summary": []}
        case _:
            return item | {"status": "in_progress", "content": []}


def _usage(tally: Tally, fault: Fault, cost: str | None) -> bytes:
    """The usage object; `cost` (USD) is kept to its last digit."""
    values = (tally.prompt, tally.completion, tally.prompt + tally.completion)
    details = (tally.cached, tally.cache_write, tally.reasoning)
    given, made, total = (number(value, fault) for value in values)
    cached, written, reasoning = (number(value, fault) for value in details)
    priced = f',"cost":{cost}' if cost is not None else ""
    return (
        f'{{"input_tokens":{given},'
        f'"input_tokens_details":{{"cached_tokens":{cached},"cache_write_tokens":{written}}},'
        f'"output_tokens":{made},"output_tokens_details":{{"reasoning_tokens":{reasoning}}},'
        f'"total_tokens":{total}{priced}}}'
    ).encode()


def _error_event(sent: int) -> bytes:
    told = wording(500)
    code = told.code or told.type
    data = {"type": "error", "sequence_number": sent, "code": code, "message": told.message, "param": None}
    return sse("error", data)


FRAMING = Framing(
    broken_json=(
        b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","content_index":0,"delta":\n\n'
    ),
    error=_error_event,
)
