"""The relay as an MCP server: SDK clients of both protocol eras, over HTTP and in memory, with the simulator."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.mcpserver import MCPServer
from mcp_types import CallToolResult

from mcpmeter.access.keys import KeyRing, new_key
from mcpmeter.dialects.openai_chat import OpenAiChat
from mcpmeter.errors import LedgerNotUsable
from mcpmeter.http.client import Http1Client
from mcpmeter.http.client.interface import Timeouts
from mcpmeter.instrument.sdk_v2 import instrument_with
from mcpmeter.ledger.queries.totals import Total, totals
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.mcp_server import ModelInfo, build_mcp_server
from mcpmeter.mcp_server.tool_exchange import ResponseText
from mcpmeter.meter import Meter
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.pricing import PriceBook, PriceSource, bundled_price_lists
from mcpmeter.providers import load_providers
from mcpmeter.quota.tracker import QuotaTracker
from mcpmeter.records import Settlement
from mcpmeter.relay.pipeline import EndpointConfig, Pipeline, RelayOptions, Runtime
from mcpmeter.routing.failover import Failover, FailoverMetrics
from mcpmeter.routing.retries import RetryOptions
from mcpmeter.routing.routes import Routing, Upstream
from mcpmeter.simulator import Fault, Latency, Simulator, Spread
from mcpmeter.usage import UsageQuery, UsageReport, usage_report

HELLO: Any = [{"role": "user", "content": "Say something."}]
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass
class Relay:
    """A relay with its MCP server, ledger and provider."""

    server: MCPServer
    pipeline: Pipeline
    recorder: Recorder
    simulator: Simulator
    ledger: Path
    report_fault: Exception | None = None

    def counts(self, name: str) -> dict[tuple[str, ...], int]:
        return {key: cell.value for key, cell in self.recorder.families[name].cells.items() if cell.value}

    def operations(self) -> dict[tuple[str, str], int]:
        """(tool, error type) of tool calls -> count."""
        family = self.recorder.families["mcp_server_operation_duration_seconds"]
        found: dict[tuple[str, str], int] = {}
        for labels, cell in family.histograms.items():
            if labels[0] == "tools/call":
                found[labels[1:3]] = found.get(labels[1:3], 0) + sum(cell.counts)  # type: ignore[index]
        return found

    def rows(self) -> dict[str, Total]:
        return {total.group[0]: total for total in totals(self.ledger, by=["outcome"])}

    @property
    def active(self) -> int:
        return self.recorder.families["mcp_active_requests"].cells[()].value


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Relay]:
    ledger = tmp_path / "ledger.sqlite"
    async with AsyncExitStack() as stack:
        simulator = await stack.enter_async_context(Simulator(seed=1, completion_tokens=Spread("fixed", 40)))
        store = SqliteStore(ledger)
        await store.start()
        stack.push_async_callback(store.close)
        client = Http1Client(Timeouts())
        stack.push_async_callback(client.close)
        book = PriceBook(bundled_price_lists(), sources={"sim": PriceSource("holysheep")})
        recorder = Recorder()
        recorder.label_allowlist.register("model", ["gpt-4.1", "deepseek-v3.2"])
        recorder.label_allowlist.register("provider", ["sim"])
        recorder.label_allowlist.register("team", ["default", "red", "blue"])

        meter = Meter(recorder, store=store, prices=book)
        provider = load_providers()["generic"].renamed("sim", base_url=simulator.base_url)
        runtime = Runtime(
            options=RelayOptions(max_body_bytes=20_000),
            routing=Routing([Upstream(provider=provider, timeouts=Timeouts(first_byte_seconds=0.25, idle_seconds=1))]),
            client=client,
            keys=KeyRing([]),
        )
        # No retries and no backoff: each test observes its own fault.
        failover = Failover(FailoverMetrics(recorder), retries=RetryOptions(max_attempts=1))
        pipeline = Pipeline(meter, runtime, failover, QuotaTracker(recorder))

        async def report(query: UsageQuery) -> UsageReport:
            if made.report_fault is not None:
                raise made.report_fault
            return await asyncio.to_thread(usage_report, ledger, query)

        server = build_mcp_server(
            pipeline=pipeline,
            service=EndpointConfig(dialect=OpenAiChat(), default_model="deepseek-v3.2", maps_upstream_faults=True),
            list_models=lambda: [ModelInfo.of("sim", price) for price in book.models("sim")],
            price_book=lambda: book,
            usage_report=report,
            version="0.0.1",
        )
        instrument_with(meter, server)
        made = Relay(server, pipeline, recorder, simulator, ledger)
        yield made
        assert pipeline.active_calls == set()


@asynccontextmanager
async def served(server: MCPServer) -> AsyncIterator[str]:
    """Serve the SDK's HTTP application on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(server.streamable_http_app(), log_config=None, ws="none", timeout_graceful_shutdown=1)
    listening = uvicorn.Server(config)
    task = asyncio.create_task(listening._serve(sockets=[listener]))
    while not listening.started and not task.done():
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    finally:
        listening.should_exit = True
        await task


@asynccontextmanager
async def connected(relay: Relay, transport: str, mode: str, key: str = "") -> AsyncIterator[Client]:
    """An SDK client, in memory or over HTTP with a key."""
    if transport == "memory":
        async with Client(relay.server, mode=mode) as client:
            yield client
        return
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with served(relay.server) as url, httpx2.AsyncClient(headers=headers, timeout=120) as http:
        async with Client(streamable_http_client(url, http_client=http), mode=mode) as client:
            yield client


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not holds():
            await asyncio.sleep(0.005)


def text_of(result: CallToolResult) -> str:
    return "".join(part.text for part in result.content if part.type == "text")


EVERY_TRANSPORT = pytest.mark.parametrize(
    ("transport", "mode"), [("memory", "auto"), ("memory", "legacy"), ("http", "auto"), ("http", "legacy")]
)


class TestChat:
    @EVERY_TRANSPORT
    async def test_a_response_has_its_usage_and_cost(self, transport: str, mode: Any, relay: Relay) -> None:
        async with connected(relay, transport, mode) as client:
            result = await client.call_tool("chat", {"messages": HELLO, "model": "gpt-4.1"})
        response = result.structured_content
        assert response is not None
        billed = relay.simulator.billing_log.totals
        assert response["usage"] == {
            "prompt_tokens": billed.prompt_tokens,
            "completion_tokens": billed.completion_tokens,
            "source": "reported",
        }
        nanousd = billed.prompt_tokens * 2500 + billed.completion_tokens * 10000
        assert response["cost"]["source"] == "listed"
        assert float(response["cost"]["usd"]) * 1e9 == pytest.approx(nanousd)
        assert response["content"]
        assert (response["model"], response["finish_reason"]) == ("gpt-4.1", "stop")
        assert json.loads(text_of(result)) == response
        assert response["call_id"].startswith("call_")

    @pytest.mark.parametrize(("transport", "mode"), [("memory", "auto"), ("http", "legacy")])
    async def test_a_call_is_settled_once(self, transport: str, mode: Any, relay: Relay) -> None:
        async with connected(relay, transport, mode) as client:
            await client.call_tool("chat", {"messages": HELLO, "model": "gpt-4.1"})
        assert {outcome: total.calls for outcome, total in relay.rows().items()} == {"ok": 1}
        assert relay.counts("mcp_requests_total")["/mcp", "tools/call", "ok"] == 1
        tokens = relay.counts("mcp_tokens_total")
        billed = relay.simulator.billing_log.totals
        assert tokens["gpt-4.1", "prompt", "default", "sim", "reported"] == billed.prompt_tokens
        assert tokens["gpt-4.1", "completion", "default", "sim", "reported"] == billed.completion_tokens
        assert relay.counts("mcp_errors_total") == {}
        assert relay.active == 0

    @EVERY_TRANSPORT
    async def test_progress_has_the_streamed_text_and_increases(self, transport: str, mode: Any, relay: Relay) -> None:
        relay.simulator.plan = replace_plan(relay, between_chunks=Latency.from_rate("200"))
        reported: list[tuple[float, str | None]] = []

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            reported.append((progress, message))

        async with connected(relay, transport, mode) as client:
            result = await client.call_tool("chat", {"messages": HELLO}, progress_callback=on_progress)
            assert result.structured_content is not None
            content = result.structured_content["content"]
            await until(lambda: bool(reported) and reported[-1][0] == len(content))
        assert len(reported) > 3
        assert [progress for progress, _ in reported] == sorted({progress for progress, _ in reported})
        assert "".join(message or "" for _, message in reported) == content

    async def test_without_streaming_no_progress_is_reported(self, relay: Relay) -> None:
        reported: list[float] = []

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            reported.append(progress)

        async with connected(relay, "memory", "auto") as client:
            arguments = {"messages": HELLO, "stream": False, "max_tokens": 7, "temperature": 0.5}
            result = await client.call_tool("chat", arguments, progress_callback=on_progress)
        assert result.structured_content is not None
        assert result.structured_content["usage"]["completion_tokens"] == 7
        assert result.structured_content["finish_reason"] == "length"
        assert reported == []

    async def test_the_default_model_is_used_without_a_model(self, relay: Relay) -> None:
        async with connected(relay, "memory", "auto") as client:
            result = await client.call_tool("chat", {"messages": HELLO})
        assert result.structured_content is not None
        assert result.structured_content["model"] == "deepseek-v3.2"

    async def test_a_model_without_price_is_unpriced_and_never_free(self, relay: Relay) -> None:
        async with connected(relay, "memory", "auto") as client:
            result = await client.call_tool("chat", {"messages": HELLO, "model": "mystery"})
        assert result.structured_content is not None
        assert result.structured_content["cost"] == {"usd": None, "source": "unpriced"}
        assert relay.counts("mcp_unpriced_requests_total") == {("sim", "unknown_model"): 1}

    async def test_unknown_message_fields_reach_the_provider(self, relay: Relay) -> None:
        parts = [{"type": "text", "text": "four"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
        async with connected(relay, "memory", "auto") as client:
            await client.call_tool("chat", {"messages": [{"role": "user", "name": "eve", "content": parts}]})
        # 4 for the message, 1 for four characters, 85 for the image.
        assert relay.simulator.billing_log.totals.prompt_tokens == 90


class TestRefusals:
    @pytest.mark.parametrize(
        ("fault", "error_type", "says"),
        [
            ("status=500", "upstream_error", "500"),
            ("status=429,retry_after=2", "upstream_rate_limited", "ate limit"),
            ("status=401", "upstream_error", "own account"),
            ("stall=headers", "upstream_timeout", "nothing"),
            ("body=html", "upstream_error", "not"),
        ],
    )
    @pytest.mark.parametrize("stream", [True, False])
    async def test_a_provider_error_is_counted_for_the_provider(
        self, fault: str, error_type: str, says: str, stream: bool, relay: Relay
    ) -> None:
        relay.simulator.plan = replace_plan(relay, faults=(Fault.parse(fault),))
        async with connected(relay, "memory", "auto") as client:
            result = await client.call_tool("chat", {"messages": HELLO, "stream": stream})
        assert result.is_error
        assert says in text_of(result)
        assert "call_" in text_of(result)
        assert "Traceback" not in text_of(result)
        assert relay.counts("mcp_errors_total") == {(error_type, "upstream"): 1}
        assert relay.operations() == {("chat", "tool_error"): 1}

    async def test_an_interrupted_stream_is_an_error_settled_as_partial(self, relay: Relay) -> None:
        relay.simulator.plan = replace_plan(relay, faults=(Fault.parse("reset=body"),))
        async with connected(relay, "memory", "auto") as client:
            result = await client.call_tool("chat", {"messages": HELLO})
        assert result.is_error
        assert relay.counts("mcp_errors_total") == {("upstream_error", "upstream"): 1}
        (total,) = relay.rows().values()
        assert (total.calls, total.partial_calls) == (1, 1)

    async def test_an_empty_chat_is_a_client_error(self, relay: Relay) -> None:
        async with connected(relay, "memory", "auto") as client:
            result = await client.call_tool("chat", {"messages": []})
        assert result.is_error
        assert "'messages' is empty" in text_of(result)
        assert relay.counts("mcp_errors_total") == {("validation_error", "client"): 1}
        assert relay.rows() == {}

    async def test_a_body_above_the_limit_is_a_client_error(self, relay: Relay) -> None:
        async with connected(relay, "memory", "auto") as client:
            result = await client.call_tool("chat", {"messages": [{"role": "user", "content": "x" * 30_000}]})
        assert "20000 bytes" in text_of(result)
        assert relay.counts("mcp_errors_total") == {("validation_error", "client"): 1}

    async def test_a_lone_surrogate_is_refused(self, relay: Relay) -> None:
        body = (
            b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"chat","arguments":{"messages":'
            b'[{"role":"user","content":"\\ud800"}]},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",'
            b'"io.modelcontextprotocol/clientCapabilities":{}}}}'
        )
        headers = {
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": "2026-07-28",
            "mcp-method": "tools/call",
            "mcp-name": "chat",
        }
        async with served(relay.server) as url, httpx2.AsyncClient() as http:
            responses = [(await http.post(url, content=body, headers=headers)).json() for _ in range(2)]
        assert [response["result"]["isError"] for response in responses] == [True, True]
        assert relay.counts("mcp_errors_total") == {("validation_error", "client"): 2}

    async def test_a_draining_service_refuses_calls(self, relay: Relay) -> None:
        relay.pipeline.draining = True
        async with connected(relay, "memory", "auto") as client:
            result = await client.call_tool("chat", {"messages": HELLO})
        assert "stopping" in text_of(result)

    async def test_prompts_and_provider_messages_are_not_logged(
        self, relay: Relay, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG, "mcp")
        relay.simulator.plan = replace_plan(relay, faults=(Fault.parse("status=400"),))
        secret = "a confidential prompt"
        async with connected(relay, "memory", "auto") as client:
            result = await client.call_tool("chat", {"messages": [{"role": "user", "content": secret}]})
        assert result.is_error
        assert secret not in caplog.text
        assert text_of(result).partition(" (call_")[0] not in caplog.text


class TestCancellation:
    @EVERY_TRANSPORT
    async def test_a_cancelled_call_stops_upstream_and_is_partial(
        self, transport: str, mode: Any, relay: Relay
    ) -> None:
        relay.simulator.plan = replace_plan(relay, between_chunks=Latency.from_rate("20"))
        started = asyncio.Event()

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            started.set()

        async with connected(relay, transport, mode) as client:
            call = asyncio.create_task(client.call_tool("chat", {"messages": HELLO}, progress_callback=on_progress))
            await started.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await relay.simulator.billing_log.wait_until(lambda log: log.totals.cancelled == 1, timeout_seconds=120)
            await until(lambda: relay.active == 0)
        assert {outcome: total.calls for outcome, total in relay.rows().items()} == {"partial": 1}
        assert relay.rows()["partial"].partial_calls == 1
        assert relay.rows()["partial"].completion_tokens > 0
        assert relay.operations() == {("chat", "cancelled"): 1}
        assert relay.counts("mcp_errors_total") == {("client_disconnected", "client"): 1}

    async def test_the_model_call_is_settled_before_its_operation(
        self, relay: Relay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        relay.simulator.plan = replace_plan(relay, first_byte=Latency.parse("10000"))
        order: list[Settlement] = []
        monkeypatch.setattr(relay.recorder, "settle", order.append)
        async with connected(relay, "memory", "legacy") as client:
            call = asyncio.create_task(client.call_tool("chat", {"messages": HELLO}))
            await relay.simulator.billing_log.wait_until(lambda log: log.open_calls == 1, timeout_seconds=120)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await until(lambda: relay.active == 0)
        model_call, operation = (settled for settled in order if settled.call.method == "tools/call")
        assert model_call.call.llm is not None
        assert model_call.call.parent_id == operation.call.id
        assert (model_call.outcome, operation.status) == ("partial", "cancelled")

    async def test_a_call_cancelled_before_the_first_byte_is_settled(self, relay: Relay) -> None:
        relay.simulator.plan = replace_plan(relay, first_byte=Latency.parse("10000"))
        async with connected(relay, "memory", "auto") as client:
            call = asyncio.create_task(client.call_tool("chat", {"messages": HELLO}))
            await relay.simulator.billing_log.wait_until(lambda log: log.open_calls == 1, timeout_seconds=120)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await until(lambda: relay.active == 0)
        assert {outcome: total.calls for outcome, total in relay.rows().items()} == {"partial": 1}

    @pytest.mark.parametrize("mode", ["auto", "legacy"])
    async def test_a_disconnect_stops_upstream_in_both_eras(self, mode: str, relay: Relay) -> None:
        relay.simulator.plan = replace_plan(relay, between_chunks=Latency.from_rate("20"))
        async with served(relay.server) as url:
            async with httpx2.AsyncClient(timeout=120) as http:
                headers, meta = await opened(http, url, mode)
                meta["progressToken"] = "p"
                call = {
                    "jsonrpc": "2.0",
                    "id": 7,
                    "method": "tools/call",
                    "params": {"name": "chat", "arguments": {"messages": HELLO}, "_meta": meta},
                }
                async with http.stream("POST", url, json=call, headers=headers) as stream:
                    async for line in stream.aiter_lines():
                        if "notifications/progress" in line:
                            break
            await relay.simulator.billing_log.wait_until(lambda log: log.totals.cancelled == 1, timeout_seconds=120)
            await until(lambda: relay.active == 0)
        assert {outcome: total.calls for outcome, total in relay.rows().items()} == {"partial": 1}
        assert relay.counts("mcp_errors_total") == {("client_disconnected", "client"): 1}


class TestOtherTools:
    async def test_every_tool_has_schemas_and_descriptions(self, relay: Relay) -> None:
        async with connected(relay, "memory", "auto") as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"chat", "list_models", "estimate_cost", "usage_report"}
        for tool in tools.values():
            assert tool.description
            assert tool.output_schema is not None
            assert tool.output_schema["type"] == "object"
            assert tool.annotations is not None
            assert tool.annotations.read_only_hint is (tool.name != "chat")
            assert "ctx" not in tool.input_schema.get("properties", {})
            for field in tool.input_schema.get("properties", {}).values():
                assert field.get("description")
        assert tools["chat"].input_schema["required"] == ["messages"]

    async def test_prices_are_decimal_text(self, relay: Relay) -> None:
        async with connected(relay, "memory", "auto") as client:
            result = await client.call_tool("list_models")
        assert result.structured_content is not None
        models = {model["id"]: model for model in result.structured_content["models"]}
        assert models["deepseek-v3.2"] == {
            "id": "deepseek-v3.2",
            "provider": "sim",
            "prompt_usd_per_mtok": "0.27",
            "completion_usd_per_mtok": "1.10",
            "recommended_for": "Cost optimization, standard tasks",
        }

    async def test_an_estimate_is_exact(self, relay: Relay) -> None:
        async with connected(relay, "memory", "auto") as client:
            arguments = {"model": "deepseek-v3.2", "prompt_tokens": 1, "completion_tokens": 3}
            result = await client.call_tool("estimate_cost", arguments)
        assert result.structured_content is not None
        assert result.structured_content["usd"] == "0.00000357"
        assert result.structured_content["priced"] is True
        assert result.structured_content["price_list"].startswith("holysheep")

    async def test_an_estimate_for_an_unknown_model_is_unpriced(self, relay: Relay) -> None:
        async with connected(relay, "memory", "auto") as client:
            arguments = {"model": "mystery", "prompt_tokens": 10, "completion_tokens": 10}
            result = await client.call_tool("estimate_cost", arguments)
        assert result.structured_content is not None
        assert result.structured_content["priced"] is False
        assert result.structured_content["usd"] is None

    async def test_the_report_equals_the_ledger(self, relay: Relay) -> None:
        async with connected(relay, "memory", "auto") as client:
            for model in ("gpt-4.1", "gpt-4.1", "mystery"):
                await client.call_tool("chat", {"messages": HELLO, "model": model})
            result = await client.call_tool("usage_report", {"by": "model"})
        report = result.structured_content
        assert report is not None
        rows = {row["group"]: row for row in report["rows"]}
        assert (rows["gpt-4.1"]["calls"], rows["mystery"]["calls"]) == (2, 1)
        assert (rows["gpt-4.1"]["unpriced_calls"], rows["mystery"]["unpriced_calls"]) == (0, 1)
        assert rows["mystery"]["usd"] == "0.00"
        assert report["total_usd"] == rows["gpt-4.1"]["usd"] != "0.00"
        assert report["team"] is None

    async def test_a_reversed_period_is_refused(self, relay: Relay) -> None:
        async with connected(relay, "memory", "auto") as client:
            arguments = {"since": "2026-02-01", "until": "2026-01-01"}
            result = await client.call_tool("usage_report", arguments)
        assert "'since' is not before 'until'" in text_of(result)
        assert relay.counts("mcp_errors_total") == {("validation_error", "client"): 1}

    async def test_an_unreadable_ledger_does_not_disclose_its_path(self, relay: Relay) -> None:
        relay.report_fault = LedgerNotUsable("Cannot read /secret/place.")
        async with connected(relay, "memory", "auto") as client:
            result = await client.call_tool("usage_report", {})
        assert result.is_error
        assert "/secret" not in text_of(result)
        assert relay.counts("mcp_errors_total") == {("internal_error", "server"): 1}

    async def test_reports_take_groupings_months_and_time_zones(self, relay: Relay) -> None:
        async with connected(relay, "memory", "auto") as client:
            await client.call_tool("chat", {"messages": HELLO, "model": "mystery"})
            arguments = {"by": ["provider", "model"], "time_zone": "Asia/Kathmandu"}
            result = await client.call_tool("usage_report", arguments)
            other = await client.call_tool("usage_report", {"month": "2020-02", "time_zone": "Europe/Berlin"})
            wrong = await client.call_tool("usage_report", {"time_zone": "Europe/Nowhere"})
        (row,) = result.structured_content["rows"]
        assert row["groups"]["model"] == "mystery"
        assert row["group"] == f"{row['groups']['provider']} / mystery"
        assert (row["unpriced_calls"], row["fallback_usd"]) == (1, "0.00")
        assert other.structured_content["rows"] == []
        assert other.structured_content["since"] == "2020-01-31T23:00:00Z"
        assert "no time zone" in text_of(wrong)


class TestKeys:
    @pytest.fixture
    def secrets(self, relay: Relay) -> dict[str, str]:
        made = {team: new_key("ci", team, 0) for team in ("red", "blue")}
        keys = KeyRing([key for _, key in made.values()])
        relay.pipeline.runtime = replace(relay.pipeline.runtime, keys=keys)
        return {team: secret for team, (secret, _) in made.items()}

    @pytest.mark.parametrize("mode", ["auto", "legacy"])
    async def test_calls_and_reports_are_of_the_callers_team(
        self, mode: str, relay: Relay, secrets: dict[str, str]
    ) -> None:
        for team, calls in (("red", 1), ("blue", 2)):
            async with connected(relay, "http", mode, secrets[team]) as client:
                for _ in range(calls):
                    await client.call_tool("chat", {"messages": HELLO})
        async with connected(relay, "http", mode, secrets["red"]) as client:
            result = await client.call_tool("usage_report", {"by": "team"})
        assert result.structured_content is not None
        assert [(row["group"], row["calls"]) for row in result.structured_content["rows"]] == [("red", 1)]
        assert result.structured_content["team"] == "red"
        by_team = {total.group[0]: total.calls for total in totals(relay.ledger, by=["team"])}
        assert by_team == {"red": 1, "blue": 2}

    @pytest.mark.parametrize(
        ("tool", "arguments"),
        [
            ("chat", {"messages": HELLO}),
            ("list_models", {}),
            ("usage_report", {}),
            ("estimate_cost", {"model": "m", "prompt_tokens": 1, "completion_tokens": 1}),
        ],
    )
    @pytest.mark.parametrize("key", ["", "mk_wrong"])
    async def test_every_tool_requires_a_valid_key(
        self, tool: str, arguments: dict[str, Any], key: str, relay: Relay, secrets: dict[str, str]
    ) -> None:
        async with connected(relay, "http", "auto", key) as client:
            result = await client.call_tool(tool, arguments)
        assert result.is_error
        assert "API key" in text_of(result)
        assert "mk_wrong" not in text_of(result)
        assert relay.counts("mcp_errors_total") == {("auth_error", "client"): 1}
        assert relay.simulator.billing_log.totals.calls == 0


class TestResponseText:
    @given(st.lists(st.text()), st.integers(1, 7), st.sampled_from(["\n\n", "\r\n\r\n"]))
    def test_chunk_borders_do_not_change_the_text(self, texts: list[str], size: int, blank: str) -> None:
        events = [json.dumps({"choices": [{"delta": {"content": text}}]}) for text in texts]
        stream = "".join(f"data: {event}{blank}" for event in [*events, "[DONE]"]).encode()
        response = ResponseText()
        response.is_stream = True
        parts = "".join(response.feed(stream[start : start + size]) for start in range(0, len(stream), size))
        assert response.finish() == parts == "".join(texts).encode("utf-8", "replace").decode()

    @given(st.binary(), st.booleans())
    def test_random_bytes_are_accepted(self, data: bytes, is_stream: bool) -> None:
        response = ResponseText()
        response.is_stream = is_stream
        response.feed(b"data: " + data)
        response.finish().encode()
        response.error_message.encode()

    @pytest.mark.parametrize(
        "body",
        [
            b'{"choices": 7}',
            b'{"choices": [{"message": {"content": null}}]}',
            b'{"choices": [[]], "error": {}}',
            b"[" * 100_000,
        ],
    )
    def test_a_response_without_text_is_empty(self, body: bytes) -> None:
        response = ResponseText()
        response.feed(body)
        assert response.finish() == ""

    def test_lone_surrogates_of_a_provider_are_replaced(self) -> None:
        response = ResponseText()
        response.feed(b'{"choices": [{"message": {"content": "a\\ud800b"}}]}')
        assert response.finish() == "a?b"


class TestProcess:
    async def test_building_the_server_keeps_the_logging_configuration(self, relay: Relay) -> None:
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        root.handlers.clear()
        try:
            build_mcp_server(
                pipeline=relay.pipeline,
                service=EndpointConfig(dialect=OpenAiChat()),
                list_models=list,
                price_book=PriceBook,
                usage_report=lambda query: asyncio.sleep(0),
                version="1",
            )
            assert root.handlers == []
            assert root.level == level
        finally:
            root.handlers[:] = handlers


def replace_plan(relay: Relay, **changes: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(relay.simulator.plan, **changes)


async def opened(http: httpx2.AsyncClient, url: str, mode: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Headers and `_meta` to call a tool with, in either era."""
    headers = {"accept": "application/json, text/event-stream"}
    if mode == "auto":
        modern = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "chat"}
        return {**headers, **modern}, {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        }
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
    initialize = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    response = await http.post(url, json=initialize, headers=headers)
    session = {"mcp-session-id": response.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}
    await http.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers={**headers, **session})
    return {**headers, **session}, {}
