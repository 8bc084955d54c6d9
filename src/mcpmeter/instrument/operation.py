"""The MCP operation that is being answered, for code that runs inside it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from mcpmeter.instrument.http_request import MeteredRequest


class Operation:
    """One MCP request or notification between its arrival and its answer."""

    __slots__ = ("_request", "blamed", "call_id", "trace_id")

    def __init__(self, call_id: str, trace_id: str, request: MeteredRequest | None) -> None:
        self.call_id = call_id
        self.trace_id = trace_id
        self.blamed: tuple[str, str] | None = None
        """(error type, side) that a result with `isError` is counted with, where a tool knows its cause."""
        self._request = request

    def blame(self, error_type: str, side: str) -> None:
        """Say what a failed result is due to, so that a provider's fault is not counted as the tool's."""
        self.blamed = (error_type, side)

    def when_caller_leaves(self, callback: Callable[[], None]) -> None:
        """Call back, once, when the HTTP connection that carries this operation closes before its answer is out.

        Handshake-era servers go on working then; whoever pays for the work may want to stop.
        """
        if self._request is not None:
            self._request.when_gone(callback)


CURRENT: Final[ContextVar[Operation | None]] = ContextVar("mcpmeter_operation", default=None)


def current_operation() -> Operation | None:
    """The operation that this code runs in, or None outside of a metered server."""
    return CURRENT.get()
