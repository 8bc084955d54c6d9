"""What a client leaves unread of a response, and until when it has to read it."""

from __future__ import annotations

from typing import Final

from mcpmeter.http.memory import Hold

READ_BYTES_PER_SECOND: Final = 16 * 1024
"""The slowest that a client may read a response, beyond the first `response_seconds`."""

CHECKS_PER_TIMEOUT: Final = 4
"""How often the size of an unread response is looked at: what changes between two looks counts as read."""


class UnreadResponse:
    """A response of which `size` bytes were unread at the instant `now`, in seconds of the event loop's clock."""

    __slots__ = ("_bytes", "_bytes_at_start", "_read_at", "_since", "hold")

    def __init__(self, size: int, now: float, hold: Hold | None = None) -> None:
        self.hold = hold
        """Counts the bytes in the memory budget, if there are enough of them."""
        self._since = self._read_at = now
        """Since when the client has been behind with reading, and when it was last seen to read."""
        self._bytes = self._bytes_at_start = size

    def grow_to(self, size: int) -> None:
        """More was written."""
        self._bytes_at_start = max(size, self._bytes_at_start)

    def deadline(self, size: int, now: float, seconds: float) -> float:
        """Until when the client has to read, of which `size` bytes are unread now; or an earlier instant to look again.

        A client that does not read at all has `seconds`; one that reads slowly a second more for each 16 KiB.
        """
        if size < self._bytes:
            self._read_at, self._bytes = now, size
        slowest = self._since + seconds + self._bytes_at_start / READ_BYTES_PER_SECOND
        deadline = min(self._read_at + seconds, slowest)
        return min(deadline, now + seconds / CHECKS_PER_TIMEOUT) if deadline > now else deadline
