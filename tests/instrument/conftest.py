"""A metered MCP server: the SDK's server and client, and HTTP where it matters."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import uvicorn
from mcp.server.mcpserver import MCPServer

from mcpmeter.instrument.sdk_v2 import instrument_with
from mcpmeter.meter import Meter
from mcpmeter.metrics.recorder import Recorder

Labels = tuple[str, ...]


class Numbers:
    """The non-zero values of a recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def counts(self, name: str) -> dict[Labels, int]:
        """Values of counters and gauges by labels."""
        return {labels: cell.value for labels, cell in self.recorder.families[name].cells.items() if cell.value}

    def observations(self, name: str) -> dict[Labels, int]:
        """Number of a histogram's observations by labels."""
        histograms = self.recorder.families[name].histograms
        return {labels: sum(cell.counts) for labels, cell in histograms.items() if sum(cell.counts)}

    @property
    def requests(self) -> dict[Labels, int]:
        """(method, status) -> count, of the MCP endpoint."""
        return {labels[1:]: value for labels, value in self.counts("mcp_requests_total").items()}

    @property
    def errors(self) -> dict[Labels, int]:
        return self.counts("mcp_errors_total")

    @property
    def active(self) -> int:
        return self.recorder.families["mcp_active_requests"].cells[()].value

    def operations(self, method: str) -> dict[tuple[str, str], int]:
        """(tool, error type) -> count."""
        found: dict[tuple[str, str], int] = {}
        for labels, count in self.observations("mcp_server_operation_duration_seconds").items():
            if labels[0] == method:
                found[labels[1:3]] = found.get(labels[1:3], 0) + count
        return found


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def numbers(recorder: Recorder) -> Numbers:
    return Numbers(recorder)


@pytest.fixture
def meter(recorder: Recorder) -> Meter:
    return Meter(recorder)


@pytest.fixture
def server(meter: Meter) -> MCPServer:
    """A metered server with one tool that works and one that fails."""
    made = MCPServer("tried")

    @made.tool()
    async def add(a: int, b: int) -> int:
        return a + b

    @made.tool()
    async def fail() -> str:
        raise ValueError("no")

    instrument_with(meter, made)
    return made


Serve = Callable[[Any], AbstractAsyncContextManager[str]]


@pytest.fixture
def serve() -> Serve:
    """`async with serve(app) as url:` serves on a free port of 127.0.0.1."""

    @asynccontextmanager
    async def served(app: Any) -> AsyncIterator[str]:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, lifespan="on", ws="none", timeout_graceful_shutdown=1)
        )
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        task = asyncio.create_task(server._serve(sockets=[listener]))
        while not server.started and not task.done():
            await asyncio.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task

    return served


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not holds():
            await asyncio.sleep(0.005)


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Any]:
    """Waits for work of the server after its response."""
    return _until
