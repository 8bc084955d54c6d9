"""Gemini's counting of a prompt (`:countTokens`): https://ai.google.dev/api/tokens

No model reads it and nothing is billed, so its usage is zero and reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from mcpmeter.dialects import gemini, json_text, openai
from mcpmeter.dialects import json_body as bodies
from mcpmeter.dialects.base import NotAnAnswer, RequestInfo, ResponseInfo
from mcpmeter.errors import InvalidRequest, MeterError
from mcpmeter.records import NO_PATH_PARAMS, PathParams, Usage

WHOLE_REQUESTS: Final = ("generateContentRequest", "generate_content_request")
"""Where a body may hold the whole of a generateContent request, under either spelling that Google takes."""

METERED_FIELDS: Final = json_text.quoted(b"contents", b"model", *(name.encode() for name in WHOLE_REQUESTS))
"""What is read of a request; each may be named once."""

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
_answer_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


class GeminiCountTokens:
    """Counting a prompt without sending it to a model. Stateless."""

    operation = "count_tokens"
    passed_headers: frozenset[bytes] = frozenset((b"x-server-timeout",))

    def path_name(self, asked: RequestInfo) -> str:
        """`count_contents`."""
        return "count_contents"

    def read_request(self, body: bytes, named: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """Take the model from the path, see that there is something to count. Raises InvalidRequest."""
        request = bodies.request_of(_request_decoder, body, kind="a countTokens request", hint=_HINT)
        json_text.refuse_repeated(body, METERED_FIELDS)
        whole = request.whole or request.whole_in_snake_case
        if not (whole.contents if whole is not None else request.contents):
            raise InvalidRequest("'contents' is empty.", hint=_HINT)
        model = gemini.model_of(named, request.model or (whole.model if whole else None))
        return RequestInfo(model=model, max_prompt_tokens=0, max_completion_tokens=0)

    def forwarded(self, body: bytes, asked: RequestInfo, model: str) -> bytes:
        """The body unchanged; only where it repeats the path's model, which upstream differs, it is renamed too."""
        if asked.model == model:
            return body
        present = bodies.fields_of(body)
        changed: dict[str, Any] = {
            name: msgspec.Raw(gemini.renamed(bytes(present[name]), model))
            for name in WHOLE_REQUESTS
            if name in present and openai.is_told(present[name])
        }
        return gemini.renamed(msgspec.json.encode({**present, **changed}) if changed else body, model)

    def read_answer(self, body: bytes) -> ResponseInfo:
        """Zero usage; what was counted is the caller's. Raises NotAnAnswer."""
        answer = bodies.answer_of(_answer_decoder, body)
        if openai.is_error(answer.get("error", openai.ABSENT)):
            return ResponseInfo(is_error=True)
        if answer and "totalTokens" not in answer:  # a count of 0 is left out, as in all of Google's JSON
            raise NotAnAnswer("no count")
        return ResponseInfo(usage=Usage(source="reported"))

    def read_events(self, block: bytes) -> ResponseInfo | None:
        """Nothing: it never streams."""
        return None

    def only_usage(self, event: bytes) -> bool:
        """Never."""
        return False

    def is_end(self, event: bytes) -> bool:
        """Never."""
        return False

    def prompt_tokens(self, body: bytes) -> int:
        """0: no model reads the prompt."""
        return 0

    def completion_tokens(self, answer: bytes) -> int:
        """0: no model writes."""
        return 0

    def delivered_tokens(self, blocks: Sequence[bytes]) -> int:
        """0: no model writes."""
        return 0

    def error_body(self, error: MeterError, call_id: str) -> bytes:
        """Google's error object."""
        return gemini.error_body(error, call_id)

    def error_event(self, error: MeterError, call_id: str) -> bytes:
        """The error object as an event."""
        return gemini.error_event(error, call_id)
