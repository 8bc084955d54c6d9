"""The connections of all listeners together: their cap, and what a new one gets above it.

Above the cap the connection that has waited for a request the longest is closed in favour of the new one. If all are
busy, or if one address has too many, the new connection goes into the *reserve*: it may ask for the service's health,
everything else is refused, and it closes after one response. If the reserve is full, the oldest connection in it
without a request closes. So health checks are answered under any number of connections.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Network, ip_address
from typing import Final, Protocol

from mcpmeter.errors import MeterError, Overloaded, RateLimited
from mcpmeter.http.memory import MemoryBudget

CONNECTIONS: Final = "connections"
PER_ADDRESS: Final = "connections_per_address"

SECONDS_BETWEEN_SCANS: Final = 0.05
"""All connections are looked at for idle ones at most this often: a flood of new ones must not make that quadratic."""

IPV6_PREFIX: Final = 64
"""An IPv6 client owns at least a network of this size, so its addresses count as one."""


@dataclass(frozen=True, slots=True)
class ServerTimeouts:
    """Seconds that a client may take for each phase of a connection."""

    headers_seconds: float = 30.0
    idle_seconds: float = 75.0
    body_seconds: float = 60.0
    response_seconds: float = 60.0


class BoundConnection(Protocol):
    """A connection, as the cap sees it."""

    def waiting_since(self) -> float | None:
        """Since when it waits for a request; None while it has one."""

    def evict(self) -> None:
        """Close now."""


class Connections:
    """`on_limit` is called with the name of the limit for each connection that is closed or refused."""

    def __init__(
        self,
        max_total: int = 1024,
        max_per_address: int | None = None,
        reserve: int = 16,
        on_limit: Callable[[str], None] = lambda limit: None,
    ) -> None:
        self.max_total = max_total
        self.max_per_address = max_per_address or max(1, max_total // 2)
        self.on_limit = on_limit
        self._max_reserve = reserve
        self._reserve: OrderedDict[BoundConnection, None] = OrderedDict()
        self._admitted: set[BoundConnection] = set()
        self._by_address: dict[str, int] = {}
        self._waiting: deque[tuple[float, BoundConnection]] = deque()
        """Connections that waited for a request at the last scan, the longest first."""
        self._next_scan = 0.0

    def admit(self, connection: BoundConnection, address: str, now: float) -> MeterError | None:
        """Count a new connection. Returns the error for its requests if it goes into the reserve."""
        client = _client_of(address)
        count = self._by_address[client] = self._by_address.get(client, 0) + 1
        if address and count > self.max_per_address:
            self._take_into_reserve(connection, PER_ADDRESS)
            return _too_many_of_one_address(self.max_per_address)
        if len(self._admitted) >= self.max_total and not self._evict_longest_waiting(now):
            self._take_into_reserve(connection, CONNECTIONS)
            return _too_many(self.max_total)
        self._admitted.add(connection)
        return None

    def remove(self, connection: BoundConnection, address: str) -> None:
        """The connection is lost."""
        self._admitted.discard(connection)
        self._reserve.pop(connection, None)
        client = _client_of(address)
        left = self._by_address.get(client, 0) - 1
        if left > 0:
            self._by_address[client] = left
        else:
            self._by_address.pop(client, None)

    def _take_into_reserve(self, connection: BoundConnection, limit: str) -> None:
        self._reserve[connection] = None
        if len(self._reserve) <= self._max_reserve:
            return
        oldest = next((held for held in self._reserve if held.waiting_since() is not None), connection)
        del self._reserve[oldest]
        self.on_limit(limit)
        oldest.evict()

    def _evict_longest_waiting(self, now: float) -> bool:
        while True:
            while self._waiting:
                since, connection = self._waiting.popleft()
                if connection in self._admitted and connection.waiting_since() == since:
                    self._admitted.discard(connection)
                    self.on_limit(CONNECTIONS)
                    connection.evict()
                    return True
            if now < self._next_scan:
                return False
            self._next_scan = now + SECONDS_BETWEEN_SCANS
            waits = ((connection.waiting_since(), connection) for connection in self._admitted)
            found = [(since, connection) for since, connection in waits if since is not None]
            self._waiting.extend(sorted(found, key=lambda wait: wait[0]))


@dataclass(frozen=True, slots=True)
class ServerBounds:
    """What all listeners of a service share."""

    timeouts: ServerTimeouts = field(default_factory=ServerTimeouts)
    connections: Connections = field(default_factory=Connections)
    memory: MemoryBudget = field(default_factory=MemoryBudget)


def _client_of(address: str) -> str:
    if ":" not in address:
        return address
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4 or parsed.ipv4_mapped is not None:
        return address
    return str(IPv6Network((parsed, IPV6_PREFIX), strict=False))


def _too_many(limit: int) -> MeterError:
    return Overloaded(
        f"All {limit} connections of the service are in use.",
        hint="Retry; the operator can raise server.limits.connections.",
        retry_after="1",
    )


def _too_many_of_one_address(limit: int) -> MeterError:
    return RateLimited(
        f"This address has more than {limit} connections.",
        hint="Use fewer; the operator can raise server.limits.connections_per_address.",
        retry_after="1",
    )
