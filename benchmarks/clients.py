"""`python -m benchmarks.clients`: CPU per call of HTTP clients, with the same upstream and in one run.

The source of the figures in docs/decisions/012-upstream-client.md. One process on one core; CPU is the process's.
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path

import httpx2
import uvloop

from benchmarks.peers import upstream
from benchmarks.processes import free_port, running
from mcpmeter.http.client import Http1Client
from mcpmeter.http.client.interface import Timeouts

BODY = (Path(__file__).parent / "chat.json").read_bytes()
HEADERS = {"content-type": "application/json", "accept": "application/json", "accept-encoding": "identity"}
CONNECTIONS = 32
CALLS_EACH = 200
ROUNDS = 3

Call = Callable[[], Awaitable[bytes]]


async def _ours(url: str) -> float:
    client = Http1Client(Timeouts())

    async def call() -> bytes:
        response = await client.post("bench", url, HEADERS, BODY)
        body = await response.read(1 << 20)
        response.finish()
        return body

    try:
        return await _cpu_us_per_call(call)
    finally:
        await client.close()


async def _httpx2(url: str) -> float:
    async with httpx2.AsyncClient() as client:

        async def call() -> bytes:
            return (await client.post(url, content=BODY, headers=HEADERS)).content

        return await _cpu_us_per_call(call)


CLIENTS: dict[str, Callable[[str], Coroutine[None, None, float]]] = {
    "http/client on httptools": _ours,
    "httpx2, one client kept": _httpx2,
}


async def _cpu_us_per_call(call: Call) -> float:
    async def worker(calls: int) -> None:
        for _ in range(calls):
            if not await call():
                raise RuntimeError("the upstream responded with nothing")

    await asyncio.gather(*(worker(10) for _ in range(CONNECTIONS)))
    gc.collect()
    before = time.process_time()
    await asyncio.gather(*(worker(CALLS_EACH) for _ in range(CONNECTIONS)))
    return (time.process_time() - before) / (CONNECTIONS * CALLS_EACH) * 1e6


def main() -> int:
    """Measure all clients, round by round, and print the medians."""
    cores = sorted(os.sched_getaffinity(0))
    taken: dict[str, list[float]] = {name: [] for name in CLIENTS}
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        launch = upstream(Path(folder), port)
        with running("upstream", launch.argv, port=port, core=cores[-1], folder=Path(folder), env=launch.env) as server:
            os.sched_setaffinity(0, {cores[0]})
            for _ in range(ROUNDS):
                for name, measure in CLIENTS.items():
                    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                        taken[name].append(runner.run(measure(f"{server.url}/v1/chat/completions")))
    ours = statistics.median(taken["http/client on httptools"])
    for name, values in taken.items():
        median = statistics.median(values)
        print(
            f"{name:28} {median:7.1f} µs CPU per call ({min(values):.1f} to {max(values):.1f}), {median / ours:.1f} ×"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
