"""Gemini's embedContent and batchEmbedContents (https://ai.google.dev/api/embeddings)."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Annotated

import msgspec
from msgspec import Meta

from mcpmeter.simulator.answers import Tally, number, with_usage
from mcpmeter.simulator.dialects.base import Reply, Target
from mcpmeter.simulator.dialects.gemini_content import Content, named_model, read_proto
from mcpmeter.simulator.faults import Fault
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
        """How long the vector shall be."""
        config = self.embed_content_config
        return self.output_dimensionality or (config and config.output_dimensionality) or MAX_DIMENSIONS


class BatchBody(msgspec.Struct):
    """The body of `:batchEmbedContents`."""

    requests: Annotated[list[EmbedBody], Meta(min_length=1, max_length=MAX_INPUTS)]


class EmbedAsk:
    """One request for embeddings."""

    is_stream = False

    def __init__(self, model: str, given: list[EmbedBody], vectors: Vectors, *, is_batch: bool) -> None:
        self._model = model
        self._given = given
        self._vectors = vectors
        self._is_batch = is_batch

    @property
    def model_name(self) -> str:
        """As `Ask.model_name`."""
        return self._model

    def wished_fault(self, body: bytes) -> Fault | None:
        """As `Ask.wished_fault`; only the first text can ask."""
        return find_fault(None, "content", body, self._given[0].content.text)

    def draw(self, fault: Fault, plan: Plan, random: Random, nth: int) -> Reply:
        """As `Ask.draw`."""
        tally = Tally(sum(one.content.part_tokens() for one in self._given), 0)
        return Reply(tally, partial(self._body, tally.prompt, fault), content_type=JSON_UTF8)

    def _body(self, prompt_tokens: int, fault: Fault) -> bytes:
        values = [{"values": self._vectors.of(_texts(one.content), one.dimensions)} for one in self._given]
        body = msgspec.json.encode({"embeddings": values} if self._is_batch else {"embedding": values[0]})
        told = number(prompt_tokens, fault)
        usage = f'{{"promptTokenCount":{told},"totalTokenCount":{told}}}'.encode()
        return with_usage(body, usage, fault, b"usageMetadata")


class GeminiEmbed:
    """`POST /v1beta/models/{model}:embedContent`."""

    name = "gemini_embeddings"
    _decoder = msgspec.json.Decoder(EmbedBody)

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    def read(self, body: bytes, target: Target) -> EmbedAsk:
        """Raises `InvalidRequest` for anything that is not a request for an embedding."""
        return EmbedAsk(
            named_model(target), [read_proto(self._decoder, EmbedBody, body)], self._vectors, is_batch=False
        )


class GeminiBatchEmbed:
    """`POST /v1beta/models/{model}:batchEmbedContents`."""

    name = "gemini_embeddings"
    _decoder = msgspec.json.Decoder(BatchBody)

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    def read(self, body: bytes, target: Target) -> EmbedAsk:
        """Raises `InvalidRequest` for anything that is not a request for embeddings."""
        given = read_proto(self._decoder, BatchBody, body)
        return EmbedAsk(named_model(target), given.requests, self._vectors, is_batch=True)


def _texts(content: Content) -> str:
    return "\n".join(part.text for part in content.parts if part.text is not None)
