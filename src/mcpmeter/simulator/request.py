"""A request to the simulator."""

from __future__ import annotations

from typing import cast

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from mcpmeter.simulator.server import Connection


class SimulatorRequest(Request):
    """Starlette's request, with its connection."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send)
        self.send = send

    @property
    def path(self) -> str:
        """The URL's path, percent-decoded."""
        return cast("str", self.scope["path"])

    @property
    def connection(self) -> Connection:
        """The connection the request arrived on."""
        return cast("Connection", self.scope["state"]["connection"])

    def header(self, name: str) -> str:
        """The header's value as UTF-8 (Starlette decodes Latin-1), empty without it."""
        return self.headers.get(name, "").encode("latin-1").decode("utf-8", "surrogateescape")
