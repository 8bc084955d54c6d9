"""The prompts of Anthropic's messages, and their token counts.

See https://docs.claude.com/en/api/messages-count-tokens and …/docs/build-with-claude/prompt-caching.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from mcpmeter.simulator.dialects.base import DialectResponse
from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.generation import BilledTokens, number
from mcpmeter.simulator.plan import Plan
from mcpmeter.simulator.request_parsing import (
    TOKENS_PER_MEDIA_PART,
    TOKENS_PER_MESSAGE,
    Model,
    convert,
    find_fault,
    json_tokens,
    text_tokens,
)

_FAULT_PREFIX = "simulate:"


class CacheControl(msgspec.Struct):
    """Marks the end of the cached part of the prompt."""

    ttl: Literal["5m", "1h"] = "5m"


class Block(msgspec.Struct):
    """The counted fields of one content block."""

    type: str = "text"
    text: str = ""
    name: str = ""
    input: Any = None
    content: Any = None
    thinking: str = ""
    cache_control: CacheControl | None = None

    def tokens(self) -> int:
        """Tokens of the text, of a tool's name and input, or of its result; 85 for any other block."""
        match self.type:
            case "text":
                return text_tokens(self.text)
            case "thinking":
                return text_tokens(self.thinking)
            case "tool_use":
                return text_tokens(self.name) + json_tokens(self.input)
            case "tool_result":
                return self._result_tokens()
            case _:
                return TOKENS_PER_MEDIA_PART

    def _result_tokens(self) -> int:
        if not isinstance(self.content, list):
            return text_tokens(self.content) if isinstance(self.content, str) else 0
        parts = [convert(part, Block, "content") for part in self.content]
        return sum(text_tokens(part.text) if part.type == "text" else TOKENS_PER_MEDIA_PART for part in parts)


class Message(msgspec.Struct):
    """One message."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class CustomTool(msgspec.Struct):
    """A function in `tools`."""

    name: Annotated[str, Meta(min_length=1)]
    input_schema: Any = None


class ToolChoice(msgspec.Struct):
    """`tool_choice` of a request."""

    type: Literal["auto", "any", "tool", "none"] = "auto"
    name: str = ""


class Thinking(msgspec.Struct):
    """`thinking` of a request."""

    type: str = "disabled"
    budget_tokens: int | None = None
    display: str | None = None


class JsonFormat(msgspec.Struct):
    """`output_config.format` of a request."""

    schema: Any = None


class OutputConfig(msgspec.Struct):
    """`output_config` of a request."""

    format: JsonFormat | None = None


class Prompt(NamedTuple):
    """The length of a prompt, and of its part marked for the cache."""

    tokens: int
    marked_tokens: int
    for_an_hour: bool


class MessagesPrompt(msgspec.Struct):
    """The fields that both URLs take."""

    model: Model
    messages: Annotated[list[Message], Meta(min_length=1)]
    system: str | list[Block] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    metadata: dict[str, Any] | None = None

    def requested_fault(self, body: bytes) -> Fault | None:
        """The fault in `metadata.user_id`, Anthropic's only metadata, or in the first user text."""
        user = self.metadata.get("user_id") if self.metadata else None
        text = user.removeprefix(_FAULT_PREFIX) if isinstance(user, str) and user.startswith(_FAULT_PREFIX) else None
        return find_fault(text, "metadata.user_id", body, self._first_user_text)

    def prompt(self) -> Prompt:
        """Count tools, system prompt and messages, in the order of caching. Raises `InvalidRequest`."""
        total, marked, mark = self._count_tools()
        for overhead, blocks in self._sections():
            total += overhead
            for block in blocks:
                total += block.tokens()
                if block.cache_control is not None:
                    marked, mark = total, block.cache_control
        if self.cache_control is not None:
            marked, mark = total, self.cache_control
        return Prompt(total, marked, mark is not None and mark.ttl == "1h")

    def _count_tools(self) -> tuple[int, int, CacheControl | None]:
        marked, mark = 0, None
        for position, tool in enumerate(self.tools or ()):
            if tool.get("cache_control") is not None:
                mark = convert(tool["cache_control"], CacheControl, "tools")
                marked = json_tokens((self.tools or [])[: position + 1])
        return json_tokens(self.tools) if self.tools else 0, marked, mark

    def _sections(self) -> Iterator[tuple[int, list[Block]]]:
        if self.system is not None:
            yield TOKENS_PER_MESSAGE, blocks_of(self.system)
        for message in self.messages:
            yield TOKENS_PER_MESSAGE, blocks_of(message.content)

    def _first_user_text(self) -> str:
        blocks = next((blocks_of(message.content) for message in self.messages if message.role == "user"), [])
        return next((block.text for block in blocks if block.type == "text"), "")


class CountTokensRequest(MessagesPrompt):
    """The body of `POST /v1/messages/count_tokens`, which costs nothing."""

    def respond(self, fault: Fault, plan: Plan, random: Random, repetition: int) -> DialectResponse:
        """Count the tokens."""
        body = f'{{"input_tokens":{number(self.prompt().tokens, fault)}}}'.encode()
        return DialectResponse(BilledTokens(0, 0), lambda: body)


def blocks_of(content: str | list[Block]) -> list[Block]:
    """The blocks of a content; a bare text is one block."""
    return [Block(text=content)] if isinstance(content, str) else content


def has_result(message: Message) -> bool:
    """Whether the message has the result of a tool."""
    return any(block.type == "tool_result" for block in blocks_of(message.content))
