"""Anthropic's token counting (`/messages/count_tokens`): https://platform.claude.com/docs/en/api/messages-count-tokens

No model reads the prompt and nothing is billed, so its usage is zero and reported. It does not stream.
"""

from __future__ import annotations

import msgspec

from mcpmeter.dialects import anthropic, json_body
from mcpmeter.dialects.base import RequestInfo, ResponseInfo, UnreadableResponse
from mcpmeter.dialects.tokens import Tokens
from mcpmeter.records import NO_PATH_PARAMS, PathParams, Usage


class _Count(msgspec.Struct, frozen=True, gc=False):
    input_tokens: Tokens
    error: msgspec.Raw = json_body.ABSENT


class _Error(msgspec.Struct, frozen=True, gc=False):
    error: msgspec.Raw


_count_decoder = msgspec.json.Decoder(_Count)
_error_decoder = msgspec.json.Decoder(_Error)


class AnthropicCountTokens(anthropic.AnthropicDialect):
    """The count_tokens dialect. Stateless."""

    operation = "count_tokens"

    def path_name(self, request: RequestInfo) -> str:
        """`count_tokens`."""
        return "count_tokens"

    def read_request(self, body: bytes, path: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """Read the model. Raises InvalidRequest."""
        model = anthropic.read_request(body, "a message to count").model or ""
        return RequestInfo(model=model, max_prompt_tokens=0, max_completion_tokens=0)

    def read_response(self, body: bytes) -> ResponseInfo:
        """Zero usage; the count itself is for the caller. Raises UnreadableResponse."""
        try:
            json_body.decode_response(_count_decoder, body)
        except UnreadableResponse:
            if not json_body.is_error(json_body.decode_response(_error_decoder, body).error):
                raise
            return ResponseInfo(is_error=True)
        return ResponseInfo(usage=Usage(source="reported"))

    def prompt_tokens(self, body: bytes) -> int:
        """0: no model reads the prompt."""
        return 0

    def completion_tokens(self, response: bytes) -> int:
        """0: no model writes."""
        return 0
