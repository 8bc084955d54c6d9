"""Compressed request bodies: one coding, decompressed before anything reads them; providers get the plain body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mcpmeter.errors import BodyTooLarge, InvalidRequest, UnsupportedContentEncoding
from mcpmeter.http.inflate import CODINGS, Inflate

ACCEPTED: Final = b"gzip, deflate"
"""RFC 9110, 15.5.16: with the status 415, `Accept-Encoding` lists what is taken."""


class InflateRequest(Inflate):
    """Decompresses a request's body."""

    def too_large(self) -> BodyTooLarge:
        """The error for a body over the limit."""
        return too_large(self._limit_bytes)

    def corrupt(self) -> InvalidRequest:
        """The error for a body that is not compressed as its header says."""
        return InvalidRequest(
            "The body cannot be decompressed.", hint="Send it as Content-Encoding says, or plain without that header."
        )

    def truncated(self) -> InvalidRequest:
        """The error for a body whose end is missing."""
        return InvalidRequest("The compressed body ends too early.", hint="Send the whole of it.")


def is_compressed(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request's body has to be decompressed. Raises UnsupportedContentEncoding."""
    coding = headers.get(b"content-encoding", b"").decode("latin-1").lower()
    if coding in ("", "identity"):
        return False
    if coding not in CODINGS:
        raise UnsupportedContentEncoding(
            "The body's Content-Encoding is not supported.", hint="Send it as gzip or deflate alone, or plain."
        )
    return True


def decompressed(body: bytes, limit_bytes: int) -> bytes:
    """Return the plain body. Raises BodyTooLarge, InvalidRequest."""
    inflate = InflateRequest(limit_bytes)
    pieces = list(inflate.feed(body))
    inflate.finish()
    return b"".join(pieces)


def too_large(limit_bytes: int) -> BodyTooLarge:
    """The error for a body over the limit, compressed or plain."""
    return BodyTooLarge(
        f"The body is larger than {limit_bytes} bytes.", hint="Send less, or raise server.max_body_bytes."
    )
