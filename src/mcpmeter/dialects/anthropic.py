"""What Anthropic's dialects share: requests and errors. https://platform.claude.com/docs/en/api/errors"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from mcpmeter.dialects import json_body, request_bounds
from mcpmeter.dialects.base import PricedByBody, RequestInfo
from mcpmeter.errors import InvalidRequest, MeterError

METERED_FIELDS: Final = json_body.quoted("model", "stream", "messages")
"""The fields of a request that are read; each may be named once."""

_HINT: Final = 'The least is {"model": "…", "max_tokens": 1024, "messages": [{"role": "user", "content": "…"}]}.'


class _RequestMessage(msgspec.Struct, frozen=True, gc=False):
    role: str
    content: str | list[msgspec.Raw]


class Request(msgspec.Struct, frozen=True, gc=False):
    """The metered fields of a request, the same for messages and for counting."""

    messages: list[_RequestMessage]
    model: str | None = None
    stream: bool | None = None
    max_tokens: msgspec.Raw = json_body.ABSENT
    speed: msgspec.Raw = json_body.ABSENT
    inference_geo: msgspec.Raw = json_body.ABSENT


_request_decoder = msgspec.json.Decoder(Request)


class AnthropicDialect(PricedByBody):
    """What is the same in all of Anthropic's dialects."""

    passed_headers = frozenset((b"anthropic-version", b"anthropic-beta"))

    def bounded(self, body: bytes, request: RequestInfo, models: Sequence[str]) -> RequestInfo:
        """The request with its limits, references and hosted tools. Raises InvalidRequest."""
        return request_bounds.of_anthropic(body, request, models)

    def forwarded(self, body: bytes, request: RequestInfo, model: str) -> bytes:
        """The body unchanged, unless the model's name differs."""
        return body if request.model == model else json_body.with_fields(body, {"model": model})

    def error_body(self, error: MeterError, call_id: str) -> bytes:
        """Anthropic's error object."""
        other = "invalid_request_error" if error.http_status < 500 else "api_error"
        return msgspec.json.encode(
            {
                "type": "error",
                "error": {
                    "type": _ERROR_TYPES.get(error.http_status, other),
                    "message": str(error),
                    "code": error.id,
                    "call_id": call_id,
                },
                "request_id": call_id,
            }
        )

    def error_event(self, error: MeterError, call_id: str) -> bytes:
        """The error object as an `error` event; Anthropic's SDKs raise APIStatusError on it."""
        return b"event: error\ndata: " + self.error_body(error, call_id) + b"\n\n"


_ERROR_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def read_request(body: bytes, kind: str) -> Request:
    """Decode and check a request. `kind` names it in the error message. Raises InvalidRequest."""
    request = json_body.decode_request(_request_decoder, body, kind=kind, hint=_HINT)
    json_body.refuse_repeated(body, METERED_FIELDS)
    if not request.messages:
        raise InvalidRequest("'messages' is empty.", hint="Send at least one message with a role and content.")
    if request.model is not None:
        json_body.check_model(request.model)
    return request
