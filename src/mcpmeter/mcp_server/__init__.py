"""The relay as a real MCP server, of every revision that the SDK speaks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from mcp.server.mcpserver import MCPServer
from mcp_types import ToolAnnotations

from mcpmeter.mcp_server.schemas import ModelInfo
from mcpmeter.mcp_server.tools import ReadUsage, Tools
from mcpmeter.pricing import PriceBook
from mcpmeter.relay.pipeline import EndpointConfig, Pipeline

__all__ = ["ModelInfo", "ReadUsage", "build_mcp_server"]

INSTRUCTIONS: Final = (
    "A metered relay to language models. Every call is counted and priced to the caller's team. "
    "Ask list_models for what there is and what it costs, chat to use it."
)


def build_mcp_server(
    *,
    pipeline: Pipeline,
    service: EndpointConfig,
    list_models: Callable[[], list[ModelInfo]],
    price_book: Callable[[], PriceBook],
    usage_report: ReadUsage,
    version: str,
) -> MCPServer:
    """The MCP server of the relay. `service` is how `chat` uses the pipeline; it must be of the chat dialect.

    `list_models` and `price_book` are asked at each call, so that a reload of theirs counts.
    """
    tools = Tools(
        pipeline=pipeline,
        service=service,
        list_models=list_models,
        price_book=price_book,
        usage_report=usage_report,
    )
    with _logging_left_alone():
        server = MCPServer("mcpmeter", title="mcpmeter", instructions=INSTRUCTIONS, version=version)
    reads = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
    costs = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=True)
    server.add_tool(tools.chat, title="Ask a model", annotations=costs)
    server.add_tool(tools.list_models, title="Models and prices", annotations=reads)
    server.add_tool(tools.estimate_cost, title="Estimate a cost", annotations=reads)
    server.add_tool(tools.usage_report, title="Usage and cost", annotations=reads)
    return server


@contextmanager
def _logging_left_alone() -> Iterator[None]:
    """MCPServer configures the root logger of the process unless it has a handler; so it has one meanwhile."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
