"""Which tools a server announces: the closed set of the tool label."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import anyio

from mcpmeter.instrument.endings import field_of
from mcpmeter.metrics.label_allowlist import LabelAllowlist

if TYPE_CHECKING:
    from mcp.server.context import ServerRequestContext
    from mcp.server.lowlevel import Server

MAX_TOOLS: Final = 1000
"""Names beyond this become `other`, so that a server with a tool for each user cannot grow the series without end."""

MAX_NAME_LENGTH: Final = 128
"""The protocol's own limit."""

MAX_PAGES: Final = 20
NS_BETWEEN_LISTINGS: Final = 60 * 1_000_000_000
SECONDS_FOR_A_LISTING: Final = 2.0


class ToolNames:
    """Learns tool names from the server itself, never from a caller."""

    def __init__(self, server: Server[Any], vocabulary: LabelAllowlist) -> None:
        self._server = server
        self._vocabulary = vocabulary
        self._next_listing_ns = 0
        vocabulary.register("tool", [""])

    def see(self, result: Any) -> None:
        """Take the names of a `tools/list` result."""
        tools = field_of(result, "tools", "tools") or ()
        self._announce(name for name in (field_of(tool, "name", "name") for tool in tools) if isinstance(name, str))

    async def learn(self, ctx: ServerRequestContext[Any, Any], name: str) -> None:
        """Ask the server for a name that is called and was not announced yet.

        Its tool list is asked for at most once a minute, so that unknown names cost nothing.
        """
        if name in self._vocabulary.of("tool"):
            return
        lookup = self._server.get_tool_input_schema
        if lookup is not None:
            if lookup(name) is not None:
                self._announce([name])
            return
        now_ns = time.monotonic_ns()
        if now_ns >= self._next_listing_ns:
            self._next_listing_ns = now_ns + NS_BETWEEN_LISTINGS
            with anyio.move_on_after(SECONDS_FOR_A_LISTING):
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
            self.see(result)
            cursor = field_of(result, "nextCursor", "next_cursor")
            if not cursor:
                return

    def _announce(self, names: Iterable[str]) -> None:
        known = self._vocabulary.of("tool")
        new = [name for name in names if name not in known and len(name) <= MAX_NAME_LENGTH]
        room = MAX_TOOLS + 1 - len(known)
        if new and room > 0:
            self._vocabulary.register("tool", new[:room])
