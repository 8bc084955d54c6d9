"""How requests of every dialect are read: tokens are counted, faults are found that a request asks for.

The rule: a token for every 4 characters begun of each text, 4 more for each message, 85 for each part that is no text
(an image, a sound), and `tools` as JSON without spaces. No tokenizer: exact, fast, and known to both sides.
"""

from __future__ import annotations

import re
from collections.abc import Callable
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
    """Decode a request. Raises `InvalidRequest` for anything that is not one."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as wrong:
        raise InvalidRequest(f"Invalid request body: {_clip(str(wrong))}") from None
    except (ValueError, RecursionError):
        raise InvalidRequest(
            "We could not parse the JSON body of your request.", hint="Send a JSON object in UTF-8."
        ) from None


def convert(value: Any, type_: type[Struct], where: str) -> Struct:
    """A part of a request that was kept as it came. Raises `InvalidRequest`, naming where it stands."""
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as wrong:
        raise InvalidRequest(f"Invalid request body: '{where}': {_clip(str(wrong))}") from None


def find_fault(said: object, where: str, body: bytes, first_text: Callable[[], str]) -> Fault | None:
    """What a request asks for: `said`, found at `where`, or `[[simulate …]]` in its first user text.

    Raises `InvalidRequest` for something that cannot be simulated.
    """
    if said is None or said == "":
        # A search in the bytes first: looking for the first text costs more, and hardly any request has the mark.
        marked = _MARKED.search(first_text()) if body.find(_MARK) >= 0 else None
        if marked is None:
            return None
        said, where = marked[1], "[[simulate …]]"
    if not isinstance(said, str):
        raise InvalidRequest(f"'{where}' is not a string.", hint="Write it as in 'status=503,retry_after=2'.")
    try:
        return Fault.parse(said)
    except ConfigInvalid as wrong:
        raise InvalidRequest(f"'{where}': {_clip(wrong.message)}", hint=wrong.hint) from None


def text_tokens(text: str) -> int:
    """Tokens of one text: one for every 4 characters begun."""
    return -(-len(text) // CHARS_PER_TOKEN)


def json_tokens(value: Any) -> int:
    """Tokens of a value as the text of its JSON without spaces."""
    return text_tokens(msgspec.json.encode(value).decode())


def _clip(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "…"
