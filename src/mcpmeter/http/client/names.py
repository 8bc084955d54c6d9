"""The names of headers: most answers bring the same ones."""

from __future__ import annotations

from typing import Final

MAX_NAMES: Final = 512
MAX_CACHED_NAME_LENGTH: Final = 64
"""Names of headers come from providers: they too must not fill our memory."""

NAMES: Final[dict[bytes, str]] = {}
"""Headers' names as they came and as we know them: most answers bring the same ones."""


def new_name(name: bytes) -> str:
    """A name in lower case, which is kept if there is room."""
    key = name.decode("latin-1").lower()
    if len(NAMES) < MAX_NAMES and len(name) <= MAX_CACHED_NAME_LENGTH:
        NAMES[name] = key
    return key
