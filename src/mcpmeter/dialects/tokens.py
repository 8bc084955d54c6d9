"""Token counts: their type, estimates from texts, and upper bounds from requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec

from mcpmeter.dialects.json_body import parsed
from mcpmeter.errors import InvalidRequest

MAX_TOKENS: Final = 10**12
"""More than any call can use; a larger count is invalid and would overflow 64-bit columns when summed."""

Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]

BYTES_PER_PROMPT_TOKEN: Final = 4
"""For the estimate before a call, where speed counts: JSON and English both average about four bytes per token."""

FRAMING_TOKENS: Final = 4
"""What a message adds to its text."""

ASCII_CHARACTERS_PER_TOKEN: Final = 4
OTHER_CHARACTERS_PER_TOKEN: Final = 1.5

MAX_COUNT_LENGTH: Final = 12
MIN_TOKENS_PER_MEDIUM: Final = 5_000
BYTES_PER_MEDIA_TOKEN: Final = 50
"""Generous: a large picture takes less than 5,000 tokens, and a second of MP3 ten in at least 1,300 characters."""


def quick_estimate(body: bytes) -> int:
    """Estimate of a prompt's tokens from its size alone, at least 1."""
    return max(1, len(body) // BYTES_PER_PROMPT_TOKEN)


def estimate_prompt(body: bytes, estimate: Callable[[Any], int]) -> int:
    """Estimate of a prompt's tokens from the parsed request, or from its size if it cannot be parsed."""
    try:
        request = parsed(body)
    except InvalidRequest:
        return len(body) // BYTES_PER_PROMPT_TOKEN
    return estimate(request)


def estimate_text(text: str) -> int:
    """Estimate of a text's tokens: four characters per token in ASCII, one and a half elsewhere.

    The rule of thumb that providers publish for English, and the average of their tokenizers on Chinese and Japanese.
    A tokenizer's vocabulary (76 MB installed) would outweigh the rest of the service and fit one vendor only.
    """
    other = len(text) - len(text.encode("ascii", "ignore"))
    ascii_only = len(text) - other
    return round(ascii_only / ASCII_CHARACTERS_PER_TOKEN + other / OTHER_CHARACTERS_PER_TOKEN + 0.499)


def prompt_parts(value: Any, is_media: Callable[[dict[str, Any]], bool]) -> tuple[str, int]:
    """The text of a prompt, and its number of images, sounds and documents: base64 is not text to a model."""
    texts: list[str] = []
    media = 0
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            texts.append(item)
        elif isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, dict):
            if is_media(item):
                media += 1
            else:
                stack.extend(item.values())
    return " ".join(texts), media


def media_tokens(size: int) -> int:
    """A generous count of a medium's tokens from the characters of its base64."""
    return size // BYTES_PER_MEDIA_TOKEN
