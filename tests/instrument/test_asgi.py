from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client
from mcp.server.lowlevel import Server
from mcp.server.mcpserver import MCPServer
from mcp_types import CallToolResult, ListToolsResult, Tool
from starlette.applications import Starlette
from starlette.routing import Mount

from mcpmeter.catalog import labels, mcp
from mcpmeter.errors import ERROR_TYPES, Draining
from mcpmeter.instrument.asgi import ERROR_BY_REASON, TransportMeter
from mcpmeter.instrument.http_request import PRINCIPAL_KEY, SCOPE_KEY, metered_request, principal
from mcpmeter.instrument.sdk_v2 import instrument_with
from mcpmeter.meter import Meter
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.records import Settlement

Until = Callable[[Callable[[], bool]], Any]
BOTH = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
MODERN = {**BOTH, "mcp-protocol-version": "2026-07-28"}
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}},
}


def message(method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": META}}


@pytest.fixture
async def http(server: MCPServer, serve: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """An HTTP client of the SDK's application; at most two sessions and bodies of 2,000 bytes."""
    app = server.streamable_http_app(max_sessions=2, max_request_body_size=2000)
    async with serve(app) as url, httpx2.AsyncClient(base_url=url) as client:
        yield client


async def open_session(http: httpx2.AsyncClient) -> dict[str, str]:
    """Open a session of the handshake era; returns its headers."""
    response = await http.post("/mcp", json=INITIALIZE, headers=BOTH)
    assert response.status_code == 200
    return {**BOTH, "mcp-session-id": response.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}


REFUSED: list[Any] = [
    pytest.param("POST", {**MODERN}, b"{", 400, "parse_error", "protocol_error", id="no JSON"),
    pytest.param("POST", {**BOTH}, b"{", 400, "parse_error", "protocol_error", id="no JSON, handshake"),
    pytest.param("POST", {**MODERN}, b"[]", 400, "bad_request", "protocol_error", id="a batch"),
    pytest.param("POST", {**BOTH}, b"{}", 400, "bad_request", "protocol_error", id="no message"),
    pytest.param("POST", {**MODERN}, b"[" * 1500, 400, "parse_error", "protocol_error", id="nested deep"),
    pytest.param("POST", {**MODERN}, b'"\xff"', 400, "parse_error", "protocol_error", id="not UTF-8"),
    pytest.param("POST", {**BOTH}, message("ping"), 400, "bad_session", "protocol_error", id="no session"),
    pytest.param(
        "POST", {**BOTH, "mcp-session-id": "x"}, message("ping"), 404, "bad_session", "protocol_error", id="bad session"
    ),
    pytest.param(
        "POST",
        {**MODERN, "mcp-method": "x"},
        message("tools/list"),
        400,
        "bad_header",
        "protocol_error",
        id="bad header",
    ),
    pytest.param("POST", {**MODERN}, message("tools/list"), 400, "bad_header", "protocol_error", id="no header"),
    pytest.param(
        "POST",
        {**MODERN, "mcp-protocol-version": "1999-01-01"},
        message("tools/list"),
        400,
        "bad_header",
        "protocol_error",
        id="bad version",
    ),
    pytest.param(
        "POST", {**MODERN, "content-type": "text/plain"}, b"{}", 400, "bad_header", "protocol_error", id="bad type"
    ),
    pytest.param(
        "POST",
        {**MODERN, "accept": "text/html"},
        message("tools/list"),
        406,
        "not_acceptable",
        "validation_error",
        id="bad accept",
    ),
    pytest.param("POST", {**MODERN, "host": "evil.example"}, b"{}", 421, "bad_host", "auth_error", id="bad host"),
    pytest.param(
        "POST", {**MODERN, "origin": "http://evil.example"}, b"{}", 403, "bad_origin", "auth_error", id="bad origin"
    ),
    pytest.param("POST", {**MODERN}, b" " * 2001, 413, "too_large", "validation_error", id="too large"),
    pytest.param("GET", {**MODERN}, b"", 405, "bad_request", "protocol_error", id="GET without sessions"),
    pytest.param("GET", {**BOTH}, b"", 400, "bad_session", "protocol_error", id="GET outside a session"),
    pytest.param("PUT", {**MODERN}, b"", 405, "bad_request", "protocol_error", id="another verb"),
]


class TestRejections:
    @pytest.mark.parametrize(("verb", "headers", "body", "status", "reason", "error_type"), REFUSED)
    async def test_a_rejection_is_counted_once_with_its_reason(
        self,
        verb: str,
        headers: dict[str, str],
        body: Any,
        status: int,
        reason: str,
        error_type: str,
        http: httpx2.AsyncClient,
        numbers: Any,
    ) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body)
        response = await http.request(verb, "/mcp", headers=headers, content=content)
        assert response.status_code == status
        assert numbers.requests == {(verb, str(status)): 1}
        assert numbers.counts("mcp_transport_rejections_total") == {(reason,): 1}
        assert numbers.errors == {(error_type, "client"): 1}
        assert numbers.observations("mcp_server_operation_duration_seconds") == {}
        assert numbers.active == 0

    async def test_too_many_sessions_are_an_error_of_the_server(self, http: httpx2.AsyncClient, numbers: Any) -> None:
        for _ in range(2):
            await open_session(http)
        response = await http.post("/mcp", json=INITIALIZE, headers=BOTH)
        assert response.status_code == 503
        assert numbers.requests == {("initialize", "ok"): 2, ("POST", "503"): 1}
        assert numbers.counts("mcp_transport_rejections_total") == {("too_many_sessions",): 1}
        assert numbers.errors == {("rate_limited", "server"): 1}

    async def test_mismatched_tool_headers_are_a_rejection(self, meter: Meter, numbers: Any, serve: Any) -> None:
        schema = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}

        async def list_tools(ctx: Any, params: Any) -> ListToolsResult:
            return ListToolsResult(tools=[Tool(name="where", input_schema=schema)])

        async def call_tool(ctx: Any, params: Any) -> CallToolResult:
            return CallToolResult(content=[])

        server = Server("regional", on_list_tools=list_tools, on_call_tool=call_tool)
        instrument_with(meter, server)
        call = message("tools/call", name="where", arguments={"region": "north"})
        headers = {**MODERN, "mcp-method": "tools/call", "mcp-name": "where"}
        async with serve(server.streamable_http_app()) as url, httpx2.AsyncClient(base_url=url) as http:
            refused = await http.post("/mcp", json=call, headers={**headers, "mcp-param-region": "south"})
            accepted = await http.post("/mcp", json=call, headers={**headers, "mcp-param-region": "north"})
        assert (refused.status_code, accepted.status_code) == (400, 200)
        assert numbers.requests == {("POST", "400"): 1, ("tools/call", "ok"): 1}
        assert numbers.counts("mcp_transport_rejections_total") == {("bad_header",): 1}
        assert numbers.operations("tools/call") == {("where", ""): 1}

    async def test_every_reason_exists_at_zero(self, server: MCPServer, recorder: Recorder) -> None:
        cells = recorder.families["mcp_transport_rejections_total"].cells
        assert {reason for (reason,) in cells} == set(mcp.TRANSPORT_REJECTIONS.labels[0].values or ())

    def test_every_reason_has_an_error_type(self) -> None:
        assert set(ERROR_BY_REASON) == set(mcp.TRANSPORT_REJECTIONS.labels[0].values or ())
        assert {error_type for error_type, _ in ERROR_BY_REASON.values()} <= set(ERROR_TYPES)


class TestMessages:
    async def test_a_message_is_counted_once(self, http: httpx2.AsyncClient, numbers: Any) -> None:
        response = await http.post("/mcp", json=message("tools/list"), headers={**MODERN, "mcp-method": "tools/list"})
        assert response.status_code == 200
        assert numbers.requests == {("tools/list", "ok"): 1}
        operations = numbers.observations("mcp_server_operation_duration_seconds")
        assert operations == {("tools/list", "", "", "tcp", "2026-07-28", ""): 1}

    async def test_an_error_of_a_handler_is_no_rejection(self, http: httpx2.AsyncClient, numbers: Any) -> None:
        response = await http.post("/mcp", json=message("no/such"), headers={**MODERN, "mcp-method": "no/such"})
        assert response.status_code == 404
        assert numbers.requests == {("other", "error"): 1}
        assert numbers.counts("mcp_transport_rejections_total") == {}
        assert numbers.errors == {("protocol_error", "client"): 1}

    async def test_a_handshake_session_is_counted_per_message(
        self, http: httpx2.AsyncClient, numbers: Any, until: Until
    ) -> None:
        headers = await open_session(http)
        note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        response_to_server = {"jsonrpc": "2.0", "id": 9, "result": {}}
        assert (await http.post("/mcp", json=note, headers=headers)).status_code == 202
        assert (await http.post("/mcp", json=response_to_server, headers=headers)).status_code == 202
        await until(lambda: ("notifications/initialized", "ok") in numbers.requests)
        assert (await http.delete("/mcp", headers=headers)).status_code == 200
        await until(lambda: numbers.observations("mcp_server_session_duration_seconds") != {})
        expected = {("initialize", "ok"): 1, ("notifications/initialized", "ok"): 1, ("DELETE", "200"): 1}
        assert numbers.requests == expected
        assert numbers.observations("mcp_server_session_duration_seconds") == {("", "tcp", "2025-11-25", ""): 1}
        assert numbers.errors == {}

    async def test_a_dropped_notification_is_counted_as_a_post(self, http: httpx2.AsyncClient, numbers: Any) -> None:
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        assert (await http.post("/mcp", json=note, headers=MODERN)).status_code == 202
        assert numbers.requests == {("POST", "202"): 1}
        assert numbers.errors == {}

    async def test_a_session_stream_is_no_latency(self, http: httpx2.AsyncClient, numbers: Any, until: Until) -> None:
        headers = await open_session(http)
        async with http.stream("GET", "/mcp", headers=headers) as stream:
            assert stream.status_code == 200
            assert numbers.active == 0
        await http.delete("/mcp", headers=headers)
        await until(lambda: ("GET", "200") in numbers.requests)
        assert ("/mcp", "GET") not in numbers.observations("mcp_request_duration_seconds")

    @pytest.mark.parametrize("mode", ["auto", "legacy"])
    async def test_the_sdks_client_works_through_the_meter(
        self, mode: Any, server: MCPServer, serve: Any, numbers: Any
    ) -> None:
        async with serve(server.streamable_http_app()) as url, Client(f"{url}/mcp", mode=mode) as client:
            assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}
        assert numbers.operations("tools/call") == {("add", ""): 1}
        assert numbers.counts("mcp_transport_rejections_total") == {}

    async def test_other_routes_are_not_counted(self, http: httpx2.AsyncClient, numbers: Any) -> None:
        assert (await http.get("/elsewhere")).status_code == 404
        assert numbers.requests == {}


class TestFastMcp:
    """FastMCP has the low-level server in `_mcp_server`, another kind of `middleware`, and its own application."""

    class Shaped:
        middleware = ("of another kind",)

        def __init__(self) -> None:
            self._mcp_server: Server[Any] = Server("fast")

        def http_app(self, path: str = "/mcp") -> Any:
            app = Server.streamable_http_app(self._mcp_server, streamable_http_path=path)
            app.state.path = path
            return app

    async def test_mounted_applications_are_counted(self, meter: Meter, numbers: Any, serve: Any) -> None:
        server = self.Shaped()
        hook = instrument_with(meter, server)
        app = Starlette(routes=[Mount("/api", app=server.http_app(path="/here"))])
        async with serve(app) as url, httpx2.AsyncClient(base_url=url) as http:
            refused = await http.post("/api/here", content=b"{", headers={**MODERN, "host": "evil.example"})
            await http.post("/api/elsewhere", content=b"{", headers=MODERN)
        assert (
            refused.status_code == 500
        )  # Starlette does not run the lifespan of a mounted application, which starts the sessions
        assert numbers.requests == {("POST", "500"): 1}
        hook.remove()
        assert server._mcp_server.middleware[0] is not hook
        assert "http_app" not in vars(server)


class TestTransportMeter:
    """The middleware with applications of the tests."""

    @staticmethod
    async def run(recorder: Recorder, app: Any, verb: str = "POST", **scope: Any) -> list[Any]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        whole = {"type": "http", "method": verb, "path": "/mcp", "headers": [], **scope}
        await TransportMeter(app, Meter(recorder))(whole, receive, send)
        return sent

    async def test_a_crash_is_an_internal_error_and_is_raised(self, recorder: Recorder, numbers: Any) -> None:
        async def crash(scope: Any, receive: Any, send: Any) -> None:
            raise RuntimeError

        with pytest.raises(RuntimeError):
            await self.run(recorder, crash)
        assert numbers.requests == {("POST", "500"): 1}
        assert numbers.errors == {("internal_error", "server"): 1}

    async def test_a_disconnect_before_the_response_is_counted(self, recorder: Recorder, numbers: Any) -> None:
        async def silent(scope: Any, receive: Any, send: Any) -> None:
            await receive()

        await self.run(recorder, silent)
        assert numbers.requests == {("POST", "499"): 1}
        assert numbers.errors == {("client_disconnected", "client"): 1}

    async def test_a_challenge_is_unauthorized(self, recorder: Recorder, numbers: Any) -> None:
        async def challenge(scope: Any, receive: Any, send: Any) -> None:
            headers = [(b"WWW-Authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": b""})

        await self.run(recorder, challenge)
        assert numbers.counts("mcp_transport_rejections_total") == {("unauthorized",): 1}

    async def test_an_application_error_is_no_rejection(self, recorder: Recorder, numbers: Any) -> None:
        async def drain(scope: Any, receive: Any, send: Any) -> None:
            request = metered_request(scope)
            assert request is not None
            request.refusal = Draining("The service is stopping.")
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        await self.run(recorder, drain)
        assert numbers.requests == {("POST", "503"): 1}
        assert numbers.errors == {("internal_error", "server"): 1}
        assert numbers.counts("mcp_transport_rejections_total") == {}

    async def test_other_protocols_pass(self, recorder: Recorder, numbers: Any) -> None:
        passed = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            passed.append(scope)

        await self.run(recorder, app, type="lifespan")
        assert len(passed) == 1
        assert SCOPE_KEY not in passed[0]
        assert numbers.requests == {}

    async def test_on_disconnect_callbacks_run(self, recorder: Recorder) -> None:
        called: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            request = metered_request(scope)
            assert request is not None
            request.on_disconnect(lambda: called.append("first"))
            await receive()
            request.on_disconnect(lambda: called.append("late"))
            await receive()

        await self.run(recorder, app)
        assert called == ["first", "late"]

    async def test_the_end_of_a_response_is_no_disconnect(self, recorder: Recorder) -> None:
        called: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            request = metered_request(scope)
            assert request is not None
            request.on_disconnect(lambda: called.append("disconnected"))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            await receive()

        await self.run(recorder, app)
        assert called == []

    @given(status=st.integers(100, 599), verb=st.text(max_size=8), body=st.binary(max_size=64))
    def test_any_response_is_counted_once_in_the_closed_sets(self, status: int, verb: str, body: bytes) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": body})

        recorder = Recorder()
        sent = asyncio.run(self.run(recorder, app, verb))
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
        cells = recorder.families["mcp_requests_total"].cells
        counted = {key: cell.value for key, cell in cells.items() if cell.value}
        assert sum(counted.values()) == (status != 202)
        assert {key[2] for key in counted} <= {*labels.HTTP_STATUSES, "other"}
        assert recorder.families["mcp_meter_faults_total"].cells[()].value == 0


class TestPrincipal:
    async def test_a_message_has_the_authenticated_team_and_key(
        self, server: MCPServer, meter: Meter, serve: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        app = server.streamable_http_app()
        settled: list[Settlement] = []
        monkeypatch.setattr(meter.recorder, "settle", settled.append)

        async def authenticated(scope: Any, receive: Any, send: Any) -> None:
            scope.setdefault("state", {})[PRINCIPAL_KEY] = ("red", "key_1")
            await app(scope, receive, send)

        async with serve(authenticated) as url, Client(f"{url}/mcp") as client:
            await client.call_tool("add", {"a": 1, "b": 2})
        assert {(s.call.team, s.call.key_id) for s in settled} == {("red", "key_1")}

    def test_the_principal_is_read_from_the_scope(self) -> None:
        assert principal({"state": {PRINCIPAL_KEY: ("team", "key_1")}}) == ("team", "key_1")

    @pytest.mark.parametrize("scope", [{}, {"state": None}, {"state": {}}, {"state": {PRINCIPAL_KEY: "team"}}])
    def test_an_invalid_principal_is_empty(self, scope: dict[str, Any]) -> None:
        assert principal(scope) == ("", "")
