"""OpenAI embeddings (`/embeddings`): https://platform.openai.com/docs/api-reference/embeddings

The vectors of a response are skipped, whatever their encoding. Embeddings do not stream.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from mcpmeter.dialects import json_body, openai, tokens
from mcpmeter.dialects.base import RequestInfo, ResponseInfo, UnreadableResponse
from mcpmeter.errors import InvalidRequest
from mcpmeter.records import NO_PATH_PARAMS, STANDARD, PathParams, Usage

METERED_FIELDS: Final = json_body.quoted("model", "input")
"""The fields of a request that are read; each may be named once."""

_Token = Annotated[int, msgspec.Meta(ge=0)]


class _Request(msgspec.Struct, frozen=True, gc=False):
    input: str | list[str | _Token | list[_Token]]
    model: str | None = None


class _CommonUsage(openai.CommonUsage, frozen=True, gc=False, forbid_unknown_fields=True):
    completion_tokens: Literal[0] = 0


class _Response(msgspec.Struct, frozen=True, gc=False):
    model: Any = None
    data: list[msgspec.Raw] | None = None
    usage: msgspec.Raw = json_body.ABSENT
    error: msgspec.Raw = json_body.ABSENT


_request_decoder = msgspec.json.Decoder(_Request)
_response_decoder = msgspec.json.Decoder(_Response)
_usage_decoder = msgspec.json.Decoder(_CommonUsage)
_HINT: Final = 'The least is {"model": "…", "input": "…"}.'


class OpenAiEmbeddings(openai.OpenAiDialect):
    """The embeddings dialect. Stateless."""

    operation = "embeddings"
    passed_headers = frozenset()

    def path_name(self, request: RequestInfo) -> str:
        """`embeddings`."""
        return "embeddings"

    def read_request(self, body: bytes, path: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """Read the model and check the input. Raises InvalidRequest."""
        request = _decoded(body)
        json_body.refuse_repeated(body, METERED_FIELDS)
        if not request.input:
            raise InvalidRequest("'input' is empty.", hint="Send a text, a list of texts, or lists of tokens.")
        if request.model is not None:
            json_body.check_model(request.model)
        return RequestInfo(
            model=request.model or "",
            prompt_tokens_estimate=max(1, _prompt_tokens(request)),
            max_completion_tokens=0,
        )

    def read_response(self, body: bytes) -> ResponseInfo:
        """Usage, model, cost and error of a response, and whether it holds no vector. Raises UnreadableResponse."""
        response = json_body.decode_response(_response_decoder, body)
        has_error = json_body.is_error(response.error)
        if response.data is None and not has_error:
            raise UnreadableResponse("no list of vectors")
        usage, bad = self._read_usage(response.usage)
        usd, is_part = openai.reported_cost(response.usage)
        return ResponseInfo(
            usage=usage,
            bad_usage=bad,
            model=json_body.text_of(response.model),
            is_error=has_error,
            is_empty=response.data == [] and not has_error,
            reported_usd=usd,
            reported_is_part=is_part,
            conditions=usage.conditions if usage else STANDARD,
        )

    def prompt_tokens(self, body: bytes) -> int:
        """The number of tokens given as such, and an estimate for texts."""
        try:
            return _prompt_tokens(_decoded(body))
        except InvalidRequest:
            return len(body) // tokens.BYTES_PER_PROMPT_TOKEN

    def completion_tokens(self, response: bytes) -> int:
        """0: vectors are not tokens."""
        return 0

    def _read_usage(self, usage: msgspec.Raw) -> tuple[Usage | None, bool]:
        """Some providers report only the total, which is all prompt."""
        if json_body.is_blank(usage):
            return None, False
        decode = None if self._has_own_names else _usage_decoder.decode
        return openai.read_usage(usage, decode, self._table, has_completion=False)


def _decoded(body: bytes) -> _Request:
    return json_body.decode_request(_request_decoder, body, kind="for embeddings", hint=_HINT)


def _prompt_tokens(request: _Request) -> int:
    inputs = [request.input] if isinstance(request.input, str) else request.input
    texts = [text for text in inputs if isinstance(text, str)]
    counted = sum(len(item) if isinstance(item, list) else 1 for item in inputs if not isinstance(item, str))
    return sum(map(tokens.estimate_text, texts)) + counted
