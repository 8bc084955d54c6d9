"""What Gemini's dialects share: model names, usage, estimates and errors. https://ai.google.dev/api"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from mcpmeter.dialects import gemini_usage, json_body, request_bounds, tokens
from mcpmeter.dialects.base import RequestInfo
from mcpmeter.dialects.tokens import Tokens
from mcpmeter.dialects.usage_fields import OwnNames
from mcpmeter.errors import InvalidRequest, MeterError
from mcpmeter.records import STANDARD, Conditions, PathParams, TokenSource, Usage

TOKENS_PER_MEDIUM: Final = 258
"""Google's figure for an image, or for each tile of a larger one."""

PREFIX: Final = "models/"
"""Precedes a model's name in bodies, and in the path with some SDKs."""

TIER_HEADER: Final = "x-gemini-service-tier"
_NO_TIER: Final = (None, "", "standard")

_MEDIA: Final = ("inlineData", "inline_data", "fileData", "file_data")


_Standard = Literal["ON_DEMAND", "TRAFFIC_TYPE_UNSPECIFIED", "standard", "STANDARD", "unspecified", "UNSPECIFIED"]


class _TextCount(msgspec.Struct, frozen=True, gc=False, rename="camel", forbid_unknown_fields=True):
    modality: Literal["TEXT"] = "TEXT"
    token_count: Tokens = 0


class Counts(msgspec.Struct, frozen=True, gc=False, rename="camel", forbid_unknown_fields=True):
    """Plain counts of a usage object: of text at the standard price, without tool results. None if one is left out."""

    prompt_token_count: Tokens | None = None
    candidates_token_count: Tokens | None = None
    thoughts_token_count: Tokens | None = None
    total_token_count: Tokens | None = None
    cached_content_token_count: Tokens | None = None
    prompt_tokens_details: list[_TextCount] | None = None
    candidates_tokens_details: list[_TextCount] | None = None
    cache_tokens_details: list[_TextCount] | None = None
    traffic_type: _Standard | None = None
    service_tier: _Standard | None = None

    def is_plain(self) -> bool:
        """Whether the prompt is counted and the total explained by the other counts."""
        prompt, total, written = self.prompt_token_count, self.total_token_count, self.candidates_token_count
        if prompt is None or (self.cached_content_token_count or 0) > prompt:
            return False
        if total is None:
            return True
        rest = total - prompt - (self.thoughts_token_count or 0)
        return rest >= 0 if written is None else rest == written

    def covers(self, before: Counts) -> bool:
        """Whether no count is lower than before."""
        return (
            (self.prompt_token_count or 0) >= (before.prompt_token_count or 0)
            and (self.candidates_token_count or 0) >= (before.candidates_token_count or 0)
            and (self.thoughts_token_count or 0) >= (before.thoughts_token_count or 0)
            and (self.total_token_count or 0) >= (before.total_token_count or 0)
            and (self.cached_content_token_count or 0) >= (before.cached_content_token_count or 0)
        )


_counts_decoder = msgspec.json.Decoder(Counts)


class GeminiDialect(OwnNames):
    """What is the same in all of Gemini's dialects."""

    names_of_counts = gemini_usage.NAMES
    passed_headers = frozenset((b"x-server-timeout",))

    def bounded(self, body: bytes, request: RequestInfo, models: Sequence[str]) -> RequestInfo:
        """The request with its limits, references and hosted tools. Raises InvalidRequest."""
        return request_bounds.of_gemini(body, request, models)

    def forwarded(self, body: bytes, request: RequestInfo, model: str) -> bytes:
        """The body unchanged, unless it repeats a path's model that has another name upstream."""
        return body if request.model == model else renamed(body, model)

    def response_conditions(self, headers: Mapping[str, str]) -> Conditions:
        """The tier that served the call, which a header names."""
        tier = headers.get(TIER_HEADER)
        return STANDARD if tier in _NO_TIER else gemini_usage.conditions_of(tier or "")

    def error_body(self, error: MeterError, call_id: str) -> bytes:
        """Google's error object (google.rpc.Status), with our ids in an ErrorInfo."""
        return _error_body(error, call_id)

    def error_event(self, error: MeterError, call_id: str) -> bytes:
        """The error object as an event; Google's SDKs raise APIError on it."""
        return b"data: " + _error_body(error, call_id) + b"\r\n\r\n"


def model_of(path: PathParams, named: str | None) -> str:
    """The path's model. A body that repeats it must agree because some upstreams use the body's.

    Raises InvalidRequest.
    """
    if named is not None:
        named = named.removeprefix(PREFIX)
        json_body.check_model(named)
    model = path.model.removeprefix(PREFIX)
    if not model:
        return named or ""
    json_body.check_model(model)
    if named and named != model:
        raise InvalidRequest("The body names another model than the path.", hint="Leave 'model' out of the body.")
    return model


def renamed(body: bytes, model: str) -> bytes:
    """A body with another model's name, if it names one; otherwise unchanged."""
    return json_body.with_fields(body, {"model": PREFIX + model}) if "model" in json_body.fields_of(body) else body


def estimated_tokens(prompt: Any) -> int:
    """Estimate of a prompt's tokens from its texts and media at any depth."""
    text, media = tokens.prompt_parts(prompt, _is_media)
    return tokens.estimate_text(text) + TOKENS_PER_MEDIUM * media


def _is_media(part: dict[str, Any]) -> bool:
    return any(name in part for name in _MEDIA)


def counts_of(raw: msgspec.Raw) -> tuple[Counts | dict[str, Any] | None, bool]:
    """(the counts of a usage object, whether they are present and invalid). Of one that is not plain, its fields."""
    if not json_body.is_set(raw):
        return None, False
    try:
        counts = _counts_decoder.decode(raw)
        if counts.is_plain():
            return counts, False
    except json_body.UNREADABLE:
        pass
    fields = gemini_usage.decoded(raw)
    return fields, fields is None


def fields_of(counts: Counts | dict[str, Any]) -> dict[str, Any]:
    """The fields of a usage object."""
    return msgspec.to_builtins(counts) if isinstance(counts, Counts) else counts


def usage_of(
    counts: Counts | dict[str, Any] | None, source: TokenSource = "reported", *, are_tools_billed: bool = True
) -> Usage | None:
    """The usage; None if nothing is counted. Google leaves zeros out: a prompt alone means no completion."""
    if not isinstance(counts, Counts):
        return gemini_usage.usage_of(counts, source, are_tools_billed=are_tools_billed) if counts else None
    prompt, thoughts, written = counts.prompt_token_count or 0, counts.thoughts_token_count or 0, 0
    if counts.candidates_token_count is not None:
        written = counts.candidates_token_count
    elif counts.total_token_count:
        written = counts.total_token_count - prompt - thoughts
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=written + thoughts,
        cached_read_tokens=counts.cached_content_token_count or 0,
        reasoning_tokens=thoughts,
        source=source,
    )


def _error_body(error: MeterError, call_id: str) -> bytes:
    other = "INVALID_ARGUMENT" if error.http_status < 500 else "INTERNAL"
    return msgspec.json.encode(
        {
            "error": {
                "code": error.http_status,
                "message": str(error),
                "status": _CODES.get(error.http_status, other),
                "details": [
                    {
                        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                        "reason": error.id.upper(),
                        "domain": "mcpmeter",
                        "metadata": {"code": error.id, "call_id": call_id},
                    }
                ],
            }
        }
    )


_CODES: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "RESOURCE_EXHAUSTED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""The canonical code (google.rpc.Code) of an HTTP status."""
