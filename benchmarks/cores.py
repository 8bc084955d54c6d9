"""The two cores of a run, kept awake if the machine allows it."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from benchmarks.processes import BenchError

LATENCY_REQUEST = Path("/dev/cpu_dma_latency")
"""Linux: while this file is open, no core has a longer wake-up latency than the microseconds written to it."""

KEPT_AWAKE = "cores kept awake"
MAY_SLEEP = "cores that may sleep"


@contextlib.contextmanager
def kept_awake(path: Path = LATENCY_REQUEST) -> Iterator[str]:
    """Keep the cores awake and yield KEPT_AWAKE, or yield MAY_SLEEP if the machine does not allow it.

    The tuned profiles `latency-performance` and `network-latency` do the same. On a virtual machine a sleeping core is
    given to other machines, and returns late and with cold caches, which would be measured instead of the server.
    """
    try:
        request = path.open("wb", buffering=0)
    except OSError:
        yield MAY_SLEEP
        return
    with request:
        request.write(struct.pack("i", 0))
        yield KEPT_AWAKE


def two_cores() -> tuple[int, int]:
    """The server's core and the load's. Raises BenchError if this process may use only one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchError("Two cores are needed, one for the server and one for the load, and this process may use one")
    return cores[0], cores[1]
