"""One bound for the memory that peers can fill: request bodies, responses held whole, responses left unread.

A `Hold` is what one request or response keeps. It is *evictable* while giving it up costs no money: an upload that has
not ended, or the unread response of a call that has ended. All evictable holds together get a quarter of the bound;
above that the longest held one is evicted. Other holds are *kept*: a request that is being answered, and the response
of a provider, which is billed already. A request that does not fit beside them is refused before it is sent. A response
that does not fit is still read, one such response at a time: `docs/limits.md` has the reasons.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from mcpmeter.errors import Overloaded

DEFAULT_BYTES: Final = 256 * 1024 * 1024

FREE_BYTES: Final = 16 * 1024
"""A request or response up to this size is not counted, so that a small call pays for one comparison."""

EVICTABLE_SHARE: Final = 4


class Hold:
    """The bytes that one request or response holds. `evict` is called once, if they have to be given up."""

    __slots__ = ("evict", "is_evictable", "size")

    def __init__(self, evict: Callable[[], None] | None) -> None:
        self.evict = evict
        self.is_evictable = evict is not None
        self.size = 0


class MemoryBudget:
    """Counts holds. `on_limit` is called for each that is evicted or refused."""

    def __init__(self, max_bytes: int = DEFAULT_BYTES, on_limit: Callable[[], None] = lambda: None) -> None:
        self.max_bytes = max_bytes
        self.kept_bytes = self.evictable_bytes = 0
        self._on_limit = on_limit
        self._evictable: OrderedDict[Hold, None] = OrderedDict()
        self._overdraft = asyncio.Lock()
        self._overdrawn: Hold | None = None
        """The response that is read although it does not fit; its hold owns the lock."""

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

    def hold(self, size: int, evict: Callable[[], None] | None = None) -> Hold:
        """Count a new hold, evictable by `evict` if that is given."""
        hold = Hold(evict)
        if hold.is_evictable:
            self._evictable[hold] = None
        self.grow(hold, size)
        return hold

    def grow(self, hold: Hold, size: int) -> None:
        """Count `size` more bytes, or fewer. A hold that was evicted or released stays empty."""
        if not hold.is_evictable:
            hold.size += size
            self.kept_bytes += size
        elif hold in self._evictable:
            hold.size += size
            self.evictable_bytes += size
            self._evict_down_to(min(self.max_bytes // EVICTABLE_SHARE, max(0, self.max_bytes - self.kept_bytes)))

    def keep(self, hold: Hold) -> bool:
        """Make a hold kept: its upload is complete. False if it does not fit, or was evicted; then it is released."""
        was_evicted = hold.is_evictable and hold not in self._evictable
        size = hold.size
        self.release(hold)
        if was_evicted:
            return False
        if self.kept_bytes + size > self.max_bytes:
            self._on_limit()
            return False
        hold.is_evictable, hold.evict = False, None
        self.grow(hold, size)
        self._evict_down_to(self.max_bytes - self.kept_bytes)
        return True

    def make_evictable(self, hold: Hold, evict: Callable[[], None]) -> None:
        """The call of this hold has ended: from now on `evict` may give it up."""
        size = hold.size
        self.release(hold)
        hold.is_evictable, hold.evict = True, evict
        self._evictable[hold] = None
        self.grow(hold, size)

    def release(self, hold: Hold) -> None:
        """The bytes are no longer held. Does nothing for a hold that is empty."""
        if not hold.is_evictable:
            self.kept_bytes -= hold.size
        elif hold in self._evictable:
            del self._evictable[hold]
            self.evictable_bytes -= hold.size
        hold.size = 0

    async def read(self, hold: Hold, size: int) -> None:
        """Count bytes of a provider's response. If they do not fit, wait until no other such response is being read."""
        if self.kept_bytes + size > self.max_bytes and self._overdrawn is not hold:
            await self._overdraft.acquire()
            self._overdrawn = hold
        self.grow(hold, size)
        self._evict_down_to(max(0, self.max_bytes - self.kept_bytes))

    def has_read(self, hold: Hold) -> None:
        """The response is complete or given up: the next one that does not fit may be read."""
        if self._overdrawn is hold:
            self._overdrawn = None
            self._overdraft.release()

    def _evict_down_to(self, max_bytes: int) -> None:
        while self.evictable_bytes > max_bytes and self._evictable:
            hold, _ = self._evictable.popitem(last=False)
            self.evictable_bytes -= hold.size
            hold.size = 0
            self._on_limit()
            if hold.evict is not None:
                hold.evict()
