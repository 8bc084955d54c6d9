"""What the OpenAI dialects share: usage, cost and errors. https://platform.openai.com/docs/api-reference"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from mcpmeter.dialects import json_body, request_bounds
from mcpmeter.dialects.base import RequestInfo
from mcpmeter.dialects.tokens import Tokens
from mcpmeter.errors import MeterError
from mcpmeter.records import Usage

DONE: Final = b"[DONE]"
"""The payload of the event that ends a stream."""

MAX_AMOUNT_LENGTH: Final = 64
"""Characters of an amount of money; no provider writes this many."""


class _PromptDetails(msgspec.Struct, frozen=True, gc=False):
    cached_tokens: Tokens | None = None
    cache_write_tokens: Tokens | None = None
    audio_tokens: Tokens | None = None


class _CompletionDetails(msgspec.Struct, frozen=True, gc=False):
    reasoning_tokens: Tokens | None = None
    audio_tokens: Tokens | None = None


class ReportedUsage(msgspec.Struct, frozen=True, gc=False):
    """The usage object under chat's names; the responses API has others for the same fields."""

    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    total_tokens: Tokens | None = None
    prompt_tokens_details: msgspec.Raw = json_body.ABSENT
    completion_tokens_details: msgspec.Raw = json_body.ABSENT
    prompt_cache_hit_tokens: Tokens | None = None  # DeepSeek's name for cached_tokens
    num_cached_tokens: msgspec.Raw = json_body.ABSENT  # Mistral's
    cached_tokens: msgspec.Raw = json_body.ABSENT  # Moonshot's
    prompt_audio_seconds: msgspec.Raw = json_body.ABSENT  # Mistral: sound that `prompt_tokens` excludes


class CommonUsage(msgspec.Struct, frozen=True, gc=False):
    """The usage object as most providers send it, including details and cost, so that one decoding reads it all."""

    prompt_tokens: Tokens
    completion_tokens: Tokens
    total_tokens: Tokens | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: Tokens | None = None
    num_cached_tokens: Tokens | None = None
    cached_tokens: Tokens | None = None
    prompt_audio_seconds: msgspec.Raw = json_body.ABSENT
    cost: msgspec.Raw = json_body.ABSENT


class _UsageWithCost(msgspec.Struct, frozen=True, gc=False):
    cost: msgspec.Raw = json_body.ABSENT


class _CostInParts(msgspec.Struct, frozen=True, gc=False):
    total_cost: msgspec.Raw = json_body.ABSENT


_usage_decoder = msgspec.json.Decoder(ReportedUsage)
_cost_decoder = msgspec.json.Decoder(_UsageWithCost)
_parts_decoder = msgspec.json.Decoder(_CostInParts)
_prompt_details_decoder = msgspec.json.Decoder(_PromptDetails)
_completion_details_decoder = msgspec.json.Decoder(_CompletionDetails)
_count_decoder = msgspec.json.Decoder(Tokens)
_NO_PROMPT_DETAILS: Final = _PromptDetails()
_NO_COMPLETION_DETAILS: Final = _CompletionDetails()


class OpenAiDialect:
    """What is the same in all OpenAI dialects."""

    passed_headers = frozenset((b"openai-beta",))
    """Only switches of features. `openai-organization` and `openai-project` name the account that pays: the relay's."""

    def bounded(self, body: bytes, request: RequestInfo) -> RequestInfo:
        """The request with its limits, references and hosted tools. Raises InvalidRequest."""
        return request_bounds.of_openai(body, request)

    def forwarded(self, body: bytes, request: RequestInfo, model: str) -> bytes:
        """The body unchanged, unless the model's name differs."""
        return body if request.model == model else json_body.with_fields(body, {"model": model})

    def error_body(self, error: MeterError, call_id: str) -> bytes:
        """OpenAI's error object."""
        return error_body(error, call_id)

    def error_event(self, error: MeterError, call_id: str) -> bytes:
        """The error object as an event; OpenAI's SDKs raise APIError on it."""
        return b"data: " + error_body(error, call_id) + b"\n\n"


def prompt_texts(value: Any) -> Iterator[str]:
    """The text that a model reads; `data:` URLs are pictures and files, not priced by their length."""
    return (text for text in json_body.strings_in(value) if not text.startswith("data:"))


def read_usage(
    raw: msgspec.Raw, decode: Callable[[msgspec.Raw], ReportedUsage] = _usage_decoder.decode
) -> tuple[Usage | None, bool]:
    """(usage, whether it is present and invalid). An explicit zero is kept: the provider reports it."""
    if not json_body.is_set(raw) or bytes(raw) == b"{}":
        return None, False
    try:
        reported = decode(raw)
    except json_body.UNREADABLE:
        return None, True
    prompt, completion = reported.prompt_tokens, reported.completion_tokens
    if prompt is None or (completion is None and reported.total_tokens is None):
        return None, True
    if completion is None:
        completion = max(0, (reported.total_tokens or 0) - prompt)
    details = json_body.decode_field(_prompt_details_decoder, reported.prompt_tokens_details, _NO_PROMPT_DETAILS)
    written = json_body.decode_field(
        _completion_details_decoder, reported.completion_tokens_details, _NO_COMPLETION_DETAILS
    )
    cached = details.cached_tokens
    if cached is None:
        cached = reported.prompt_cache_hit_tokens
        cached = cached or json_body.decode_field(_count_decoder, reported.num_cached_tokens, 0)
        cached = cached or json_body.decode_field(_count_decoder, reported.cached_tokens, 0)
    completion += _uncounted_thoughts(reported, prompt, completion, details, written)
    return _within_totals(prompt, completion, details, written, cached), False


def usage_of(reported: CommonUsage) -> Usage:
    """The same result as `read_usage`, from the common form."""
    prompt, completion = reported.prompt_tokens, reported.completion_tokens
    details = reported.prompt_tokens_details or _NO_PROMPT_DETAILS
    written = reported.completion_tokens_details or _NO_COMPLETION_DETAILS
    cached = details.cached_tokens
    if cached is None:
        cached = reported.prompt_cache_hit_tokens or reported.num_cached_tokens or reported.cached_tokens or 0
    if reported.total_tokens is not None and reported.total_tokens > prompt + completion:
        completion += _uncounted_thoughts(reported, prompt, completion, details, written)
    return _within_totals(prompt, completion, details, written, cached)


def _uncounted_thoughts(
    reported: ReportedUsage | CommonUsage,
    prompt: int,
    completion: int,
    details: _PromptDetails,
    written: _CompletionDetails,
) -> int:
    """Tokens of thoughts that only the total counts: Google and xAI bill them as completion but count them beside it.

    0 if the difference can be something else: sound, or the caches that a relay to Anthropic counts beside the prompt.
    """
    beyond = (reported.total_tokens or 0) - prompt - completion
    cache_read, cache_write = details.cached_tokens or 0, details.cache_write_tokens or 0
    if beyond <= 0 or beyond in (cache_read, cache_write, cache_read + cache_write):
        return 0
    if not json_body.is_blank(reported.prompt_audio_seconds):
        return 0
    return beyond if written.reasoning_tokens is None or written.reasoning_tokens == beyond else 0


def _within_totals(
    prompt: int, completion: int, details: _PromptDetails, written: _CompletionDetails, cached: int
) -> Usage:
    """Details are parts of the totals. If a provider reports larger details, its totals count because it bills them."""
    cached = min(cached, prompt)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_read_tokens=cached,
        cache_write_tokens=min(details.cache_write_tokens or 0, prompt - cached),
        reasoning_tokens=min(written.reasoning_tokens or 0, completion),
        audio_tokens=min((details.audio_tokens or 0) + (written.audio_tokens or 0), prompt + completion),
        source="reported",
    )


def reported_usd(usage: msgspec.Raw) -> str:
    """`usage.cost` with the provider's own digits; empty if there is none.

    A number in US dollars (OpenRouter), or an object with its `total_cost` (Perplexity).
    """
    if b'"cost"' not in bytes(usage):
        return ""
    try:
        return usd_of(_cost_decoder.decode(usage).cost)
    except json_body.UNREADABLE:
        return ""


def usd_of(cost: msgspec.Raw) -> str:
    """The same from `cost` alone."""
    if cost is json_body.ABSENT:
        return ""
    try:
        if bytes(cost).startswith(b"{"):
            cost = _parts_decoder.decode(cost).total_cost
        written = bytes(cost).decode().strip('"')
    except json_body.UNREADABLE:
        return ""
    return written if written[:1].isdigit() and len(written) <= MAX_AMOUNT_LENGTH else ""


_ERROR_TYPES: Final = {
    "validation_error": "invalid_request_error",
    "auth_error": "authentication_error",
    "rate_limited": "rate_limit_error",
    "budget_exceeded": "insufficient_quota",
    "upstream_rate_limited": "rate_limit_error",
}


def error_body(error: MeterError, call_id: str) -> bytes:
    """OpenAI's error object, with the id to ask support about."""
    return msgspec.json.encode(
        {
            "error": {
                "message": str(error),
                "type": _ERROR_TYPES.get(error.error_type, "api_error"),
                "param": None,
                "code": error.id,
                "call_id": call_id,
            }
        }
    )
