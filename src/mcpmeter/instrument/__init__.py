"""The library: `mcpmeter.instrument(server)` gives any Python MCP server metrics.

This package is callable, since `mcpmeter.instrument` is its name and the name of that one call.
"""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from threading import Thread
from types import ModuleType
from typing import Any, Final, Protocol
from wsgiref.simple_server import WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server

from mcpmeter.catalog import mcp, service
from mcpmeter.errors import MissingDependency, PortTaken, SetupError
from mcpmeter.instrument.operation import Operation, current_operation
from mcpmeter.meter import Meter
from mcpmeter.metrics.collector import MeterCollector
from mcpmeter.metrics.recorder import Recorder

__all__ = ["Instrumented", "Operation", "RegistryTaken", "ServerNotSupported", "current_operation", "instrument"]

ROWS: Final = (
    *(row for row in mcp.ROWS if row is not mcp.CLIENT_OPERATION_DURATION),
    service.LABEL_OVERFLOW,
    service.INTERNAL_FAULTS,
    service.BUILD_INFO,
)
"""What a server by itself can say; the rest of the catalog is the relay's and the proxy's."""

LOOPBACK: Final = "127.0.0.1"


class ServerNotSupported(SetupError):
    """The object is no MCP server that can be metered."""

    id = "server_not_supported"


class RegistryTaken(SetupError):
    """Another meter already shows its metrics in this registry, or this server is metered already."""

    id = "registry_taken"


class Hook(Protocol):
    """What an adapter leaves in a server."""

    def remove(self) -> None:
        """Take it out again."""


class Instrumented:
    """A server's meter. `recorder` holds the numbers; `close` takes the meter out of the server again."""

    def __init__(self, recorder: Recorder, registry: CollectorRegistry, port: int | None) -> None:
        self.recorder = recorder
        self.registry = registry
        self._asked_port = port
        self._collector = MeterCollector(recorder)
        self._hook: Hook | None = None
        self._listener: tuple[WSGIServer, Thread] | None = None

    @property
    def port(self) -> int | None:
        """Where /metrics is served, if a port was asked for; 0 becomes the port that was taken."""
        return self._listener[0].server_port if self._listener else None

    def is_for(self, registry: CollectorRegistry, port: int | None) -> bool:
        """Whether a second call asks for what this one gave."""
        return registry is self.registry and port in (None, self._asked_port)

    def show(self) -> None:
        """Register and, if asked to, listen. Raises RegistryTaken, PortTaken."""
        try:
            self.registry.register(self._collector)
        except ValueError:
            raise RegistryTaken(
                "The registry already shows the metrics of another meter.",
                hint="Give each server its own: instrument(server, registry=CollectorRegistry(), port=9100).",
            ) from None
        if self._asked_port is None:
            return
        try:
            self._listener = start_http_server(self._asked_port, addr=LOOPBACK, registry=self.registry)
        except (OSError, OverflowError) as fault:
            self.registry.unregister(self._collector)
            raise PortTaken(
                f"Cannot serve /metrics on {LOOPBACK}:{self._asked_port} ({fault}).", hint="Choose another port."
            ) from None

    def attach(self, hook: Hook) -> None:
        """Remember what to take out."""
        self._hook = hook

    def close(self) -> None:
        """Meter no more: the server runs on as it was, the metrics leave the registry. Harmless when repeated."""
        if self._hook is None:
            return
        self._hook.remove()
        self._hook = None
        self.registry.unregister(self._collector)
        if self._listener is not None:
            listener, thread = self._listener
            listener.shutdown()
            listener.server_close()
            thread.join()
            self._listener = None


def instrument(server: Any, *, registry: CollectorRegistry | None = None, port: int | None = None) -> Instrumented:
    """Meter an MCP server and show its metrics in `registry` (prometheus_client's default one unless given).

    `port` also serves them on 127.0.0.1. The same call twice returns the same handle. Raises ServerNotSupported,
    MissingDependency, RegistryTaken and PortTaken, and then leaves the server as it was.
    """
    sdk = _adapter()
    low_level = sdk.low_level_server(server)
    wanted = REGISTRY if registry is None else registry
    present = sdk.handle_of(low_level)
    if isinstance(present, Instrumented) and present.is_for(wanted, port):
        return present
    if present is not None:
        raise RegistryTaken(
            "This server is metered already.", hint="Use the handle of the first call, or close() it before."
        )
    handle = Instrumented(_recorder(), wanted, port)
    handle.show()
    handle.attach(sdk.instrument_with(Meter(handle.recorder), server, handle=handle))
    return handle


def _adapter() -> ModuleType:
    try:
        import mcp  # noqa: F401, PLC0415 (the server's own package; this one must import without it)
    except ModuleNotFoundError:
        raise MissingDependency("No MCP SDK is installed.", hint="Run: pip install 'mcp>=2.2'") from None
    try:
        from mcpmeter.instrument import sdk_v2  # noqa: PLC0415
    except ImportError:
        raise ServerNotSupported(
            f"The installed MCP SDK is version {version('mcp')}, which cannot be metered from inside yet.",
            hint="Run: pip install 'mcp>=2.2,<3'",
        ) from None
    return sdk_v2


def _recorder() -> Recorder:
    recorder = Recorder(rows=ROWS)
    build = {"version": version("mcpmeter"), "python_version": platform.python_version()}
    recorder.label_allowlist.register("build", build.values())
    recorder.set(service.BUILD_INFO, 1, **build)
    return recorder


class _Callable(ModuleType):
    def __call__(
        self, server: Any, *, registry: CollectorRegistry | None = None, port: int | None = None
    ) -> Instrumented:
        return instrument(server, registry=registry, port=port)


# An import of any module in here makes `mcpmeter.instrument` this package, so the package has to be the call too.
sys.modules[__name__].__class__ = _Callable
