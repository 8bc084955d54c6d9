"""Which model names a price list covers.

genai-prices matches some names loosely (`contains gemini-1.5-flash`) and so prices `gemini-1.5-flash-8b` at twice its
cost. Here a name is known only if a list prints it, or if it is a printed name with one of the suffixes by which
providers mark a snapshot of the same model. All other names are unknown, and their calls are unpriced.
"""

from __future__ import annotations

import re
from typing import Final

MAX_MODEL_CHARS: Final = 200
"""Longer names are no model names; they are refused before anything stores them."""

_DATE: Final = (
    r"20[0-9]{2}(?:-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01]))"
)
_DATED: Final = re.compile(rf"(?P<base>.+)[-@]{_DATE}")
# Google's stable versions (-001) and dated previews (-preview-05-20, -preview-09-2025); the moving -latest.
_RELEASE: Final = re.compile(r"(?P<base>.+)-(?:latest|00[1-9]|preview-(?:0[1-9]|1[0-2])-(?:[0-3][0-9]|20[0-9]{2}))")


def normal(model: str) -> str | None:
    """The lower-case name for lookups; None if it cannot be a model name."""
    if not model or len(model) > MAX_MODEL_CHARS or not model.isascii():
        return None
    return model.lower()


def dated_base(name: str) -> str | None:
    """`gpt-4.1` of `gpt-4.1-2025-04-14`, `claude-sonnet-4-5` of `claude-sonnet-4-5@20250929`; None without a date."""
    found = _DATED.fullmatch(name)
    return found["base"] if found else None


def release_base(name: str) -> str | None:
    """As `dated_base`, for the other release suffixes: `-001`, `-latest`, `-preview-05-20`."""
    found = _RELEASE.fullmatch(name)
    return found["base"] if found else None
