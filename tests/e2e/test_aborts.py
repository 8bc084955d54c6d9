"""Clients that leave at random moments: every call is settled once, the provider stops at once, no gauge stays up.

The callers speak HTTP over bare sockets, because a library would tidy up what is to be torn.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import urlsplit

import pytest

JOBS = 150
JOBS_IN_FULL = 1000
AT_ONCE = 24
SECONDS_TO_SETTLE = 120.0
SECONDS_BETWEEN_LOOKS = 0.05
NS_PER_SECOND = 10**9
SLOWLY = ("--latency-ms", "uniform:20-200", "--chunks-per-second", 60, "--completion-tokens", 4000)
"""The provider by itself: over a minute of stream, so that none ends unless it is cancelled."""
SLOW = ""
QUICK = "latency_ms=0,chunks_per_second=100000,completion_tokens=50"
STALLS_BEFORE_HEADERS = "stall=headers"
STALLS_IN_THE_BODY = "stall=body,after_tokens=5"


CHAT, GUIDE, MCP = "/v1/chat/completions", "/mcp/chat", "/mcp"
MCP_META = {
    "progressToken": "t",
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "leaver", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
MCP_HEADERS = (
    "Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: 2026-07-28\r\n"
    "Mcp-Method: tools/call\r\nMcp-Name: chat\r\n"
)


@dataclass
class Job:
    """One call: what is asked, when its client leaves, and what it saw."""

    route: str
    number: int
    stream: bool
    wish: str
    leaves_after_bytes: int | None
    """Read so many bytes of the answer, then leave; None: read it all."""
    leaves_after_seconds: float | None
    """Leave so long after sending, whatever has come; None: not for time."""
    sends_half: bool = False
    left_at_ns: int | None = None
    """Monotonic, as the simulator's own times are: one machine has one such clock."""
    received: bytes = b""

    @property
    def model(self) -> str:
        """With `stream` the mark by which a call is found in the ledger and in the provider's books."""
        return f"job-{self.number // 2}"

    @property
    def mark(self) -> tuple[str, bool]:
        return self.model, self.stream

    def body(self) -> bytes:
        asked: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": "Tell me something."}],
            "stream": self.stream,
        }
        if self.route == MCP:
            params = {"name": "chat", "arguments": asked, "_meta": MCP_META}
            return json.dumps({"jsonrpc": "2.0", "id": self.number, "method": "tools/call", "params": params}).encode()
        return json.dumps(asked | {"metadata": {"simulate": self.wish}}).encode()


def draw_jobs(count: int, random: Random) -> list[Job]:
    """Every second one streams; a tenth stays to the end; the rest leaves at a random moment of a random kind."""
    return [draw_job(number, random) for number in range(count)]


def draw_job(number: int, random: Random) -> Job:
    stream, route = bool(number % 2), random.choice((CHAT, CHAT, GUIDE))
    kind = random.random()
    if kind < 0.1:
        return Job(route, number, stream, QUICK, None, None)
    if kind < 0.15:
        return Job(route, number, stream, SLOW, None, random.uniform(0, 0.1), sends_half=True)
    if kind < 0.25:
        return Job(route, number, stream, QUICK, None, random.uniform(0, 0.03))
    if stream and kind < 0.4:
        # A tool has no way to wish for a fault, but the provider is slow by itself.
        return Job(MCP, number, stream, SLOW, None, random.uniform(0, 0.6))
    if stream and kind < 0.7:
        wish = random.choice((SLOW, STALLS_IN_THE_BODY))
        return Job(route, number, stream, wish, random.randrange(1, 1500), random.uniform(0.3, 0.6))
    # A whole answer has no headers before its end: for a slow one the only moment to leave is before them.
    wish = SLOW if stream else STALLS_BEFORE_HEADERS
    return Job(route, number, stream, wish, None, random.uniform(0, 0.3))


async def call(address: str, job: Job) -> None:
    """Make the call and leave as drawn. `Connection: close` makes the end of the connection the end of the answer."""
    host = urlsplit(address)
    reader, writer = await asyncio.open_connection(host.hostname, host.port)
    body = job.body()
    head = (
        f"POST {job.route} HTTP/1.1\r\nHost: {host.netloc}\r\nConnection: close\r\n"
        f"{MCP_HEADERS if job.route == MCP else ''}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + (body[: len(body) // 2] if job.sends_half else body))
    try:
        async with asyncio.timeout(job.leaves_after_seconds):
            while job.leaves_after_bytes is None or len(job.received) < job.leaves_after_bytes:
                if not (data := await reader.read(65536)):
                    return
                job.received += data
    except TimeoutError:
        pass
    finally:
        job.left_at_ns = time.monotonic_ns()
        writer.transport.abort()


async def eventually(look: Callable[[], Awaitable[Any]], holds: Callable[[Any], bool]) -> Any:
    """Look until it holds; returns what was seen last, held or not."""
    deadline = time.monotonic() + SECONDS_TO_SETTLE
    while not holds(seen := await look()) and time.monotonic() < deadline:
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
    return seen


@pytest.mark.trial
async def test_every_call_of_clients_that_leave_is_settled_once_and_cancelled_upstream(stand, trials):
    stand.start_simulator("--seed", 3, *SLOWLY)
    stand.configure()
    stand.start_relay()
    jobs = draw_jobs(JOBS_IN_FULL if trials.full else JOBS, Random(11))
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(job: Job) -> None:
        async with gate:
            await call(stand.address, job)

    await asyncio.gather(*(one(job) for job in jobs))

    async def gauges() -> tuple[float, float, int]:
        samples = await asyncio.to_thread(stand.samples)
        values = [
            sum(s.value for s in samples.get(name, ())) for name in ("mcp_active_requests", "mcp_ledger_open_rows")
        ]
        return values[0], values[1], (await asyncio.to_thread(stand.billing_log))["open_calls"]

    active, open_rows, open_upstream = await eventually(gauges, lambda seen: not any(seen))
    rows, books = stand.rows(), stand.billing_log(calls=10_000)
    waits = seconds_to_cancel(jobs, books["calls"])
    row_of = Counter((row["model"], bool(row["stream"])) for row in rows)
    at_provider = Counter((call["model"], call["stream"]) for call in books["calls"])
    by_mark = {job.mark: job for job in jobs}
    without_row = [mark for mark in at_provider if row_of[mark] != 1]
    never_left_but_cut = [
        c for c in books["calls"] if c["outcome"] == "cancelled" and not left(by_mark[c["model"], c["stream"]])
    ]
    trials.record(
        "Clients that disconnect at random moments",
        "Calls over plain sockets, half of them streams. The client disconnects while it sends, before the response "
        "headers, in the middle of the stream, or not at all. Some calls stall forever at the provider, so that only a "
        "cancel ends them. A call whose body is incomplete when its client disconnects has no row and is not sent.",
        {
            "calls": len(jobs),
            "of them tool calls at /mcp": sum(job.route == MCP for job in jobs),
            "client disconnected before the end of the response": sum(map(left, jobs)),
            "reached the relay's ledger": len(rows),
            "reached the provider": len(books["calls"]),
            "cancelled at the provider": books["totals"]["cancelled"],
            "calls at the provider without exactly one row": len(without_row),
            "rows not settled": sum(row["state"] != "settled" for row in rows),
            "mcp_active_requests at the end": int(active),
            "mcp_ledger_open_rows at the end": int(open_rows),
            "calls still open at the provider": open_upstream,
            "seconds from disconnect to cancel at the provider, median": waits[len(waits) // 2],
            "seconds from disconnect to cancel at the provider, maximum": waits[-1],
        },
    )

    assert (active, open_rows, open_upstream) == (0, 0, 0)
    assert without_row == []
    assert set(row_of.values()) == {1}
    assert {row["state"] for row in rows} == {"settled"}
    assert never_left_but_cut == []
    check_outcomes(jobs, rows, books["calls"])
    check_counters(stand, jobs, rows)
    finished = stand.relay.end()
    assert (finished.code, finished.faults) == (0, "")


def left(job: Job) -> bool:
    """Whether the client broke off before the whole answer was there."""
    if job.stream:
        return b"data: [DONE]\n\n" not in job.received
    head, _, body = job.received.partition(b"\r\n\r\n")
    return not head or not body.endswith(b"}")


def seconds_to_cancel(jobs: list[Job], calls: list[dict[str, Any]]) -> list[float]:
    """From each client's leaving to the provider's seeing it, sorted."""
    left_at_ns = {job.mark: job.left_at_ns for job in jobs}
    return sorted(
        (call["cancelled_at_ns"] - left_at_ns[call["model"], call["stream"]]) / NS_PER_SECOND
        for call in calls
        if call["cancelled_at_ns"] is not None
    )


def check_outcomes(jobs: list[Job], rows: list[dict[str, Any]], calls: list[dict[str, Any]]) -> None:
    """What each client saw, what the provider saw and what the row says fit together."""
    by_mark = {job.mark: job for job in jobs}
    call_of = {(call["model"], call["stream"]): call for call in calls}
    for row in rows:
        mark = row["model"], bool(row["stream"])
        job, call = by_mark[mark], call_of.get(mark)
        if not left(job):
            assert (row["outcome"], row["token_source"]) == ("ok", "reported")
            assert call["outcome"] == "complete"
        elif call is not None and call["outcome"] == "cancelled":
            assert (row["outcome"], row["error_type"], row["status"]) == ("partial", "client_disconnected", "499")
            assert row["token_source"] == "partial"
            assert row["prompt_tokens"] > 0
    with_row = {(row["model"], bool(row["stream"])) for row in rows}
    for job in jobs:
        if job.mark not in with_row:
            assert job.received == b"", "an answer went out for which nothing was written down"
        if job.mark in call_of and job.wish != QUICK:
            assert call_of[job.mark]["outcome"] == "cancelled", "it could not have ended otherwise"


def check_counters(stand: Any, jobs: list[Job], rows: list[dict[str, Any]]) -> None:
    """The counters are fed from the same settlements as the rows; a call without a row was left while it was sent."""
    # One who leaves between the usage and the stream's end is gone too, but his usage is known.
    gone = sum(row["error_type"] == "client_disconnected" and row["token_source"] == "partial" for row in rows)
    assert stand.total("mcp_usage_missing_total", reason="client_gone") == gone
    for kind in ("prompt", "completion"):
        assert stand.total("mcp_tokens_total", token_type=kind) == sum(row[f"{kind}_tokens"] for row in rows)
    for route in (CHAT, GUIDE):
        asked = sum(job.route == route for job in jobs)
        written = [row for row in rows if row["endpoint"] == route]
        broken = sum(row["error_type"] == "client_disconnected" for row in written) + asked - len(written)
        assert stand.total("mcp_requests_total", endpoint=route, method="POST") == asked
        assert stand.total("mcp_requests_total", endpoint=route, status="499") == broken
    tool_calls = [row for row in rows if row["endpoint"] == MCP]
    assert len(tool_calls) > 0
    assert stand.total("mcp_requests_total", endpoint=MCP) == sum(job.route == MCP for job in jobs)
    assert stand.total("mcp_requests_total", endpoint=MCP, method="tools/call", status="cancelled") >= len(tool_calls)
