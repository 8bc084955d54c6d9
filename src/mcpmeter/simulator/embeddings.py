"""Embeddings: unit vectors that are equal for equal texts, cut out of one fixed table so that they cost nothing."""

from __future__ import annotations

import math
import sys
from array import array
from base64 import b64encode
from hashlib import blake2b
from random import Random
from typing import Any

import msgspec

from mcpmeter.simulator.answers import with_usage
from mcpmeter.simulator.asks import MAX_DIMENSIONS, EmbeddingsAsk
from mcpmeter.simulator.faults import Fault

DEFAULT_DIMENSIONS = 1536
_TABLE_SIZE = 16_384


class Embedder:
    """Makes the body of an embeddings answer; the same seed and text give the same vector."""

    def __init__(self, seed: int) -> None:
        random = Random(seed)  # noqa: S311 (repeatable on purpose)
        self._table = [random.gauss(0.0, 1.0) for _ in range(_TABLE_SIZE + MAX_DIMENSIONS)]

    def body(self, ask: EmbeddingsAsk, *, model: str, prompt_tokens: int, fault: Fault) -> bytes:
        """The JSON body, in the encoding that was asked for."""
        dimensions = ask.dimensions or (MAX_DIMENSIONS if "large" in ask.model else DEFAULT_DIMENSIONS)
        data = [
            {"object": "embedding", "index": index, "embedding": self._embedding(text, dimensions, ask.encoding_format)}
            for index, text in enumerate(ask.texts)
        ]
        body = msgspec.json.encode({"object": "list", "data": data, "model": model})
        return with_usage(body, _usage(prompt_tokens, fault), fault)

    def vector(self, text: str | list[int], dimensions: int) -> list[float]:
        """A vector of length 1."""
        known = text.encode() if isinstance(text, str) else msgspec.json.encode(text)
        start = int.from_bytes(blake2b(known, digest_size=4).digest(), "big") % _TABLE_SIZE
        cut = self._table[start : start + dimensions]
        norm = math.sqrt(math.fsum(x * x for x in cut))
        return [x / norm for x in cut]

    def _embedding(self, text: str | list[int], dimensions: int, encoding: str) -> Any:
        vector = array("f", self.vector(text, dimensions))
        if encoding == "float":
            return vector.tolist()
        if sys.byteorder == "big":
            vector.byteswap()
        return b64encode(vector.tobytes()).decode()


def _usage(prompt_tokens: int, fault: Fault) -> bytes:
    shown = {"zero": "0", "negative": str(-prompt_tokens - 1), "string": f'"{prompt_tokens}"', "nan": "NaN"}
    number = shown.get(fault.usage or "", str(prompt_tokens))
    return f'{{"prompt_tokens":{number},"total_tokens":{number}}}'.encode()
