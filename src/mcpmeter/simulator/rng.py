"""Random numbers that depend on the seed and the request, never on the order in which requests arrive."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from random import Random

_ODD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: neighbouring ordinals get unrelated generators


class RequestRng:
    """Gives each request its own generator: the same seed, body and repetition draw the same numbers.

    Keeps repetition counts of the `bodies_kept` most recent bodies, so that memory is bounded; an evicted body counts
    from 0 again.
    """

    def __init__(self, seed: int, *, bodies_kept: int = 65_536) -> None:
        self._key = blake2b(str(seed).encode(), digest_size=32).digest()
        self._repetitions: OrderedDict[int, int] = OrderedDict()
        self._bodies_kept = bodies_kept

    def of(self, body: bytes, salt: bytes = b"") -> tuple[Random, int]:
        """The generator of this request and the number of equal bodies before it; `salt` separates URLs."""
        hashed = blake2b(body, digest_size=8, key=self._key)
        if salt:
            hashed.update(salt)
        digest = int.from_bytes(hashed.digest(), "big")
        repetition = self._repetitions.pop(digest, 0)
        self._repetitions[digest] = repetition + 1
        if len(self._repetitions) > self._bodies_kept:
            self._repetitions.popitem(last=False)
        return Random(digest ^ (repetition * _ODD)), repetition  # noqa: S311 (repeatable on purpose; nothing secret depends on it)
