"""The MCP operation in progress, for code that runs inside it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from mcpmeter.instrument.http_request import MeteredRequest


class Operation:
    """One MCP request or notification in progress."""

    __slots__ = ("_request", "call_id", "cause", "trace_id")

    def __init__(self, call_id: str, trace_id: str, request: MeteredRequest | None) -> None:
        self.call_id = call_id
        self.trace_id = trace_id
        self.cause: tuple[str, str] | None = None
        """(error type, side) with which a result with `isError` is counted."""
        self._request = request

    def blame(self, error_type: str, side: str) -> None:
        """Set the cause of a failed result, so that a provider's error is not counted as the tool's."""
        self.cause = (error_type, side)

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Call back once if the HTTP connection of this operation closes before the response is sent.

        Servers of the handshake era continue the work then, which may cost money.
        """
        if self._request is not None:
            self._request.on_disconnect(callback)


CURRENT: Final[ContextVar[Operation | None]] = ContextVar("mcpmeter_operation", default=None)


def current_operation() -> Operation | None:
    """The operation in progress; None outside of a metered server."""
    return CURRENT.get()
