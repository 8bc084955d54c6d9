"""OpenAI's responses (https://platform.openai.com/docs/api-reference/responses, …/responses-streaming)."""

from __future__ import annotations

from random import Random
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mcpmeter.simulator.dialects.base import DialectResponse
from mcpmeter.simulator.dialects.openai_content import Part, content_tokens, first_text, reasons, tool_params
from mcpmeter.simulator.dialects.openai_responses_output import FRAMING, ResponseRendering
from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.generation import GenerationParams, TextFormatKind, Tool, generate, implicitly_cacheable
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

_SUMMARIES = ("auto", "concise", "detailed")
_FORMATS: dict[str, TextFormatKind] = {"json_object": "json", "json_schema": "schema"}


class Item(msgspec.Struct):
    """The counted fields of one item of `input`."""

    type: str = "message"
    role: str = ""
    content: str | list[Part] | None = None
    name: str = ""
    arguments: str = ""
    output: str | list[Part] | None = None

    def tokens(self) -> int:
        """4 and the tokens of the content, of a call's name and arguments, or of its output."""
        call = text_tokens(self.name) + text_tokens(self.arguments)
        return TOKENS_PER_MESSAGE + call + content_tokens(self.content) + content_tokens(self.output)


class ResponsesTool(msgspec.Struct):
    """A function in `tools`."""

    name: Annotated[str, Meta(min_length=1)]
    parameters: Any = None


class TextFormat(msgspec.Struct):
    """`text.format` of a request."""

    type: str = "text"
    name: str = "answer"
    schema: Any = None


class TextConfig(msgspec.Struct):
    """`text` of a request."""

    format: TextFormat | None = None


class Reasoning(msgspec.Struct):
    """`reasoning` of a request."""

    effort: str | None = None
    summary: str | None = None


class ResponsesRequest(msgspec.Struct):
    """The body of `POST /v1/responses`."""

    model: Model
    input: str | Annotated[list[Item], Meta(min_length=1)]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Limit | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, Any] | None = None
    previous_response_id: str | None = None
    background: bool | None = None

    @property
    def items(self) -> list[Item]:
        """The items of the input; a bare text is one user message."""
        return [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input

    def requested_fault(self, body: bytes) -> Fault | None:
        """The fault in `metadata.simulate` or in the first user text."""
        return find_labelled_fault(self.metadata, "metadata", body, self._first_user_text)

    def respond(self, fault: Fault, plan: Plan, random: Random, repetition: int) -> DialectResponse:
        """Generate the response."""
        generation = generate(self._params(), fault, plan, random, repetition)
        rendering = ResponseRendering(generation, fault, self._echoed())
        return DialectResponse(
            billed=generation.billed,
            body=rendering.json_body,
            framing=FRAMING if self.stream else None,
            events=rendering.events,
            hidden_tokens=0 if generation.reasoning_text else generation.billed.reasoning,
        )

    def prompt_tokens(self) -> int:
        """Tokens of all items, of the instructions as one more item, and of the tools."""
        total = sum(item.tokens() for item in self.items)
        if self.instructions is not None:
            total += TOKENS_PER_MESSAGE + text_tokens(self.instructions)
        return total + json_tokens(self.tools) if self.tools else total

    def _params(self) -> GenerationParams:
        prompt_tokens = self.prompt_tokens()
        reasoning = self.reasoning or Reasoning()
        given = [convert(tool, ResponsesTool, "tools") for tool in self.tools or () if tool.get("type") == "function"]
        required_name = self.tool_choice.get("name") if isinstance(self.tool_choice, dict) else None
        return GenerationParams(
            model=self.model,
            prompt_tokens=prompt_tokens,
            max_tokens=self.max_output_tokens,
            after_tool=self.items[-1].type == "function_call_output",
            text_format=_FORMATS.get(self._format.type, "text"),
            schema=self._format.schema,
            reasons=reasons(self.model, reasoning.effort),
            shows_reasoning=reasoning.summary in _SUMMARIES,
            cacheable_tokens=implicitly_cacheable(prompt_tokens),
            **tool_params([Tool(tool.name, tool.parameters) for tool in given], self.tool_choice, required_name),
        )

    def _echoed(self) -> dict[str, Any]:
        format_ = self._format
        schema = {} if format_.schema is None else {"name": format_.name, "schema": format_.schema, "strict": True}
        reasoning = self.reasoning or Reasoning()
        return {
            "background": bool(self.background),
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "previous_response_id": self.previous_response_id,
            "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
            "text": {"format": {"type": format_.type, **schema}},
            "tool_choice": self.tool_choice or "auto",
            "tools": self.tools or [],
            "metadata": self.metadata or {},
        }

    @property
    def _format(self) -> TextFormat:
        return (self.text and self.text.format) or TextFormat()

    def _first_user_text(self) -> str:
        return first_text(next((item.content for item in self.items if item.role == "user"), None))
