"""The limits that follow from what the process may use."""

from __future__ import annotations

import pytest

from mcpmeter.config import RelaySettings, ServerLimitSettings, ServerSettings, Settings, TimeoutSettings
from mcpmeter.service.capacity import Capacity, descriptor_limit, memory_limit

GIB = 2**30


@pytest.mark.parametrize(
    ("descriptors", "memory", "connections", "reserve"),
    [
        (1_048_576, 1 * GIB, 8192, 16),  # a pod: memory is what runs out
        (1_048_576, 16 * GIB, 131_072, 16),
        (1024, 16 * GIB, 480, 16),
        (256, 16 * GIB, 96, 16),
        (128, 16 * GIB, 32, 16),
        (16, 16 * GIB, 8, 4),
    ],
)
def test_connections_follow_from_descriptors_and_memory(descriptors, memory, connections, reserve) -> None:
    capacity = Capacity.of(Settings(), descriptors, memory)
    assert capacity == Capacity(
        connections=connections,
        connections_per_address=connections // 2,
        reserve=reserve,
        upstream_connections=connections,
        concurrent_calls=connections,
    )


def test_configured_limits_win() -> None:
    limits = ServerLimitSettings(connections=10, concurrent_calls=7)
    relay = RelaySettings(timeouts=TimeoutSettings(max_connections=513))
    capacity = Capacity.of(Settings(server=ServerSettings(limits=limits), relay=relay), 128, GIB)
    assert (capacity.connections, capacity.connections_per_address) == (10, 5)
    assert (capacity.upstream_connections, capacity.concurrent_calls) == (513, 7)


def test_this_process_has_limits() -> None:
    assert descriptor_limit() > 16
    assert memory_limit() > 2**24
