"""What the OpenAI dialects share: usage, errors and events, after OpenAI's published API reference."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Final

import msgspec

from mcpmeter.errors import MeterError
from mcpmeter.records import Usage
from mcpmeter.relay.dialects.base import NotAnAnswer

MOST_TOKENS: Final = 10**12
"""More than any call can use; a larger count is nonsense and would break 64-bit columns when summed."""

ABSENT: Final = msgspec.Raw()
"""A field that is not there, as distinct from one that is null."""

LONGEST_NAME: Final = 256
"""Characters kept of what an answer calls itself: a provider's text ends up in a row of the ledger."""

Tokens = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]


class _PromptDetails(msgspec.Struct, frozen=True, gc=False):
    cached_tokens: Tokens | None = None
    cache_write_tokens: Tokens | None = None
    audio_tokens: Tokens | None = None


class _CompletionDetails(msgspec.Struct, frozen=True, gc=False):
    reasoning_tokens: Tokens | None = None
    audio_tokens: Tokens | None = None


class _Usage(msgspec.Struct, frozen=True, gc=False):
    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    total_tokens: Tokens | None = None
    prompt_tokens_details: msgspec.Raw = ABSENT
    completion_tokens_details: msgspec.Raw = ABSENT
    prompt_cache_hit_tokens: Tokens | None = None  # DeepSeek's name for cached_tokens


_usage_decoder = msgspec.json.Decoder(_Usage)
_prompt_details_decoder = msgspec.json.Decoder(_PromptDetails)
_completion_details_decoder = msgspec.json.Decoder(_CompletionDetails)
_NO_PROMPT_DETAILS: Final = _PromptDetails()
_NO_COMPLETION_DETAILS: Final = _CompletionDetails()


def is_told(raw: msgspec.Raw) -> bool:
    """Whether a field is there and not null."""
    return bytes(raw) not in (b"", b"null")


def is_error(raw: msgspec.Raw) -> bool:
    """Whether an `error` field says that there is one: some relays send it empty with every answer."""
    return bytes(raw) not in (b"", b"null", b"false", b"{}", b'""')


def read_usage(raw: msgspec.Raw) -> tuple[Usage | None, bool]:
    """(usage, whether it was there and cannot be). An explicit zero is kept: it is what the provider says."""
    if not is_told(raw) or bytes(raw) == b"{}":
        return None, False
    try:
        told = _usage_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, True
    completion = told.completion_tokens
    if told.prompt_tokens is None or (completion is None and told.total_tokens is None):
        return None, True
    if completion is None:
        completion = max(0, (told.total_tokens or 0) - told.prompt_tokens)
    return _within_totals(told, told.prompt_tokens, completion), False


def _within_totals(told: _Usage, prompt: int, completion: int) -> Usage:
    """Details are parts of the totals; a provider that says otherwise is held to its totals, which it bills."""
    details, written = _prompt_details(told.prompt_tokens_details), _completion_details(told.completion_tokens_details)
    cached = min(details.cached_tokens or told.prompt_cache_hit_tokens or 0, prompt)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_read_tokens=cached,
        cache_write_tokens=min(details.cache_write_tokens or 0, prompt - cached),
        reasoning_tokens=min(written.reasoning_tokens or 0, completion),
        audio_tokens=min((details.audio_tokens or 0) + (written.audio_tokens or 0), prompt + completion),
        source="reported",
    )


def _prompt_details(raw: msgspec.Raw) -> _PromptDetails:
    # Details that cannot be are left out; the totals beside them still count.
    if not is_told(raw):
        return _NO_PROMPT_DETAILS
    try:
        return _prompt_details_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _NO_PROMPT_DETAILS


def _completion_details(raw: msgspec.Raw) -> _CompletionDetails:
    if not is_told(raw):
        return _NO_COMPLETION_DETAILS
    try:
        return _completion_details_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _NO_COMPLETION_DETAILS


def cleaned(text: str | None) -> str:
    """A provider's text as it may stand in a row: bounded, without control characters."""
    short = (text or "")[:LONGEST_NAME]
    return short if short.isprintable() else "".join(char if char.isprintable() else "?" for char in short)


def lenient(body: bytes) -> bytes:
    """An answer as strict JSON. Python's own parser takes NaN, Infinity and lone surrogates, as some relays send them.

    Raises NotAnAnswer.
    """
    try:
        value: Any = json.loads(body)
        # What could not be strict JSON becomes text, so that usage with NaN reads as bad and the rest still counts.
        return json.dumps(_strict(value), ensure_ascii=False).encode("utf-8", "replace")
    except (ValueError, RecursionError) as fault:
        raise NotAnAnswer(str(fault)) from None


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "not a number"
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    return value


_TYPES: Final = {
    "validation_error": "invalid_request_error",
    "auth_error": "authentication_error",
    "rate_limited": "rate_limit_error",
    "budget_exceeded": "insufficient_quota",
    "upstream_rate_limited": "rate_limit_error",
}


def error_body(error: MeterError, call_id: str) -> bytes:
    """OpenAI's error object, with the id to ask about."""
    return msgspec.json.encode(
        {
            "error": {
                "message": str(error),
                "type": _TYPES.get(error.error_type, "api_error"),
                "param": None,
                "code": error.id,
                "call_id": call_id,
            }
        }
    )


def events_of(block: bytes) -> list[bytes]:
    """The payloads of the events in a block of whole ones (Server-Sent Events, WHATWG HTML 9.2.6)."""
    payloads: list[bytes] = []
    open_event = False
    for line in block.splitlines():
        if not line:
            open_event = False
        elif line.startswith(b"data:"):
            data = line[5:].strip()
            # An event may spread its data over several lines.
            if open_event:
                payloads[-1] += b"\n" + data
            else:
                payloads.append(data)
            open_event = True
    return payloads
