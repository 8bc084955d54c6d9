"""What the body of a provider's error says beyond its status: whose fault it is, and how long to wait. Pure.

Marks are compared with codes and with the beginning of the message, never searched for in the text: providers repeat
parts of the prompt there, and a caller must not be able to have a key of the relay's put aside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import ROUND_CEILING, Decimal
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

import msgspec

from mcpmeter.dialects import json_body
from mcpmeter.providers import ErrorMarks, Provider
from mcpmeter.routing.retries import seconds_of

Meaning = Literal["", "account", "caller", "configuration", "edge", "rate_limit"]
"""`account`: the relay's key or credit. `caller`: this request's content. `configuration`: a tool or model that is not
enabled for the relay's account. `edge`: a page of a proxy before the provider. `rate_limit`: it passes by itself.
Empty: the status says all."""

EFFECTIVE_STATUS: Final[Mapping[Meaning, int]] = {
    "account": 402,
    "caller": 400,
    "configuration": 400,
    "edge": 502,
    "rate_limit": 429,
}
"""The status that an error amounts to, for failover."""

COMMON_MARKS: Final = ErrorMarks(
    account=("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "account_deactivated"),
    caller=(
        *("content_filter", "content_policy_violation", "moderation_blocked", "ResponsibleAIPolicyViolation"),
        "flagged_input",
    ),
    configuration=("model_not_found",),
)
"""Codes of OpenAI that compatible servers repeat."""

READ_STATUSES: Final = frozenset((400, 402, 403, 422, 429, 503))
"""The statuses whose bodies can say more."""

RETRY_INFO: Final = "type.googleapis.com/google.rpc.RetryInfo"
MAX_BODY_BYTES: Final = 64 * 1024
MAX_MESSAGE_LENGTH: Final = 1000
MAX_DETAILS: Final = 64
_PAGE_STARTS: Final = (b"<!doctype html", b"<html", b"error code: 1")
"""The last is Cloudflare's page for a client that wants no HTML; the numbers of its blocks begin with 1."""
_CODES: Final = ("code", "type", "status")
_METADATA_CODES: Final = ("error_type", "limit_source", "reason", "provider_code")
"""OpenRouter's; other fields of its metadata repeat the prompt."""


def meaning_of(provider: Provider, status: int, headers: Mapping[str, str], body: bytes) -> Meaning:
    """What an error response of a status from 400 to 499 means."""
    if not 400 <= status < 500:
        return ""
    if status == 403 and _is_page(headers, body):
        return "edge"
    error = _error_of(body)
    if error is None:
        return ""
    if status == 403 and error.get("cloudflare_error") is True:
        return "edge"
    words, message = set(_words(error)), _message(error)
    for marks in (provider.error_marks, COMMON_MARKS):
        if status == 402 and _matches(marks.rate_limit, words, message):
            return "rate_limit"
        if _matches(marks.account, words, message):
            return "account"
        if status == 403 and _matches(marks.caller, words, message):
            return "caller"
        if status == 403 and _matches(marks.configuration, words, message):
            return "configuration"
    return ""


def retry_seconds(body: bytes) -> Decimal | None:
    """How long the body of a 429 or 503 asks to wait: Google's RetryInfo, OpenRouter's `retry_after_seconds`."""
    error = _error_of(body)
    inner = json_body.under(error, "error")
    seconds = json_body.under(inner, "metadata", "retry_after_seconds")
    found = [seconds_of(f"{seconds}")] if isinstance(seconds, (int, float)) and not isinstance(seconds, bool) else []
    for detail in _details(inner):
        if detail.get("@type") == RETRY_INFO:
            found.append(_duration(detail.get("retryDelay")))
    return max((seconds for seconds in found if seconds is not None), default=None)


def _duration(value: object) -> Decimal | None:
    """A `google.protobuf.Duration`: as text, or as some clients of the gRPC API write it."""
    if isinstance(value, str):
        return seconds_of(value.removesuffix("s"))
    return seconds_of(f"{value.get('seconds', 0)}") if isinstance(value, dict) else None


def with_retry_after(headers: Mapping[str, str], seconds: Decimal) -> Mapping[str, str]:
    """Headers that also hold what the body asks to wait; the longer one counts."""
    if "retry-after" not in headers:
        return {**headers, "retry-after": str(seconds.to_integral_value(ROUND_CEILING))}
    return {**headers, "retry-after-ms": str((seconds * 1000).to_integral_value(ROUND_CEILING))}


def names_stream_options(body: bytes) -> bool:
    """Whether an error is about the field by which the relay asks for a stream's usage."""
    return b"stream_options" in body or b"include_usage" in body


def _is_page(headers: Mapping[str, str], body: bytes) -> bool:
    is_html = headers.get("content-type", "").partition(";")[0].strip().lower() == "text/html"
    return is_html or body[:64].lstrip().lower().startswith(_PAGE_STARTS)


def _error_of(body: bytes) -> dict[str, Any] | None:
    """The object that holds the error; Google's OpenAI endpoint wraps it in a list."""
    if len(body) > MAX_BODY_BYTES:
        return None
    try:
        value = msgspec.json.decode(body)
    except json_body.UNREADABLE:
        return None
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, dict) else None


def _words(error: dict[str, Any]) -> Iterator[str]:
    inner = error.get("error")
    for holder in (error, inner, json_body.under(inner, "innererror")):
        if isinstance(holder, dict):
            yield from (value for name in _CODES if isinstance(value := holder.get(name), str))
    yield from (reason for detail in _details(inner) if isinstance(reason := detail.get("reason"), str))
    metadata = json_body.under(inner, "metadata")
    if isinstance(metadata, dict):
        yield from metadata
        yield from (value for name in _METADATA_CODES if isinstance(value := metadata.get(name), str))


def _details(inner: object) -> list[dict[str, Any]]:
    details = json_body.under(inner, "details")
    return list(json_body.dicts_in(details[:MAX_DETAILS])) if isinstance(details, list) else []


def _message(error: dict[str, Any]) -> str:
    inner = error.get("error")
    for value in (json_body.under(inner, "message"), inner, error.get("message"), error.get("detail")):
        if isinstance(value, str):
            return value[:MAX_MESSAGE_LENGTH]
    return ""


def _matches(marks: tuple[str, ...], words: set[str], message: str) -> bool:
    """A mark is a code, or how the message begins, with `*` for what varies."""
    return any(mark in words or (not mark.isidentifier() and fnmatchcase(message, mark + "*")) for mark in marks)
