"""OpenAI's embeddings (https://platform.openai.com/docs/api-reference/embeddings)."""

from __future__ import annotations

import sys
from array import array
from base64 import b64encode
from functools import partial
from random import Random
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mcpmeter.errors import InvalidRequest
from mcpmeter.simulator.dialects.base import DialectResponse, UrlParams
from mcpmeter.simulator.faults import Fault
from mcpmeter.simulator.generation import BilledTokens, number, response_model, with_usage
from mcpmeter.simulator.plan import Plan
from mcpmeter.simulator.request_parsing import (
    MAX_DIMENSIONS,
    MAX_INPUTS,
    Model,
    find_labelled_fault,
    read,
    text_tokens,
)
from mcpmeter.simulator.vectors import Vectors

DEFAULT_DIMENSIONS = 1536


class EmbeddingsBody(msgspec.Struct):
    """The body of `POST /v1/embeddings`."""

    model: Model
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1, le=MAX_DIMENSIONS)] | None = None
    metadata: dict[str, Any] | None = None

    @property
    def texts(self) -> list[str | list[int]]:
        """The inputs: texts, or lists of token numbers. Raises `InvalidRequest` for a mixture."""
        if isinstance(self.input, str):
            return [self.input]
        if self.input and all(isinstance(item, int) for item in self.input):
            return [[item for item in self.input if isinstance(item, int)]]
        several = [item for item in self.input if not isinstance(item, int)]
        if not several or len(several) != len(self.input) or len(several) > MAX_INPUTS:
            raise InvalidRequest(f"'input' is empty, has over {MAX_INPUTS} texts or mixes texts with token numbers.")
        return several

    def prompt_tokens(self) -> int:
        """Tokens of all texts; a list of token numbers counts its length."""
        return sum(text_tokens(item) if isinstance(item, str) else len(item) for item in self.texts)


class EmbeddingsRequest:
    """One request for embeddings."""

    def __init__(self, given: EmbeddingsBody, vectors: Vectors) -> None:
        self.given = given
        self._vectors = vectors

    @property
    def model(self) -> str:
        """The requested model."""
        return self.given.model

    def requested_fault(self, body: bytes) -> Fault | None:
        """The fault in `metadata.simulate`, which relays pass on, or in the first text."""
        return find_labelled_fault(self.given.metadata, "metadata", body, self._first_text)

    def respond(self, fault: Fault, plan: Plan, random: Random, repetition: int) -> DialectResponse:
        """Generate the response."""
        billed = BilledTokens(self.given.prompt_tokens(), 0)
        model = response_model(self.given.model, fault, plan)
        return DialectResponse(billed, partial(self._body, model, billed.prompt, fault))

    def _body(self, model: str, prompt_tokens: int, fault: Fault) -> bytes:
        dimensions = self.given.dimensions or (MAX_DIMENSIONS if "large" in model else DEFAULT_DIMENSIONS)
        data = [
            {"object": "embedding", "index": index, "embedding": self._embedding(text, dimensions)}
            for index, text in enumerate(self.given.texts)
        ]
        body = msgspec.json.encode({"object": "list", "data": data, "model": model})
        tokens = number(prompt_tokens, fault)
        return with_usage(body, f'{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}'.encode(), fault)

    def _embedding(self, text: str | list[int], dimensions: int) -> Any:
        vector = array("f", self._vectors.of(text, dimensions))
        if self.given.encoding_format == "float":
            return vector.tolist()
        if sys.byteorder == "big":
            vector.byteswap()
        return b64encode(vector.tobytes()).decode()

    def _first_text(self) -> str:
        return next((text for text in self.given.texts if isinstance(text, str)), "")


class EmbeddingsDialect:
    """`POST /v1/embeddings`."""

    name = "openai_embeddings"
    _decoder = msgspec.json.Decoder(EmbeddingsBody)

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    def read(self, body: bytes, url: UrlParams = UrlParams()) -> EmbeddingsRequest:  # noqa: B008 (immutable)
        """Parse a request. Raises `InvalidRequest`."""
        return EmbeddingsRequest(read(self._decoder, body), self._vectors)
