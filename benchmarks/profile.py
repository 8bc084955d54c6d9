"""Profiles the relay during a burst with py-spy: writes the stacks, prints the heaviest functions."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.load import Burst
from benchmarks.processes import BenchError, Server

SAMPLES_PER_SECOND = 250
SHOWN = 20


class Profiler:
    """Samples a Python server. Raises BenchError if py-spy is not installed."""

    def __init__(self, folder: Path) -> None:
        beside = Path(sys.executable).with_name("py-spy")
        command = str(beside) if beside.exists() else shutil.which("py-spy")
        if command is None:
            raise BenchError(f"--profile needs py-spy. Run: {sys.executable} -m pip install py-spy")
        self._command = command
        self._folder = folder

    @contextlib.contextmanager
    def watching(self, server: Server, burst: Burst) -> Iterator[None]:
        """Sample during the burst; writes the stacks to `NAME.stacks` in flamegraph's format."""
        stacks = self._folder / f"{burst.name}.stacks"
        stacks.unlink(missing_ok=True)
        argv = [self._command, "record", "--nonblocking", "--format", "raw", "--rate", str(SAMPLES_PER_SECOND)]
        argv += ["--duration", str(int(burst.seconds)), "--pid", str(server.pid), "--output", str(stacks)]
        sampler = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            yield
            output = sampler.communicate(timeout=30)[0].decode(errors="replace")
        finally:
            if sampler.poll() is None:
                sampler.kill()
                sampler.wait()
        if not stacks.exists():
            raise BenchError(f"py-spy wrote nothing: {output[-300:]}")
        print("\n".join([f"  {burst.name}: {stacks}", *_heaviest(stacks.read_text())]), flush=True)


def _heaviest(stacks: str) -> list[str]:
    """The functions with the most samples, in themselves and including their callees."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for line in stacks.splitlines():
        frames, _, samples = line.rpartition(" ")
        names = [frame.rpartition(":")[0] or frame for frame in frames.split(";")]
        own[names[-1]] += int(samples)
        for name in set(names):
            whole[name] += int(samples)
    total = sum(own.values()) or 1
    return [
        f"    {own[name] / total:6.1%} itself {whole[name] / total:6.1%} in all  {name}"
        for name, _ in own.most_common(SHOWN)
    ]
