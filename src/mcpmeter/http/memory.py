"""One bound for the memory that peers can fill: request bodies, responses held whole, responses left unread.

A `Hold` is what one request or response keeps. It is one of four:

- *upload*, until the request is complete, and *unread*, the response of a call that has ended. Giving them up costs no
  money. Each kind gets a share; above it the longest held one is evicted;
- *response*: what a provider sends to be read whole. It is billed already, so it is never given up. Above its share
  reading waits, and the provider's connection with it; one response at a time is read regardless;
- *kept*: the request of a call in progress, what a running stream's client leaves unread, and a stream's event that is
  incomplete. Events may use what is free of the first half, so that providers cannot take all room of requests.

A request that does not fit beside all of them is refused before it is sent. `docs/limits.md` has the reasons.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

from mcpmeter.errors import Overloaded

DEFAULT_BYTES: Final = 256 * 1024 * 1024

FREE_BYTES: Final = 16 * 1024
"""A request or response up to this size is not counted, so that a small call pays for one comparison."""

UPLOADS_PER_BUDGET: Final = 4
UNREAD_PER_BUDGET: Final = 16
EVENTS_PER_BUDGET: Final = 2
RESPONSES_PER_BUDGET: Final = 16
"""Each kind's share is the bound divided by this."""


class Hold:
    """The bytes that one request or response holds."""

    __slots__ = ("evict", "share", "size")

    def __init__(self) -> None:
        self.size = 0
        self.share: Share | None = None
        """Set while it is evictable."""
        self.evict: Callable[[], None] | None = None
        """Called once, if the bytes have to be given up."""


class Share:
    """The evictable holds of one kind, the longest held first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self.holds: OrderedDict[Hold, None] = OrderedDict()


class MemoryBudget:
    """Counts holds. `on_limit` is called for each that is evicted or refused."""

    def __init__(self, max_bytes: int = DEFAULT_BYTES, on_limit: Callable[[], None] = lambda: None) -> None:
        self.max_bytes = max_bytes
        self.kept_bytes = 0
        """All that cannot be evicted."""
        self.response_bytes = 0
        """The part of it that is responses of providers."""
        self.uploads = Share(max_bytes // UPLOADS_PER_BUDGET)
        self.unread = Share(max_bytes // UNREAD_PER_BUDGET)
        self._on_limit = on_limit
        self._waiting: deque[tuple[Hold, int, asyncio.Future[None]]] = deque()
        """Responses that wait to be read on."""
        self._overdrawn: Hold | None = None
        """The one response that is read although it does not fit."""

    def refuse(self) -> Overloaded:
        """Count a refusal; returns its error."""
        self._on_limit()
        return self.error()

    def error(self) -> Overloaded:
        """The error of a request whose hold was evicted or not kept, which is counted already."""
        return Overloaded(
            f"The requests and responses in memory have reached {self.max_bytes} bytes.",
            hint="Retry; the operator can raise server.limits.memory_bytes.",
            retry_after="1",
        )

    def grow(self, hold: Hold, size: int) -> None:
        """Count `size` more bytes, or fewer."""
        hold.size += size
        if hold.share is None:
            self.kept_bytes += size
        else:
            hold.share.held_bytes += size
        self._evict()

    def make_evictable(self, hold: Hold, share: Share, evict: Callable[[], None]) -> None:
        """From now on `evict` may give the hold up."""
        size = hold.size
        self.release(hold)
        hold.share, hold.evict = share, evict
        share.holds[hold] = None
        self.grow(hold, size)

    def keep(self, hold: Hold) -> bool:
        """An upload is complete. False if it does not fit, or was evicted; then it is released."""
        if hold.share is None:
            return False
        size = hold.size
        self.release(hold)
        if self.kept_bytes + size > self.max_bytes:
            self._on_limit()
            return False
        self.grow(hold, size)
        return True

    def keep_more(self, hold: Hold, size: int) -> bool:
        """A kept request needs `size` more bytes. False if they do not fit."""
        if self.kept_bytes + size > self.max_bytes:
            self._on_limit()
            return False
        self.grow(hold, size)
        return True

    def keep_event(self, hold: Hold, size: int) -> bool:
        """A stream's incomplete event needs `size` more bytes. False if they do not fit."""
        if self.kept_bytes + size > self.max_bytes // EVENTS_PER_BUDGET:
            self._on_limit()
            return False
        self.grow(hold, size)
        return True

    def release(self, hold: Hold) -> None:
        """The bytes are no longer held."""
        share, size = hold.share, hold.size
        hold.share, hold.evict, hold.size = None, None, 0
        if share is None:
            self.kept_bytes -= size
        else:
            del share.holds[hold]
            share.held_bytes -= size

    def _evict(self) -> None:
        room = max(0, self.max_bytes - self.kept_bytes)
        for share in (self.uploads, self.unread):
            while share.holds and share.held_bytes > min(share.max_bytes, room):
                hold = next(iter(share.holds))
                evict = hold.evict
                self.release(hold)
                self._on_limit()
                if evict is not None:
                    evict()

    # Responses of providers -------------------------------------------------------------------------------------------

    async def read(self, hold: Hold, size: int) -> None:
        """Count bytes of a provider's response. If they do not fit, wait until others are released."""
        if self._fits(hold, size):
            self.add_response(hold, size)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((hold, size, waiter))
        await waiter

    def add_response(self, hold: Hold, size: int) -> None:
        """Count bytes of a provider's response that are in memory already."""
        self.response_bytes += size
        self.grow(hold, size)

    def release_response(self, hold: Hold) -> None:
        """The response is no longer held, so others may be read."""
        if self._overdrawn is hold:
            self._overdrawn = None
        self.response_bytes -= hold.size
        self.release(hold)
        while self._waiting:
            waiting, size, waiter = self._waiting[0]
            if not waiter.done():
                if not self._fits(waiting, size):
                    return
                self.add_response(waiting, size)
                waiter.set_result(None)
            self._waiting.popleft()

    def _fits(self, hold: Hold, size: int) -> bool:
        if (
            self.response_bytes + size <= self.max_bytes // RESPONSES_PER_BUDGET
            and self.kept_bytes + size <= self.max_bytes
        ):
            return True
        if self._overdrawn is None:
            self._overdrawn = hold
        return self._overdrawn is hold
