"""uvicorn's stock HTTP protocol on a port, with access to the connection, which faults need.

`uvicorn.Server` is not used: it polls every 0.1 s, so that start and stop would take most of a short test's time.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any, cast

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from mcpmeter.errors import BodyTooLarge, PortTaken

KEEP_ALIVE_SECONDS = 75
BACKLOG = 1024
_NO_LINGER = struct.pack("ii", 1, 0)
_SECONDS_FOR_SENT_BYTES = 0.02


class ClientConnection(asyncio.Protocol):
    """Passes transport events on to uvicorn's protocol; cancels the current request if the connection is lost.

    ASGI hides the transport, and reports a disconnect only to an application that waits for it.
    """

    transport: asyncio.Transport

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        self.is_lost = False
        self.request_task: asyncio.Task[Any] | None = None
        self._http = HttpToolsProtocol(config, state, {"connection": self})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # what TCP gives
        """Keep the transport."""
        self.transport = transport
        self._http.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the request in progress."""
        self.is_lost = True
        self._http.connection_lost(exc)
        if self.request_task is not None:
            self.request_task.cancel()

    def data_received(self, data: bytes) -> None:
        """Pass on."""
        self._http.data_received(data)

    def pause_writing(self) -> None:
        """Pass on."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """Pass on."""
        self._http.resume_writing()

    async def close(self) -> None:
        """Close after the bytes written so far. Does not return: the lost connection cancels the task."""
        self.transport.close()
        await until_cancelled()

    async def reset(self) -> None:
        """Send RST. Does not return: the lost connection cancels the task."""
        await send_rst(self.transport)
        await until_cancelled()


class SimulatorRequest(Request):
    """Starlette's request with its connection."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send)
        self.send = send

    @property
    def path(self) -> str:
        """The URL's path, percent-decoded."""
        return cast("str", self.scope["path"])

    @property
    def connection(self) -> ClientConnection:
        """The connection the request arrived on."""
        return cast("ClientConnection", self.scope["state"]["connection"])

    def header(self, name: str) -> str:
        """The header's value as UTF-8 (Starlette decodes Latin-1), empty without it."""
        return self.headers.get(name, "").encode("latin-1").decode("utf-8", "surrogateescape")


class AsgiServer:
    """Serves an ASGI application. A request's `scope["state"]["connection"]` is its `ClientConnection`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._state = ServerState()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str | None:
        """`http://host:port`; None while the server is stopped."""
        if self._server is None or not self._server.sockets:
            return None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def listen(self, host: str, port: int) -> None:
        """Start. Raises `PortTaken`."""
        config = uvicorn.Config(
            self._serve,
            loop="none",
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
        config.load()
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: ClientConnection(config, self._state), host, port, backlog=BACKLOG
            )
        except OSError as fault:
            reason = os.strerror(fault.errno) if fault.errno and fault.errno > 0 else "the name cannot be resolved"
            raise PortTaken(
                f"Cannot listen on {host}:{port} ({reason}).",
                hint="Stop what listens there, or choose another port with --port (0 takes any free one).",
            ) from None

    async def close(self) -> None:
        """Stop listening and abort all connections; returns when their requests have ended."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._state.connections):
            connection.transport.abort()  # connection_lost cancels the request
        if self._state.tasks:
            await asyncio.wait(self._state.tasks)
        await self._server.wait_closed()
        self._server = None

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: ClientConnection = scope["state"]["connection"]
        if connection.is_lost:
            return
        connection.request_task = asyncio.current_task()
        # uvicorn sends these headers with each response; it shares the list with the requests that have begun.
        self._state.default_headers[:] = [(b"date", formatdate(time.time(), usegmt=True).encode())]
        try:
            await self._app(scope, receive, send)
        except (asyncio.CancelledError, ClientDisconnect):
            pass  # the connection is lost; uvicorn would log an exception as the application's fault
        finally:
            connection.request_task = None


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    """Serve an ASGI application on a free port of 127.0.0.1; yields its URL."""
    server = AsgiServer(app)
    await server.listen("127.0.0.1", 0)
    try:
        yield server.url or ""
    finally:
        await server.close()


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises `BodyTooLarge`."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        chunks.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise BodyTooLarge(f"The body is over {max_bytes >> 20} MiB.", hint="Send less.")
    return b"".join(chunks)


async def until_cancelled() -> None:
    """Wait forever; a lost connection cancels the task."""
    await asyncio.get_running_loop().create_future()


async def send_rst(transport: asyncio.WriteTransport) -> None:
    """Reset a connection."""
    # An RST discards what the event loop or the kernel has not sent yet: give these bytes a moment.
    await asyncio.sleep(_SECONDS_FOR_SENT_BYTES)
    peer = transport.get_extra_info("socket")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()
