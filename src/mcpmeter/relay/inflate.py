"""Bounded inflating of answers that come packed although `identity` was asked for."""

from __future__ import annotations

import zlib

from mcpmeter.errors import UpstreamAnsweredGarbage, UpstreamBroke


class Inflate:
    """64 KiB of gzip can hold 64 MiB; no more than `limit_bytes` and one are ever made at once."""

    def __init__(self, provider: str, limit_bytes: int) -> None:
        self._provider = provider
        self._limit_bytes = limit_bytes
        self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)

    @classmethod
    def for_encoding(cls, encoding: str, provider: str, limit_bytes: int) -> Inflate | None:
        """What a `Content-Encoding` needs; None for identity. Raises UpstreamAnsweredGarbage for one we cannot read."""
        name = encoding.strip().lower()
        if name in ("identity", ""):
            return None
        if name not in ("gzip", "x-gzip", "deflate"):
            raise UpstreamAnsweredGarbage(
                f"{provider} sent its answer in an encoding that was not asked for and cannot be read.",
                hint="It has to honour 'Accept-Encoding: identity'.",
            )
        return cls(provider, limit_bytes)

    def feed(self, data: bytes) -> bytes:
        """The plain bytes of a part. Raises UpstreamAnsweredGarbage."""
        try:
            return self._inflater.decompress(data, self._limit_bytes + 1)
        except zlib.error:
            raise UpstreamAnsweredGarbage(
                f"{self._provider} sent an answer that does not unpack.", hint="Try again; it is the provider's fault."
            ) from None

    def finish(self) -> None:
        """The body has ended. Raises UpstreamBroke when there should be more."""
        if not self._inflater.eof:
            raise UpstreamBroke(f"{self._provider} closed the connection before its answer ended.", hint="Retry.")
