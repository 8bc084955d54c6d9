"""What the OpenAI dialects share: requests, usage, cost, errors and events, after OpenAI's published API reference."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Final

import msgspec

from mcpmeter.dialects import json_text
from mcpmeter.dialects.base import NotAnAnswer, ResponseInfo, merge
from mcpmeter.errors import MeterError
from mcpmeter.records import Usage

PASSED_HEADERS: Final = frozenset({b"openai-beta"})
"""Switches of features alone. `openai-organization` and `openai-project` name the account that pays: the relay's."""

DONE: Final = b"[DONE]"
"""The payload of the event that ends a stream."""

MAX_TOKENS: Final = 10**12
"""More than any call can use; a larger count is nonsense and would break 64-bit columns when summed."""

ABSENT: Final = msgspec.Raw()
"""A field that is not there, as distinct from one that is null."""

NULL: Final = msgspec.Raw(b"null")
UNTOLD: Final = (ABSENT, NULL)
NO_ERROR: Final = (ABSENT, NULL, *map(msgspec.Raw, (b"false", b"{}", b'""')))
BLANK: Final = (ABSENT, NULL, *map(msgspec.Raw, (b'""', b"[]", b"{}")))
MAX_BLANK_BYTES: Final = 4
"""Bytes: what is longer need not be compared."""

MAX_AMOUNT_LENGTH: Final = 64
"""Characters of an amount of money; no provider writes so many."""

MAX_NAME_LENGTH: Final = 256
"""Characters kept of what an answer calls itself: a provider's text ends up in a row of the ledger."""

Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class _PromptDetails(msgspec.Struct, frozen=True, gc=False):
    cached_tokens: Tokens | None = None
    cache_write_tokens: Tokens | None = None
    audio_tokens: Tokens | None = None


class _CompletionDetails(msgspec.Struct, frozen=True, gc=False):
    reasoning_tokens: Tokens | None = None
    audio_tokens: Tokens | None = None


class ToldUsage(msgspec.Struct, frozen=True, gc=False):
    """The usage object under chat's names; the responses API has others for the same."""

    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    total_tokens: Tokens | None = None
    prompt_tokens_details: msgspec.Raw = ABSENT
    completion_tokens_details: msgspec.Raw = ABSENT
    prompt_cache_hit_tokens: Tokens | None = None  # DeepSeek's name for cached_tokens
    num_cached_tokens: msgspec.Raw = ABSENT  # Mistral's
    cached_tokens: msgspec.Raw = ABSENT  # Moonshot's
    prompt_audio_seconds: msgspec.Raw = ABSENT  # Mistral: sound that `prompt_tokens` leaves out


class UsualUsage(msgspec.Struct, frozen=True, gc=False):
    """The usage object as providers mostly send it, details and cost with it, so that one decoding reads it all."""

    prompt_tokens: Tokens
    completion_tokens: Tokens
    total_tokens: Tokens | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: Tokens | None = None
    num_cached_tokens: Tokens | None = None
    cached_tokens: Tokens | None = None
    prompt_audio_seconds: msgspec.Raw = ABSENT
    cost: msgspec.Raw = ABSENT


class _UsageWithCost(msgspec.Struct, frozen=True, gc=False):
    cost: msgspec.Raw = ABSENT


class _CostInParts(msgspec.Struct, frozen=True, gc=False):
    total_cost: msgspec.Raw = ABSENT


_usage_decoder = msgspec.json.Decoder(ToldUsage)
_cost_decoder = msgspec.json.Decoder(_UsageWithCost)
_parts_decoder = msgspec.json.Decoder(_CostInParts)
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_prompt_details_decoder = msgspec.json.Decoder(_PromptDetails)
_completion_details_decoder = msgspec.json.Decoder(_CompletionDetails)
_count_decoder = msgspec.json.Decoder(Tokens)
_NO_PROMPT_DETAILS: Final = _PromptDetails()
_NO_COMPLETION_DETAILS: Final = _CompletionDetails()


def with_fields(body: bytes, additions: dict[str, Any]) -> bytes:
    """Set top-level fields; an object is added to the one that is there. New ones go in front, by insertion alone."""
    if not additions:
        return body
    present = _fields_decoder.decode(body)
    if not additions.keys() & present.keys():
        brace = body.index(b"{") + 1
        fields = msgspec.json.encode(additions)[1:-1]
        return body[:brace] + fields + b"," + body[brace:]
    merged: dict[str, Any] = {**present, **additions}
    for name in additions.keys() & present.keys():
        if isinstance(additions[name], dict):
            merged[name] = {**(msgspec.json.decode(present[name]) or {}), **additions[name]}
    return msgspec.json.encode(merged)


def prompt_texts(value: Any) -> Iterator[str]:
    """What a model reads of a parsed value; pictures and files in it (`data:` URLs) are not priced by their letters."""
    return (text for text in json_text.text_of(value) if not text.startswith("data:"))


def is_told(raw: msgspec.Raw) -> bool:
    """Whether a field is there and not null."""
    return raw not in UNTOLD


def is_error(raw: msgspec.Raw) -> bool:
    """Whether an `error` field says that there is one: some relays send it empty with every answer."""
    return raw not in NO_ERROR


def is_blank(raw: msgspec.Raw) -> bool:
    """Whether a field says nothing: it is not there, null, or an empty string, list or object."""
    return len(raw) <= MAX_BLANK_BYTES and raw in BLANK


def read_usage(
    raw: msgspec.Raw, decode: Callable[[msgspec.Raw], ToldUsage] = _usage_decoder.decode
) -> tuple[Usage | None, bool]:
    """(usage, whether it was there and cannot be). An explicit zero is kept: it is what the provider says."""
    if not is_told(raw) or bytes(raw) == b"{}":
        return None, False
    try:
        told = decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, True
    completion = told.completion_tokens
    if told.prompt_tokens is None or (completion is None and told.total_tokens is None):
        return None, True
    if completion is None:
        completion = max(0, (told.total_tokens or 0) - told.prompt_tokens)
    details, written = _prompt_details(told.prompt_tokens_details), _completion_details(told.completion_tokens_details)
    cached = details.cached_tokens
    if cached is None:
        cached = told.prompt_cache_hit_tokens or _count(told.num_cached_tokens) or _count(told.cached_tokens)
    completion += _thoughts(told, told.prompt_tokens, completion, details, written)
    return _within_totals(told.prompt_tokens, completion, details, written, cached), False


def usage_of(told: UsualUsage) -> Usage:
    """What `read_usage` finds in it."""
    prompt, completion = told.prompt_tokens, told.completion_tokens
    details = told.prompt_tokens_details or _NO_PROMPT_DETAILS
    written = told.completion_tokens_details or _NO_COMPLETION_DETAILS
    cached = details.cached_tokens
    if cached is None:
        cached = told.prompt_cache_hit_tokens or told.num_cached_tokens or told.cached_tokens
    if told.total_tokens is not None and told.total_tokens > prompt + completion:
        completion += _thoughts(told, prompt, completion, details, written)
    return _within_totals(prompt, completion, details, written, cached)


def _thoughts(
    told: ToldUsage | UsualUsage, prompt: int, completion: int, details: _PromptDetails, written: _CompletionDetails
) -> int:
    """What the total holds beyond prompt and completion, where that is what the model thought: Google and xAI bill
    thoughts as completion and count them beside it. 0 where it can be something else: sound, or what a relay to
    Anthropic's models has of caches beside the prompt."""
    beyond = (told.total_tokens or 0) - prompt - completion
    read, kept = details.cached_tokens or 0, details.cache_write_tokens or 0
    if beyond <= 0 or beyond in (read, kept, read + kept) or not is_blank(told.prompt_audio_seconds):
        return 0
    return beyond if written.reasoning_tokens is None or written.reasoning_tokens == beyond else 0


def _within_totals(
    prompt: int, completion: int, details: _PromptDetails, written: _CompletionDetails, cached_told: int | None
) -> Usage:
    """Details are parts of the totals; a provider that says otherwise is held to its totals, which it bills."""
    cached = min(cached_told or 0, prompt)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_read_tokens=cached,
        cache_write_tokens=min(details.cache_write_tokens or 0, prompt - cached),
        reasoning_tokens=min(written.reasoning_tokens or 0, completion),
        audio_tokens=min((details.audio_tokens or 0) + (written.audio_tokens or 0), prompt + completion),
        source="reported",
    )


def _count(raw: msgspec.Raw) -> int | None:
    # Like other details, left out where it cannot be.
    try:
        return _count_decoder.decode(raw) if is_told(raw) else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


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


def reported_usd(usage: msgspec.Raw) -> str:
    """`usage.cost` as the provider wrote it, digit for digit; empty where it says none.

    A number in US dollars (OpenRouter), or an object with its `total_cost` (Perplexity).
    """
    if b'"cost"' not in bytes(usage):
        return ""
    try:
        return usd_of(_cost_decoder.decode(usage).cost)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def usd_of(cost: msgspec.Raw) -> str:
    """The same of `cost` alone."""
    if cost is ABSENT:
        return ""
    try:
        if bytes(cost).startswith(b"{"):
            cost = _parts_decoder.decode(cost).total_cost
        written = bytes(cost).decode().strip('"')
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    return written if written[:1].isdigit() and len(written) <= MAX_AMOUNT_LENGTH else ""


def cleaned(text: str | None) -> str:
    """A provider's text as it may stand in a row: bounded, without control characters."""
    short = (text or "")[:MAX_NAME_LENGTH]
    return short if short.isprintable() else "".join(char if char.isprintable() else "?" for char in short)


def lenient(body: bytes) -> bytes:
    """An answer as strict JSON. Python's own parser takes NaN, Infinity and lone surrogates, as some relays send them.

    Raises NotAnAnswer.
    """
    try:
        # Numbers that are not whole become text: NaN in usage then reads as bad, and a cost keeps every digit.
        value: Any = json.loads(body, parse_float=str, parse_constant=str)
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    except (ValueError, RecursionError) as fault:
        raise NotAnAnswer(str(fault)) from None


def told_by(reads: Sequence[ResponseInfo | None]) -> ResponseInfo | None:
    """What several events say together; None where none of them says anything."""
    told: ResponseInfo | None = None
    for read in reads:
        if read is not None:
            told = read if told is None else merge(told, read)
    return told


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
