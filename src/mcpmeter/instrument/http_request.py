"""State of one HTTP request that `TransportMeter` and `OperationMeter` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mcpmeter.errors import MeterError
from mcpmeter.http.asgi import Scope

SCOPE_KEY: Final = "mcpmeter.request"
"""Its key in the ASGI scope, which passes through every router and into the SDK's request context."""

PRINCIPAL_KEY: Final = "mcpmeter_principal"
"""The key in `scope["state"]` of the caller's (team, key id), set by the application that authenticates."""


class MeteredRequest:
    """An MCP request over HTTP: whether a handler received its message, and whether the client disconnected."""

    __slots__ = ("_callbacks", "disconnected", "message_seen", "refusal")

    def __init__(self) -> None:
        self.message_seen = False
        self.refusal: MeterError | None = None
        """The error with which an application in front of the SDK refused it, not through ASGI's `send`."""
        self.disconnected = False
        self._callbacks: list[Callable[[], None]] = []

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Call back when the client disconnects; immediately if it already has."""
        if self.disconnected:
            callback()
        else:
            self._callbacks.append(callback)

    def disconnect(self) -> None:
        """Record that the client disconnected, and run the callbacks."""
        self.disconnected = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


def metered_request(scope: Scope) -> MeteredRequest | None:
    """The request's state; None without a `TransportMeter` in front of the application."""
    found = scope.get(SCOPE_KEY)
    return found if isinstance(found, MeteredRequest) else None


def principal(scope: Scope) -> tuple[str, str]:
    """The caller's (team, key id); empty without authentication."""
    state = scope.get("state")
    found = state.get(PRINCIPAL_KEY) if isinstance(state, dict) else None
    return found if isinstance(found, tuple) and len(found) == 2 else ("", "")
