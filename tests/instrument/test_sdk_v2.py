from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from mcp import Client, MCPError
from mcp.server.lowlevel import Server
from mcp.server.mcpserver import Context, MCPServer
from mcp_types import CallToolResult, InputRequiredResult, ListToolsResult, TextContent, Tool

from mcpmeter.instrument import current_operation
from mcpmeter.instrument.sdk_v2 import instrument_with
from mcpmeter.instrument.tool_names import MAX_TOOLS, ToolNames
from mcpmeter.meter import Meter, OpenCall
from mcpmeter.metrics.label_allowlist import LabelAllowlist
from mcpmeter.metrics.recorder import Recorder

Until = Callable[[Callable[[], bool]], Any]
BOTH_ERAS = pytest.mark.parametrize("mode", ["auto", "legacy"])
VERSION = {"auto": "2026-07-28", "legacy": "2025-11-25"}
TRANSPORT = {"auto": "inproc", "legacy": "pipe"}


@BOTH_ERAS
class TestMessages:
    async def test_a_call_is_one_request_and_one_operation(self, mode: Any, server: MCPServer, numbers: Any) -> None:
        async with Client(server, mode=mode) as client:
            result = await client.call_tool("add", {"a": 1, "b": 2})
        assert result.structured_content == {"result": 3}
        assert numbers.requests["tools/call", "ok"] == 1
        operations = numbers.observations("mcp_server_operation_duration_seconds")
        assert operations["tools/call", "add", "", TRANSPORT[mode], VERSION[mode], ""] == 1
        assert numbers.errors == {}
        assert numbers.active == 0

    async def test_a_failed_result_is_a_tool_error_of_the_server(
        self, mode: Any, server: MCPServer, numbers: Any
    ) -> None:
        async with Client(server, mode=mode) as client:
            assert (await client.call_tool("fail")).is_error
        assert numbers.requests["tools/call", "tool_error"] == 1
        assert numbers.operations("tools/call") == {("fail", "tool_error"): 1}
        assert numbers.errors == {("tool_error", "server"): 1}

    async def test_unknown_tools_are_other(self, mode: Any, server: MCPServer, numbers: Any) -> None:
        async with Client(server, mode=mode) as client:
            for number in range(20):
                await client.call_tool(f"invented_{number}")
        assert numbers.operations("tools/call") == {("other", "tool_error"): 20}
        assert numbers.counts("mcp_label_overflow_total") == {("gen_ai_tool_name",): 20}

    async def test_a_protocol_error_reaches_the_client_unchanged(
        self, mode: Any, server: MCPServer, numbers: Any
    ) -> None:
        async with Client(server, mode=mode) as client:
            with pytest.raises(MCPError) as raised:
                await client.read_resource("there://is.none")
        assert raised.value.error.code == -32602
        assert numbers.requests["resources/read", "error"] == 1
        assert numbers.operations("resources/read") == {("", "-32602"): 1}
        assert numbers.errors == {("protocol_error", "client"): 1}

    async def test_a_crash_is_an_internal_error_of_the_server(self, mode: Any, meter: Meter, numbers: Any) -> None:
        async def crash(ctx: Any, params: Any) -> Any:
            raise RuntimeError("failed")

        async def list_tools(ctx: Any, params: Any) -> ListToolsResult:
            return ListToolsResult(tools=[Tool(name="crash", input_schema={"type": "object"})])

        server = Server("crashing", on_call_tool=crash, on_list_tools=list_tools)
        instrument_with(meter, server)
        async with Client(server, mode=mode) as client:
            with pytest.raises(MCPError):
                await client.call_tool("crash")
        assert numbers.operations("tools/call") == {("crash", "internal_error"): 1}
        assert numbers.errors == {("internal_error", "server"): 1}

    async def test_a_cancelled_call_is_counted_as_cancelled(
        self, mode: Any, server: MCPServer, numbers: Any, until: Until
    ) -> None:
        started = asyncio.Event()

        @server.tool()
        async def wait() -> str:
            started.set()
            await asyncio.Event().wait()
            return ""

        async with Client(server, mode=mode) as client:
            call = asyncio.create_task(client.call_tool("wait"))
            await started.wait()
            assert numbers.active == 1
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await until(lambda: numbers.active == 0)
        assert numbers.requests["tools/call", "cancelled"] == 1
        assert numbers.operations("tools/call") == {("wait", "cancelled"): 1}
        assert numbers.errors == {("client_disconnected", "client"): 1}

    async def test_a_fault_of_the_meter_is_counted_and_contained(
        self, mode: Any, server: MCPServer, numbers: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
    ) -> None:
        def broken(self: OpenCall, ending: object) -> None:
            raise KeyError("secret text")

        monkeypatch.setattr(OpenCall, "count", broken)
        async with Client(server, mode=mode) as client:
            assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}
        assert numbers.counts("mcp_meter_faults_total")[()] >= 2
        assert numbers.active == 0
        assert "secret text" not in caplog.text

    async def test_a_fault_when_opening_a_call_is_contained(
        self, mode: Any, server: MCPServer, numbers: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(self: Meter, *args: object, **named: object) -> OpenCall:
            raise OSError

        monkeypatch.setattr(Meter, "open", broken)
        async with Client(server, mode=mode) as client:
            assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}
        assert numbers.counts("mcp_meter_faults_total")[()] >= 2
        assert numbers.active == 0


class TestEras:
    async def test_initialize_has_the_negotiated_version(self, server: MCPServer, numbers: Any) -> None:
        async with Client(server, mode="legacy"):
            pass
        versions = {
            labels[4]
            for labels in numbers.observations("mcp_server_operation_duration_seconds")
            if labels[0] == "initialize"
        }
        assert versions == {"2025-11-25"}

    async def test_a_session_is_measured_once_at_its_end(self, server: MCPServer, numbers: Any) -> None:
        name = "mcp_server_session_duration_seconds"
        async with Client(server, mode="legacy") as client:
            await client.list_tools()
            assert numbers.observations(name) == {}
        assert numbers.observations(name) == {("", "pipe", "2025-11-25", ""): 1}

    async def test_the_stateless_era_has_no_sessions(self, server: MCPServer, numbers: Any) -> None:
        async with Client(server) as client:
            await client.list_tools()
        assert numbers.observations("mcp_server_session_duration_seconds") == {}

    async def test_input_required_is_its_own_status(self, meter: Meter, numbers: Any) -> None:
        server = MCPServer("asks")

        @server.tool()
        async def ask() -> InputRequiredResult:
            return InputRequiredResult(request_state="more")

        instrument_with(meter, server)
        async with Client(server) as client:
            await client.session.call_tool("ask", {}, allow_input_required=True)
        assert numbers.requests["tools/call", "input_required"] == 1
        assert numbers.operations("tools/call") == {("ask", "input_required"): 1}
        assert numbers.errors == {}

    async def test_a_listener_is_no_latency_error_or_active_request(
        self, server: MCPServer, numbers: Any, until: Until
    ) -> None:
        async with Client(server) as client:
            async with client.listen(tools_list_changed=True):
                assert numbers.active == 0
            await until(lambda: ("subscriptions/listen", "ok") in numbers.requests)
        assert numbers.requests["subscriptions/listen", "ok"] == 1
        assert numbers.operations("subscriptions/listen") == {}
        assert numbers.errors == {}


class TestOperation:
    @BOTH_ERAS
    async def test_the_trace_id_is_an_exemplar(self, mode: Any, server: MCPServer, recorder: Recorder) -> None:
        trace = "0af7651916cd43dd8448eb211c80319c"
        async with Client(server, mode=mode) as client:
            meta: Any = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
            await client.call_tool("add", {"a": 1, "b": 2}, meta=meta)
        cell = recorder.families["mcp_request_duration_seconds"].histograms["/mcp", "tools/call"]
        assert {exemplar[0] for exemplar in cell.exemplars.values()} == {trace}

    @pytest.mark.parametrize("traceparent", ["", "00-" + "0" * 32 + "-b7ad6b7169203331-01", 7, None, "x" * 1000])
    async def test_an_invalid_traceparent_is_ignored(
        self, traceparent: object, server: MCPServer, recorder: Recorder
    ) -> None:
        async with Client(server) as client:
            meta: Any = {"traceparent": traceparent}
            await client.call_tool("add", {"a": 1, "b": 2}, meta=meta)
        cell = recorder.families["mcp_request_duration_seconds"].histograms["/mcp", "tools/call"]
        assert cell.exemplars == {}

    async def test_a_tool_can_set_the_cause_of_its_error(self, server: MCPServer, numbers: Any) -> None:
        seen = []

        @server.tool()
        async def relay(ctx: Context[Any, Any]) -> CallToolResult:
            operation = current_operation()
            assert operation is not None
            seen.append(operation.call_id)
            operation.blame("upstream_timeout", "upstream")
            return CallToolResult(content=[TextContent(type="text", text="late")], is_error=True)

        async with Client(server) as client:
            await client.call_tool("relay")
        assert seen[0].startswith("call_")
        assert current_operation() is None
        assert numbers.errors == {("upstream_timeout", "upstream"): 1}
        assert numbers.operations("tools/call") == {("relay", "tool_error"): 1}


class TestToolNames:
    async def test_tools_are_listed_at_most_once_a_minute(self, meter: Meter, numbers: Any) -> None:
        listings = []

        async def list_tools(ctx: Any, params: Any) -> ListToolsResult:
            listings.append(params.cursor)
            name, cursor = ("first", "2") if params.cursor is None else ("second", None)
            return ListToolsResult(tools=[Tool(name=name, input_schema={"type": "object"})], next_cursor=cursor)

        async def call_tool(ctx: Any, params: Any) -> CallToolResult:
            return CallToolResult(content=[])

        server = Server("paged", on_list_tools=list_tools, on_call_tool=call_tool)
        instrument_with(meter, server)
        async with Client(server) as client:
            for name in ("second", "first", *(f"invented_{number}" for number in range(10))):
                await client.session.send_request(_call(name), CallToolResult)
        assert listings == [None, "2"]
        assert numbers.operations("tools/call") == {("second", ""): 1, ("first", ""): 1, ("other", ""): 10}

    async def test_a_failed_listing_does_not_affect_the_call(self, meter: Meter, numbers: Any) -> None:
        async def list_tools(ctx: Any, params: Any) -> ListToolsResult:
            raise RuntimeError

        async def call_tool(ctx: Any, params: Any) -> CallToolResult:
            return CallToolResult(content=[])

        server = Server("shy", on_list_tools=list_tools, on_call_tool=call_tool)
        instrument_with(meter, server)
        async with Client(server) as client:
            await client.session.send_request(_call("any"), CallToolResult)
        assert numbers.operations("tools/call") == {("other", ""): 1}

    def test_the_number_of_names_is_limited(self) -> None:
        allowlist = LabelAllowlist()
        names = ToolNames(Server("many"), allowlist)
        names.register_listed({"tools": [{"name": f"tool_{number}"} for number in range(3 * MAX_TOOLS)]})
        names.register_listed({"tools": [{"name": "one_more"}, {"name": 7}, {}]})
        assert len(allowlist.of("tool")) == MAX_TOOLS + 1
        assert "one_more" not in allowlist.of("tool")

    def test_a_name_above_the_protocols_limit_is_ignored(self) -> None:
        allowlist = LabelAllowlist()
        ToolNames(Server("long"), allowlist).register_listed({"tools": [{"name": "x" * 129}, {"name": "y" * 128}]})
        assert allowlist.of("tool") == {"", "y" * 128}


class TestTwoMeters:
    async def test_two_meters_are_independent(self, server: MCPServer, numbers: Any) -> None:
        other, recorder = MCPServer("other"), Recorder()
        instrument_with(Meter(recorder), other)
        async with Client(other) as client:
            await client.list_tools()
        assert numbers.requests == {}

    async def test_a_removed_meter_leaves_the_server_unchanged(self, meter: Meter, numbers: Any) -> None:
        server = MCPServer("restored")
        before = list(server.middleware)
        hook = instrument_with(meter, server)
        hook.remove()
        hook.remove()
        assert server.middleware == before
        assert "streamable_http_app" not in vars(server._lowlevel_server)
        async with Client(server) as client:
            await client.list_tools()
        assert numbers.requests == {}

    def test_no_logger_is_configured(self) -> None:
        assert logging.getLogger("mcpmeter").handlers == []


def _call(name: str) -> Any:
    from mcp_types import CallToolRequest, CallToolRequestParams

    return CallToolRequest(params=CallToolRequestParams(name=name, arguments={}))
