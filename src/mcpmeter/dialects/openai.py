"""What the OpenAI dialects share: usage, cost and errors. https://platform.openai.com/docs/api-reference"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal, Self

import msgspec
from msgspec.structs import replace

from mcpmeter.dialects import base, json_body, openai_usage, request_bounds, usage_fields, usage_merging
from mcpmeter.dialects.base import PricedByBody, RequestInfo, ResponseInfo
from mcpmeter.dialects.openai_usage import TABLE
from mcpmeter.dialects.tokens import Tokens
from mcpmeter.dialects.usage_fields import Table
from mcpmeter.errors import MeterError
from mcpmeter.money import usd_to_nanousd
from mcpmeter.records import STANDARD, Conditions, Usage, UsageItem

DONE: Final = b"[DONE]"
"""The payload of the event that ends a stream."""

MAX_AMOUNT_LENGTH: Final = 64
"""Characters of an amount of money; no provider writes this many."""


TICK_DIGITS: Final = 10
TRUE: Final = msgspec.Raw(b"true")
US_DOLLARS: Final = (*map(msgspec.Raw, (b"", b"null", b'""', b'"USD"', b'"usd"')),)
PLAIN_TIERS: Final = (*map(msgspec.Raw, (b'"default"', b"null", b'"auto"', b'"standard"')),)
Nothing = Literal[0] | None
"""A count that is billed apart, in usage that has none."""


class _PromptDetails(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    cached_tokens: Tokens | None = None
    cache_write_tokens: Tokens | None = None
    text_tokens: Tokens | None = None
    audio_tokens: Nothing = None
    image_tokens: Nothing = None
    video_tokens: Nothing = None


class _CompletionDetails(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    reasoning_tokens: Tokens | None = None
    accepted_prediction_tokens: Tokens | None = None
    rejected_prediction_tokens: Tokens | None = None
    text_tokens: Tokens | None = None
    audio_tokens: Nothing = None
    image_tokens: Nothing = None


class CommonUsage(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The usage object as most providers send it, so that one decoding reads it all.

    Decoding fails if anything in it is billed apart or is unknown: then `openai_usage` reads it by its table.
    """

    prompt_tokens: Tokens
    completion_tokens: Tokens
    total_tokens: Tokens | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: Tokens | None = None  # DeepSeek's name for cached_tokens
    prompt_cache_miss_tokens: Tokens | None = None
    num_cached_tokens: Tokens | None = None  # Mistral's
    cached_tokens: Tokens | None = None  # Moonshot's
    prompt_audio_seconds: Nothing = None  # Mistral's
    reasoning_tokens: Nothing = None
    queue_time: float | None = None  # Groq's
    prompt_time: float | None = None
    completion_time: float | None = None
    total_time: float | None = None
    cost: msgspec.Raw = json_body.ABSENT
    cost_details: msgspec.Raw = json_body.ABSENT  # OpenRouter's
    is_byok: bool | None = None
    server_tool_use: None = None
    server_tool_use_details: None = None


class CommonResponsesUsage(CommonUsage, frozen=True, gc=False, forbid_unknown_fields=True):
    """The same under the names of the responses API."""

    prompt_tokens: Tokens = msgspec.field(name="input_tokens")
    completion_tokens: Tokens = msgspec.field(name="output_tokens")
    prompt_tokens_details: _PromptDetails | None = msgspec.field(default=None, name="input_tokens_details")
    completion_tokens_details: _CompletionDetails | None = msgspec.field(default=None, name="output_tokens_details")


class _CostDetails(msgspec.Struct, frozen=True, gc=False):
    upstream_inference_cost: msgspec.Raw = json_body.ABSENT


class _UsageWithCost(msgspec.Struct, frozen=True, gc=False):
    cost: msgspec.Raw = json_body.ABSENT
    currency: msgspec.Raw = json_body.ABSENT
    cost_details: msgspec.Raw = json_body.ABSENT
    is_byok: msgspec.Raw = json_body.ABSENT
    cost_in_usd_ticks: msgspec.Raw = json_body.ABSENT
    estimated_cost: msgspec.Raw = json_body.ABSENT


class _CostInParts(msgspec.Struct, frozen=True, gc=False):
    total_cost: msgspec.Raw = json_body.ABSENT
    currency: msgspec.Raw = json_body.ABSENT


_usage_decoder = msgspec.json.Decoder(CommonUsage)
_cost_decoder = msgspec.json.Decoder(_UsageWithCost)
_parts_decoder = msgspec.json.Decoder(_CostInParts)
_cost_details_decoder = msgspec.json.Decoder(_CostDetails)
_text_decoder = msgspec.json.Decoder(str)
_NO_COST_DETAILS: Final = _CostDetails()
_NO_PROMPT_DETAILS: Final = _PromptDetails()
_NO_COMPLETION_DETAILS: Final = _CompletionDetails()


class OpenAiDialect(PricedByBody):
    """What is the same in all OpenAI dialects."""

    passed_headers = frozenset((b"openai-beta",))
    """Only switches of features. `openai-organization` and `openai-project` name the account that pays: the relay's."""

    _table: Table = TABLE
    _has_own_names = False

    def with_aliases(self, aliases: Mapping[str, str]) -> Self:
        """This dialect for a provider with names of its own for counts: `usage_fields.with_aliases`."""
        dialect = copy(self)
        dialect._table = usage_fields.with_aliases(self._table, aliases)
        dialect._has_own_names = True
        return dialect

    def merge(self, before: ResponseInfo, now: ResponseInfo) -> ResponseInfo:
        """Combine two events of a stream. Counts are cumulative: the greater ones of each side count, and the last cost
        that is not zero. The last tier holds, also `default`: a call may be served at a lower one than its first events
        name."""
        merged = base.merge(before, now)
        if not now.lacks_tier and merged.conditions.tier != now.conditions.tier:
            merged = replace(merged, conditions=replace(merged.conditions, tier=now.conditions.tier))
        if before.reported_usd and now.reported_usd and not usd_to_nanousd(now.reported_usd):
            merged = replace(merged, reported_usd=before.reported_usd, reported_is_part=before.reported_is_part)
        if before.usage is None or now.usage is None:
            return merged
        return replace(merged, usage=usage_merging.merged(before.usage, now.usage))

    def _read_usage(self, usage: msgspec.Raw) -> tuple[Usage | None, bool]:
        return read_usage(usage, None if self._has_own_names else _usage_decoder.decode, self._table)

    def bounded(self, body: bytes, request: RequestInfo, models: Sequence[str]) -> RequestInfo:
        """The request with its limits, references and hosted tools. Raises InvalidRequest."""
        return request_bounds.of_openai(body, request, models)

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
    raw: msgspec.Raw,
    decode: Callable[[msgspec.Raw], CommonUsage] | None = _usage_decoder.decode,
    table: Table = TABLE,
    *,
    has_completion: bool = True,
) -> tuple[Usage | None, bool]:
    """(usage, whether it is present and invalid). An explicit zero is kept: the provider reports it.

    `decode` reads the common form; None if a provider's own names must be looked for first.
    """
    if not json_body.is_set(raw) or bytes(raw) == b"{}":
        return None, False
    if decode is not None:
        try:
            usage = usage_of(decode(raw))
        except json_body.UNREADABLE:
            usage = None
        if usage is not None:
            return usage, False
    return openai_usage.usage_of(usage_fields.parsed(raw), table, has_completion=has_completion)


def usage_of(reported: CommonUsage) -> Usage | None:
    """The usage in the common form; None if its counts contradict each other or stand beside a total."""
    prompt, completion = reported.prompt_tokens, reported.completion_tokens
    details = reported.prompt_tokens_details or _NO_PROMPT_DETAILS
    written = reported.completion_tokens_details or _NO_COMPLETION_DETAILS
    cached = details.cached_tokens
    if not cached:
        cached = reported.prompt_cache_hit_tokens or reported.num_cached_tokens or reported.cached_tokens or 0
    cache_writes, reasoning = details.cache_write_tokens or 0, written.reasoning_tokens or 0
    total = reported.total_tokens
    if cached + cache_writes > prompt or reasoning > completion or (total and total > prompt + completion):
        return None
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_read_tokens=cached,
        cache_write_tokens=cache_writes,
        reasoning_tokens=reasoning,
        source="reported",
    )


def reported_cost(usage: msgspec.Raw) -> tuple[str, bool]:
    """(US dollars with the provider's own digits, whether they are a part of the cost only); empty if there are none.

    `usage.cost` is a number (OpenRouter), or an object with its `total_cost` (Perplexity); xAI writes ticks of 1e-10.
    With a key of its own (`is_byok`) OpenRouter's account pays `cost` and another one the upstream's:
    https://openrouter.ai/docs/use-cases/usage-accounting
    """
    if usage is json_body.ABSENT or b"cost" not in bytes(usage):
        return "", False
    try:
        reported = _cost_decoder.decode(usage)
    except json_body.UNREADABLE:
        return "", False
    if reported.currency not in US_DOLLARS:
        return "", False
    usd = usd_of(reported.cost) or _usd_of_ticks(reported.cost_in_usd_ticks) or usd_of(reported.estimated_cost)
    if reported.is_byok != TRUE:
        return usd, False
    details = json_body.decode_field(_cost_details_decoder, reported.cost_details, _NO_COST_DETAILS)
    upstream = usd_of(details.upstream_inference_cost)
    try:
        return (str(Decimal(usd or 0) + Decimal(upstream)), False) if upstream else (usd, bool(usd))
    except InvalidOperation:
        return "", False


def _usd_of_ticks(ticks: msgspec.Raw) -> str:
    """https://docs.x.ai/developers/cost-tracking"""
    written = usd_of(ticks)
    try:
        return str(Decimal(written).scaleb(-TICK_DIGITS)) if written else ""
    except InvalidOperation:
        return ""


def usd_of(cost: msgspec.Raw) -> str:
    """An amount with its own digits; empty if it is none, or in another currency."""
    if cost is json_body.ABSENT:
        return ""
    try:
        if bytes(cost).startswith(b"{"):
            parts = _parts_decoder.decode(cost)
            cost = parts.total_cost if parts.currency in US_DOLLARS else json_body.ABSENT
        written = bytes(cost).decode().strip('"')
    except json_body.UNREADABLE:
        return ""
    return written if written[:1].isdigit() and len(written) <= MAX_AMOUNT_LENGTH else ""


def conditions_of(service_tier: msgspec.Raw, usage: Usage | None) -> tuple[Conditions, tuple[UsageItem, ...]]:
    """The conditions of a response: its tier, and what its usage states. A tier that is no text is an unknown item."""
    within = usage.conditions if usage is not None else STANDARD
    if service_tier is json_body.ABSENT or service_tier in PLAIN_TIERS:
        return within, ()
    written = json_body.decode_field(_text_decoder, service_tier, None)
    if written is None:
        return within, (UsageItem("service_tier", 1),)
    served = openai_usage.conditions_of({"tier": usage_fields.printable(written, usage_fields.MAX_TEXT_LENGTH)})
    return (replace(within, tier=served.tier) if served.tier else within), ()


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
