"""What dialects with their own schemas share: bodies decoded into structs, the model's name, what a prompt holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import msgspec

from mcpmeter.dialects import json_text, openai
from mcpmeter.dialects.base import NotAnAnswer, ResponseInfo, merge
from mcpmeter.errors import InvalidRequest

MAX_MODEL_NAME_LENGTH: Final = 256
BYTES_PER_PROMPT_TOKEN: Final = 4
"""For the estimate at opening, where speed counts: JSON and English both come to about four bytes a token."""

MAX_COUNT_LENGTH: Final = 12
SHORTEST_MEDIA_BYTES: Final = 20_000
LEAST_TOKENS_OF_MEDIA: Final = 5_000
BYTES_PER_MEDIA_TOKEN: Final = 50
"""Generous: a page of a PDF takes some 3,000 tokens, a large picture less than 5,000."""

_MEDIA: Final = re.compile(rb'(?:;base64,|"data"\s*:\s*")([A-Za-z0-9+/=_-]{20000,})')
_T = TypeVar("_T")
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def request_of(decoder: msgspec.json.Decoder[_T], body: bytes, *, kind: str, hint: str) -> _T:
    """A request as a struct. `kind` names it in the sentence that refuses it. Raises InvalidRequest."""
    json_text.refuse_bad_text(body)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as fault:
        raise InvalidRequest(f"The request is not {kind}: {fault}.", hint=hint) from None
    except RecursionError:
        raise json_text.too_deep() from None
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        raise json_text.not_json(fault) from None


def answer_of(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T:
    """An answer or an event as a struct, also where only a lenient parser takes it. Raises NotAnAnswer."""
    try:
        return decoder.decode(body)
    except (msgspec.ValidationError, UnicodeDecodeError) as fault:
        raise NotAnAnswer(str(fault)) from None
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return decoder.decode(openai.lenient(body))
    except (msgspec.DecodeError, RecursionError) as fault:
        raise NotAnAnswer(str(fault)) from None


def value_of(answer: bytes) -> Any:
    """An answer or an event as Python values; None where it is no JSON."""
    try:
        return msgspec.json.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return msgspec.json.decode(openai.lenient(answer))
    except (NotAnAnswer, msgspec.DecodeError, RecursionError):
        return None


def max_tokens(*limits: msgspec.Raw, choices: msgspec.Raw = openai.ABSENT) -> int | None:
    """The most tokens of an answer: the first limit that is given, for each of the choices asked for.

    None where none is given. What is no count is the provider's to refuse.
    """
    for raw in limits:
        limit = _count_of(raw)
        if limit is not None:
            return limit if choices is openai.ABSENT else limit * max(_count_of(choices) or 1, 1)
    return None


def _count_of(raw: msgspec.Raw) -> int | None:
    if raw is openai.ABSENT:
        return None
    text = bytes(raw)
    return int(text) if text.isdigit() and len(text) <= MAX_COUNT_LENGTH else None


def max_prompt_tokens(body: bytes) -> int:
    """No token is shorter than a byte, so a body bounds what a model reads; base64 in it is no text to a model."""
    most = len(body)
    if most < SHORTEST_MEDIA_BYTES:
        return most
    for found in _MEDIA.finditer(body):
        size = found.end(1) - found.start(1)
        most += max(LEAST_TOKENS_OF_MEDIA, size // BYTES_PER_MEDIA_TOKEN) - size
    return most


def check_model(name: str) -> None:
    """Raises InvalidRequest for a name that is blank, too long or not printable."""
    if not name.strip():
        raise InvalidRequest("'model' is empty.", hint="Name a model of GET /v1/models.")
    if len(name) > MAX_MODEL_NAME_LENGTH or not name.isprintable():
        raise InvalidRequest(
            f"'model' is longer than {MAX_MODEL_NAME_LENGTH} characters or holds control characters.",
            hint="Name a model of GET /v1/models.",
        )


def with_model(body: bytes, model: str) -> bytes:
    """The body under another model's name; every other value stays as it was written."""
    present = fields_of(body)
    named = msgspec.json.encode(model)
    if "model" not in present:
        brace = body.index(b"{") + 1
        return body[:brace] + b'"model":' + named + b"," + body[brace:]
    return msgspec.json.encode({**present, "model": msgspec.Raw(named)})


def names_model(body: bytes) -> bool:
    """Whether a request, known to be an object, has a `model`."""
    return "model" in fields_of(body)


def fields_of(body: bytes) -> dict[str, msgspec.Raw]:
    """The fields of a body that is known to be an object, each as it was written."""
    return _fields_decoder.decode(body)


def prompt_parts(value: Any, is_media: Callable[[dict[str, Any]], bool]) -> tuple[str, int]:
    """All text of a prompt, and how many images, sounds and documents it holds: base64 is not text to a model."""
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


def dicts_in(value: Any) -> Iterator[dict[str, Any]]:
    """The objects in a list; nothing where it is no list."""
    for item in value if isinstance(value, list) else ():
        if isinstance(item, dict):
            yield item


def under(value: Any, *names: str) -> Any:
    """What stands in objects below these names; None where one is missing."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def merged(
    before: ResponseInfo | None,
    now: ResponseInfo | None,
    how: Callable[[ResponseInfo, ResponseInfo], ResponseInfo] = merge,
) -> ResponseInfo | None:
    """Two Reads as one, where there are two."""
    return how(before, now) if before is not None and now is not None else now or before
