"""What Gemini's dialects share: model names, usage, estimates and errors. https://ai.google.dev/api"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from mcpmeter.dialects import json_body, request_bounds, tokens
from mcpmeter.dialects.base import RequestInfo
from mcpmeter.dialects.tokens import Tokens
from mcpmeter.errors import InvalidRequest, MeterError
from mcpmeter.records import PathParams, TokenSource, Usage

TOKENS_PER_MEDIUM: Final = 258
"""Google's figure for an image, or for each tile of a larger one."""

PREFIX: Final = "models/"
"""Precedes a model's name in bodies, and in the path with some SDKs."""

_MEDIA: Final = ("inlineData", "inline_data", "fileData", "file_data")


class _Usage(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    prompt_token_count: Tokens | None = None
    tool_use_prompt_token_count: Tokens | None = None
    candidates_token_count: Tokens | None = None
    thoughts_token_count: Tokens | None = None
    total_token_count: Tokens | None = None
    cached_content_token_count: msgspec.Raw = json_body.ABSENT
    prompt_tokens_details: msgspec.Raw = json_body.ABSENT
    tool_use_prompt_tokens_details: msgspec.Raw = json_body.ABSENT
    candidates_tokens_details: msgspec.Raw = json_body.ABSENT


class _Modality(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    modality: str = ""
    token_count: Tokens = 0


_usage_decoder = msgspec.json.Decoder(_Usage)
_count_decoder = msgspec.json.Decoder(Tokens)
_modalities_decoder = msgspec.json.Decoder(list[_Modality])


class GeminiDialect:
    """What is the same in all of Gemini's dialects."""

    passed_headers = frozenset((b"x-server-timeout",))

    def bounded(self, body: bytes, request: RequestInfo) -> RequestInfo:
        """The request with its limits, references and hosted tools. Raises InvalidRequest."""
        return request_bounds.of_gemini(body, request)

    def forwarded(self, body: bytes, request: RequestInfo, model: str) -> bytes:
        """The body unchanged, unless it repeats a path's model that has another name upstream."""
        return body if request.model == model else renamed(body, model)

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


def read_usage(raw: msgspec.Raw, source: TokenSource = "reported") -> tuple[Usage | None, bool]:
    """(usage, whether it is present and invalid). Google leaves zeros out: a prompt alone means no completion."""
    if not json_body.is_set(raw):
        return None, False
    try:
        reported = _usage_decoder.decode(raw)
    except json_body.UNREADABLE:
        return None, True
    thoughts, total = reported.thoughts_token_count, reported.total_token_count
    if reported.prompt_token_count is None:
        # Vertex AI names the traffic's type in every event and counts only in the last.
        counts = (reported.tool_use_prompt_token_count, reported.candidates_token_count, thoughts, total)
        return None, any(count is not None for count in counts)
    prompt = reported.prompt_token_count + (reported.tool_use_prompt_token_count or 0)
    thoughts = thoughts or 0
    written = reported.candidates_token_count
    if written is None:
        written = max(0, (total or 0) - prompt - thoughts)
    completion = written + thoughts
    usage = Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_read_tokens=min(json_body.decode_field(_count_decoder, reported.cached_content_token_count, 0), prompt),
        reasoning_tokens=thoughts,
        audio_tokens=_audio_within(reported, prompt, completion) if b'"AUDIO"' in bytes(raw) else 0,
        source=source,
    )
    return usage, False


def _audio_within(reported: _Usage, prompt: int, completion: int) -> int:
    heard = _audio(reported.prompt_tokens_details) + _audio(reported.tool_use_prompt_tokens_details)
    return min(heard, prompt) + min(_audio(reported.candidates_tokens_details), completion)


def _audio(raw: msgspec.Raw) -> int:
    modalities = json_body.decode_field(_modalities_decoder, raw, ())
    return sum(entry.token_count for entry in modalities if entry.modality == "AUDIO")


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
