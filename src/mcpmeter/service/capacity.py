"""What the process can hold: connections, by its file descriptors and its memory."""

from __future__ import annotations

import contextlib
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mcpmeter.config import Settings

MAX_DESCRIPTORS: Final = 1_048_576
"""More are never needed: some containers have a limit of a thousand million."""

OWN_DESCRIPTORS: Final = 64
"""For the ledger, logs, listening sockets and the reserve for health checks."""

BYTES_PER_CONNECTION: Final = 64 * 1024
"""What a stream costs: 23 to 28 kB measured, and up to 32 KiB that are kept of it to estimate its tokens from."""

MIN_CONNECTIONS: Final = 8

CGROUP_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The limits of a running service, as configured or else as derived."""

    connections: int
    connections_per_address: int
    reserve: int
    """Connections above the cap, for health checks."""
    upstream_connections: int
    concurrent_calls: int

    @classmethod
    def of(cls, settings: Settings, descriptors: int, memory_bytes: int) -> Capacity:
        """Half of the descriptors is for clients and half for providers, unless their memory would not suffice."""
        limits = settings.server.limits
        own = min(OWN_DESCRIPTORS, descriptors // 2)
        derived = min((descriptors - own) // 2, memory_bytes // 2 // BYTES_PER_CONNECTION)
        derived = max(MIN_CONNECTIONS, derived)
        connections = limits.connections or derived
        upstream = settings.relay.timeouts.max_connections or derived
        return cls(
            connections=connections,
            connections_per_address=limits.connections_per_address or max(1, connections // 2),
            reserve=max(4, own // 4),
            upstream_connections=upstream,
            concurrent_calls=limits.concurrent_calls or upstream,
        )


def descriptor_limit() -> int:
    """How many files and connections the process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, MAX_DESCRIPTORS)


def raise_descriptor_limit() -> None:
    """Raise the soft limit to the hard one, as Go's runtime does: the soft one is for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS reports a hard limit that it does not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def memory_limit() -> int:
    """How much memory the process may use: what its control group allows, or what the machine has."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # absent, or `max`
            limits.append(int(path.read_text()))
    return min(limits)
