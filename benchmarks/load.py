"""Runs `load.c`: POSTs of `chat.json` with JSON or streamed responses, closed-loop or at a constant rate."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.installs import native
from benchmarks.processes import BenchError, Server

HERE = Path(__file__).parent
CHUNKS = 100
"""Chunks per stream, including those with the finish reason and the usage, excluding [DONE]."""

WORDS = "".join(f" word{number}" for number in range(1, CHUNKS - 2))
"""The text of the upstream's stream."""


@dataclass(frozen=True)
class Burst:
    """One kind of load. `rate` is in calls per second, 0 for a closed loop; `pace_us` is the time between chunks."""

    name: str
    connections: int
    seconds: float
    rate: int = 0
    stream: bool = False
    pace_us: int = 0

    @property
    def body(self) -> bytes:
        """`chat.json`, with `stream` for a stream; the upstream reads the pace from the prompt."""
        body = json.loads((HERE / "chat.json").read_text())
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.pace_us:
            body["messages"][-1]["content"] += f" pace_us={self.pace_us}"
        return json.dumps(body, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Route:
    """The paths of a server's calls, and the headers it requires."""

    json_path: str
    stream_path: str | None
    headers: tuple[str, ...] = ()

    def path(self, burst: Burst) -> str:
        """The path for this kind of load."""
        path = self.stream_path if burst.stream else self.json_path
        if path is None:
            raise BenchError(f"no path supports {burst.name}")
        return path


@dataclass(frozen=True)
class Load:
    """The result of one burst. Latency counts from the time at which a call was due."""

    burst: str
    calls: int
    due: int
    seconds: float
    cpu_seconds: float
    p50_us: float
    p99_us: float
    first_p50_us: float
    first_p99_us: float
    chunks: int = 0
    loop: str = ""
    """The load's interface to the kernel: `io_uring`, or `epoll` if that is refused."""
    foreign_cores: float = 0.0
    """The cores that processes outside the run used meanwhile."""

    @property
    def calls_per_second(self) -> float:
        return self.calls / self.seconds

    @property
    def cpu_us_per_call(self) -> float:
        return self.cpu_seconds / self.calls * 1e6

    @property
    def chunks_per_second(self) -> float:
        return self.calls * CHUNKS / self.seconds

    @property
    def cpu_us_per_chunk(self) -> float:
        """CPU per chunk that the upstream sent; a peer may merge chunks."""
        return self.cpu_us_per_call / CHUNKS

    @property
    def carried(self) -> bool:
        """Whether the constant rate was held: at least 99 % of the due calls were completed in time."""
        return self.calls >= 0.99 * self.due


def press(server: Server, route: Route, burst: Burst, *, folder: Path, core: int) -> Load:
    """Run one burst. Raises BenchError for a response that is not 2xx or an incomplete stream."""
    before = server.cpu_seconds()
    report = _load(server, route, burst, folder, core)
    cpu_seconds = server.cpu_seconds() - before
    faults = ("not_2xx", "socket_errors", "broken_streams", "unanswered")
    if any(report[fault] for fault in faults) or not report["calls"]:
        raise BenchError(f"{server.name} failed under {burst.name}: { ({fault: report[fault] for fault in faults}) }")
    return Load(
        burst.name,
        calls=report["calls"],
        due=report["due"],
        seconds=report["duration_us"] / 1e6,
        cpu_seconds=cpu_seconds,
        p50_us=report["p50_us"],
        p99_us=report["p99_us"],
        first_p50_us=report["first_p50_us"],
        first_p99_us=report["first_p99_us"],
        chunks=report["chunks"],
        loop=report["loop"],
    )


def check_call(server: Server, route: Route, *, rebuilds: bool) -> None:
    """Check that a call returns the upstream's response, or with `rebuilds` its text and usage. Raises BenchError."""
    got = json.loads(_post(server, route, Burst("one call", 1, 1)))
    expected = json.loads((HERE / "answer.json").read_text())
    if (_content(got) != _content(expected)) if rebuilds else (got != expected):
        raise BenchError(f"{server.name} did not pass on the upstream's response")


def check_stream(server: Server, route: Route, *, rebuilds: bool) -> None:
    """Check that a stream has the upstream's text, one usage and, without `rebuilds`, the same number of chunks."""
    events = _post(server, route, Burst("one stream", 1, 1, stream=True)).decode().split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    tokens = [chunk["usage"]["total_tokens"] for chunk in chunks if chunk.get("usage")]
    if text != WORDS or tokens != [CHUNKS + 115] or (len(chunks) != CHUNKS and not rebuilds):
        raise BenchError(f"{server.name} did not pass on the upstream's stream")


def _content(response: dict[str, Any]) -> tuple[str, int]:
    return response["choices"][0]["message"]["content"], response["usage"]["total_tokens"]


def _post(server: Server, route: Route, burst: Burst) -> bytes:
    headers = {"Content-Type": "application/json"} | dict(line.split(": ", 1) for line in route.headers)
    request = urllib.request.Request(server.url + route.path(burst), burst.body, headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            body: bytes = response.read()
    except urllib.error.HTTPError as error:
        text = error.read(200).decode(errors="replace")
        raise BenchError(f"{server.name} responded to {burst.name} with {error.code}: {text}") from None
    return body


def _load(server: Server, route: Route, burst: Burst, folder: Path, core: int) -> dict[str, Any]:
    body = folder / f"{burst.name}.json"
    body.write_bytes(burst.body)
    argv = ["taskset", "--cpu-list", str(core), str(native("load")), *_options(burst, route.headers)]
    argv += [str(server.port), route.path(burst), str(body)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"the load on {server.name} failed: {done.stderr.strip() or done.stdout.strip()}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _options(burst: Burst, headers: Sequence[str]) -> list[str]:
    options = ["--connections", str(burst.connections), "--seconds", str(burst.seconds), "--rate", str(burst.rate)]
    options += ["--stream"] if burst.stream else []
    return [*options, *(word for line in headers for word in ("--header", line))]
