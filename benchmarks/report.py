"""Results as a table, as ratios, and as docs/performance.md."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks.load import Load
from benchmarks.results import Results

BY_HAND = ("<!-- kept by hand: where the time goes -->", "<!-- end of what is kept by hand -->")
AIMS = (
    ("json-32", "nginx", 1 / 20),
    ("json-128", "nginx", 1 / 20),
    ("json-32", "guide", 100.0),
    ("json-128", "guide", 100.0),
    ("json-32", "litellm", 50.0),
    ("json-128", "litellm", 50.0),
    ("json-32", "litellm-metrics", 50.0),
    ("json-128", "litellm-metrics", 50.0),
)
"""(burst, peer, the minimum ratio of the relay's calls per second to the peer's)."""

CHUNK_CPU_AIM = 2.0
"""The maximum ratio of the relay's CPU per chunk to nginx's."""

ADDED_P50_AIM_MS = 0.5
OURS = {"relay": "relay (FULL)", "relay-normal": "relay-normal"}
"""Rows with an aim for the added median, and their names in its lines."""

UPSTREAM_AIM_PER_SECOND = 100_000
"""JSON responses, and chunks, per second that the upstream and the load must reach together."""

MAX_REASON_LENGTH = 160

QUIET_CORES = 0.15
"""The maximum for an idle desktop's services; more distorts the figures."""


def machine() -> str:
    """The hardware and versions that the figures depend on, without the name of the host."""
    nginx = (
        subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr.rpartition("/")[2].strip()
    )
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"{today}, {os.cpu_count()} cores ({platform.machine()}), Linux {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}, nginx {nginx}"
    )


def summary(results: Sequence[Results]) -> list[str]:
    """The printed result: both tables, the errors, the ratios and the load of other processes."""
    tables = [*_json_table(results), "", *_stream_table(results), ""]
    return [*tables, *_faults(results), *ratios(results), "", disturbance(results)]


def _json_table(results: Sequence[Results]) -> list[str]:
    """JSON responses: medians over the rounds, with the lowest and highest calls per second."""
    header = ["server", "calls/s, 32 conn.", "calls/s, 128 conn.", "CPU µs/call, 32 · 128", "calls/s per core"]
    header += [f"added p50 · p99 ms at {rate}/s" for rate in (200, 500)] + ["RSS MB"]
    direct = next((result for result in results if result.peer.name == "direct"), None)
    return _markdown([header, *(_json_row(result, direct) for result in results)])


def _json_row(result: Results, direct: Results | None) -> list[str]:
    title = f"**{result.peer.name}**: {result.peer.title}"
    if not result.rss_bytes:
        return [title, f"not measured: {_shortened(result.absent)}", *["—"] * 6]
    return [
        title,
        *(_spread(result, name, lambda load: load.calls_per_second) for name in ("json-32", "json-128")),
        " · ".join(_median(result, name, lambda load: load.cpu_us_per_call) for name in ("json-32", "json-128")),
        _median(result, "json-128", lambda load: 1e6 / load.cpu_us_per_call),
        *(_added(result, direct, f"rate-{rate}") for rate in (200, 500)),
        f"{median(result.rss_bytes) / 1e6:.0f}",
    ]


def _stream_table(results: Sequence[Results]) -> list[str]:
    """200 concurrent streams of 100 chunks: unpaced, and one chunk per 20 ms."""
    header = ["streams", "chunks/s", "CPU µs/chunk, paced", "CPU µs/chunk, not paced", "paced chunks/s per core"]
    header += ["first chunk p50 · p99 ms, paced", "a paced stream, p50 s"]
    return _markdown([header, *(_stream_row(result) for result in results if result.peer.route.stream_path)])


def _stream_row(result: Results) -> list[str]:
    name = f"**{result.peer.name}**"
    if not result.rss_bytes:
        return [name, f"not measured: {_shortened(result.absent)}", *["—"] * 5]
    first = [
        _median(result, "paced", get, 1) for get in (lambda x: x.first_p50_us / 1e3, lambda x: x.first_p99_us / 1e3)
    ]
    return [
        name,
        _spread(result, "streams", lambda load: load.chunks_per_second),
        _spread(result, "paced", lambda load: load.cpu_us_per_chunk, 1),
        _spread(result, "streams", lambda load: load.cpu_us_per_chunk, 1),
        _median(result, "paced", lambda load: 1e6 / load.cpu_us_per_chunk),
        " · ".join(first),
        _median(result, "paced", lambda load: load.p50_us / 1e6, 2),
    ]


def _markdown(rows: list[list[str]]) -> list[str]:
    ruled = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return ["| " + " | ".join(row) + " |" for row in ruled]


def _values(result: Results, burst: str, get: Callable[[Load], float]) -> list[float]:
    return [get(load) for load in result.loads.get(burst, [])]


def _median(result: Results, burst: str, get: Callable[[Load], float], digits: int = 0) -> str:
    values = _values(result, burst, get)
    return f"{median(values):,.{digits}f}" if values else _missing(result, burst)


def _spread(result: Results, burst: str, get: Callable[[Load], float], digits: int = 0) -> str:
    values = _values(result, burst, get)
    if not values:
        return _missing(result, burst)
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def _missing(result: Results, burst: str) -> str:
    return "failed" if burst in result.failures else "not measured"


def _added(result: Results, direct: Results | None, burst: str) -> str:
    loads = result.loads.get(burst, [])
    if burst in result.failures:
        return "failed"
    if not loads or not all(load.carried for load in loads):
        return "cannot carry it"
    if result is direct:
        return " · ".join(f"{value:.2f} total" for value in _latency_ms(result, burst))
    if direct is None or burst not in direct.loads:
        return " · ".join(f"{value:.2f} total" for value in _latency_ms(result, burst))
    pairs = zip(_latency_ms(result, burst), _latency_ms(direct, burst), strict=True)
    return " · ".join(f"{mine - base:.2f}" for mine, base in pairs)


def _latency_ms(result: Results, burst: str) -> tuple[float, float]:
    loads = result.loads[burst]
    return median(load.p50_us for load in loads) / 1e3, median(load.p99_us for load in loads) / 1e3


def _shortened(text: str) -> str:
    """The text cut to the length of a cell: a server's last output can be a page."""
    line = " ".join(text.replace("|", "/").split())
    return (
        line
        if len(line) <= MAX_REASON_LENGTH
        else f"{line[: MAX_REASON_LENGTH // 2]} … {line[-MAX_REASON_LENGTH // 2 :]}"
    )


def _faults(results: Sequence[Results]) -> list[str]:
    lines = [
        f"- {r.peer.name}: {fault}" for r in results for fault in dict.fromkeys(map(_shortened, r.failures.values()))
    ]
    lines += [f"- {r.peer.name} left the run: {_shortened(r.absent)}" for r in results if r.absent and r.rss_bytes]
    return ["What went wrong:", "", *lines, ""] if lines else []


def ratios(results: Sequence[Results]) -> list[str]:
    """The ratios of the relay to the measured peers, and whether the aims are held."""
    by_name = {result.peer.name: result for result in results if result.rss_bytes}
    lines = _upstream_suffices(by_name)
    if "relay" not in by_name:
        return lines
    relay = by_name["relay"]
    for burst, other, aim in AIMS:
        if other in by_name and burst in by_name[other].loads:
            lines.append(_carries(relay, by_name[other], burst, aim))
    if "nginx" in by_name and "paced" in relay.loads:
        lines.append(_chunk_cpu(relay, by_name["nginx"]))
    if "direct" in by_name:
        ours = [by_name[name] for name in OURS if name in by_name]
        lines += [_added_p50(result, by_name["direct"], rate) for result in ours for rate in (200, 500)]
    if relay.two_flushes_ms:
        lines.append(_floor(relay.two_flushes_ms))
    if relay.cold_factors:
        lines.append(_coldness(relay.cold_factors))
    return lines


def _carries(relay: Results, other: Results, burst: str, aim: float) -> str:
    ratio = _median_rate(relay, burst) / _median_rate(other, burst)
    cpu = _median_cpu(relay, burst) / _median_cpu(other, burst)
    return (
        f"- {burst.removeprefix('json-')} connections: the relay carries {_times(ratio)} {other.peer.name}'s calls per"
        f" second (aim: at least {_times(aim)}; {_verdict(ratio >= aim)}), with {_times(cpu)} its CPU per call"
    )


def _chunk_cpu(relay: Results, nginx: Results) -> str:
    ratio = _median_cpu(relay, "paced") / _median_cpu(nginx, "paced")
    return (
        f"- paced streams: the relay takes {_times(ratio)} nginx's CPU per chunk"
        f" (aim: at most {_times(CHUNK_CPU_AIM)}; {_verdict(ratio <= CHUNK_CPU_AIM)})"
    )


def _added_p50(ours: Results, direct: Results, rate: int) -> str:
    burst, name = f"rate-{rate}", OURS[ours.peer.name]
    if burst not in ours.loads:
        return f"- {rate} calls/s: {name} cannot carry them ({_verdict(False)})"
    added = _latency_ms(ours, burst)[0] - _latency_ms(direct, burst)[0]
    verdict = _verdict(added <= ADDED_P50_AIM_MS)
    line = f"- {rate} calls/s: {name} adds {added:.2f} ms at the median (aim: at most {ADDED_P50_AIM_MS}; {verdict})"
    return line + (_of_them_flushes(ours) if ours.peer.name == "relay" and ours.two_flushes_ms else "")


def _of_them_flushes(relay: Results) -> str:
    return f"; two flushes alone: {median(relay.two_flushes_ms):.2f} ms"


def _floor(two_flushes_ms: Sequence[float]) -> str:
    return (
        f"- two consecutive flushes took {median(two_flushes_ms):.2f} ms at the median on the ledger's disk and"
        " the server's core, measured between the bursts: two durable writes per call add at least that"
    )


def _coldness(factors: Sequence[float]) -> str:
    return (
        f"- the same work took {median(factors):.1f} times as long 5 ms after its last run as without a pause, on a"
        " core that was busy in between: the part above 1 is the cost of cold caches, and at a low rate every server"
        " pays it per call"
    )


def _upstream_suffices(by_name: Mapping[str, Results]) -> list[str]:
    lines = []
    for name in ("apart", "direct"):
        if name in by_name:
            answers = median(_values(by_name[name], "json-32", lambda load: load.calls_per_second))
            chunks = median(_values(by_name[name], "streams", lambda load: load.chunks_per_second))
            enough = _verdict(min(answers, chunks) >= UPSTREAM_AIM_PER_SECOND)
            loop = by_name[name].loads["json-32"][0].loop
            lines.append(
                f"- {name}: {answers:,.0f} JSON responses/s, {chunks:,.0f} chunks/s, with {loop}"
                f" (aim: at least {UPSTREAM_AIM_PER_SECOND:,} each; {enough})"
            )
    return lines


def _verdict(held: bool) -> str:
    return "held" if held else "MISSED"


def disturbance(results: Sequence[Results]) -> str:
    """The share of the two cores that processes outside the run used."""
    foreign = [load.foreign_cores for result in results for loads in result.loads.values() for load in loads]
    if not foreign:
        return "Nothing was measured."
    worst, usual = max(foreign), median(foreign)
    advice = "; too much to trust these figures, run it again on a quiet machine" if worst > QUIET_CORES else ""
    return f"Other processes took {usual:.2f} of a core in the median burst and {worst:.2f} in the worst{advice}."


def _median_rate(result: Results, burst: str) -> float:
    return median(load.calls_per_second for load in result.loads[burst])


def _median_cpu(result: Results, burst: str) -> float:
    return median(load.cpu_us_per_call for load in result.loads[burst])


def _times(ratio: float) -> str:
    return f"{ratio:.3g} times" if ratio >= 1 else f"1/{1 / ratio:.3g} of"


def keep_raw(path: Path, results: Sequence[Results]) -> None:
    """Write every single burst as JSON."""
    raw = {r.peer.name: [dataclasses.asdict(load) for loads in r.loads.values() for load in loads] for r in results}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(raw, indent=1) + "\n")


def write(path: Path, results: Sequence[Results], machine_line: str, *, rounds: int, seconds: float) -> None:
    """Write docs/performance.md; the section between the marks is kept."""
    path.write_text(
        "\n".join(
            [
                "# Performance",
                "",
                "`make bench` writes this page, except the section between the two marks.",
                "",
                f"{machine_line}.",
                f"Medians of {rounds} interleaved rounds of {seconds:g} s bursts, lowest and highest in brackets.",
                "Compare ratios: absolute figures depend on the machine.",
                "",
                *summary(results),
                "",
                "## How it is measured",
                "",
                METHOD,
                "",
                "## Two versions",
                "",
                PAIRS,
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


METHOD = """\
`make bench` runs one server at a time on its own core. The load (`benchmarks/load.c`) and the upstream
(`benchmarks/upstream.c`: a fixed chat response of 700 bytes, or a stream of 100 chunks of 280) share the other core.
Both use io_uring, or epoll if the kernel refuses it (`benchmarks/wire.h`). The row *direct* is what they reach
together there, *apart* with a core each. The cores are kept awake through `/dev/cpu_dma_latency`, as tuned's profile
`network-latency` does; `--let-cores-sleep` turns that off. LiteLLM and Portkey are installed under `.bench/` in
pinned versions. LiteLLM is measured with its Prometheus callback and without it, which is its fastest configuration.
Portkey's release responds with 500 to each stream, so the bench makes the headers of a fetched stream mutable
(`benchmarks/portkey.cjs`). Each call is a POST of a chat request of 570 bytes over a kept connection.

A round is: start the server; one call and one stream, whose responses must equal the upstream's (only text and usage
for servers that rebuild responses); a second of warm-up; bursts at 32 and at 128 connections; bursts at a constant
200 and 500 calls/s; 200 concurrent streams, unpaced and with one chunk per 20 ms, which no server can merge into
larger writes. Started calls are completed after a burst's time. At a constant rate latency counts from the time at
which a call was due, so that a stall shows in every call it delays (no coordinated omission); *added* is the
difference to the row *direct*. A response that is not 2xx, a broken connection or an incomplete stream voids the run,
or for LiteLLM and Portkey the burst.

After each round the relay must have exactly the completed calls and streams on `/metrics`, and settled and priced in
its ledger. CPU is the user and system time of the server's processes; CPU per chunk is that of a stream divided by
100, including its row in the ledger. The relay meters and prices each call and writes an open and a settled row, both
durable (`synchronous=FULL`) before the client has the whole response. *relay-normal* writes the same rows with
`ledger.synchronous: normal` ([ledger.md](ledger.md) has the consequences) and is not measured with streams. The other
servers write nothing.
""".rstrip()

PAIRS = """\
`make pairs BASE=../before` compares the relays of two checkouts, this one and the one in `BASE`. Each runs its own
sources, with the packages of its own `.venv` if it has one, else with those of this checkout. Both servers stay up
and share a core; the load and the upstream share the other. A pair is one burst of JSON calls at 32 connections on
each server, or 200 streams with a chunk per 20 ms on each; every second pair starts with the other server. CPU is the
user and system time of the server's process, per call and per chunk as above. The result is the median of the ratio
HEAD/BASE over the pairs, 30 with streams and 60 with calls, with its 95 % interval from order statistics, which
assumes no distribution. An interval that includes 1 shows no difference. CPU time tolerates other load better than
calls per second do, but that load still costs caches: the output has the share of the cores that other processes
used.
""".rstrip()
