"""What Gemini's dialects share: names of models, usage, estimates and errors, after Google's API reference."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from mcpmeter.dialects import json_body as bodies
from mcpmeter.dialects import json_text, openai
from mcpmeter.dialects.openai import Tokens
from mcpmeter.errors import InvalidRequest, MeterError
from mcpmeter.records import PathParams, TokenSource, Usage

TOKENS_PER_MEDIUM: Final = 258
"""What Google gives for an image, or for each tile of a larger one."""

PREFIX: Final = "models/"
"""What stands before a model's name in a body, and before some SDKs' in the path."""

_MEDIA: Final = ("inlineData", "inline_data", "fileData", "file_data")


class _Usage(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    prompt_token_count: Tokens | None = None
    tool_use_prompt_token_count: Tokens | None = None
    candidates_token_count: Tokens | None = None
    thoughts_token_count: Tokens | None = None
    total_token_count: Tokens | None = None
    cached_content_token_count: msgspec.Raw = openai.ABSENT
    prompt_tokens_details: msgspec.Raw = openai.ABSENT
    tool_use_prompt_tokens_details: msgspec.Raw = openai.ABSENT
    candidates_tokens_details: msgspec.Raw = openai.ABSENT


class _Modality(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    modality: str = ""
    token_count: Tokens = 0


_usage_decoder = msgspec.json.Decoder(_Usage)
_tokens_decoder = msgspec.json.Decoder(Tokens)
_modalities_decoder = msgspec.json.Decoder(list[_Modality])


def model_of(named: PathParams, told: str | None) -> str:
    """The path's model; a body that repeats it must agree, for some upstreams believe the body.

    Raises InvalidRequest.
    """
    if told is not None:
        told = told.removeprefix(PREFIX)
        bodies.check_model(told)
    model = named.model.removeprefix(PREFIX)
    if not model:
        return told or ""
    bodies.check_model(model)
    if told and told != model:
        raise InvalidRequest("The body names another model than the path.", hint="Leave 'model' out of the body.")
    return model


def renamed(body: bytes, model: str) -> bytes:
    """A body under another model's name, where it names one; else as it is."""
    return bodies.with_model(body, PREFIX + model) if bodies.names_model(body) else body


def estimated_tokens(told: Any) -> int:
    """Estimate of a prompt's tokens from its texts and media, however deep they stand."""
    text, media = bodies.prompt_parts(told, _is_media)
    return json_text.estimated_tokens(text) + TOKENS_PER_MEDIUM * media


def read_usage(raw: msgspec.Raw, source: TokenSource = "reported") -> tuple[Usage | None, bool]:
    """(usage, whether it was there and cannot be). A prompt that is counted beside no completion is an answer of none:
    Google leaves zeros out."""
    if not openai.is_told(raw):
        return None, False
    try:
        told = _usage_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, True
    if told.prompt_token_count is None:
        # Vertex AI names the traffic's type in every event and counts in the last.
        counted = (told.tool_use_prompt_token_count, told.candidates_token_count, told.thoughts_token_count)
        return None, any(count is not None for count in (*counted, told.total_token_count))
    prompt = told.prompt_token_count + (told.tool_use_prompt_token_count or 0)
    thoughts = told.thoughts_token_count or 0
    written = told.candidates_token_count
    if written is None:
        written = max(0, (told.total_token_count or 0) - prompt - thoughts)
    completion = written + thoughts
    usage = Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_read_tokens=min(_tokens(told.cached_content_token_count), prompt),
        reasoning_tokens=thoughts,
        audio_tokens=_audio_within(told, prompt, completion) if b'"AUDIO"' in bytes(raw) else 0,
        source=source,
    )
    return usage, False


def _audio_within(told: _Usage, prompt: int, completion: int) -> int:
    heard = _audio(told.prompt_tokens_details) + _audio(told.tool_use_prompt_tokens_details)
    return min(heard, prompt) + min(_audio(told.candidates_tokens_details), completion)


def _tokens(raw: msgspec.Raw) -> int:
    # Details that cannot be are left out; the totals beside them still count.
    if not openai.is_told(raw):
        return 0
    try:
        return _tokens_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0


def _audio(raw: msgspec.Raw) -> int:
    if not openai.is_told(raw):
        return 0
    try:
        modalities = _modalities_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0
    return sum(entry.token_count for entry in modalities if entry.modality == "AUDIO")


def _is_media(part: dict[str, Any]) -> bool:
    return any(name in part for name in _MEDIA)


def error_body(error: MeterError, call_id: str) -> bytes:
    """Google's error object (google.rpc.Status), our ids in an ErrorInfo."""
    return msgspec.json.encode(
        {
            "error": {
                "code": error.http_status,
                "message": str(error),
                "status": _status(error.http_status),
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


def error_event(error: MeterError, call_id: str) -> bytes:
    """The error object as an event; Google's SDKs raise APIError on it."""
    return b"data: " + error_body(error, call_id) + b"\r\n\r\n"


_STATUSES: Final = {
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


def _status(http_status: int) -> str:
    """The canonical code (google.rpc.Code) of an HTTP status."""
    return _STATUSES.get(http_status, "INVALID_ARGUMENT" if http_status < 500 else "INTERNAL")
