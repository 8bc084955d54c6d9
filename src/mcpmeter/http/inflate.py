"""Bounded decompression of bodies, gzip and deflate: 64 KiB of either can hold 64 MiB."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Final

from mcpmeter.errors import MeterError

PIECE_BYTES: Final = 64 * 1024
"""The most that is decompressed at once."""

SLICE_BYTES: Final = 4 * 1024
"""The most that is fed at once: after each piece and each tiny member, zlib copies all that it has not used yet."""

ZLIB_OR_GZIP: Final = zlib.MAX_WBITS | 32
GZIP: Final = zlib.MAX_WBITS | 16

CODINGS: Final = ("gzip", "x-gzip", "deflate")


class Inflate(ABC):
    """Decompresses a body in pieces, at most `limit_bytes` in total. Subclasses make the errors."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._total_bytes = 0
        self._inflater = zlib.decompressobj(ZLIB_OR_GZIP)
        self._has_begun = False

    @abstractmethod
    def too_large(self) -> MeterError:
        """The error for a body over the limit."""

    @abstractmethod
    def corrupt(self) -> MeterError:
        """The error for bytes that are not compressed as they should be."""

    @abstractmethod
    def truncated(self) -> MeterError:
        """The error for a body whose end is missing."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the plain bytes of a part, never empty. Raises the errors for a corrupt or too large body."""
        view = memoryview(data)
        for start in range(0, len(data), SLICE_BYTES):
            for piece in self._pieces(view[start : start + SLICE_BYTES]):
                self._total_bytes += len(piece)
                if self._total_bytes > self._limit_bytes:
                    raise self.too_large()
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
            raise self.corrupt() from None

    def finish(self) -> None:
        """Check the end of the body. Raises the error for a truncated one."""
        if self._has_begun and not self._inflater.eof:
            raise self.truncated()
