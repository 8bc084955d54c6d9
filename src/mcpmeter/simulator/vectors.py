"""Unit vectors that are equal for equal texts, cut from one fixed table: cheap to make."""

from __future__ import annotations

import math
from functools import cached_property
from hashlib import blake2b
from random import Random

import msgspec

from mcpmeter.simulator.request_parsing import MAX_DIMENSIONS

_TABLE_SIZE = 16_384


class Vectors:
    """The same seed and text give the same vector."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    @cached_property
    def _table(self) -> list[float]:
        random = Random(self._seed)  # noqa: S311 (repeatable on purpose)
        return [random.gauss(0.0, 1.0) for _ in range(_TABLE_SIZE + MAX_DIMENSIONS)]

    def of(self, text: str | list[int], dimensions: int) -> list[float]:
        """A vector of length 1."""
        encoded = text.encode() if isinstance(text, str) else msgspec.json.encode(text)
        start = int.from_bytes(blake2b(encoded, digest_size=4).digest(), "big") % _TABLE_SIZE
        cut = self._table[start : start + dimensions]
        norm = math.sqrt(math.fsum(x * x for x in cut))
        return [x / norm for x in cut]
