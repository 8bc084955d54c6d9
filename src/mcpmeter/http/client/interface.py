"""What the pipeline asks of a client to providers, so that another one can take its place."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Protocol

import msgspec


class Timeouts(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Seconds, each with its own error: to connect, to the answer's head, between chunks, and for the whole call."""

    connect_seconds: float = 5.0
    first_byte_seconds: float = 120.0
    idle_seconds: float = 60.0
    total_seconds: float = 600.0


class UpstreamResponse(Protocol):
    """A provider's answer whose head has arrived."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name; a repeated header's values are joined. Each character is one byte as it came (Latin-1)."""

    async def read(self, limit_bytes: int) -> bytes:
        """The whole body. Raises UpstreamResponseTooLarge, UpstreamDisconnected, UpstreamTimedOut."""

    def chunks(self, limit_bytes: int) -> AsyncGenerator[bytes, None]:
        """The body as it comes. Raises as `read`."""

    @property
    def is_plain(self) -> bool:
        """Whether the body can be piped."""

    async def pipe(self, take: Callable[[bytes], bool], limit_bytes: int) -> None:
        """Hand each part to `take` the moment it comes, without waking a task, until it says False or all has come.

        For plain bodies. Raises as `read`, and whatever `take` raises.
        """

    def pause(self) -> None:
        """Read nothing more of a pipe for now. The provider is not timed meanwhile."""

    def resume(self) -> None:
        """Read on."""

    def finish(self) -> None:
        """Nothing more is wanted of an answer that was complete: its connection may be reused."""

    def abort(self) -> None:
        """Close the connection now, so that the provider stops working. Harmless after the end."""


class UpstreamClient(Protocol):
    """Sends calls to providers."""

    async def post(
        self, provider: str, url: str, headers: Mapping[str, str], body: bytes, timeouts: Timeouts | None = None
    ) -> UpstreamResponse:
        """POST and wait for the answer's head; `timeouts` instead of the client's own.

        Raises UpstreamUnreachable, UpstreamTimedOut, UpstreamDisconnected, …
        """

    async def close(self) -> None:
        """Close all connections."""
