"""The library: `mcpmeter.instrument(server)` gives any Python MCP server metrics.

Owns the adapter to the MCP SDK, the operations in progress, and the ASGI layer that counts requests that no handler
received. Knows no relay, ledger or configuration. Invariants: importing it needs only prometheus_client and msgspec;
a fault of the meter is counted and never reaches the server; each message or request is counted exactly once.

This package is callable: `mcpmeter.instrument` is the name of both the package and the function.
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
from mcpmeter.errors import MissingDependency, PortTaken
from mcpmeter.instrument.errors import RegistryTaken, ServerNotSupported
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
"""The metrics that an MCP server has without the relay and the proxy."""

LOOPBACK: Final = "127.0.0.1"


class Hook(Protocol):
    """The hook that an adapter installs in a server."""

    def remove(self) -> None:
        """Remove it from the server."""


class Instrumented:
    """The meter of one server. `recorder` has the values; `close` removes the meter from the server."""

    def __init__(self, recorder: Recorder, registry: CollectorRegistry, port: int | None) -> None:
        self.recorder = recorder
        self.registry = registry
        self._requested_port = port
        self._collector = MeterCollector(recorder)
        self._hook: Hook | None = None
        self._listener: tuple[WSGIServer, Thread] | None = None

    @property
    def port(self) -> int | None:
        """The port of /metrics, if one was requested; 0 becomes the chosen port."""
        return self._listener[0].server_port if self._listener else None

    def matches(self, registry: CollectorRegistry, port: int | None) -> bool:
        """Whether a second call has the same arguments."""
        return registry is self.registry and port in (None, self._requested_port)

    def expose(self) -> None:
        """Register the metrics and serve them on the requested port. Raises RegistryTaken, PortTaken."""
        try:
            self.registry.register(self._collector)
        except ValueError:
            raise RegistryTaken(
                "The registry already has the metrics of another meter.",
                hint="Give each server its own: instrument(server, registry=CollectorRegistry(), port=9100).",
            ) from None
        if self._requested_port is None:
            return
        try:
            self._listener = start_http_server(self._requested_port, addr=LOOPBACK, registry=self.registry)
        except (OSError, OverflowError) as fault:
            self.registry.unregister(self._collector)
            raise PortTaken(
                f"Cannot serve /metrics on {LOOPBACK}:{self._requested_port} ({fault}).", hint="Choose another port."
            ) from None

    def attach(self, hook: Hook) -> None:
        """Keep the hook that `close` removes."""
        self._hook = hook

    def close(self) -> None:
        """Stop metering: remove the hook from the server and the metrics from the registry. Idempotent."""
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
    """Meter an MCP server and expose its metrics in `registry` (by default prometheus_client's).

    `port` also serves them on 127.0.0.1. A second call with the same arguments returns the same handle. Raises
    ServerNotSupported, MissingDependency, RegistryTaken and PortTaken; the server is unchanged then.
    """
    sdk = _adapter()
    low_level = sdk.low_level_server(server)
    chosen = REGISTRY if registry is None else registry
    present = sdk.handle_of(low_level)
    if isinstance(present, Instrumented) and present.matches(chosen, port):
        return present
    if present is not None:
        raise RegistryTaken(
            "This server is already metered.", hint="Use the handle of the first call, or close() it first."
        )
    handle = Instrumented(_recorder(), chosen, port)
    handle.expose()
    handle.attach(sdk.instrument_with(Meter(handle.recorder), server, handle=handle))
    return handle


def _adapter() -> ModuleType:
    try:
        import mcp  # noqa: F401, PLC0415 (optional: this package must import without it)
    except ModuleNotFoundError:
        raise MissingDependency("No MCP SDK is installed.", hint="Run: pip install 'mcp>=2.2'") from None
    try:
        from mcpmeter.instrument import sdk_v2  # noqa: PLC0415
    except ImportError:
        raise ServerNotSupported(
            f"The installed MCP SDK is version {version('mcp')}, which is not supported.",
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


# Importing any module of this package sets `mcpmeter.instrument` to the package, so the package must be callable.
sys.modules[__name__].__class__ = _Callable
