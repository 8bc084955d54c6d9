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
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: Tokens | None = None  # DeepSeek's name for cached_tokens


_usage_decoder = msgspec.json.Decoder(_Usage)


def is_told(raw: msgspec.Raw) -> bool:
    """Whether a field is there and not null."""
    return bytes(raw) not in (b"", b"null")


def read_usage(raw: msgspec.Raw) -> tuple[Usage | None, bool]:
    """(usage, whether it was there and cannot be). An explicit zero is kept: it is what the provider says."""
    if not is_told(raw) or bytes(raw) == b"{}":
        return None, False
    try:
        told = _usage_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, True
    if told.prompt_tokens is None:
        return None, True
    completion = told.completion_tokens or 0
    details, written = told.prompt_tokens_details, told.completion_tokens_details
    cached = (details.cached_tokens if details else None) or told.prompt_cache_hit_tokens or 0
    audio = ((details.audio_tokens if details else None) or 0) + ((written.audio_tokens if written else None) or 0)
    return Usage(
        prompt_tokens=told.prompt_tokens,
        completion_tokens=completion,
        # Details are parts of the totals; a provider that says otherwise is held to its totals, which it bills.
        cached_read_tokens=(cached := min(cached, told.prompt_tokens)),
        cache_write_tokens=min((details.cache_write_tokens if details else None) or 0, told.prompt_tokens - cached),
        reasoning_tokens=min((written.reasoning_tokens if written else None) or 0, completion),
        audio_tokens=min(audio, told.prompt_tokens + completion),
        source="reported",
    ), False


def lenient(body: bytes) -> bytes:
    """An answer as strict JSON. Python's own parser takes NaN and Infinity, as some relays send them.

    Raises NotAnAnswer.
    """
    try:
        value: Any = json.loads(body)
        # What could not be strict JSON becomes null, so that usage with NaN reads as bad and the rest still counts.
        return json.dumps(_strict(value)).encode()
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
    """The payloads of the `data:` fields in a block of whole events (Server-Sent Events, WHATWG HTML 9.2.6)."""
    payloads: list[bytes] = []
    for line in block.splitlines():
        if line.startswith(b"data:"):
            payloads.append(line[5:].strip())
    return payloads
