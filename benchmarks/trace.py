"""`python -m benchmarks.trace`: our files and functions that run for a warm call, stream, tool call and scrape.

Traces `mcpmeter serve` with a SQLite ledger, a key and a budget; the simulator is another process. Each request is
recorded several times, and again if a timer of the service runs meanwhile. A function counts if at least two recordings
have it: some run depending on the order of packets and threads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import socket
import statistics
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, TextIO

from benchmarks.processes import BenchError, free_port, running

ROOT = Path(__file__).parent.parent
RUNS = 10
WARM_UP = 60
"""So many calls fill the retry budget, which the first ones pay into."""
PAUSE_S = 0.23
"""Between recordings: calls in quick succession share some work, which is part of a lone call."""

TIMERS_S = 2.5
"""Time in which each timer of the service runs once."""

MAX_TRIES = 12

WIDTH = 100
MODEL = "gpt-4.1"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
STREAM = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
MCP_PROTOCOL = "2025-06-18"

Function = tuple[str, str]
"""Its file below the package, and its qualified name."""

Recording = Sequence[Function]
"""Functions in the order of first entry."""


@dataclass(frozen=True)
class Trace:
    """The functions that run for one kind of request."""

    name: str
    functions: dict[str, list[str]]
    """File below the package -> its functions; both in the order of first entry."""
    runs: int
    varying: dict[str, int]
    """`file: function` -> in how many recordings it ran, for those that did not run in all."""

    @classmethod
    def of(cls, name: str, recordings: Sequence[Recording]) -> Trace:
        """Merge the recordings of one kind of request."""
        ranks: dict[Function, list[int]] = {}
        for recording in recordings:
            for rank, function in enumerate(recording):
                ranks.setdefault(function, []).append(rank)
        usual = [function for function, found in ranks.items() if len(found) > 1]
        functions: dict[str, list[str]] = {}
        for file, own_name in sorted(usual, key=lambda one: statistics.median(ranks[one])):
            functions.setdefault(file, []).append(own_name)
        varying = {": ".join(one): len(found) for one, found in ranks.items() if len(found) < len(recordings)}
        return cls(name, functions, len(recordings), varying)

    @property
    def file_count(self) -> int:
        """The number of files of ours that run."""
        return len(self.functions)

    @property
    def function_count(self) -> int:
        """The number of distinct functions of ours that run."""
        return sum(map(len, self.functions.values()))

    @property
    def folders(self) -> Counter[str]:
        """Top folder, as `relay/` -> files; `./` holds the files of no folder."""
        return Counter(f"{file.partition('/')[0]}/" if "/" in file else "./" for file in self.functions)


class Client:
    """Sends the traced requests over one connection, and starts and stops the recording."""

    def __init__(self, http: socket.socket, switch: TextIO, key: str) -> None:
        self._http = http
        self._switch = switch
        self._key = key
        self._timers: frozenset[Function] = frozenset()
        self._mcp_headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": MCP_PROTOCOL}

    def call(self) -> None:
        """A JSON call."""
        self._post("/v1/chat/completions", CHAT)

    def stream(self) -> None:
        """A streamed call."""
        if b"data: [DONE]" not in self._post("/v1/chat/completions", STREAM):
            raise BenchError("the stream has no end")

    def learn_timers(self) -> None:
        """Record the functions of the service's timers, which no trace may include."""
        self._timers = frozenset(self._record(partial(time.sleep, TIMERS_S)))

    def initialize(self) -> None:
        """Open the MCP session that `call_tool` uses."""
        client = {"name": "trace", "version": "1"}
        self._rpc("initialize", {"protocolVersion": MCP_PROTOCOL, "capabilities": {}, "clientInfo": client}, id=1)
        self._rpc("notifications/initialized", {})

    def call_tool(self) -> None:
        """The MCP tool that calls a model."""
        reply = self._rpc("tools/call", {"name": "chat", "arguments": CHAT}, id=2)
        if b'"structuredContent"' not in reply or b'"isError":true' in reply:
            raise BenchError(f"the tool call failed: {reply[-300:].decode(errors='replace')}")

    def scrape(self) -> None:
        """A scrape."""
        self._request("GET", "/metrics", b"", {})

    def trace(self, name: str, request: Callable[[], None], runs: int) -> Trace:
        """Trace a warm request, from its first byte until the service is quiet."""
        for _ in range(WARM_UP):
            request()
        recordings: list[Recording] = []
        undisturbed: list[Recording] = []
        while len(undisturbed) < runs:
            if len(recordings) > MAX_TRIES * runs:
                raise BenchError(f"timers of the service run during too many recordings of {name}")
            time.sleep(PAUSE_S)
            recordings.append(self._record(request))
            timers = self._timers - frozenset[Function].intersection(*map(frozenset, recordings))
            undisturbed = [recording for recording in recordings if timers.isdisjoint(recording)]
        return Trace.of(name, undisturbed)

    def _record(self, request: Callable[[], None]) -> Recording:
        self._control("start")
        request()
        return [(file, function) for file, function in self._control("stop")]

    def _control(self, word: str) -> Any:
        self._switch.write(f"{word}\n")
        self._switch.flush()
        return json.loads(self._switch.readline())

    def _rpc(self, method: str, params: dict[str, Any], **message: int) -> bytes:
        return self._post("/mcp", {"jsonrpc": "2.0", "method": method, "params": params, **message}, self._mcp_headers)

    def _post(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> bytes:
        return self._request("POST", path, json.dumps(body).encode(), headers or {})

    def _request(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        fields = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
        fields["Authorization"] = f"Bearer {self._key}"
        head = "".join([f"{method} {path} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in fields.items())])
        # One write: a request in two parts would take another path in the service.
        self._http.sendall(f"{head}\r\n".encode() + body)
        response = HTTPResponse(self._http, method=method)
        response.begin()
        whole = response.read()
        if response.status // 100 != 2:
            raise BenchError(f"{method} {path} fails with {response.status}: {whole[:300].decode()}")
        if session := response.headers["Mcp-Session-Id"]:
            self._mcp_headers["Mcp-Session-Id"] = session
        return whole


def measure(runs: int = RUNS) -> dict[str, Trace]:
    """The traces of `call`, `stream`, `tool` and `scrape`, all warm. Raises BenchError."""
    with tempfile.TemporaryDirectory() as folder, _service(Path(folder)) as client:
        client.learn_timers()
        client.initialize()
        requests = {"call": client.call, "stream": client.stream, "tool": client.call_tool, "scrape": client.scrape}
        return {name: client.trace(name, request, runs) for name, request in requests.items()}


@contextlib.contextmanager
def _service(folder: Path) -> Iterator[Client]:
    key = secrets.token_hex(32)
    core = min(os.sched_getaffinity(0))
    model_port, port = free_port(), free_port()
    config, address = folder / "mcpmeter.yaml", folder / "tracer"
    config.write_text(
        f"server: {{port: {port}}}\n"
        f"ledger: {{path: {folder / 'ledger.db'}}}\n"
        "providers:\n"
        f"  - {{name: simulator, type: openai, base_url: 'http://127.0.0.1:{model_port}/v1', api_key: x,"
        f" models: [{MODEL}]}}\n"
        "teams: [support]\n"
        f"keys: [{{name: trace, team: support, secret: {key}}}]\n"
        "budgets: [{name: support, team: support, limit_usd: 500}]\n"
    )
    simulate = [str(Path(sys.executable).with_name("mcpmeter")), "simulate", "--port", str(model_port)]
    serve = [sys.executable, "-m", "benchmarks.tracer", str(address), "serve", "--config", str(config)]
    env = {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    with (
        running("simulator", simulate, port=model_port, core=core, folder=folder),
        running("service", serve, port=port, core=core, folder=folder, env=env),
        socket.create_connection(("127.0.0.1", port), timeout=30) as http,
        socket.socket(socket.AF_UNIX) as tracer,
    ):
        tracer.connect(str(address))
        with tracer.makefile("rw") as switch:
            yield Client(http, switch, key)


def text(trace: Trace) -> list[str]:
    """A trace for a terminal."""
    lines = [f"warm {trace.name}: {trace.file_count} files, {trace.function_count} functions; {_alike(trace)}"]
    lines += ["  " + ", ".join(f"{folder}: {files}" for folder, files in trace.folders.most_common()), ""]
    for file, functions in trace.functions.items():
        lines += textwrap.wrap(
            f"{file}: {', '.join(functions)}", WIDTH, initial_indent="  ", subsequent_indent="      "
        )
    if trace.varying:
        lines += ["", "  not in every recording:"]
        lines += [f"    {count} of {trace.runs}: {function}" for function, count in trace.varying.items()]
    return lines


def markdown(traces: Sequence[Trace]) -> list[str]:
    """All traces as a table of counts and a list of files each, for docs/architecture.md."""
    lines = ["| warm | files | functions | files by folder |", "| --- | ---: | ---: | --- |"]
    for trace in traces:
        folders = ", ".join(f"`{folder}` {files}" for folder, files in trace.folders.most_common())
        lines.append(f"| {trace.name} | {trace.file_count} | {trace.function_count} | {folders} |")
    for trace in traces:
        files = " → ".join(f"`{file}` {len(functions)}" for file, functions in trace.functions.items())
        lines += [
            "",
            f"**{trace.name}**, each file with the number of its functions that run, in order of entry:",
            files,
        ]
    return lines


def _alike(trace: Trace) -> str:
    return f"{trace.runs} recordings alike" if not trace.varying else f"in at least 2 of {trace.runs} recordings"


def main(arguments: Sequence[str] | None = None) -> int:
    """Trace and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trace", description=__doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help="recordings of each kind of request")
    parser.add_argument("--markdown", action="store_true", help="print a block for docs/architecture.md")
    options = parser.parse_args(arguments)
    try:
        traces = list(measure(options.runs).values())
    except BenchError as error:
        print(f"mcpmeter: {error}", file=sys.stderr)
        return 1
    print("\n".join(markdown(traces) if options.markdown else [line for one in traces for line in (*text(one), "")]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
