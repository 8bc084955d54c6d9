"""Server processes: pinned to a core, measured through the kernel's clocks, ended by their process id."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


FLUSHED_BYTES = 4 * 4120
"""A commit of one row in SQLite's WAL: four pages with their frame headers."""


PAUSE_NS = 5_000_000
"""The pause between two calls at 200 per second."""

_WORK = [{"number": number, "text": str(number)} for number in range(50)]


class BenchError(Exception):
    """The run cannot give valid figures; the message is the reason."""


class Server:
    """A running server and all processes below it."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, port: int, log: Path) -> None:
        self._process = process
        self.name = name
        self.port = port
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cpu_seconds(self) -> float:
        """User and system time since the start, all processes and threads."""
        # Linux's id of another process's CPU clock, which counts nanoseconds; /proc counts ticks of 10 ms.
        return sum(time.clock_gettime(~pid << 3 | 2) for pid in self._tree())

    def rss_bytes(self) -> int:
        """Resident memory, all processes (pages that two of them share are counted twice)."""
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES for pid in self._tree())

    def wait_until_listening(self, seconds: float = 90.0) -> None:
        """Return when the port accepts a connection. Raises BenchError with the end of the server's output."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.02)
        raise BenchError(f"{self.name} did not start: {self._log.read_text(errors='replace')[-800:].strip()}")

    def wait_until_idle(self, seconds: float = 60.0) -> None:
        """Return when the calls that a stopped load left are completed."""
        deadline = time.monotonic() + seconds
        before = self.cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(0.3)
            now = self.cpu_seconds()
            if now - before < 0.02:
                return
            before = now
        raise BenchError(f"{self.name} is still busy {seconds:.0f} s after the load has ended")

    def stop(self) -> None:
        """SIGTERM, and after ten seconds SIGKILL, to this process only."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tree(self) -> list[int]:
        pids = [self._process.pid]
        for pid in pids:  # grows during the loop: children of children
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                pids.extend(int(child) for child in children.read_text().split())
        return pids


@contextlib.contextmanager
def running(
    name: str, argv: Sequence[str], *, port: int, core: int, folder: Path, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Run a server on one core until the block ends. Raises BenchError when it does not start."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["taskset", "--cpu-list", str(core), *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
        )
    server = Server(process, name, port, log)
    try:
        server.wait_until_listening()
        yield server
    finally:
        server.stop()


def two_flushes_ms(folder: Path, core: int, *, tries: int = 200) -> float:
    """Twice the median duration of one write and `fdatasync` of a file that does not grow, on one core.

    A ledger that durably opens a call before it is sent, and durably settles it before the response ends, adds at
    least this much.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    path = folder / "flushes"
    try:
        with path.open("w+b", buffering=0) as file:
            file.write(bytes(FLUSHED_BYTES * tries))
            os.fsync(file.fileno())
            durations = [_flush_ns(file.fileno(), FLUSHED_BYTES * number) for number in range(tries)]
    finally:
        path.unlink(missing_ok=True)
        os.sched_setaffinity(0, before)
    return 2 * statistics.median(durations) / 1e6


def cold_factor(core: int, *, tries: int = 200) -> float:
    """The duration of a fixed piece of work 5 ms after it last ran, as a multiple of its duration without a pause.

    The core stays busy in between, so that it does not sleep: a factor above 1 means that other machines or processes
    evict its caches. On a dedicated machine it is near 1.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        hot = [_work_ns(0) for _ in range(tries)]
        cold = [_work_ns(PAUSE_NS) for _ in range(tries)]
    finally:
        os.sched_setaffinity(0, before)
    return statistics.median(cold) / statistics.median(hot)


def _work_ns(pause_ns: int) -> int:
    until = time.perf_counter_ns() + pause_ns
    while time.perf_counter_ns() < until:
        pass
    started = time.perf_counter_ns()
    for _ in range(3):
        json.loads(json.dumps(_WORK))
    return time.perf_counter_ns() - started


def _flush_ns(file: int, offset: int) -> int:
    time.sleep(0.002)  # as between two calls: a busy disk completes a flush sooner
    started = time.perf_counter_ns()
    os.pwrite(file, b"x" * FLUSHED_BYTES, offset)
    os.fdatasync(file)
    return time.perf_counter_ns() - started


def busy_seconds(cores: Collection[int]) -> float:
    """Time that these cores have spent on processes since the machine started, interrupts left out."""
    lines = (line.split() for line in Path("/proc/stat").read_text().splitlines())
    wanted = {f"cpu{core}" for core in cores}
    return sum(int(ticks) for name, *fields in lines if name in wanted for ticks in fields[:3]) / TICKS_PER_SECOND


def foreign_seconds(cores: Collection[int], servers: Collection[Server]) -> float:
    """CPU time on these cores, since boot, of processes outside this run."""
    harness = os.times()
    own = harness.user + harness.system + harness.children_user + harness.children_system
    return busy_seconds(cores) - sum(server.cpu_seconds() for server in servers) - own


def require_disk(folder: Path) -> None:
    """Raises BenchError for a folder in memory: a ledger that never touches a disk would measure nothing."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout.strip()
    if kind in {"tmpfs", "ramfs"}:
        raise BenchError(f"{folder} is on {kind}: a ledger that never touches a disk would measure nothing")


def free_port() -> int:
    """A free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
