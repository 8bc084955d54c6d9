"""Chance that depends on the seed and on what is asked, never on the order in which requests happen to arrive."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from random import Random

_ODD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: neighbouring ordinals get unrelated generators


class Draws:
    """A generator of chance for the n-th asking of a body. The same seed, body and n give the same draws.

    Counts of the `bodies_kept` bodies seen last are kept; an older one starts from 0 again, so that memory is bounded.
    """

    def __init__(self, seed: int, *, bodies_kept: int = 65_536) -> None:
        self._key = blake2b(str(seed).encode(), digest_size=32).digest()
        self._asked: OrderedDict[int, int] = OrderedDict()
        self._bodies_kept = bodies_kept

    def of(self, body: bytes, salt: bytes = b"") -> tuple[Random, int]:
        """The generator for this asking, and how often the same body was asked before; `salt` keeps URLs apart."""
        hashed = blake2b(body, digest_size=8, key=self._key)
        if salt:
            hashed.update(salt)
        digest = int.from_bytes(hashed.digest(), "big")
        nth = self._asked.pop(digest, 0)
        self._asked[digest] = nth + 1
        if len(self._asked) > self._bodies_kept:
            self._asked.popitem(last=False)
        return Random(digest ^ (nth * _ODD)), nth  # noqa: S311 (repeatable on purpose; nothing secret hangs on it)
