"""The two cores while they are measured: kept from falling asleep, where the machine lets us ask for it."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from benchmarks.processes import BenchError

LATENCY_REQUEST = Path("/dev/cpu_dma_latency")
"""Linux: as long as it is held open, no core takes longer to wake up than the microseconds written to it."""

KEPT_AWAKE = "cores kept awake"
MAY_SLEEP = "cores that may sleep"


@contextlib.contextmanager
def kept_awake(path: Path = LATENCY_REQUEST) -> Iterator[str]:
    """Yield KEPT_AWAKE while no core goes to sleep, or MAY_SLEEP where that cannot be had.

    It is what the tuned profiles `latency-performance` and `network-latency` ask for. On a virtual machine a core
    that sleeps is given to others, and comes back late and with its caches emptied: what is measured then is they.
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
