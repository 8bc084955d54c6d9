"""The prompts of the Gemini API (https://ai.google.dev/api/caching#Content)."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from mcpmeter.errors import InvalidRequest
from mcpmeter.simulator.dialects.base import UrlParams
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
    """A function call of the model."""

    name: str = ""
    args: Any = None


class FunctionResponse(msgspec.Struct):
    """The result of a function call."""

    name: str = ""
    response: Any = None


class Part(msgspec.Struct, rename="camel"):
    """One part of a content; a part that is neither text nor a call counts as media."""

    text: str | None = None
    function_call: FunctionCall | None = None
    function_response: FunctionResponse | None = None

    def tokens(self) -> int:
        """Tokens of the text, or of the call's name and arguments or result; 85 for any other part."""
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
        """4 and the tokens of the parts."""
        return TOKENS_PER_MESSAGE + self.part_tokens()

    def part_tokens(self) -> int:
        """Tokens of the parts."""
        return sum(part.tokens() for part in self.parts)

    def text(self) -> str:
        """The first text."""
        return next((part.text for part in self.parts if part.text is not None), "")


def read_proto(decoder: msgspec.json.Decoder[Struct], body: bytes) -> Struct:
    """Decode a request with field names `likeThis` or `like_this`: Google takes both and its SDK mixes them.

    Raises `InvalidRequest`.
    """
    if _HAS_SNAKE.search(body) is None:
        return read(decoder, body)
    try:
        return convert(_camel(msgspec.json.decode(body)), decoder.type, "body")
    except (ValueError, RecursionError):
        return read(decoder, body)  # raises the error


def model_of(url: UrlParams) -> str:
    """The model in the URL. Raises `InvalidRequest`."""
    if not (1 <= len(url.model) <= MAX_MODEL_LENGTH and url.model.isprintable()):
        raise InvalidRequest(f"The model's name in the URL has 1 to {MAX_MODEL_LENGTH} printable characters.")
    return url.model


def _camel(value: Any) -> Any:
    """The value with field names in camelCase; free-form fields stay unchanged."""
    if isinstance(value, list):
        return [_camel(item) for item in value]
    if not isinstance(value, dict):
        return value
    renamed = {_CAMEL.get(key, key): inner for key, inner in value.items()}
    return {key: inner if key in _FREE_FORM else _camel(inner) for key, inner in renamed.items()}
