"""Gemini's token counting (`:countTokens`): https://ai.google.dev/api/tokens

No model reads the prompt and nothing is billed, so its usage is zero and reported. It does not stream.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from mcpmeter.dialects import gemini, json_body
from mcpmeter.dialects.base import RequestInfo, ResponseInfo, UnreadableResponse
from mcpmeter.errors import InvalidRequest
from mcpmeter.records import NO_PATH_PARAMS, PathParams, Usage

WHOLE_REQUESTS: Final = ("generateContentRequest", "generate_content_request")
"""Both spellings of the field that may hold a whole generateContent request."""

METERED_FIELDS: Final = json_body.quoted("contents", "model", *WHOLE_REQUESTS)
"""The fields of a request that are read; each may be named once."""

_Contents = list[dict[str, msgspec.Raw]] | dict[str, msgspec.Raw]
_HINT: Final = 'The least is {"contents": [{"parts": [{"text": "…"}]}]}.'


class _Whole(msgspec.Struct, frozen=True, gc=False):
    contents: _Contents
    model: str | None = None


class _Request(msgspec.Struct, frozen=True, gc=False):
    contents: _Contents | None = None
    model: str | None = None
    whole: _Whole | None = msgspec.field(default=None, name=WHOLE_REQUESTS[0])
    whole_in_snake_case: _Whole | None = msgspec.field(default=None, name=WHOLE_REQUESTS[1])


_request_decoder = msgspec.json.Decoder(_Request)
_response_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class GeminiCountTokens(gemini.GeminiDialect):
    """The countTokens dialect. Stateless."""

    operation = "count_tokens"

    def path_name(self, request: RequestInfo) -> str:
        """`count_contents`."""
        return "count_contents"

    def read_request(self, body: bytes, path: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """Take the model from the path and check the contents. Raises InvalidRequest."""
        request = json_body.decode_request(_request_decoder, body, kind="a countTokens request", hint=_HINT)
        json_body.refuse_repeated(body, METERED_FIELDS)
        whole = request.whole or request.whole_in_snake_case
        if not (whole.contents if whole is not None else request.contents):
            raise InvalidRequest("'contents' is empty.", hint=_HINT)
        model = gemini.model_of(path, request.model or (whole.model if whole else None))
        return RequestInfo(model=model, max_prompt_tokens=0, max_completion_tokens=0)

    def forwarded(self, body: bytes, request: RequestInfo, model: str) -> bytes:
        """The body unchanged, unless it or the whole request in it repeats a model that has another name upstream."""
        if request.model == model:
            return body
        present = json_body.fields_of(body)
        changed: dict[str, Any] = {
            name: msgspec.Raw(gemini.renamed(bytes(present[name]), model))
            for name in WHOLE_REQUESTS
            if name in present and json_body.is_set(present[name])
        }
        return gemini.renamed(msgspec.json.encode({**present, **changed}) if changed else body, model)

    def read_response(self, body: bytes) -> ResponseInfo:
        """Zero usage; the count itself is for the caller. Raises UnreadableResponse."""
        response = json_body.decode_response(_response_decoder, body)
        if json_body.is_error(response.get("error", json_body.ABSENT)):
            return ResponseInfo(is_error=True)
        if response and "totalTokens" not in response:  # Google leaves a count of 0 out, as in all of its JSON
            raise UnreadableResponse("no count")
        return ResponseInfo(usage=Usage(source="reported"))

    def prompt_tokens(self, body: bytes) -> int:
        """0: no model reads the prompt."""
        return 0

    def completion_tokens(self, response: bytes) -> int:
        """0: no model writes."""
        return 0
