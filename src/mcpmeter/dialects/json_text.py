"""What all JSON dialects share: refusing what no JSON is, and estimating tokens where a provider reported none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from mcpmeter.errors import InvalidRequest

ASCII_CHARACTERS_PER_TOKEN: Final = 4
OTHER_CHARACTERS_PER_TOKEN: Final = 1.5

BACKSLASH: Final = ord("\\")
"""As a number: a byte is found in bytes much sooner than bytes are."""

_ESCAPED_LETTER: Final = re.compile(rb"\\u00[4-7]")


def refuse_bad_text(body: bytes) -> None:
    """Refuse bytes that are not UTF-8 and strings with NUL: they break databases and scrapes.

    Raises InvalidRequest. Lone surrogates are refused by the parser itself, also in fields that it skips.
    """
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError:
            raise InvalidRequest("The body is not valid UTF-8.", hint="Send JSON encoded as UTF-8.") from None
    if body.find(b"\\u0000") >= 0 and any("\0" in text for text in _strings(parsed(body))):
        raise InvalidRequest("A string in the body holds a NUL character.", hint="Remove it.")


def quoted(*names: bytes) -> tuple[bytes, ...]:
    """Names of fields as JSON writes them."""
    return tuple(b'"%s"' % name for name in names)


def refuse_repeated(body: bytes, names: Sequence[bytes]) -> None:
    """Refuse an object that names one of these fields, as `quoted` gives them, twice: parsers differ on which of the
    two counts, so that a call could be metered as one model and answered by another. `body` is known to be valid JSON.

    Raises InvalidRequest.
    """
    for name in names:
        if body.count(name) > 1:
            break
    else:
        if BACKSLASH not in body or _ESCAPED_LETTER.search(body) is None:
            return
    # The hook is called for each object, for the outermost last; only its keys count.
    pairs: list[tuple[str, Any]] = json.loads(body, object_pairs_hook=list)
    keys = [key for key, _value in pairs]
    for field in (name.strip(b'"').decode() for name in names):
        if keys.count(field) > 1:
            raise InvalidRequest(f"The body names '{field}' twice.", hint="Name each field once.")


def parsed(body: bytes) -> Any:
    """The body as Python values. Raises InvalidRequest with the place where JSON ends."""
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise not_json(fault) from None


def too_deep() -> InvalidRequest:
    """The error for JSON nested beyond what can be read."""
    return InvalidRequest("The body is nested too deep.", hint="Send JSON of less than some hundred levels.")


def not_json(fault: Exception) -> InvalidRequest:
    """The error for a body that is no JSON; the parser names places and types, never content."""
    return InvalidRequest(f"The body is not valid JSON: {fault}.", hint="Send one JSON object.")


def _strings(value: Any) -> Iterator[str]:
    """All strings of a parsed value, keys too, without recursion."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def text_of(value: Any) -> Iterator[str]:
    """All string values (not keys) of a parsed value: what a model reads or wrote."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def estimated_tokens(text: str) -> int:
    """Estimate of a text's tokens: four characters each in ASCII, one and a half elsewhere.

    The rule of thumb that providers publish for English, and what their tokenizers come to on Chinese and Japanese.
    A tokenizer's vocabulary (76 MB installed) would weigh more than the rest of the service and fit one vendor only.
    """
    other = len(text) - len(text.encode("ascii", "ignore"))
    ascii_only = len(text) - other
    return round(ascii_only / ASCII_CHARACTERS_PER_TOKEN + other / OTHER_CHARACTERS_PER_TOKEN + 0.499)
