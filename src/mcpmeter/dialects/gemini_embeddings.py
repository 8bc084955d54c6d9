"""Gemini's embeddings (`:embedContent`, `:batchEmbedContents`): https://ai.google.dev/api/embeddings

An answer's vectors are skipped unread. Newer models count the prompt in `usageMetadata`; for those that do not it is
estimated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from mcpmeter.dialects import gemini, json_text, openai
from mcpmeter.dialects import json_body as bodies
from mcpmeter.dialects.base import NotAnAnswer, RequestInfo, ResponseInfo
from mcpmeter.errors import InvalidRequest, MeterError
from mcpmeter.records import NO_PATH_PARAMS, PathParams

METERED_FIELDS: Final = json_text.quoted(b"content", b"model")
"""What is read of a request; each may be named once."""

METERED_BATCH_FIELDS: Final = json_text.quoted(
    b"requests",
)

_HINT: Final = 'The least is {"content": {"parts": [{"text": "…"}]}}.'
_BATCH_HINT: Final = 'The least is {"requests": [{"model": "models/…", "content": {"parts": [{"text": "…"}]}}]}.'


class _Request(msgspec.Struct, frozen=True, gc=False):
    content: dict[str, msgspec.Raw]
    model: str | None = None


class _Batch(msgspec.Struct, frozen=True, gc=False):
    requests: list[msgspec.Raw]


class _Answer(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    embedding: msgspec.Raw = openai.ABSENT
    embeddings: list[msgspec.Raw] | None = None
    usage_metadata: msgspec.Raw = openai.ABSENT
    error: msgspec.Raw = openai.ABSENT


_request_decoder = msgspec.json.Decoder(_Request)
_batch_decoder = msgspec.json.Decoder(_Batch)
_answer_decoder = msgspec.json.Decoder(_Answer)


class GeminiEmbed:
    """One text to one vector. Stateless; there are no streams in it, and no completion tokens."""

    operation = "embeddings"
    passed_headers: frozenset[bytes] = frozenset((b"x-server-timeout",))

    def path_name(self, asked: RequestInfo) -> str:
        """`embed_content`."""
        return "embed_content"

    def read_request(self, body: bytes, named: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """Take the model from the path, see that there is something to embed. Raises InvalidRequest."""
        request = _request_of(body)
        return RequestInfo(
            model=gemini.model_of(named, request.model),
            prompt_tokens_estimate=max(1, len(body) // bodies.BYTES_PER_PROMPT_TOKEN),
            max_completion_tokens=0,
        )

    def forwarded(self, body: bytes, asked: RequestInfo, model: str) -> bytes:
        """The body unchanged; only where it repeats the path's model, which upstream differs, it is renamed too."""
        return body if asked.model == model else gemini.renamed(body, model)

    def read_answer(self, body: bytes) -> ResponseInfo:
        """Usage of an answer, and whether it holds no vector. Raises NotAnAnswer."""
        answer = bodies.answer_of(_answer_decoder, body)
        is_error = openai.is_error(answer.error)
        if not openai.is_told(answer.embedding) and answer.embeddings is None and not is_error:
            raise NotAnAnswer("no vector")
        usage, bad = gemini.read_usage(answer.usage_metadata)
        if usage is not None:
            usage = msgspec.structs.replace(usage, completion_tokens=0, reasoning_tokens=0)
        return ResponseInfo(
            usage=usage,
            bad_usage=bad,
            is_error=is_error,
            is_empty=answer.embeddings == [] and not is_error,
        )

    def read_events(self, block: bytes) -> ResponseInfo | None:
        """Nothing: embeddings are not streamed."""
        return None

    def only_usage(self, event: bytes) -> bool:
        """Never: embeddings are not streamed."""
        return False

    def is_end(self, event: bytes) -> bool:
        """Never: embeddings are not streamed."""
        return False

    def prompt_tokens(self, body: bytes) -> int:
        """Estimate from the texts of all contents."""
        try:
            request = json_text.parsed(body)
        except InvalidRequest:
            return len(body) // bodies.BYTES_PER_PROMPT_TOKEN
        batch = list(bodies.dicts_in(bodies.under(request, "requests"))) or [request]
        return sum(gemini.estimated_tokens(bodies.under(one, "content", "parts")) for one in batch)

    def completion_tokens(self, answer: bytes) -> int:
        """0: vectors are no tokens."""
        return 0

    def delivered_tokens(self, blocks: Sequence[bytes]) -> int:
        """0: vectors are no tokens."""
        return 0

    def error_body(self, error: MeterError, call_id: str) -> bytes:
        """Google's error object."""
        return gemini.error_body(error, call_id)

    def error_event(self, error: MeterError, call_id: str) -> bytes:
        """The error object as an event, should a provider have begun a stream that nobody asked for."""
        return gemini.error_event(error, call_id)


class GeminiBatchEmbed(GeminiEmbed):
    """Many texts at once, which is what Google's SDK asks for also where it has one."""

    def path_name(self, asked: RequestInfo) -> str:
        """`batch_embed_contents`."""
        return "batch_embed_contents"

    def read_request(self, body: bytes, named: PathParams = NO_PATH_PARAMS) -> RequestInfo:
        """As for one; each request must agree with the path on the model. Raises InvalidRequest."""
        batch = bodies.request_of(_batch_decoder, body, kind="a batchEmbedContents request", hint=_BATCH_HINT)
        json_text.refuse_repeated(body, METERED_BATCH_FIELDS)
        if not batch.requests:
            raise InvalidRequest("'requests' is empty.", hint=_BATCH_HINT)
        models = {gemini.model_of(named, _request_of(bytes(one)).model) for one in batch.requests}
        if len(models) > 1:
            raise InvalidRequest("The requests of the batch name several models.", hint="Send a batch for each.")
        return RequestInfo(
            model=models.pop(),
            prompt_tokens_estimate=max(1, len(body) // bodies.BYTES_PER_PROMPT_TOKEN),
            max_completion_tokens=0,
        )

    def forwarded(self, body: bytes, asked: RequestInfo, model: str) -> bytes:
        """The body unchanged; where upstream's model differs, each request that repeats the path's is renamed."""
        if asked.model == model:
            return body
        present = bodies.fields_of(body)
        each = msgspec.json.decode(present["requests"], type=list[msgspec.Raw])
        renamed = [msgspec.Raw(gemini.renamed(bytes(one), model)) for one in each]
        return msgspec.json.encode({**present, "requests": renamed})


def _request_of(body: bytes) -> _Request:
    request = bodies.request_of(_request_decoder, body, kind="an embedContent request", hint=_HINT)
    json_text.refuse_repeated(body, METERED_FIELDS)
    if not request.content:
        raise InvalidRequest("'content' is empty.", hint="Send a content with parts.")
    return request
