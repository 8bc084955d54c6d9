from __future__ import annotations

import platform
import re
import runpy
import socket
import subprocess
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.server.lowlevel import Server
from mcp.server.mcpserver import MCPServer
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import mcpmeter
from mcpmeter.catalog import service
from mcpmeter.errors import MissingDependency, PortTaken
from mcpmeter.instrument import Instrumented, RegistryTaken, ServerNotSupported

DOCS = Path(__file__).parents[2] / "docs" / "library.md"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def server() -> MCPServer:
    made = MCPServer("test")

    @made.tool()
    def add(a: int, b: int) -> int:
        return a + b

    return made


def fetched(port: int | None) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=120) as response:
        return response.read().decode()


class TestInstrument:
    async def test_calls_appear_in_the_registry(self, server: MCPServer, registry: CollectorRegistry) -> None:
        mcpmeter.instrument(server, registry=registry)
        async with Client(server) as client:
            await client.call_tool("add", {"a": 1, "b": 2})
        labels = {"endpoint": "/mcp", "method": "tools/call", "status": "ok"}
        assert registry.get_sample_value("mcp_requests_total", labels) == 1

    async def test_the_port_is_on_loopback_only(self, server: MCPServer, registry: CollectorRegistry) -> None:
        handle = mcpmeter.instrument(server, registry=registry, port=0)
        try:
            assert "mcp_active_requests 0.0" in fetched(handle.port)
            assert handle._listener is not None
            assert handle._listener[0].server_address[0] == "127.0.0.1"
        finally:
            handle.close()
        with pytest.raises(OSError):
            fetched(handle._requested_port or 1)
        assert handle.port is None

    def test_the_default_registry_is_prometheus_clients(self, server: MCPServer) -> None:
        handle = mcpmeter.instrument(server)
        try:
            assert "mcp_requests_total" in generate_latest(REGISTRY).decode()
        finally:
            handle.close()
        assert "mcp_requests_total" not in generate_latest(REGISTRY).decode()

    def test_known_series_start_at_zero(self, server: MCPServer, registry: CollectorRegistry) -> None:
        mcpmeter.instrument(server, registry=registry)
        failed = {"endpoint": "/mcp", "method": "tools/call", "status": "tool_error"}
        assert registry.get_sample_value("mcp_requests_total", failed) == 0
        assert registry.get_sample_value("mcp_errors_total", {"error_type": "tool_error", "side": "server"}) == 0

    def test_metrics_of_relay_and_proxy_are_absent(self, server: MCPServer, registry: CollectorRegistry) -> None:
        mcpmeter.instrument(server, registry=registry)
        names = {family.name for family in registry.collect()}
        assert not [name for name in names if name.startswith(("gen_ai_", "mcp_ledger_", "mcp_cost_", "mcp_client_"))]
        build = registry.get_sample_value(
            service.BUILD_INFO.name, {"version": version("mcpmeter"), "python_version": platform.python_version()}
        )
        assert build == 1

    def test_a_low_level_server_is_supported(self, registry: CollectorRegistry) -> None:
        server = Server("low")
        mcpmeter.instrument(server, registry=registry)
        assert type(server.middleware[0]).__name__ == "OperationMeter"


class TestSecondCall:
    def test_equal_arguments_return_the_same_handle(self, server: MCPServer, registry: CollectorRegistry) -> None:
        handle = mcpmeter.instrument(server, registry=registry)
        assert mcpmeter.instrument(server, registry=registry) is handle
        assert len([hook for hook in server.middleware if type(hook).__name__ == "OperationMeter"]) == 1

    def test_other_arguments_are_refused_with_a_hint(self, server: MCPServer, registry: CollectorRegistry) -> None:
        mcpmeter.instrument(server, registry=registry)
        with pytest.raises(RegistryTaken, match=r"already metered.*close\(\)"):
            mcpmeter.instrument(server, registry=CollectorRegistry())

    def test_a_closed_server_can_be_metered_again(self, server: MCPServer, registry: CollectorRegistry) -> None:
        before = list(server.middleware)
        handle = mcpmeter.instrument(server, registry=registry)
        handle.close()
        handle.close()
        assert server.middleware == before
        assert mcpmeter.instrument(server, registry=registry) is not handle

    def test_two_servers_need_two_registries(self, server: MCPServer, registry: CollectorRegistry) -> None:
        mcpmeter.instrument(server, registry=registry)
        other = MCPServer("other")
        before = list(other.middleware)
        with pytest.raises(RegistryTaken, match="registry=CollectorRegistry"):
            mcpmeter.instrument(other, registry=registry)
        assert other.middleware == before


class TestErrors:
    @pytest.mark.parametrize("thing", [None, object(), "server", [], Instrumented])
    def test_other_objects_are_refused(self, thing: Any) -> None:
        with pytest.raises(ServerNotSupported, match="FastMCP 4"):
            mcpmeter.instrument(thing)

    def test_a_taken_port_leaves_the_server_unchanged(self, server: MCPServer, registry: CollectorRegistry) -> None:
        before = list(server.middleware)
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PortTaken, match="another port"):
            mcpmeter.instrument(server, registry=registry, port=taken.getsockname()[1])
        assert server.middleware == before
        assert list(registry.collect()) == []

    def test_an_invalid_port_is_refused(self, server: MCPServer, registry: CollectorRegistry) -> None:
        with pytest.raises(PortTaken):
            mcpmeter.instrument(server, registry=registry, port=70000)

    def test_a_missing_sdk_is_an_error_with_a_hint(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "mcp", None)
        with pytest.raises(MissingDependency, match="pip install"):
            mcpmeter.instrument(object())

    def test_an_older_sdk_is_not_supported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "mcpmeter.instrument.sdk_v2", None)
        monkeypatch.delattr("mcpmeter.instrument.sdk_v2", raising=False)
        with pytest.raises(ServerNotSupported, match=r"mcp>=2\.2"):
            mcpmeter.instrument(object())


class TestImports:
    @pytest.mark.parametrize(
        "imports",
        [
            "import mcpmeter, mcpmeter.instrument.asgi",
            "from mcpmeter.instrument import http_request\nimport mcpmeter",
        ],
    )
    def test_the_package_is_callable_after_any_import(self, imports: str) -> None:
        call = "try:\n    mcpmeter.instrument(7)\nexcept mcpmeter.instrument.ServerNotSupported:\n    print('ok')"
        code = f"{imports}\n{call}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("ok\n", "")

    def test_unknown_names_raise_attribute_error(self) -> None:
        with pytest.raises(AttributeError, match="has no attribute 'instruments'"):
            _ = mcpmeter.instruments  # type: ignore[attr-defined]

    def test_importing_the_package_imports_no_dependency(self) -> None:
        code = (
            "import sys, mcpmeter; print([m for m in sys.modules if m.startswith(('prometheus', 'mcp.', 'msgspec'))])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"


class TestDocumentation:
    """The example of docs/library.md runs."""

    @pytest.fixture
    def blocks(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for kind, text in re.findall(r"```(\w+)\n(.*?)```", DOCS.read_text(), re.DOTALL):
            found.setdefault(kind, []).append(text)
        return found

    def test_the_example_prints_the_output_on_the_page(
        self, blocks: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        example = tmp_path / "example.py"
        example.write_text(blocks["python"][0])
        handle = runpy.run_path(str(example), run_name="__main__")["metered"]
        handle.close()
        printed = capsys.readouterr().out
        expected = [line for line in blocks["text"][0].splitlines() if line]
        assert expected
        assert [line for line in expected if line not in printed.splitlines()] == []
        assert list(text_string_to_metric_families(printed))
