"""JSON bodies for every dialect: strict for requests, tolerant for responses, and rewriting that keeps other bytes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeVar

import msgspec

from mcpmeter.dialects.base import UnreadableResponse
from mcpmeter.errors import InvalidRequest

ABSENT: Final = msgspec.Raw()
"""A field that is missing, as distinct from one that is null."""

NULL: Final = msgspec.Raw(b"null")
UNSET: Final = (ABSENT, NULL)
NO_ERROR: Final = (ABSENT, NULL, *map(msgspec.Raw, (b"false", b"{}", b'""')))
BLANK: Final = (ABSENT, NULL, *map(msgspec.Raw, (b'""', b"[]", b"{}")))
MAX_BLANK_BYTES: Final = 4
"""A longer value is not blank; comparing it would cost its length."""

MAX_MODEL_NAME_LENGTH: Final = 256
MAX_NAME_LENGTH: Final = 256
"""Characters kept of a provider's text, which ends up in a row of the ledger."""

MAX_SHOWN_NUMBER: Final = 10**15
"""Greater numbers are no counts, and a float holds them only roughly."""

MAX_INT_LENGTH: Final = 40
"""Characters of an integer in a response; a longer one is no count and is kept as text."""

UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Raised by msgspec for bytes that do not fit the type."""

BACKSLASH: Final = ord("\\")
"""As a number: finding an int in bytes is much faster than finding bytes."""

_ESCAPED_LETTER: Final = re.compile(rb"\\u00[4-7]")
_T = TypeVar("_T")
_Default = TypeVar("_Default")
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_optional_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)


# Requests: strict ----------------------------------------------------------------------------------------------------


def decode_request(decoder: msgspec.json.Decoder[_T], body: bytes, *, kind: str, hint: str) -> _T:
    """Decode a request. `kind` names it in the error message. Raises InvalidRequest."""
    _refuse_bad_text(body)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as fault:
        raise InvalidRequest(f"The request is not {kind}: {fault}.", hint=hint) from None
    except UNREADABLE as fault:
        raise _not_json(fault) from None


def decode_if_it_fits(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T | None:
    """Decode a request's most frequent form; None for any other, valid or not. Raises InvalidRequest."""
    _refuse_bad_text(body)
    try:
        return decoder.decode(body)
    except UNREADABLE:
        return None


def parsed(body: bytes) -> Any:
    """A request as Python values. Raises InvalidRequest with the position at which the JSON is invalid."""
    try:
        return msgspec.json.decode(body)
    except UNREADABLE as fault:
        raise _not_json(fault) from None


def _not_json(fault: Exception) -> InvalidRequest:
    if isinstance(fault, RecursionError):
        return InvalidRequest("The body is nested too deep.", hint="Send JSON with less than a few hundred levels.")
    # The parser names positions and types, never content.
    return InvalidRequest(f"The body is not valid JSON: {fault}.", hint="Send one JSON object.")


def _refuse_bad_text(body: bytes) -> None:
    """Refuse bytes that are not UTF-8 and strings with NUL: they break databases and scrapes.

    The parser itself refuses lone surrogates, also in fields that it skips.
    """
    if not body.isascii():
        try:
            body.decode()
        except UnicodeDecodeError:
            raise InvalidRequest("The body is not valid UTF-8.", hint="Send JSON encoded as UTF-8.") from None
    if body.find(b"\\u0000") >= 0 and any("\0" in text for text in strings_in(parsed(body), keys=True)):
        raise InvalidRequest("A string in the body holds a NUL character.", hint="Remove it.")


def strings_in(value: Any, *, keys: bool = False) -> Iterator[str]:
    """All strings of a parsed value, without recursion; on request the keys of objects too."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            stack.extend(item.values())
            if keys:
                stack.extend(item)
        elif isinstance(item, list):
            stack.extend(item)


def quoted(*names: str) -> tuple[bytes, ...]:
    """Names of fields as JSON writes them."""
    return tuple(f'"{name}"'.encode() for name in names)


def refuse_repeated(body: bytes, names: Sequence[bytes]) -> bool:
    """Refuse an object that names one of these fields, as `quoted` gives them, twice. `body` is valid JSON.

    Parsers differ on which of the two counts, so a call could be metered as one model and served by another.
    Returns whether names may stand in it in another spelling than ours. Raises InvalidRequest.
    """
    for name in names:
        if body.count(name) > 1:
            break
    else:
        if BACKSLASH not in body or _ESCAPED_LETTER.search(body) is None:
            return False
    if repeated := repeated_field(body, names):
        raise InvalidRequest(f"The body names '{repeated}' twice.", hint="Name each field once.")
    return True


def repeated_field(body: bytes, names: Sequence[bytes]) -> str:
    """The first of these fields, as `quoted` gives them, that an object names twice; empty if there is none."""
    if all(body.count(name) <= 1 for name in names) and _ESCAPED_LETTER.search(body) is None:
        return ""
    # The hook runs for each object, for the outermost last; only the outermost keys count.
    try:
        # Numbers stay text: Python refuses to parse more than 4300 digits, which JSON allows.
        pairs = json.loads(body, object_pairs_hook=list, parse_int=str, parse_float=str)
    except RecursionError as fault:
        raise _not_json(fault) from None  # at a depth that the other parser just takes
    keys = [key for key, _value in pairs]
    fields = (name.strip(b'"').decode() for name in names)
    return next((field for field in fields if keys.count(field) > 1), "")


def repeated_anywhere(body: bytes, value: Any) -> str:
    """The first field that an object at any depth names twice; empty if there is none. `value` is the parsed body.

    A field that the parser dropped takes its quotes with it, so that most bodies need no second parsing.
    """
    if b"\\u0022" not in body and body.count(b'"') == msgspec.json.encode(value).count(b'"'):
        return ""
    found: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _value in pairs]
        if len(set(names)) < len(names):
            found.append(next(name for name, times in Counter(names).items() if times > 1))

    try:
        json.loads(body, object_pairs_hook=note, parse_int=str, parse_float=str)
    except RecursionError as fault:
        raise _not_json(fault) from None
    return cleaned(found[0])[:64] if found else ""


def check_model(name: str) -> None:
    """Raises InvalidRequest for a name that is blank, too long or not printable."""
    hint = "Name a model of GET /v1/models."
    if not name.strip():
        raise InvalidRequest("'model' is empty.", hint=hint)
    if len(name) > MAX_MODEL_NAME_LENGTH or not name.isprintable():
        raise InvalidRequest(
            f"'model' is longer than {MAX_MODEL_NAME_LENGTH} characters or holds control characters.", hint=hint
        )


def fields_of(body: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a body that is a valid object, each with its original bytes."""
    return _fields_decoder.decode(body)


def with_fields(body: bytes, additions: dict[str, Any]) -> bytes:
    """Set top-level fields; an object is merged into the existing one. New ones are inserted in front.

    Every other value keeps its bytes.
    """
    if not additions:
        return body
    present = fields_of(body)
    if not additions.keys() & present.keys():
        brace = body.index(b"{") + 1
        fields = msgspec.json.encode(additions)[1:-1]
        return body[:brace] + fields + b"," + body[brace:]
    merged: dict[str, Any] = {**present, **additions}
    for name in additions.keys() & present.keys():
        if isinstance(additions[name], dict):
            merged[name] = {**(_optional_fields_decoder.decode(present[name]) or {}), **additions[name]}
    return msgspec.json.encode(merged)


# Responses: tolerant -------------------------------------------------------------------------------------------------


def decode_response(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T:
    """Decode a response or an event, even if only a lenient parser accepts it. Raises UnreadableResponse."""
    try:
        return decoder.decode(body)
    except (msgspec.ValidationError, UnicodeDecodeError) as fault:
        raise UnreadableResponse(str(fault)) from None
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return decoder.decode(strict_json(body))
    except (msgspec.DecodeError, RecursionError) as fault:
        raise UnreadableResponse(str(fault)) from None


def strict_json(body: bytes) -> bytes:
    """A response as strict JSON. Python's parser accepts NaN, Infinity and lone surrogates, which some relays send.

    Raises UnreadableResponse.
    """
    try:
        # Fractions become text: NaN in usage then reads as invalid, and a cost keeps every digit.
        value: Any = json.loads(body, parse_int=_int_or_text, parse_float=_whole_or_text, parse_constant=str)
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    except (ValueError, RecursionError) as fault:
        raise UnreadableResponse(str(fault)) from None


def _int_or_text(written: str) -> int | str:
    # Python refuses to parse more than 4300 digits, and takes quadratic time for fewer.
    return int(written) if len(written) <= MAX_INT_LENGTH else written


def _whole_or_text(written: str) -> int | str:
    number = float(written)
    return int(number) if abs(number) < MAX_SHOWN_NUMBER and number.is_integer() else written


def value_of(response: bytes) -> Any:
    """A response or an event as Python values; None if it is not JSON."""
    try:
        return msgspec.json.decode(response)
    except UNREADABLE:
        pass
    try:
        return msgspec.json.decode(strict_json(response))
    except (UnreadableResponse, msgspec.DecodeError, RecursionError):
        return None


def decode_field(decoder: msgspec.json.Decoder[_T], raw: msgspec.Raw, default: _Default) -> _T | _Default:
    """Decode an optional field; the default if it is absent, null or invalid, so that the fields beside it count."""
    if raw in UNSET:
        return default
    try:
        return decoder.decode(raw)
    except UNREADABLE:
        return default


def is_set(raw: msgspec.Raw) -> bool:
    """Whether a field is present and not null."""
    return raw not in UNSET


def is_error(raw: msgspec.Raw) -> bool:
    """Whether an `error` field reports an error: some relays send it empty with every response."""
    return raw not in NO_ERROR


def is_blank(raw: msgspec.Raw) -> bool:
    """Whether a field holds nothing: it is absent, null, or an empty string, list or object."""
    return len(raw) <= MAX_BLANK_BYTES and raw in BLANK


def cleaned(text: str | None) -> str:
    """A provider's text for a row: bounded, without control characters."""
    if not text:
        return ""
    short = text[:MAX_NAME_LENGTH]
    return short if short.isprintable() else "".join(char if char.isprintable() else "?" for char in short)


def raw(value: Any) -> msgspec.Raw:
    """A parsed value as a field's bytes; absent for None and for what JSON cannot hold."""
    try:
        return ABSENT if value is None else msgspec.Raw(msgspec.json.encode(value))
    except (OverflowError, RecursionError):
        return ABSENT


def text_of(value: Any) -> str:
    """A field that a provider should send as text, for a row: of a number its digits, of an object its type, or a text
    in it; empty if it holds nothing."""
    if isinstance(value, dict):
        value = value.get("type") or value.get("reason") or value
    if isinstance(value, str):
        return cleaned(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return cleaned(str(value)) if abs(value) <= MAX_SHOWN_NUMBER else "other"
    return cleaned(next((text for text in strings_in(value) if text), "other")) if value else ""


def dicts_in(value: Any) -> Iterator[dict[str, Any]]:
    """The objects in a list; nothing if it is not a list."""
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict):
            yield item


def under(value: Any, *names: str) -> Any:
    """The value at a path of object keys; None if one is missing."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value
