"""The tool names of a server: the closed set of the tool label."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import anyio

from mcpmeter.instrument.outcomes import field_of
from mcpmeter.metrics.label_allowlist import LabelAllowlist

if TYPE_CHECKING:
    from mcp.server.context import ServerRequestContext
    from mcp.server.lowlevel import Server

MAX_TOOLS: Final = 1000
"""Names beyond this become `other`: a server with one tool per user must not grow the series without limit."""

MAX_NAME_LENGTH: Final = 128
"""The protocol's own limit."""

MAX_PAGES: Final = 20
LISTING_INTERVAL_NS: Final = 60 * 1_000_000_000
LISTING_TIMEOUT_SECONDS: Final = 2.0


class ToolNames:
    """Registers tool names that the server lists, never those that a client sends."""

    def __init__(self, server: Server[Any], allowlist: LabelAllowlist) -> None:
        self._server = server
        self._allowlist = allowlist
        self._next_listing_ns = 0
        allowlist.register("tool", [""])

    def register_listed(self, result: Any) -> None:
        """Register the names in a `tools/list` result."""
        tools = field_of(result, "tools", "tools") or ()
        self._register(name for name in (field_of(tool, "name", "name") for tool in tools) if isinstance(name, str))

    async def look_up(self, ctx: ServerRequestContext[Any, Any], name: str) -> None:
        """Register a called name if the server has such a tool.

        Lists the tools at most once a minute, so that unknown names cost nothing.
        """
        if name in self._allowlist.of("tool"):
            return
        lookup = self._server.get_tool_input_schema
        if lookup is not None:
            if lookup(name) is not None:
                self._register([name])
            return
        now_ns = time.monotonic_ns()
        if now_ns >= self._next_listing_ns:
            self._next_listing_ns = now_ns + LISTING_INTERVAL_NS
            with anyio.move_on_after(LISTING_TIMEOUT_SECONDS):
                await self._list(ctx)

    async def _list(self, ctx: ServerRequestContext[Any, Any]) -> None:
        entry = self._server.get_request_handler("tools/list")
        if entry is None:
            return
        cursor: str | None = None
        for _ in range(MAX_PAGES):
            params = {"cursor": cursor} if cursor else {}
            typed = entry.params_type.model_validate(params)
            result = await entry.handler(replace(ctx, method="tools/list", params=params), typed)
            self.register_listed(result)
            cursor = field_of(result, "nextCursor", "next_cursor")
            if not cursor:
                return

    def _register(self, names: Iterable[str]) -> None:
        known = self._allowlist.of("tool")
        new = [name for name in names if name not in known and len(name) <= MAX_NAME_LENGTH]
        free = MAX_TOOLS + 1 - len(known)  # the allowlist also has the empty name
        if new and free > 0:
            self._allowlist.register("tool", new[:free])
