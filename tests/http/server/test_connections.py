"""The cap on connections: what is closed for a new one, and the reserve for health checks."""

from __future__ import annotations

from mcpmeter.errors import Overloaded, RateLimited
from mcpmeter.http.server.connections import SECONDS_BETWEEN_SCANS, Connections


class Connection:
    """Waits for a request since an instant; None: it has one."""

    def __init__(self, since: float | None = 0.0) -> None:
        self.since = since
        self.is_evicted = False

    def waiting_since(self) -> float | None:
        return self.since

    def evict(self) -> None:
        self.is_evicted = True


def test_the_longest_waiting_connection_makes_room() -> None:
    limits: list[str] = []
    connections = Connections(3, 99, on_limit=limits.append)
    busy, younger, older = Connection(None), Connection(2.0), Connection(1.0)
    for connection in (busy, younger, older):
        assert connections.admit(connection, "192.0.2.1", 3.0) is None
    assert connections.admit(Connection(None), "192.0.2.1", 4.0) is None
    assert [connection.is_evicted for connection in (busy, younger, older)] == [False, False, True]
    younger.since = None  # its request has arrived since the scan
    assert isinstance(connections.admit(Connection(), "192.0.2.1", 4.0), Overloaded)
    assert limits == ["connections"]


def test_busy_connections_are_scanned_seldom() -> None:
    connections = Connections(1, 99)
    only = Connection(None)
    connections.admit(only, "192.0.2.1", 0.0)
    assert connections.admit(Connection(None), "192.0.2.1", 1.0) is not None
    only.since = 0.5
    assert connections.admit(Connection(None), "192.0.2.1", 1.0 + SECONDS_BETWEEN_SCANS / 2) is not None
    assert connections.admit(Connection(None), "192.0.2.1", 1.0 + SECONDS_BETWEEN_SCANS) is None


def test_the_reserve_drops_its_oldest_connection_without_a_request() -> None:
    connections = Connections(1, 99, reserve=2)
    connections.admit(Connection(None), "192.0.2.1", 0.0)
    asking, silent, new = Connection(None), Connection(1.0), Connection(2.0)
    for connection in (asking, silent, new):
        connections.admit(connection, "192.0.2.1", 2.0)
    assert [connection.is_evicted for connection in (asking, silent, new)] == [False, True, False]


def test_one_address_has_its_own_cap() -> None:
    connections = Connections(100, 2)
    first = Connection()
    for connection in (first, Connection()):
        assert connections.admit(connection, "192.0.2.1", 0.0) is None
    assert isinstance(connections.admit(Connection(), "192.0.2.1", 0.0), RateLimited)
    assert connections.admit(Connection(), "192.0.2.2", 0.0) is None
    connections.remove(first, "192.0.2.1")
    connections.remove(first, "192.0.2.1")
    assert connections.admit(Connection(), "192.0.2.1", 0.0) is None


def test_an_ipv6_network_counts_as_one_address() -> None:
    connections = Connections(100, 1)
    assert connections.admit(Connection(), "2001:db8::1", 0.0) is None
    assert isinstance(connections.admit(Connection(), "2001:db8::2:1", 0.0), RateLimited)
    assert connections.admit(Connection(), "2001:db8:0:1::1", 0.0) is None
    assert connections.admit(Connection(), "::ffff:192.0.2.1", 0.0) is None
    assert connections.admit(Connection(), "::ffff:192.0.2.2", 0.0) is None
