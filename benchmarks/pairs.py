"""`python -m benchmarks.pairs BASE HEAD`: CPU per relayed call and per paced chunk of two checkouts, in pairs.

Both relays share one core and stay up; the load and the upstream share the other core. docs/performance.md says more.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.cores import kept_awake, two_cores
from benchmarks.installs import SCRATCH, native
from benchmarks.load import Burst, Load, check_call, check_stream, press
from benchmarks.peers import PEERS, upstream
from benchmarks.processes import BenchError, Server, foreign_seconds, free_port, require_disk, running

PAIRS = 30
RELAY = PEERS["relay"]
CALLS = Burst("json", 32, 0.7)
CHUNKS = Burst("paced", 200, 0.5, stream=True, pace_us=20_000)
"""Each connection has one stream, of 2 s."""

OUTSIDE = 0.025
"""The probability on each side of a 95 % interval."""


class Interval(NamedTuple):
    """A median and the interval that holds the true one in 95 of 100 runs."""

    median: float
    low: float
    high: float


@dataclass
class Side:
    """One checkout's relay and what its bursts cost."""

    name: str
    server: Server
    folder: Path
    calls: int = 0
    call_us: list[float] = field(default_factory=list)
    chunk_us: list[float] = field(default_factory=list)

    def press(self, burst: Burst, core: int) -> Load:
        """One burst of load."""
        load = press(self.server, RELAY.route, burst, folder=self.folder, core=core)
        self.calls += load.calls
        return load

    def warm_up(self, core: int) -> None:
        """Check an answer and a stream, and run each burst once."""
        check_call(self.server, RELAY.route, rebuilds=False)
        check_stream(self.server, RELAY.route, rebuilds=False)
        self.calls += 2
        for burst in (CALLS, CHUNKS):
            self.press(burst, core)


def median_interval(values: Sequence[float]) -> Interval:
    """The median's 95 % interval from order statistics, as in the sign test. Raises ValueError below 6 values."""
    ranked, count = sorted(values), len(values)
    rank = 0  # of both ends of the interval, counted from the nearer end
    while sum(math.comb(count, smaller) for smaller in range(rank + 1)) <= OUTSIDE * 2**count:
        rank += 1
    if rank == 0:
        raise ValueError(f"{count} values have no interval of 95 %")
    return Interval(statistics.median(ranked), ranked[rank - 1], ranked[-rank])


def measure(base: Path, head: Path, pairs: int = PAIRS) -> list[str]:
    """Run all pairs and return the result's lines. Raises BenchError."""
    for checkout in (base, head):
        if not (checkout / "src" / "mcpmeter").is_dir():
            raise BenchError(f"{checkout} has no src/mcpmeter")
    server_core, load_core = two_cores()
    SCRATCH.mkdir(exist_ok=True)
    require_disk(SCRATCH)
    native("load")
    with contextlib.ExitStack() as up:
        folder, port = Path(up.enter_context(tempfile.TemporaryDirectory(dir=SCRATCH, prefix="pairs-"))), free_port()
        model = up.enter_context(
            running("upstream", upstream(folder, port).argv, port=port, core=load_core, folder=folder)
        )
        sides = [
            up.enter_context(_relay(name, checkout, folder / name, model, server_core))
            for name, checkout in (("base", base), ("head", head))
        ]
        for side in sides:
            side.warm_up(load_core)
        servers = [model, *(side.server for side in sides)]
        started, foreign = time.monotonic(), foreign_seconds((server_core, load_core), servers)
        for number in range(pairs):
            order = sides if number % 2 == 0 else sides[::-1]
            for side in (*order, *reversed(order)):  # two pairs, since a stream takes longer than a burst of calls
                side.call_us.append(side.press(CALLS, load_core).cpu_us_per_call)
            for side in order:
                side.chunk_us.append(side.press(CHUNKS, load_core).cpu_us_per_chunk)
            print(f"  pair {number + 1} of {pairs}: {_progress(*sides)}", flush=True)
        foreign = (foreign_seconds((server_core, load_core), servers) - foreign) / (time.monotonic() - started)
    return [*result(*sides), f"Other processes used {max(0.0, foreign):.2f} of the two cores."]


@contextlib.contextmanager
def _relay(name: str, checkout: Path, folder: Path, model: Server, core: int) -> Iterator[Side]:
    """A running relay; at the end /metrics and its ledger must have every call of the load."""
    assert RELAY.launch is not None
    assert RELAY.check_while_running is not None
    assert RELAY.check_after is not None
    folder.mkdir()
    port = free_port()
    installed, *arguments = RELAY.launch(folder, port, model.port).argv
    own = checkout / ".venv" / "bin" / "mcpmeter"
    command = str(own) if own.exists() else installed
    print(f"{name}: {checkout}, packages of {Path(command).parent.parent}", flush=True)
    env = {"PYTHONPATH": str(checkout / "src")}  # takes precedence over the installed package
    with running(name, [command, *arguments], port=port, core=core, folder=folder, env=env) as server:
        side = Side(name, server, folder)
        yield side
        RELAY.check_while_running(server, RELAY.route, side.calls)
    RELAY.check_after(folder, side.calls)


def _progress(base: Side, head: Side) -> str:
    return (
        f"call {base.call_us[-1]:.1f} → {head.call_us[-1]:.1f} µs CPU,"
        f" chunk {base.chunk_us[-1]:.2f} → {head.chunk_us[-1]:.2f} µs CPU"
    )


def result(base: Side, head: Side) -> list[str]:
    """The medians of both sides and of their ratio, for calls and for chunks."""
    return [
        _compared("JSON call", base.call_us, head.call_us),
        _compared("paced chunk", base.chunk_us, head.chunk_us),
    ]


def _compared(kind: str, base: Sequence[float], head: Sequence[float]) -> str:
    ratio = median_interval([after / before for before, after in zip(base, head, strict=True)])
    base_us, head_us = statistics.median(base), statistics.median(head)
    return (
        f"{kind}: head/base {ratio.median:.3f} (95 %: {ratio.low:.3f} to {ratio.high:.3f}),"
        f" median of {len(base)} pairs; base {base_us:.1f} µs CPU, head {head_us:.1f} µs CPU"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Exit code 1: no valid figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pairs", description=__doc__)
    parser.add_argument("base", type=Path, help="the checkout before the change")
    parser.add_argument("head", type=Path, help="the checkout after it")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="at least 6")
    options = parser.parse_args(arguments)
    if options.pairs < 6:
        parser.error("fewer than 6 pairs have no interval of 95 %")
    try:
        with kept_awake() as cores:
            lines = measure(options.base.resolve(), options.head.resolve(), options.pairs)
    except BenchError as error:
        print(f"mcpmeter: {error}", file=sys.stderr)
        return 1
    print("\n".join(["", *lines, f"{cores}."]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
