"""The relay as an MCP server, in every protocol revision that the SDK supports.

Owns the tools and their schemas. Knows no HTTP: `service/mcp.py` serves it. Invariants: `chat` runs the same pipeline
as every HTTP route and is settled once; a refusal is a tool result with `isError`, never an exception.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from mcp.server.mcpserver import MCPServer
from mcp_types import ToolAnnotations

from mcpmeter.mcp_server.schemas import ModelInfo
from mcpmeter.mcp_server.tools import QueryUsage, Tools
from mcpmeter.pricing import PriceBook
from mcpmeter.relay.pipeline import EndpointConfig, Pipeline

__all__ = ["ModelInfo", "QueryUsage", "build_mcp_server"]

INSTRUCTIONS: Final = (
    "A metered relay to language models. Every call is counted and priced for the caller's team. "
    "Use list_models to list models and prices, and chat to call a model."
)


def build_mcp_server(
    *,
    pipeline: Pipeline,
    service: EndpointConfig,
    list_models: Callable[[], list[ModelInfo]],
    price_book: Callable[[], PriceBook],
    usage_report: QueryUsage,
    version: str,
) -> MCPServer:
    """Build the MCP server of the relay. `service` configures `chat`'s use of the pipeline; its dialect must be chat.

    `list_models` and `price_book` are called for each tool call, so that a reload takes effect.
    """
    tools = Tools(
        pipeline=pipeline,
        service=service,
        list_models=list_models,
        price_book=price_book,
        usage_report=usage_report,
    )
    with _root_logger_configured():
        server = MCPServer("mcpmeter", title="mcpmeter", instructions=INSTRUCTIONS, version=version)
    read_only = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
    costly = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=True)
    server.add_tool(tools.chat, title="Ask a model", annotations=costly)
    server.add_tool(tools.list_models, title="Models and prices", annotations=read_only)
    server.add_tool(tools.estimate_cost, title="Estimate a cost", annotations=read_only)
    server.add_tool(tools.usage_report, title="Usage and cost", annotations=read_only)
    return server


@contextmanager
def _root_logger_configured() -> Iterator[None]:
    """Keep MCPServer from configuring the process's root logger, which it does if the logger has no handler."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
