"""Gemini's embedContent and batchEmbedContents (https://ai.google.dev/api/embeddings)."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Annotated

import msgspec
from msgspec import Meta

from mcpmeter.simulator.dialects.base import DialectResponse, UrlParams
from mcpmeter.simulator.dialects.gemini_content import Content, model_of, read_proto
from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.generation import BilledTokens, number, with_usage
from mcpmeter.simulator.plan import Plan
from mcpmeter.simulator.request_parsing import MAX_DIMENSIONS, MAX_INPUTS, find_fault
from mcpmeter.simulator.vectors import Vectors
from mcpmeter.simulator.vendors.google import JSON_UTF8

Dimensions = Annotated[int, Meta(ge=1, le=MAX_DIMENSIONS)]


class EmbedConfig(msgspec.Struct, rename="camel"):
    """`embedContentConfig` of a request."""

    output_dimensionality: Dimensions | None = None


class EmbedBody(msgspec.Struct, rename="camel"):
    """The body of `:embedContent`."""

    content: Content
    output_dimensionality: Dimensions | None = None
    embed_content_config: EmbedConfig | None = None

    @property
    def dimensions(self) -> int:
        """The requested length of the vector."""
        config = self.embed_content_config
        return self.output_dimensionality or (config and config.output_dimensionality) or MAX_DIMENSIONS


class BatchBody(msgspec.Struct):
    """The body of `:batchEmbedContents`."""

    requests: Annotated[list[EmbedBody], Meta(min_length=1, max_length=MAX_INPUTS)]


class EmbedRequest:
    """One request for embeddings."""

    def __init__(self, model: str, given: list[EmbedBody], vectors: Vectors, *, is_batch: bool) -> None:
        self.model = model
        self._given = given
        self._vectors = vectors
        self._is_batch = is_batch

    def requested_fault(self, body: bytes) -> Fault | None:
        """The fault in the first text: the body has no field for metadata."""
        return find_fault(None, "content", body, self._given[0].content.text)

    def respond(self, fault: Fault, plan: Plan, random: Random, repetition: int) -> DialectResponse:
        """Generate the response."""
        billed = BilledTokens(sum(one.content.part_tokens() for one in self._given), 0)
        return DialectResponse(billed, partial(self._body, billed.prompt, fault), content_type=JSON_UTF8)

    def _body(self, prompt_tokens: int, fault: Fault) -> bytes:
        values = [{"values": self._vectors.of(_texts(one.content), one.dimensions)} for one in self._given]
        body = msgspec.json.encode({"embeddings": values} if self._is_batch else {"embedding": values[0]})
        tokens = number(prompt_tokens, fault)
        usage = f'{{"promptTokenCount":{tokens},"totalTokenCount":{tokens}}}'.encode()
        return with_usage(body, usage, fault, b"usageMetadata")


class GeminiEmbeddingsDialect:
    """`POST /v1beta/models/{model}:embedContent`, or `:batchEmbedContents` with `is_batch`."""

    name = "gemini_embeddings"
    _single = msgspec.json.Decoder(EmbedBody)
    _batch = msgspec.json.Decoder(BatchBody)

    def __init__(self, vectors: Vectors, *, is_batch: bool) -> None:
        self._vectors = vectors
        self._is_batch = is_batch

    def read(self, body: bytes, url: UrlParams) -> EmbedRequest:
        """Parse a request. Raises `InvalidRequest`."""
        given = read_proto(self._batch, body).requests if self._is_batch else [read_proto(self._single, body)]
        return EmbedRequest(model_of(url), given, self._vectors, is_batch=self._is_batch)


def _texts(content: Content) -> str:
    return "\n".join(part.text for part in content.parts if part.text is not None)
