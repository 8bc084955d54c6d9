"""What tools cost a model's window: by the wire's form of results, whichever object holds it."""

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


def test_the_content_counts_and_what_stands_beside_it_does_not():
    result = {"content": [text("a" * 10)], "structuredContent": {"much": "b" * 1000}, "isError": False}
    cost = context_cost.of_result(result)
    assert cost.content_bytes == len(json.dumps([text("a" * 10)], separators=(",", ":")))
    assert cost.text_tokens == 3


def test_the_wires_form_and_the_sdks_objects_count_alike():
    told = CallToolResult(content=[TextContent(type="text", text="Oslo: sun")])
    wire = told.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert context_cost.of_result(told) == context_cost.of_result(wire)


def test_a_picture_has_bytes_and_no_tokens_and_an_embedded_text_has_both():
    picture = {"type": "image", "data": "iVBORw0KGgo" * 100, "mimeType": "image/png"}
    assert context_cost.of_result({"content": [picture]}).text_tokens == 0
    assert context_cost.of_result({"content": [picture]}).content_bytes > 1100
    page = {"type": "resource", "resource": {"uri": "file:///a", "text": "b" * 400}}
    assert context_cost.of_result({"content": [page]}).text_tokens == 100


@given(content=st.lists(st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5))))
def test_no_content_is_too_odd_to_be_counted(content):
    cost = context_cost.of_result({"content": content})
    assert cost.content_bytes >= 2
    assert cost.text_tokens >= 0


def test_a_definition_is_what_a_model_reads_of_it():
    tool = {"name": "forecast", "description": "d" * 40, "inputSchema": {"type": "object"}, "_meta": {"x": "y" * 999}}
    ((name, tokens),) = context_cost.definitions({"tools": [tool, {"name": 7}]})
    assert (name, 20 < tokens < 40) == ("forecast", True)


async def test_a_metered_server_shows_what_its_tools_cost_and_unknown_names_make_no_series():
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
