"""Bounded decompression of responses that are compressed although the request accepts `identity` only."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

from mcpmeter.errors import InvalidUpstreamResponse, UpstreamDisconnected, UpstreamResponseTooLarge

PIECE_BYTES: Final = 64 * 1024
"""The most that is decompressed at once."""

SLICE_BYTES: Final = 4 * 1024
"""The most that is fed at once: after each piece and each tiny member, zlib copies all that it has not used yet."""

ZLIB_OR_GZIP: Final = zlib.MAX_WBITS | 32
GZIP: Final = zlib.MAX_WBITS | 16


class Inflate:
    """Decompresses a body in pieces, at most `limit_bytes` in total: 64 KiB of gzip can hold 64 MiB."""

    def __init__(self, provider: str, limit_bytes: int) -> None:
        self._provider = provider
        self._limit_bytes = limit_bytes
        self._total_bytes = 0
        self._inflater = zlib.decompressobj(ZLIB_OR_GZIP)
        self._has_begun = False

    @classmethod
    def for_encoding(cls, encoding: str, provider: str, limit_bytes: int) -> Inflate | None:
        """Return the decompression for a `Content-Encoding`, None for identity. Raises InvalidUpstreamResponse."""
        name = encoding.strip().lower()
        if name in ("identity", ""):
            return None
        if name not in ("gzip", "x-gzip", "deflate"):
            raise InvalidUpstreamResponse(
                f"{provider} sent its response in an encoding that was not requested and cannot be read.",
                hint="It has to honour 'Accept-Encoding: identity'.",
            )
        return cls(provider, limit_bytes)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the plain bytes of a part, never empty. Raises InvalidUpstreamResponse, UpstreamResponseTooLarge."""
        view = memoryview(data)
        for start in range(0, len(data), SLICE_BYTES):
            for piece in self._pieces(view[start : start + SLICE_BYTES]):
                self._total_bytes += len(piece)
                if self._total_bytes > self._limit_bytes:
                    raise too_large(self._provider, self._limit_bytes)
                yield piece

    def _pieces(self, rest: bytes | memoryview) -> Iterator[bytes]:
        self._has_begun = True
        while rest:
            if self._inflater.eof:
                self._inflater = zlib.decompressobj(GZIP)  # RFC 1952, 2.2: a file can hold several members
            piece = self._inflated(rest)
            rest = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
            if piece:
                yield piece

    def _inflated(self, data: bytes | memoryview) -> bytes:
        try:
            return self._inflater.decompress(data, PIECE_BYTES)
        except zlib.error:
            raise InvalidUpstreamResponse(
                f"{self._provider} sent a response that cannot be decompressed.",
                hint="Try again; it is the provider's fault.",
            ) from None

    def finish(self) -> None:
        """Check the end of the body. Raises UpstreamDisconnected if more should follow."""
        if self._has_begun and not self._inflater.eof:
            raise UpstreamDisconnected(
                f"{self._provider} closed the connection before its response ended.", hint="Retry."
            )


def too_large(provider: str, limit_bytes: int) -> UpstreamResponseTooLarge:
    """The error for a body over the limit, compressed or plain."""
    return UpstreamResponseTooLarge(
        f"The response of {provider} is larger than {limit_bytes} bytes.",
        hint="Raise relay.max_answer_bytes to allow it.",
    )
