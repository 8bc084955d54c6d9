"""What the transport layer's counter and the operations' hook tell each other of one HTTP request."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, Final

from mcpmeter.errors import MeterError

SCOPE_KEY: Final = "mcpmeter.request"
"""Where it is kept in the ASGI scope. A scope passes through every router and into the SDK's request context."""

PRINCIPAL_KEY: Final = "mcpmeter_principal"
"""In `scope["state"]`: (team, key id) of the caller, put there by whoever authenticated it."""


class MeteredRequest:
    """An HTTP request for MCP: whether a handler saw a message of it, and whether its client has left."""

    __slots__ = ("_callbacks", "gone", "message_seen", "refusal")

    def __init__(self) -> None:
        self.message_seen = False
        self.refusal: MeterError | None = None
        """Why an application before the SDK refused it, if that told; else the status has to do."""
        self.gone = False
        self._callbacks: list[Callable[[], None]] = []

    def when_gone(self, callback: Callable[[], None]) -> None:
        """Call back when the client leaves; at once if it has left."""
        if self.gone:
            callback()
        else:
            self._callbacks.append(callback)

    def leave(self) -> None:
        """The client has left."""
        self.gone = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


def metered_request(scope: MutableMapping[str, Any]) -> MeteredRequest | None:
    """The record of this request, if the counter stands before the application."""
    found = scope.get(SCOPE_KEY)
    return found if isinstance(found, MeteredRequest) else None


def principal(scope: MutableMapping[str, Any]) -> tuple[str, str]:
    """(team, key id) of the caller, or empty."""
    state = scope.get("state")
    found = state.get(PRINCIPAL_KEY) if isinstance(state, dict) else None
    return found if isinstance(found, tuple) and len(found) == 2 else ("", "")
