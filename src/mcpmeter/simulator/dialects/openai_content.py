"""Message content, tools and reasoning settings that OpenAI's chat completions and responses share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from mcpmeter.simulator.generation import Tool
from mcpmeter.simulator.request_parsing import TOKENS_PER_MEDIA_PART, text_tokens

_TEXT_PARTS = ("text", "input_text", "output_text")


class Part(msgspec.Struct):
    """One part of a message's content."""

    type: str = "text"
    text: str = ""


def content_tokens(content: str | list[Part] | None) -> int:
    """Tokens of the texts, and 85 for each part that is not text."""
    if isinstance(content, str):
        return text_tokens(content)
    return sum(text_tokens(p.text) if p.type in _TEXT_PARTS else TOKENS_PER_MEDIA_PART for p in content or ())


def first_text(content: str | list[Part] | None) -> str:
    """The first text of a content."""
    if isinstance(content, str):
        return content
    return next((part.text for part in content or () if part.type in _TEXT_PARTS), "")


def reasons(model: str, effort: str | None) -> bool:
    """Whether the model reasons with this effort."""
    return effort not in (None, "none", "minimal") or model.startswith(("o1", "o3", "o4"))


def tool_params(tools: Sequence[Tool], choice: Any, required_name: Any) -> dict[str, Any]:
    """The tools as `GenerationParams`. `choice` is a mode, or an object that requires the tool `required_name`."""
    if isinstance(choice, dict):
        name = required_name if isinstance(required_name, str) else ""
        return {"tools": tools, "tool_choice": "required", "tool_name": name}
    return {"tools": tools, "tool_choice": choice if choice in ("none", "required") else "auto"}
