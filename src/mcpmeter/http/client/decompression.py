"""Responses that are compressed although the request accepts `identity` only."""

from __future__ import annotations

from mcpmeter.errors import InvalidUpstreamResponse, UpstreamDisconnected, UpstreamResponseTooLarge
from mcpmeter.http.inflate import CODINGS, Inflate


class InflateResponse(Inflate):
    """Decompresses a provider's response."""

    def __init__(self, provider: str, limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self._provider = provider

    @classmethod
    def for_encoding(cls, encoding: str, provider: str, limit_bytes: int) -> InflateResponse | None:
        """Return the decompression for a `Content-Encoding`, None for identity. Raises InvalidUpstreamResponse."""
        name = encoding.strip().lower()
        if name in ("identity", ""):
            return None
        if name not in CODINGS:
            raise InvalidUpstreamResponse(
                f"{provider} sent its response in an encoding that was not requested and cannot be read.",
                hint="It has to honour 'Accept-Encoding: identity'.",
            )
        return cls(provider, limit_bytes)

    def too_large(self) -> UpstreamResponseTooLarge:
        """The error for a response over the limit."""
        return too_large(self._provider, self._limit_bytes)

    def corrupt(self) -> InvalidUpstreamResponse:
        """The error for a response that cannot be decompressed."""
        return InvalidUpstreamResponse(
            f"{self._provider} sent a response that cannot be decompressed.",
            hint="Try again; it is the provider's fault.",
        )

    def truncated(self) -> UpstreamDisconnected:
        """The error for a response whose end is missing."""
        return UpstreamDisconnected(f"{self._provider} closed the connection before its response ended.", hint="Retry.")


def too_large(provider: str, limit_bytes: int) -> UpstreamResponseTooLarge:
    """The error for a body over the limit, compressed or plain."""
    return UpstreamResponseTooLarge(
        f"The response of {provider} is larger than {limit_bytes} bytes.",
        hint="Raise relay.max_answer_bytes to allow it.",
    )
