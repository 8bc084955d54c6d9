"""Results as a table, as ratios, and as docs/performance.md."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.run import Results

BY_HAND = ("<!-- kept by hand: where the time goes -->", "<!-- end of what is kept by hand -->")
AIMS = ((32, "nginx", 1 / 20), (128, "nginx", 1 / 20), (32, "guide", 100.0), (128, "guide", 100.0))
"""(connections, peer, how many times the peer's calls a second the relay must at least carry)."""

QUIET_CORES = 0.15
"""What a desktop's own services take at most; more than that bends the figures."""


def machine() -> str:
    """The versions that the figures depend on, in a line that names no host."""
    nginx = (
        subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr.rpartition("/")[2].strip()
    )
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"{today}, {os.cpu_count()} cores ({platform.machine()}), Linux {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}, nginx {nginx}"
    )


def table(results: Sequence[Results]) -> list[str]:
    """A Markdown table: medians over the rounds, with the lowest and highest of the calls a second."""
    header = [
        "server",
        "calls/s, 32 conn.",
        "calls/s, 128 conn.",
        "CPU µs/call, 32 · 128",
        "p50 · p99 ms, 1 conn.",
        "RSS MB",
    ]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    rows += [_row(result) for result in results]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _row(result: Results) -> list[str]:
    latency = [median(getattr(load, name) for load in result.loads[1]) / 1000 for name in ("p50_us", "p99_us")]
    cpu = [_median_cpu(result, connections) for connections in (32, 128)]
    return [
        f"**{result.peer.name}**: {result.peer.title}",
        _calls_per_second(result, 32),
        _calls_per_second(result, 128),
        f"{cpu[0]:,.0f} · {cpu[1]:,.0f}",
        f"{latency[0]:.2f} · {latency[1]:.2f}",
        f"{median(result.rss_bytes) / 1e6:.0f}",
    ]


def _calls_per_second(result: Results, connections: int) -> str:
    rates = [load.calls_per_second for load in result.loads[connections]]
    return f"{median(rates):,.0f} ({min(rates):,.0f}–{max(rates):,.0f})"


def ratios(results: Sequence[Results]) -> list[str]:
    """The relay against the others, and whether the aims are held. Empty when the relay did not take part."""
    by_name = {result.peer.name: result for result in results}
    lines = []
    for connections, other, aim in AIMS:
        if "relay" in by_name and other in by_name:
            ratio = _median_rate(by_name["relay"], connections) / _median_rate(by_name[other], connections)
            cpu = _median_cpu(by_name["relay"], connections) / _median_cpu(by_name[other], connections)
            verdict = "held" if ratio >= aim else "MISSED"
            lines.append(
                f"- {connections} connections: the relay carries {_times(ratio)} {other}'s calls a second"
                f" (aim: at least {_times(aim)}; {verdict}), for {_times(cpu)} its CPU a call"
            )
    return lines


def disturbance(results: Sequence[Results]) -> str:
    """How quiet the machine was: what processes that are no part of the run took of the two cores."""
    foreign = [load.foreign_cores for result in results for loads in result.loads.values() for load in loads]
    worst, usual = max(foreign), median(foreign)
    advice = "; too much to trust these figures, run it again on a quiet machine" if worst > QUIET_CORES else ""
    return f"Other processes took {usual:.2f} of a core in the median burst and {worst:.2f} in the worst{advice}."


def _median_rate(result: Results, connections: int) -> float:
    return median(load.calls_per_second for load in result.loads[connections])


def _median_cpu(result: Results, connections: int) -> float:
    return median(load.cpu_us_per_call for load in result.loads[connections])


def _times(ratio: float) -> str:
    return f"{ratio:.3g} times" if ratio >= 1 else f"1/{1 / ratio:.3g} of"


def keep_raw(path: Path, results: Sequence[Results]) -> None:
    """Every single burst, for whoever doubts a median."""
    raw = {r.peer.name: [dataclasses.asdict(load) for loads in r.loads.values() for load in loads] for r in results}
    path.write_text(json.dumps(raw, indent=1) + "\n")


def write(path: Path, results: Sequence[Results], machine_line: str, *, rounds: int, seconds: int) -> None:
    """Write docs/performance.md; what stands between the marks kept by hand stays as it is."""
    path.write_text(
        "\n".join(
            [
                "# Performance",
                "",
                "Written by `make bench`; only the section between the two marks is kept by hand.",
                "",
                f"{machine_line}.",
                f"Medians of {rounds} interleaved rounds of {seconds} s bursts, lowest and highest in brackets.",
                "Ratios last, absolute figures belong to the machine.",
                "",
                *table(results),
                "",
                *ratios(results),
                "",
                disturbance(results),
                "",
                "## How it is measured",
                "",
                *METHOD,
                "",
                "## Where the time goes",
                "",
                BY_HAND[0],
                _kept_by_hand(path),
                BY_HAND[1],
                "",
            ]
        )
    )


def _kept_by_hand(path: Path) -> str:
    if not path.exists():
        return "Nothing written yet."
    kept = re.search(f"{re.escape(BY_HAND[0])}\n(.*?)\n{re.escape(BY_HAND[1])}", path.read_text(), re.DOTALL)
    return kept[1] if kept else "Nothing written yet."


METHOD = (
    "`make bench` starts one server at a time on a core of its own. `wrk` and the upstream share another core; the",
    "upstream is nginx with a fixed chat answer of 700 bytes, and the row *direct* shows what those two can do",
    "together. Each call is a POST of a chat request of 570 bytes over a kept connection. A round is: start, one",
    "call whose answer must equal the upstream's, a second of warm-up, a burst at 32 and one at 128 connections,",
    "and two seconds over one connection for the latency; for the guide's way all of them are three times as long,",
    "or most of its 128 connections would not see an answer. A single answer that is not a 2xx, or one broken",
    "connection, and the run is void. After each round the relay must show on `/metrics`, and settled in its",
    "ledger, every call that `wrk` saw answered. CPU is user and system time of the server's processes from",
    "`/proc`. The relay meters, prices and writes each call to the ledger, with an open and a settled row that are",
    "both on disk (`synchronous=FULL`) before the client has its whole answer; nginx and the guide's way write",
    "nothing.",
)
