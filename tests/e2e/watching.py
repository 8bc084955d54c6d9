"""What a service holds, seen from outside, and code that is started before it."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS_TO_COME_TO_REST = 60.0
SECONDS_BETWEEN_LOOKS = 0.05

COUNTING_TASKS = """
import asyncio, os, runpy, signal, sys
def count(*_):
    told = os.environ["TASKS_FILE"]
    with open(told + ".new", "w") as file:
        file.write(str(len(asyncio.all_tasks())))
    os.replace(told + ".new", told)
signal.signal(signal.SIGUSR1, count)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Resources:
    """What a process holds, seen from outside."""

    def __init__(self, pid: int, tasks_file: Path) -> None:
        self._pid = pid
        self._tasks_file = tasks_file

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self._pid}/fd"))

    def resident_mb(self) -> float:
        status = Path(f"/proc/{self._pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    async def tasks(self) -> int:
        self._tasks_file.unlink(missing_ok=True)
        os.kill(self._pid, signal.SIGUSR1)
        async with asyncio.timeout(SECONDS_TO_COME_TO_REST):
            while not self._tasks_file.exists():
                await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        return int(self._tasks_file.read_text())


async def at_rest(look: Callable[[], Any], holds: Callable[[Any], bool]) -> Any:
    """Look until it holds; returns what was seen last, held or not."""
    deadline = time.monotonic() + SECONDS_TO_COME_TO_REST
    while not holds(seen := await asyncio.to_thread(look)) and time.monotonic() < deadline:
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
    return seen


class Clock:
    """The wall clock of a process that is started through `CLOCK`: it jumps when a test says so; time itself runs on.

    Not libfaketime: with only the wall clock faked, its `clock_nanosleep` makes `time.sleep` fail in Python.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.set(0)

    def set(self, seconds: float) -> None:
        """Put the clock so far ahead of the real one, or back."""
        with self.file.open("r+b" if self.file.exists() else "wb") as file:
            file.write(struct.pack("q", int(seconds * 1e9)))


CLOCK = """
import mmap, os, runpy, struct, sys, time
with open(os.environ["CLOCK_FILE"], "rb") as file:
    offset = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
real = time.time_ns
time.time_ns = lambda: real() + struct.unpack_from("q", offset)[0]
time.time = lambda: time.time_ns() / 1e9
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
