"""What prompts of the Gemini API are made of (https://ai.google.dev/api/caching#Content)."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from mcpmeter.errors import InvalidRequest
from mcpmeter.simulator.dialects.base import Target
from mcpmeter.simulator.request_parsing import (
    TOKENS_PER_MEDIA_PART,
    TOKENS_PER_MESSAGE,
    Struct,
    convert,
    json_tokens,
    read,
    text_tokens,
)

MAX_MODEL_LENGTH = 256

_SNAKE_NAMES = (
    "allowed_function_names",
    "candidate_count",
    "embed_content_config",
    "file_data",
    "function_call",
    "function_calling_config",
    "function_declarations",
    "function_response",
    "generate_content_request",
    "generation_config",
    "include_thoughts",
    "inline_data",
    "max_output_tokens",
    "output_dimensionality",
    "parameters_json_schema",
    "response_json_schema",
    "response_mime_type",
    "response_schema",
    "system_instruction",
    "thinking_budget",
    "thinking_config",
    "tool_config",
)
_CAMEL = {name: re.sub("_(.)", lambda found: found[1].upper(), name) for name in _SNAKE_NAMES}
_HAS_SNAKE = re.compile(rf'"(?:{"|".join(_SNAKE_NAMES)})"\s*:'.encode())
_FREE_FORM = frozenset(
    {"args", "labels", "parameters", "parametersJsonSchema", "response", "responseJsonSchema", "responseSchema"}
)


class FunctionCall(msgspec.Struct):
    """A call that the model made."""

    name: str = ""
    args: Any = None


class FunctionResponse(msgspec.Struct):
    """What came of a call."""

    name: str = ""
    response: Any = None


class Part(msgspec.Struct, rename="camel"):
    """One part of a content; anything that is neither text nor a call counts as media."""

    text: str | None = None
    function_call: FunctionCall | None = None
    function_response: FunctionResponse | None = None

    def tokens(self) -> int:
        """Of its text, or of its call's name and arguments or result; 85 for anything else."""
        if self.text is not None:
            return text_tokens(self.text)
        if self.function_call is not None:
            return text_tokens(self.function_call.name) + json_tokens(self.function_call.args)
        if self.function_response is not None:
            return text_tokens(self.function_response.name) + json_tokens(self.function_response.response)
        return TOKENS_PER_MEDIA_PART


class Content(msgspec.Struct):
    """One message."""

    role: str = "user"
    parts: list[Part] = []

    def tokens(self) -> int:
        """4, and its parts."""
        return TOKENS_PER_MESSAGE + self.part_tokens()

    def part_tokens(self) -> int:
        """Of its parts alone."""
        return sum(part.tokens() for part in self.parts)

    def text(self) -> str:
        """The first text of it."""
        return next((part.text for part in self.parts if part.text is not None), "")


def read_proto(decoder: msgspec.json.Decoder[Struct], type_: type[Struct], body: bytes) -> Struct:
    """Decode a request whose names are written `likeThis` or `like_this`, as Google takes both and its SDK mixes them.

    Raises `InvalidRequest`.
    """
    if _HAS_SNAKE.search(body) is None:
        return read(decoder, body)
    try:
        return convert(_camel(msgspec.json.decode(body)), type_, "body")
    except (ValueError, RecursionError):
        return read(decoder, body)  # which tells what is wrong with it


def named_model(target: Target) -> str:
    """The model in the URL. Raises `InvalidRequest`."""
    if not (1 <= len(target.model) <= MAX_MODEL_LENGTH and target.model.isprintable()):
        raise InvalidRequest(f"The model's name in the URL has 1 to {MAX_MODEL_LENGTH} printable characters.")
    return target.model


def _camel(value: Any) -> Any:
    """The same value, names of fields in camelCase; what clients fill freely stays as it is."""
    if isinstance(value, list):
        return [_camel(item) for item in value]
    if not isinstance(value, dict):
        return value
    renamed = {_CAMEL.get(key, key): inner for key, inner in value.items()}
    return {key: inner if key in _FREE_FORM else _camel(inner) for key, inner in renamed.items()}
