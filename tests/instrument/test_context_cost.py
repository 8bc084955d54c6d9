"""Context cost of definitions and results, as JSON or as SDK objects."""

from __future__ import annotations

import json

import mcp
from hypothesis import given
from hypothesis import strategies as st
from mcp.server.mcpserver import MCPServer
from mcp_types import CallToolResult, TextContent
from prometheus_client import CollectorRegistry

import mcpmeter
from mcpmeter.instrument import context_cost


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def test_only_the_content_counts():
    result = {"content": [text("a" * 10)], "structuredContent": {"much": "b" * 1000}, "isError": False}
    cost = context_cost.of_result(result)
    assert cost.content_bytes == len(json.dumps([text("a" * 10)], separators=(",", ":")))
    assert cost.text_tokens == 3


def test_json_and_sdk_objects_count_equally():
    result = CallToolResult(content=[TextContent(type="text", text="Oslo: sun")])
    wire = result.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert context_cost.of_result(result) == context_cost.of_result(wire)


def test_an_image_has_bytes_and_an_embedded_text_has_tokens():
    image = {"type": "image", "data": "iVBORw0KGgo" * 100, "mimeType": "image/png"}
    assert context_cost.of_result({"content": [image]}).text_tokens == 0
    assert context_cost.of_result({"content": [image]}).content_bytes > 1100
    page = {"type": "resource", "resource": {"uri": "file:///a", "text": "b" * 400}}
    assert context_cost.of_result({"content": [page]}).text_tokens == 100


@given(
    content=st.lists(st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5)), max_size=5)
)
def test_any_content_is_counted(content):
    cost = context_cost.of_result({"content": content})
    assert cost.content_bytes >= 2
    assert cost.text_tokens >= 0


def test_a_definition_counts_what_a_model_reads():
    tool = {"name": "forecast", "description": "d" * 40, "inputSchema": {"type": "object"}, "_meta": {"x": "y" * 999}}
    ((name, tokens),) = context_cost.definitions({"tools": [tool, {"name": 7}]})
    assert (name, 20 < tokens < 40) == ("forecast", True)


async def test_a_metered_server_exposes_the_cost_of_known_tools():
    server = MCPServer("weather")
    registry = CollectorRegistry()

    def forecast(city: str) -> str:
        """Tomorrow's weather."""
        return f"{city}: " + "sun " * 100

    server.add_tool(forecast, name="forecast")
    metered = mcpmeter.instrument(server, registry=registry)
    async with mcp.Client(server) as client:
        await client.list_tools()
        await client.call_tool("forecast", {"city": "Oslo"})
        await client.call_tool("no-such-tool", {})
    labels = {"server": "", "tool": "forecast"}
    assert registry.get_sample_value("mcp_tool_definition_tokens", labels) > 10
    assert registry.get_sample_value("mcp_tool_result_tokens_count", labels) == 1
    assert 100 <= registry.get_sample_value("mcp_tool_result_tokens_sum", labels) <= 110
    assert registry.get_sample_value("mcp_tool_result_bytes_sum", labels) > 400
    assert registry.get_sample_value("mcp_tool_result_bytes_count", {"server": "", "tool": "other"}) is None
    metered.close()
