"""Listeners and signals: SIGTERM and SIGINT drain, SIGHUP reloads, a second SIGINT skips the drain."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Final, cast

import uvicorn

from mcpmeter.catalog import OTHER
from mcpmeter.config import listeners
from mcpmeter.dialects import openai
from mcpmeter.errors import MeterError, PortTaken
from mcpmeter.http.asgi import Header
from mcpmeter.http.server.connections import ServerBounds
from mcpmeter.http.server.protocol import Refuse, ServerProtocol
from mcpmeter.meter import CallResult, Meter
from mcpmeter.relay.headers import call_id_header
from mcpmeter.service.app import App
from mcpmeter.service.audit_trail import this_process
from mcpmeter.service.service import Service

log = logging.getLogger("mcpmeter")

BACKLOG: Final = 2048
"""Connections that may wait to be accepted."""

MAX_ACCEPTS: Final = 64
CONNECTIONS_PER_ACCEPT: Final = 32
"""libuv accepts one connection per listening socket in each turn of the loop. While turns take milliseconds, a health
check would wait for seconds behind a thousand connections, so the loop gets the same socket several times."""

Started = Callable[[Service, str], None]
"""Called once with the address, when the service accepts requests."""


class Listener(uvicorn.Server):
    """A uvicorn server that leaves signals to this module."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handlers."""
        yield


def bind(host: str, port: int, *, host_option: str = "--host", port_option: str = "--port") -> socket.socket:
    """Return a listening socket. Raises PortTaken with the reason and the option to change."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as fault:
        raise PortTaken(
            f"{host} is not an address of this machine ({fault}).", hint=f"Choose another: {host_option} 127.0.0.1."
        ) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as fault:
        listener.close()
        raise _port_fault(host, port, fault, host_option, port_option) from None
    listener.setblocking(False)
    return listener


def _port_fault(host: str, port: int, fault: OSError, host_option: str, port_option: str) -> PortTaken:
    if fault.errno == errno.EADDRINUSE:
        another = port + 1 if port < 65535 else port - 1
        return PortTaken(
            f"Port {port} on {host} is taken.",
            hint=f"Stop what listens there (ss -ltnp 'sport = :{port}'), or choose another: {port_option} {another}.",
        )
    if fault.errno == errno.EACCES:
        return PortTaken(
            f"This user may not listen on port {port}.", hint=f"Choose one above 1023: {port_option} 8000."
        )
    if fault.errno == errno.EADDRNOTAVAIL:
        return PortTaken(f"{host} is not an address of this machine.", hint=f"Choose another: {host_option} 127.0.0.1.")
    return PortTaken(
        f"Cannot listen on {host}:{port} ({fault.strerror}).", hint=f"Choose another: {host_option}, {port_option}."
    )


def address_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@asynccontextmanager
async def listening(
    app: App, meter: Meter, listener: socket.socket, bounds: ServerBounds | None = None
) -> AsyncIterator[Listener]:
    """Serve an application on a socket until the block ends. Listeners of one service share its bounds."""
    bounds = bounds or ServerBounds()
    protocol = partial(ServerProtocol, _refusals(meter), bounds=bounds, overload=app.overloaded)
    server = Listener(
        uvicorn.Config(
            app,
            loop="none",
            # uvicorn only calls it; its annotation wants a class.
            http=cast("type[asyncio.Protocol]", protocol),
            backlog=min(BACKLOG, bounds.connections.max_total),
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
        )
    )
    accepts = min(MAX_ACCEPTS, bounds.connections.max_total // CONNECTIONS_PER_ACCEPT)
    sockets = [listener, *(listener.dup() for _ in range(accepts - 1))]
    task = asyncio.get_running_loop().create_task(server.serve(sockets=sockets))
    while not server.started and not task.done():  # noqa: ASYNC110 (uvicorn has no event for it)
        await asyncio.sleep(0.005)
    try:
        yield server
    finally:
        server.should_exit = True
        await task


def _refusals(meter: Meter) -> Refuse:
    """Return what counts a request that the protocol refuses and makes the response, OpenAI's error object."""

    def refuse(error: MeterError) -> tuple[list[Header], bytes]:
        opened = meter.open(OTHER, OTHER)
        opened.count(CallResult(status=str(error.http_status), outcome="error", error=error))
        headers = [(b"content-type", b"application/json"), call_id_header(opened.call.id)]
        return headers, openai.error_body(error, opened.call.id)

    return refuse


@asynccontextmanager
async def running(service: Service, listener: socket.socket) -> AsyncIterator[str]:
    """Run the service on a socket; yields its address. For programs that embed it, the demo and tests."""
    async with AsyncExitStack() as stack:
        stack.callback(listener.close)
        # Bound first, so that a taken port is reported before anything is opened.
        others = {}
        for further in listeners(service.settings)[1:]:
            others[further] = bind(
                further.host,
                further.port,
                host_option=f"{further.section}.host:",
                port_option=f"{further.section}.port:",
            )
            stack.callback(others[further].close)
            service.addresses[further.section] = address_of(others[further])
        await stack.enter_async_context(service.running())
        await stack.enter_async_context(listening(service.app, service.meter, listener, service.bounds))
        for further, app in service.other_apps.items():
            await stack.enter_async_context(listening(app, service.meter, others[further], service.bounds))
        try:
            yield address_of(listener)
        finally:
            await service.stop()


async def serve(service: Service, listener: socket.socket, started: Started) -> None:
    """Run until SIGTERM or SIGINT, then drain."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    def on_reload() -> None:
        task = loop.create_task(_reloaded(service))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    async with running(service, listener) as address:
        _exempt_from_collection()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, on_reload)
        started(service, address)
        await stop.wait()
        hurry = asyncio.Event()
        loop.add_signal_handler(signal.SIGINT, hurry.set)
        await _first_of(service.drain(), hurry.wait())


def _exempt_from_collection() -> None:
    """Exclude objects built at start, above all price tables, from garbage collection: they live until the end."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def _reloaded(service: Service) -> None:
    with contextlib.suppress(MeterError):  # reload() has logged and counted it
        await service.reload(this_process("signal SIGHUP"))


async def _first_of(*awaitables: Coroutine[None, None, object]) -> None:
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
