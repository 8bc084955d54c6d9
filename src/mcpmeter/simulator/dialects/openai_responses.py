"""OpenAI's responses (https://platform.openai.com/docs/api-reference/responses, …/responses-streaming)."""

from __future__ import annotations

from random import Random
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mcpmeter.simulator.answers import TextFormatKind, Tool, Wanted, draw_answer, implicitly_cacheable
from mcpmeter.simulator.dialects.base import Reply, Target
from mcpmeter.simulator.dialects.openai_responses_output import FRAMING, Written
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

_SUMMARIES = ("auto", "concise", "detailed")
_TEXT_PARTS = ("input_text", "output_text", "text")
_FORMATS: dict[str, TextFormatKind] = {"json_object": "json", "json_schema": "schema"}


class Part(msgspec.Struct):
    """One part of an item's content."""

    type: str = "input_text"
    text: str = ""


class Item(msgspec.Struct):
    """One item of `input`; what is not counted is not kept."""

    type: str = "message"
    role: str = ""
    content: str | list[Part] | None = None
    name: str = ""
    arguments: str = ""
    output: str | list[Part] | None = None

    def tokens(self) -> int:
        """4, and its texts: content, the call's name and arguments, or the call's output."""
        texts = text_tokens(self.name) + text_tokens(self.arguments)
        return TOKENS_PER_MESSAGE + texts + _content_tokens(self.content) + _content_tokens(self.output)

    def text(self) -> str:
        """The first text of a message."""
        if isinstance(self.content, str):
            return self.content
        return next((part.text for part in self.content or () if part.type in _TEXT_PARTS), "")


class FunctionTool(msgspec.Struct):
    """One of `tools` that the client runs itself."""

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


class ResponsesAsk(msgspec.Struct):
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

    @property
    def model_name(self) -> str:
        """As `Ask.model_name`."""
        return self.model

    @property
    def is_stream(self) -> bool:
        """As `Ask.is_stream`."""
        return bool(self.stream)

    @property
    def items(self) -> list[Item]:
        """The input item by item; a bare text is one user's message."""
        return [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input

    def wished_fault(self, body: bytes) -> Fault | None:
        """As `Ask.wished_fault`; asked for by `metadata.simulate`."""
        said = self.metadata.get("simulate") if self.metadata else None
        return find_fault(said, "metadata.simulate", body, self._first_user_text)

    def draw(self, fault: Fault, plan: Plan, random: Random, nth: int) -> Reply:
        """As `Ask.draw`."""
        answer = draw_answer(self._wanted(), fault, plan, random, nth)
        written = Written(answer, fault, self._echoed())
        return Reply(
            tally=answer.tally,
            body=written.json_body,
            framing=FRAMING if self.stream else None,
            events=written.events,
            hidden_tokens=0 if answer.thoughts else answer.tally.reasoning,
        )

    def prompt_tokens(self) -> int:
        """Every item, the instructions as one more, and the tools."""
        total = sum(item.tokens() for item in self.items)
        if self.instructions is not None:
            total += TOKENS_PER_MESSAGE + text_tokens(self.instructions)
        return total + json_tokens(self.tools) if self.tools else total

    def _wanted(self) -> Wanted:
        prompt_tokens = self.prompt_tokens()
        reasoning = self.reasoning or Reasoning()
        thinks = reasoning.effort not in (None, "none", "minimal") or self.model.startswith(("o1", "o3", "o4"))
        return Wanted(
            model=self.model,
            prompt_tokens=prompt_tokens,
            limit=self.max_output_tokens,
            after_tool=self.items[-1].type == "function_call_output",
            text_format=_FORMATS.get(self._format.type, "text"),
            schema=self._format.schema,
            thinks=thinks,
            shows_thoughts=reasoning.summary in _SUMMARIES,
            cacheable_tokens=implicitly_cacheable(prompt_tokens),
            **self._tools_wanted(),
        )

    def _tools_wanted(self) -> dict[str, Any]:
        given = [convert(tool, FunctionTool, "tools") for tool in self.tools or () if tool.get("type") == "function"]
        tools = [Tool(tool.name, tool.parameters) for tool in given]
        if isinstance(self.tool_choice, dict):
            name = self.tool_choice.get("name")
            return {"tools": tools, "tool_choice": "required", "tool_name": name if isinstance(name, str) else ""}
        return {"tools": tools, "tool_choice": self.tool_choice if self.tool_choice in ("none", "required") else "auto"}

    def _echoed(self) -> dict[str, Any]:
        wished = self._format
        schema = {} if wished.schema is None else {"name": wished.name, "schema": wished.schema, "strict": True}
        reasoning = self.reasoning or Reasoning()
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "previous_response_id": self.previous_response_id,
            "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
            "text": {"format": {"type": wished.type, **schema}},
            "tool_choice": self.tool_choice or "auto",
            "tools": self.tools or [],
            "metadata": self.metadata or {},
        }

    @property
    def _format(self) -> TextFormat:
        return (self.text and self.text.format) or TextFormat()

    def _first_user_text(self) -> str:
        return next((item.text() for item in self.items if item.role == "user"), "")


class OpenAiResponses:
    """`POST /v1/responses`."""

    name = "openai_responses"
    _decoder = msgspec.json.Decoder(ResponsesAsk)

    def read(self, body: bytes, target: Target = Target()) -> ResponsesAsk:  # noqa: B008 (immutable)
        """Raises `InvalidRequest` for anything that is not a request for a response."""
        return read(self._decoder, body)


def _content_tokens(content: str | list[Part] | None) -> int:
    if isinstance(content, str):
        return text_tokens(content)
    return sum(text_tokens(p.text) if p.type in _TEXT_PARTS else TOKENS_PER_MEDIA_PART for p in content or ())
