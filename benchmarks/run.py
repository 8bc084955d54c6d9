"""`python -m benchmarks.run`: measures all peers with the same upstream, in interleaved rounds, and prints ratios.

The server under test has its own core; the load and the upstream share another.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks import report
from benchmarks.cores import MAY_SLEEP, kept_awake, two_cores
from benchmarks.installs import SCRATCH, native
from benchmarks.load import Burst, Load, Route, check_call, check_stream, press
from benchmarks.peers import PEERS, Launch, Peer, upstream
from benchmarks.processes import (
    BenchError,
    Server,
    cold_factor,
    foreign_seconds,
    free_port,
    require_disk,
    running,
    two_flushes_ms,
)
from benchmarks.profile import Profiler
from benchmarks.results import Results

ROOT = Path(__file__).parent.parent

RATES = (200, 500)
"""Calls per second at which latency is measured."""


def bursts(seconds: float) -> tuple[Burst, ...]:
    """The bursts of each round: saturation, latency at constant rates, unpaced and paced streams."""
    return (
        Burst("json-32", 32, seconds),
        Burst("json-128", 128, seconds),
        *(Burst(f"rate-{rate}", 64, seconds, rate=rate) for rate in RATES),
        Burst("streams", 200, seconds / 2, stream=True),
        # A paced stream takes 2 s and started streams are completed, so each connection has two.
        Burst("paced", 200, 3, stream=True, pace_us=20_000),
    )


@dataclass(frozen=True)
class Bench:
    """The constants of a run."""

    bursts: tuple[Burst, ...]
    server_core: int
    load_core: int
    folder: Path
    upstream: Server
    profiler: Profiler | None = None

    def round(self, peer: Peer, results: Results) -> None:
        """Start the peer, run the bursts, verify its records, and stop it."""
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=f"{peer.name}-") as name, contextlib.ExitStack() as up:
            folder = Path(name)
            port = free_port()
            launch = peer.launch(folder, port, self.upstream.port) if peer.launch else None
            server = up.enter_context(self._started(peer, launch, port, folder))
            route = replace(peer.route, headers=launch.headers if launch else ())
            calls = self._measure(server, route, peer, results, folder)
            if self.profiler and peer.name == "relay":
                calls += self._profile(server, route, folder, self.profiler)
            if peer.check_while_running:
                peer.check_while_running(server, route, calls)
            up.close()
            if peer.keeps_a_ledger:
                results.two_flushes_ms.append(two_flushes_ms(folder, self.server_core))
                results.cold_factors.append(cold_factor(self.server_core))
            if peer.check_after:
                peer.check_after(folder, calls)

    def _started(
        self, peer: Peer, launch: Launch | None, port: int, folder: Path
    ) -> contextlib.AbstractContextManager[Server]:
        if launch is None:
            return contextlib.nullcontext(self.upstream)
        return running(peer.name, launch.argv, port=port, core=self.server_core, folder=folder, env=launch.env)

    def _measure(self, server: Server, route: Route, peer: Peer, results: Results, folder: Path) -> int:
        check_call(server, route, rebuilds=peer.rebuilds)
        streams = self._streams(server, route, peer, results)
        calls = 1 + streams  # of the checks
        calls += self._burst(server, route, Burst("warm-up", 32, 1), folder).calls
        for burst in self.bursts:
            if (burst.stream and not streams) or self._is_beyond(burst, results):
                continue
            server.wait_until_idle()
            try:
                load = self._burst(server, route, burst, folder)
            except BenchError as error:
                if not peer.foreign:
                    raise
                results.failures[burst.name] = str(error)
                print(f"  {peer.name:<16}{burst.name:<10}{error}", flush=True)
                continue
            print(_progress(peer, load), flush=True)
            results.add(load)
            calls += load.calls
        results.rss_bytes.append(server.rss_bytes())
        return calls

    def _streams(self, server: Server, route: Route, peer: Peer, results: Results) -> bool:
        """Whether the peer passes streams on correctly."""
        if route.stream_path is None:
            return False
        try:
            check_stream(server, route, rebuilds=peer.rebuilds)
        except BenchError as error:
            if not peer.foreign:
                raise
            results.failures |= dict.fromkeys(("streams", "paced"), str(error))
            print(f"  {peer.name:<16}{error}", flush=True)
            return False
        return True

    def _is_beyond(self, burst: Burst, results: Results) -> bool:
        """Whether the rate is above this round's saturation: it would only measure the queue."""
        saturated = results.loads.get("json-32")
        return bool(burst.rate and saturated and saturated[-1].calls_per_second < burst.rate)

    def _burst(self, server: Server, route: Route, burst: Burst, folder: Path) -> Load:
        cores, servers = (self.server_core, self.load_core), {server, self.upstream}
        before = foreign_seconds(cores, servers)
        load = press(server, route, burst, folder=folder, core=self.load_core)
        foreign_cores = max(0.0, foreign_seconds(cores, servers) - before) / load.seconds
        return replace(load, foreign_cores=foreign_cores)

    def _profile(self, server: Server, route: Route, folder: Path, profiler: Profiler) -> int:
        """Run two more bursts for the profile, which no table includes: sampling costs time. Returns their calls."""
        calls = 0
        for burst in (Burst("profile-json", 32, 4), Burst("profile-streams", 200, 4, stream=True, pace_us=20_000)):
            with profiler.watching(server, burst):
                calls += self._burst(server, route, burst, folder).calls
        return calls


def _progress(peer: Peer, load: Load) -> str:
    return (
        f"  {peer.name:<16}{load.burst:<10}{load.calls_per_second:>10,.1f} calls/s"
        f" {load.cpu_us_per_call:>10,.1f} µs CPU   p50 {load.p50_us:,.0f} µs   p99 {load.p99_us:,.0f} µs"
        + (f"   {load.chunks_per_second:,.0f} chunks/s {load.cpu_us_per_chunk:.1f} µs CPU" if load.chunks else "")
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write docs/performance.md if every peer took part. Exit code 1: no valid figures."""
    options = _options(arguments)
    try:
        profiler = Profiler(SCRATCH) if options.profile else None
        with contextlib.nullcontext(MAY_SLEEP) if options.let_cores_sleep else kept_awake() as cores:
            machine = f"{report.machine()}, {cores}"
            results = measure(
                [PEERS[name] for name in options.peers],
                rounds=options.rounds,
                seconds=options.seconds,
                profiler=profiler,
            )
    except BenchError as error:
        print(f"mcpmeter: {error}", file=sys.stderr)
        return 1
    print("\n" + "\n".join([machine, "", *report.summary(results)]))
    report.keep_raw(SCRATCH / "results.json", results)
    if set(options.peers) == set(PEERS) and not options.let_cores_sleep:
        report.write(ROOT / "docs" / "performance.md", results, machine, rounds=options.rounds, seconds=options.seconds)
        print("\nWritten: docs/performance.md")
    return 0


def measure(peers: Sequence[Peer], *, rounds: int, seconds: float, profiler: Profiler | None = None) -> list[Results]:
    """Run all peers in turn, `rounds` times. Raises BenchError."""
    server_core, load_core = two_cores()
    SCRATCH.mkdir(exist_ok=True)
    require_disk(SCRATCH)
    native("load")
    results = [Results(peer) for peer in peers]
    for result in results:
        if result.peer.install:
            _or_absent(result, result.peer.install)
    with tempfile.TemporaryDirectory(dir=SCRATCH, prefix="run-") as name:
        folder, port = Path(name), free_port()
        with running("upstream", upstream(folder, port).argv, port=port, core=load_core, folder=folder) as model:
            bench = Bench(bursts(seconds), server_core, load_core, folder, model, profiler)
            for number in range(1, rounds + 1):
                print(f"round {number} of {rounds}", flush=True)
                for result in results:
                    if not result.absent:
                        _or_absent(result, partial(bench.round, result.peer, result))
    return results


def _or_absent(result: Results, step: Callable[[], object]) -> None:
    """Run a step; a foreign peer that fails is marked absent, ours must work."""
    try:
        step()
    except (BenchError, OSError) as error:
        if not result.peer.foreign:
            raise
        result.absent = str(error)
        print(f"  {result.peer.name:<16}{error}", flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "--peers",
        type=lambda text: text.split(","),
        default=list(PEERS),
        help=f"some of {','.join(PEERS)}; docs/performance.md is written only if all take part, on cores kept awake",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="length of each burst of load")
    parser.add_argument(
        "--let-cores-sleep", action="store_true", help="do not keep the cores awake: measure the machine as it is"
    )
    parser.add_argument("--profile", action="store_true", help="sample the relay with py-spy under two more bursts")
    options = parser.parse_args(arguments)
    if unknown := set(options.peers) - set(PEERS):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
