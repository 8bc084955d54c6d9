"""What a call needs of a client to upstream servers, so that another client can take its place."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Final, Protocol

import msgspec

MAX_PEEK_BYTES: Final = 64 * 1024


class Timeouts(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Seconds, each with its own error: to connect, to the response headers, between chunks, for the whole call."""

    connect_seconds: float = 5.0
    first_byte_seconds: float = 120.0
    idle_seconds: float = 60.0
    total_seconds: float = 600.0


class UpstreamResponse(Protocol):
    """A response whose headers have arrived."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name; a repeated header's values are joined. Each character is one byte (Latin-1)."""

    async def read(self, limit_bytes: int) -> bytes:
        """Return the whole body. Raises UpstreamResponseTooLarge, UpstreamDisconnected, UpstreamTimedOut."""

    async def peek(self, size: int) -> bytes:
        """Wait until `size` bytes of the body have arrived, or all of it, and return what is there without taking it.

        At most `MAX_PEEK_BYTES`, as the body arrives: of a compressed one, compressed bytes. Raises as `read`.
        """

    def chunks(self, limit_bytes: int) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives. Raises as `read`."""

    @property
    def is_plain(self) -> bool:
        """Whether the body is not compressed, so that it can be piped."""

    async def pipe(self, sink: Callable[[bytes], bool], limit_bytes: int) -> None:
        """Call `sink` with each part the moment it arrives, without waking a task, until it returns False or the end.

        For plain bodies. Raises as `read`, and what `sink` raises.
        """

    def pause(self) -> None:
        """Read nothing more of a pipe for now. The upstream's deadlines stand still meanwhile."""

    def resume(self) -> None:
        """Undo `pause`."""

    def finish(self) -> None:
        """The response is no longer needed; its connection may be reused."""

    def abort(self) -> None:
        """Close the connection now, so that the upstream stops working, unless `finish` was called; and release."""

    def release(self) -> None:
        """The body that `read` returned is not held any longer."""


class UpstreamClient(Protocol):
    """Sends calls to upstream servers."""

    async def post(
        self,
        provider: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        timeouts: Timeouts | None = None,
        *,
        method: str = "POST",
    ) -> UpstreamResponse:
        """POST, or send another method, and wait for the response headers; `timeouts` replace the client's own.

        Raises UpstreamUnreachable, UpstreamTimedOut, UpstreamDisconnected, …
        """

    async def close(self) -> None:
        """Close all connections."""
