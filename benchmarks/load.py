"""Load by wrk: closed-loop POSTs of `chat.json` over kept connections."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import BenchError, Server

HERE = Path(__file__).parent
BODY = HERE / "chat.json"


@dataclass(frozen=True)
class Load:
    """What one burst of load saw, and what it cost the server."""

    connections: int
    calls: int
    seconds: float
    cpu_seconds: float
    p50_us: int
    p99_us: int
    foreign_cores: float = 0.0
    """How much of the two cores processes took meanwhile that are no part of the run."""

    @property
    def calls_per_second(self) -> float:
        return self.calls / self.seconds

    @property
    def cpu_us_per_call(self) -> float:
        return self.cpu_seconds / self.calls * 1e6


def press(server: Server, path: str, *, connections: int, seconds: int, core: int) -> Load:
    """Press the server for some seconds. Raises BenchError if a single answer was not a 2xx."""
    before = server.cpu_seconds()
    report = _wrk(server.url + path, connections=connections, seconds=seconds, core=core)
    cpu_seconds = server.cpu_seconds() - before
    if report["not_2xx"] or report["socket_errors"] or not report["calls"]:
        raise BenchError(f"{server.name} failed under {connections} connections: {report}")
    return Load(
        connections, report["calls"], report["duration_us"] / 1e6, cpu_seconds, report["p50_us"], report["p99_us"]
    )


def ask_once(server: Server, path: str) -> None:
    """One call whose answer is read: a fast server that answers something else wins nothing."""
    request = urllib.request.Request(
        server.url + path, BODY.read_bytes(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        got = json.load(answer)
    if got != json.loads((HERE / "answer.json").read_text()):
        raise BenchError(f"{server.name} did not pass the upstream's answer on")


def _wrk(url: str, *, connections: int, seconds: int, core: int) -> dict[str, int]:
    # The guide's way needs seconds for a call at 128 connections; wrk's own time-out of 2 s would call that an error.
    argv = ["taskset", "--cpu-list", str(core), "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s"]
    argv += ["-s", str(HERE / "chat.lua"), url, "--", str(BODY)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
    report: dict[str, int] = json.loads(done.stdout.strip().splitlines()[-1])
    return report
