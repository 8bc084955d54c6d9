"""An answer, as the pipeline takes it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping

from mcpmeter.http.client.connection import Connection
from mcpmeter.http.client.decompression import Inflate, too_large


class Http1Response:
    """`upstream.UpstreamResponse`: an answer whose head has arrived."""

    __slots__ = ("_connection", "_idle_seconds", "_is_done", "_provider", "headers", "status")

    def __init__(self, connection: Connection, provider: str, idle_seconds: float) -> None:
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers
        self._connection = connection
        self._provider = provider
        self._idle_seconds = idle_seconds
        self._is_done = False

    async def read(self, limit_bytes: int) -> bytes:
        """The whole body. Raises UpstreamResponseTooLarge, UpstreamDisconnected, UpstreamTimedOut."""
        body = self._connection.whole_body()
        if body is not None and len(body) <= limit_bytes and "content-encoding" not in self.headers:
            return body
        parts = [part async for part in self.chunks(limit_bytes)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def chunks(self, limit_bytes: int) -> AsyncGenerator[bytes, None]:
        """The body as it comes. Only the provider is timed, never a client that takes its time to read."""
        inflate = Inflate.for_encoding(self.headers.get("content-encoding", ""), self._provider, limit_bytes)
        total = 0
        while data := await self._connection.next_part(self._idle_seconds):
            total += len(data)
            if total > limit_bytes:
                raise too_large(self._provider, limit_bytes)
            if inflate is None:
                yield data
                continue
            for part in inflate.feed(data):
                yield part
        if inflate is not None:
            inflate.finish()

    @property
    def is_plain(self) -> bool:
        """Whether the body is as it came. What is unpacked may be a thousand times what came, so it is not piped."""
        return self.headers.get("content-encoding", "identity") == "identity"

    async def pipe(self, take: Callable[[bytes], bool], limit_bytes: int) -> None:
        """Hand each part to `take` the moment it comes, until it says False or all has come."""
        await self._connection.pipe(take, limit_bytes, self._idle_seconds)

    def pause(self) -> None:
        """Read nothing more of a pipe for now."""
        self._connection.pause()

    def resume(self) -> None:
        """Read on."""
        self._connection.resume()

    def finish(self) -> None:
        """Nothing more is wanted of an answer that was complete: its connection may be used again."""
        if not self._is_done:
            self._is_done = True
            self._connection.finish()

    def abort(self) -> None:
        """Close the connection now, so that the provider stops working. Harmless after `finish`."""
        if not self._is_done:
            self._is_done = True
            self._connection.close()
