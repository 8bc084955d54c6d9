"""The end of a connection whose client may still send.

Closing a connection with bytes unread would reset it, and a client that is still sending would not see its response.
So our side ends with the response, and what still arrives is discarded: until the client closes, makes no progress for
`LINGER_SECONDS`, or has had `MAX_LINGER_SECONDS` or `MAX_DISCARDED_BYTES` (RFC 9112, 9.6).
"""

from __future__ import annotations

import asyncio
from typing import Final

MAX_DISCARDED_BYTES: Final = 256 * 1024 * 1024
"""Most clients read a response only after they have sent their whole body; discarding is as cheap as the read."""

LINGER_SECONDS: Final = 5.0
MAX_LINGER_SECONDS: Final = 60.0


class Lingering:
    """Discards what arrives from its making on, and closes the connection after `end_writing`."""

    __slots__ = ("_discarded_bytes", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._discarded_bytes = 0

    def discard(self, data: bytes) -> None:
        """Forget bytes that arrive, within the bound."""
        self._discarded_bytes += len(data)
        if self._discarded_bytes > MAX_DISCARDED_BYTES:
            self._transport.abort()

    def end_writing(self) -> bool:
        """End our side after what is written. Returns whether the connection stays open."""
        if not self._transport.can_write_eof():
            self._transport.close()
            return False
        try:
            self._transport.write_eof()
        except OSError:  # the client has reset the connection, which the event loop has yet to notice
            self._transport.abort()
            return False
        self._check_later(MAX_LINGER_SECONDS)
        return True

    def _check_later(self, seconds_left: float) -> None:
        progress = self._discarded_bytes, self._transport.get_write_buffer_size()
        self._loop.call_later(LINGER_SECONDS, self._check, *progress, seconds_left - LINGER_SECONDS)

    def _check(self, discarded_before: int, unsent_before: int, seconds_left: float) -> None:
        is_moving = self._discarded_bytes > discarded_before or self._transport.get_write_buffer_size() < unsent_before
        if is_moving and seconds_left > 0:
            self._check_later(seconds_left)
        else:
            self._transport.abort()
