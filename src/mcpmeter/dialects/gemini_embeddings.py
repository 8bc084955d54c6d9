"""Gemini embeddings (`:embedContent`, `:batchEmbedContents`): https://ai.google.dev/api/embeddings

The vectors of a response are skipped. Newer models count the prompt in `usageMetadata`; for the others it is
estimated. Embeddings do not stream.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from mcpmeter.dialects import gemini, json_body, tokens
from mcpmeter.dialects.base import RequestInfo, ResponseInfo, UnreadableResponse
from mcpmeter.errors import InvalidRequest
from mcpmeter.items import ITEMS
from mcpmeter.records import NO_PATH_PARAMS, PathParams

METERED_FIELDS: Final = json_body.quoted("content", "model")
METERED_BATCH_FIELDS: Final = json_body.quoted("requests")
"""The fields of a request that are read; each may be named once."""

_HINT: Final = 'The least is {"content": {"parts": [{"text": "…"}]}}.'
_BATCH_HINT: Final = 'The least is {"requests": [{"model": "models/…", "content": {"parts": [{"text": "…"}]}}]}.'


class _Request(msgspec.Struct, frozen=True, gc=False):
    content: dict[str, msgspec.Raw]
    model: str | None = None


class _Batch(msgspec.Struct, frozen=True, gc=False):
    requests: list[msgspec.Raw]


class _Response(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    embedding: msgspec.Raw = json_body.ABSENT
    embeddings: list[msgspec.Raw] | None = None
    usage_metadata: msgspec.Raw = json_body.ABSENT
    error: msgspec.Raw = json_body.ABSENT


_request_decoder = msgspec.json.Decoder(_Request)
_batch_decoder = msgspec.json.Decoder(_Batch)
_response_decoder = msgspec.json.Decoder(_Response)


class GeminiEmbed(gemini.GeminiDialect):
    """One text to one vector. Stateless."""

    operation = "embeddings"

    def path_name(self, request: RequestInfo) -> str:
        """`embed_content`."""
        return "embed_content"

    def read_request(self, body: bytes, path: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """Take the model from the path and check the content. Raises InvalidRequest."""
        return _request_info(gemini.model_of(path, _decoded(body).model), body)

    def read_response(self, body: bytes) -> ResponseInfo:
        """Usage and error of a response, and whether it holds no vector. Raises UnreadableResponse."""
        response = json_body.decode_response(_response_decoder, body)
        has_error = json_body.is_error(response.error)
        if not json_body.is_set(response.embedding) and response.embeddings is None and not has_error:
            raise UnreadableResponse("no vector")
        counts, bad = gemini.counts_of(
            self.renamed_usage(response.usage_metadata) if self._own else response.usage_metadata
        )
        usage = gemini.usage_of(counts)
        if usage is not None:
            items = tuple(item for item in usage.items if ITEMS[item.item].side == "prompt")
            usage = msgspec.structs.replace(usage, completion_tokens=0, reasoning_tokens=0, items=items)
        return ResponseInfo(
            usage=usage,
            bad_usage=bad,
            is_error=has_error,
            is_empty=response.embeddings == [] and not has_error,
        )

    def prompt_tokens(self, body: bytes) -> int:
        """Estimate from the texts of all contents."""
        return tokens.estimate_prompt(body, _prompt_tokens)

    def completion_tokens(self, response: bytes) -> int:
        """0: vectors are not tokens."""
        return 0


class GeminiBatchEmbed(GeminiEmbed):
    """Several texts in one call. Google's SDK uses it even for a single text."""

    def path_name(self, request: RequestInfo) -> str:
        """`batch_embed_contents`."""
        return "batch_embed_contents"

    def read_request(self, body: bytes, path: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """Check that each request of the batch agrees with the path on the model. Raises InvalidRequest."""
        batch = json_body.decode_request(_batch_decoder, body, kind="a batchEmbedContents request", hint=_BATCH_HINT)
        json_body.refuse_repeated(body, METERED_BATCH_FIELDS)
        if not batch.requests:
            raise InvalidRequest("'requests' is empty.", hint=_BATCH_HINT)
        models = {gemini.model_of(path, _decoded(bytes(one)).model) for one in batch.requests}
        if len(models) > 1:
            raise InvalidRequest("The requests of the batch name several models.", hint="Send one batch per model.")
        return _request_info(models.pop(), body)

    def forwarded(self, body: bytes, request: RequestInfo, model: str) -> bytes:
        """The body unchanged, unless its requests repeat a path's model that has another name upstream."""
        if request.model == model:
            return body
        present = json_body.fields_of(body)
        requests = msgspec.json.decode(present["requests"], type=list[msgspec.Raw])
        renamed = [msgspec.Raw(gemini.renamed(bytes(one), model)) for one in requests]
        return msgspec.json.encode({**present, "requests": renamed})


def _decoded(body: bytes) -> _Request:
    request = json_body.decode_request(_request_decoder, body, kind="an embedContent request", hint=_HINT)
    json_body.refuse_repeated(body, METERED_FIELDS)
    if not request.content:
        raise InvalidRequest("'content' is empty.", hint="Send a content with parts.")
    return request


def _request_info(model: str, body: bytes) -> RequestInfo:
    return RequestInfo(
        model=model, prompt_tokens_estimate=tokens.quick_estimate(body), max_completion_tokens=0, has_bounds=True
    )


def _prompt_tokens(request: Any) -> int:
    batch = list(json_body.dicts_in(json_body.under(request, "requests"))) or [request]
    return sum(gemini.estimated_tokens(json_body.under(one, "content", "parts")) for one in batch)
