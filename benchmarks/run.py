"""`python -m benchmarks.run`: all peers before the same upstream, round by round in one run, and the ratios.

The server under test has one core to itself; the load and the upstream share another.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks import report
from benchmarks.load import Load, ask_once, press
from benchmarks.peers import PEERS, Peer, upstream
from benchmarks.processes import BenchError, Server, busy_seconds, free_port, running

ROOT = Path(__file__).parent.parent
CONNECTIONS = (32, 128)
"""Saturation; the third burst, over one connection, is for latency."""


@dataclass
class Results:
    """All bursts of one peer: connections -> one Load a round."""

    peer: Peer
    loads: dict[int, list[Load]] = field(default_factory=dict)
    rss_bytes: list[int] = field(default_factory=list)

    def add(self, load: Load) -> None:
        self.loads.setdefault(load.connections, []).append(load)


@dataclass(frozen=True)
class Bench:
    """What stays the same through a run."""

    seconds: int
    server_core: int
    load_core: int
    folder: Path
    upstream: Server

    def round(self, peer: Peer, results: Results) -> None:
        """Start the peer, press it, let it prove that it did its work, stop it."""
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=f"{peer.name}-") as name, contextlib.ExitStack() as up:
            folder = Path(name)
            server = up.enter_context(self._started(peer, folder))
            calls = self._measure(server, peer, results)
            if peer.prove_while_running:
                peer.prove_while_running(server, calls)
            up.close()
            if peer.prove_after:
                peer.prove_after(folder, calls)

    def _started(self, peer: Peer, folder: Path) -> contextlib.AbstractContextManager[Server]:
        if peer.launch is None:
            return contextlib.nullcontext(self.upstream)
        port = free_port()
        launch = peer.launch(folder, port, self.upstream.port)
        return running(peer.name, launch.argv, port=port, core=self.server_core, folder=folder, env=launch.env)

    def _measure(self, server: Server, peer: Peer, results: Results) -> int:
        ask_once(server, peer.path)
        calls = 1 + self._burst(server, peer, 32, 1).calls
        for connections, seconds in [*((c, self.seconds) for c in CONNECTIONS), (1, 2)]:
            server.wait_until_idle()
            load = self._burst(server, peer, connections, seconds)
            print(
                f"  {peer.name:<7}{connections:>4} connections {load.calls_per_second:>10,.1f} calls/s"
                f" {load.cpu_us_per_call:>10,.1f} µs CPU/call   p50 {load.p50_us:,} µs   p99 {load.p99_us:,} µs",
                flush=True,
            )
            results.add(load)
            calls += load.calls
        results.rss_bytes.append(server.rss_bytes())
        return calls

    def _burst(self, server: Server, peer: Peer, connections: int, seconds: int) -> Load:
        before = self._foreign_seconds(server)
        load = press(server, peer.path, connections=connections, seconds=seconds * peer.patience, core=self.load_core)
        foreign_cores = max(0.0, self._foreign_seconds(server) - before) / load.seconds
        return replace(load, foreign_cores=foreign_cores)

    def _foreign_seconds(self, server: Server) -> float:
        harness = os.times()
        wrk_and_we = harness.user + harness.system + harness.children_user + harness.children_system
        servers = sum(part.cpu_seconds() for part in {server, self.upstream})
        return busy_seconds((self.server_core, self.load_core)) - servers - wrk_and_we


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write docs/performance.md when every peer took part. Exit code 1: no honest figures."""
    options = _options(arguments)
    machine = report.machine()
    try:
        results = measure([PEERS[name] for name in options.peers], rounds=options.rounds, seconds=options.seconds)
    except BenchError as error:
        print(f"mcpmeter: {error}", file=sys.stderr)
        return 1
    print(
        "\n"
        + "\n".join([machine, "", *report.table(results), "", *report.ratios(results), "", report.disturbance(results)])
    )
    report.keep_raw(ROOT / ".bench" / "results.json", results)
    if set(options.peers) == set(PEERS):
        report.write(ROOT / "docs" / "performance.md", results, machine, rounds=options.rounds, seconds=options.seconds)
        print("\nWritten: docs/performance.md")
    return 0


def measure(peers: Sequence[Peer], *, rounds: int, seconds: int) -> list[Results]:
    """Run all peers in turn, `rounds` times. Raises BenchError."""
    server_core, load_core = _two_cores()
    results = [Results(peer) for peer in peers]
    scratch = ROOT / ".bench"
    scratch.mkdir(exist_ok=True)
    _refuse_memory_disk(scratch)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="run-") as name:
        folder, port = Path(name), free_port()
        with running("upstream", upstream(folder, port).argv, port=port, core=load_core, folder=folder) as model:
            bench = Bench(seconds, server_core, load_core, folder, model)
            for number in range(1, rounds + 1):
                print(f"round {number} of {rounds}", flush=True)
                for result in results:
                    bench.round(result.peer, result)
    return results


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "--peers",
        type=lambda text: text.split(","),
        default=list(PEERS),
        help=f"some of {','.join(PEERS)}; docs/performance.md is written only when all take part",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="length of each burst of load")
    options = parser.parse_args(arguments)
    if unknown := set(options.peers) - set(PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    return options


def _two_cores() -> tuple[int, int]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise BenchError("Two cores are needed, one for the server and one for the load, and this process may use one")
    return cores[0], cores[1]


def _refuse_memory_disk(folder: Path) -> None:
    kind = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout.strip()
    if kind in {"tmpfs", "ramfs"}:
        raise BenchError(f"{folder} is on {kind}: a ledger that never touches a disk would measure nothing")


if __name__ == "__main__":
    raise SystemExit(main())
