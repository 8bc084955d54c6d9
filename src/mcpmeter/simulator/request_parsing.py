"""Parses requests of every dialect: counts tokens and finds requested faults.

Each text counts one token per 4 characters, rounded up; each message 4 more; each image or other media part 85;
`tools` count as JSON without spaces. Without a tokenizer the count is exact, fast and known to both sides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from mcpmeter.errors import ConfigInvalid, InvalidRequest
from mcpmeter.simulator.faults import Fault

CHARS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
TOKENS_PER_MEDIA_PART = 85
MAX_DIMENSIONS = 3072
MAX_INPUTS = 2048

Limit = Annotated[int, Meta(ge=1, le=10_000_000)]
Model = Annotated[str, Meta(min_length=1, max_length=256)]

Struct = TypeVar("Struct", bound=msgspec.Struct)

_MARK = b"[[simulate "
_MARKED = re.compile(r"\[\[simulate ([^\[\]]{1,1000})\]\]")


def read(decoder: msgspec.json.Decoder[Struct], body: bytes) -> Struct:
    """Decode a request. Raises `InvalidRequest`."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as wrong:
        raise InvalidRequest(f"Invalid request body: {_clip(str(wrong))}") from None
    except (ValueError, RecursionError):
        raise InvalidRequest(
            "We could not parse the JSON body of your request.", hint="Send a JSON object in UTF-8."
        ) from None


def convert(value: Any, type_: type[Struct], where: str) -> Struct:
    """Convert an undecoded part of a request. Raises `InvalidRequest` that names the part by `where`."""
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as wrong:
        raise InvalidRequest(f"Invalid request body: '{where}': {_clip(str(wrong))}") from None


def find_fault(text: object, where: str, body: bytes, first_text: Callable[[], str]) -> Fault | None:
    """The requested fault: `text` from the field `where`, or `[[simulate …]]` in the first user text.

    Raises `InvalidRequest` for an unknown fault.
    """
    if text is None or text == "":
        # Search the bytes first: finding the first text costs more, and few requests have the marker.
        marked = _MARKED.search(first_text()) if body.find(_MARK) >= 0 else None
        if marked is None:
            return None
        text, where = marked[1], "[[simulate …]]"
    if not isinstance(text, str):
        raise InvalidRequest(f"'{where}' is not a string.", hint="Write it as in 'status=503,retry_after=2'.")
    try:
        return Fault.parse(text)
    except ConfigInvalid as wrong:
        raise InvalidRequest(f"'{where}': {_clip(wrong.message)}", hint=wrong.hint) from None


def find_labelled_fault(
    labels: Mapping[str, object] | None, field: str, body: bytes, first_text: Callable[[], str]
) -> Fault | None:
    """The fault that `simulate` in the request's `field` asks for, as `find_fault`."""
    return find_fault((labels or {}).get("simulate"), f"{field}.simulate", body, first_text)


def text_tokens(text: str) -> int:
    """Tokens of one text: one per 4 characters, rounded up."""
    return -(-len(text) // CHARS_PER_TOKEN)


def json_tokens(value: Any) -> int:
    """Tokens of a value's JSON without spaces."""
    return text_tokens(msgspec.json.encode(value).decode())


def _clip(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "…"
