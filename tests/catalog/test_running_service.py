"""A running service under real calls: every row moves, and /metrics contains exactly the catalog."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import mcp
import pytest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from pydantic import SecretStr

from mcpmeter.catalog import ALL
from mcpmeter.catalog import budget as budget_rows
from mcpmeter.catalog import mcp as mcp_rows
from mcpmeter.catalog import money as money_rows
from mcpmeter.catalog import quota as quota_rows
from mcpmeter.catalog import service as service_rows
from mcpmeter.catalog import upstream as upstream_rows
from mcpmeter.config import BudgetSettings, LedgerSettings, ProviderSettings, ServerSettings, Settings
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.meter import new_call_id
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.records import Call, LlmTarget
from mcpmeter.service import Service, bind
from mcpmeter.service.run import running
from mcpmeter.simulator import Price, Simulator

CHAT = "/v1/chat/completions"
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = {"traceparent": f"00-{TRACE_ID}-00f067aa0ba902b7-01"}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}
JSON = {"content-type": "application/json", "accept": "application/json, text/event-stream"}

NOT_MOVED_BY_A_HEALTHY_RELAY = {
    mcp_rows.CLIENT_OPERATION_DURATION.name: "fed by a proxy",
    service_rows.INTERNAL_FAULTS.name: "moves when the meter itself is broken",
    service_rows.BACKGROUND_CALLS.name: "moves while a background response is pending",
    service_rows.SETTLEMENTS_PENDING.name: "moves while the ledger is away",
    service_rows.SETTLEMENTS_UNWRITTEN.name: "moves when neither ledger nor pending file can be written",
    service_rows.SETTLEMENTS_REJECTED.name: "moves when the ledger refuses what was pending",
    service_rows.LIMIT_REACHED.name: "moves when a limit is reached",
    upstream_rows.CIRCUIT_OPEN.name: "moves when a provider fails again and again",
    upstream_rows.DISCONNECTS.name: "moves when a client disconnects before the end",
    upstream_rows.RETRIES.name: "moves when a route has another upstream",
    money_rows.UNPRICED_ITEMS.name: "moves when a call has an item without a price",
    budget_rows.REFUSALS.name: "moves when a budget is exhausted",
    quota_rows.EXHAUSTION.name: "moves when a quota is used up before its reset",
}
"""Rows that other tests move."""


@dataclass
class Scrape:
    """The parsed body of one GET /metrics."""

    families: dict[str, Family] = field(default_factory=dict)

    def total(self, name: str) -> float:
        """Sum over all children; a histogram's is its count."""
        family = self.families[name]
        sample = f"{name}_count" if family.type == "histogram" else name
        return sum(s.value for s in family.samples if s.name == sample)

    def value(self, name: str, **labels: str) -> float:
        (found,) = (
            s.value
            for family in self.families.values()
            for s in family.samples
            if s.name == name and labels.items() <= s.labels.items()
        )
        return found


@dataclass
class Running:
    """The service, its upstream and a client."""

    address: str
    service: Service
    upstream: Simulator
    client: httpx2.AsyncClient

    async def chat(self, simulate: str = "", *, model: str = "gpt-4.1", **more: Any) -> int:
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Hello"}], **more}
        if simulate:
            body["metadata"] = {"simulate": simulate}
        return (await self.client.post(f"{self.address}{CHAT}", json=body, headers=TRACEPARENT)).status_code

    async def text(self, accept: str = "") -> tuple[str, str]:
        answer = await self.client.get(f"{self.address}/metrics", headers={"accept": accept.encode()})
        assert answer.status_code == 200
        return answer.text, answer.headers["content-type"]

    async def scrape(self) -> Scrape:
        text, _ = await self.text()
        families = {f.name if f.type != "counter" else f"{f.name}_total": f for f in parse_text(text)}
        return Scrape(families)


@asynccontextmanager
async def running_relay(folder: Path) -> AsyncIterator[Running]:
    """Not a fixture, because the MCP SDK's sessions must end in the task that started them."""
    await leave_a_row_open(folder / "ledger.db")
    price = {"gpt-4.1": Price(Decimal("2.50"), Decimal("10.00"))}
    async with Simulator(seed=1, prices=price) as upstream:
        provider = ProviderSettings(name="holysheep", base_url=upstream.base_url, api_key=SecretStr("simulated"))
        settings = Settings(
            server=ServerSettings(host="127.0.0.1", port=0),
            ledger=LedgerSettings(path=folder / "ledger.db"),
            providers=(provider,),
            budgets=(BudgetSettings(name="all", limit_usd=Decimal(100)),),
        )
        service = Service(lambda: settings)
        async with running(service, bind("127.0.0.1", 0)) as address, httpx2.AsyncClient(verify=False) as client:
            yield Running(address, service, upstream, client)


async def leave_a_row_open(path: Path) -> None:
    store = SqliteStore(path)
    await store.start()
    target = LlmTarget(provider="holysheep", model="gpt-4.1", prompt_tokens_estimate=7)
    await store.open(Call(id=new_call_id(), started_at_ns=1, endpoint=CHAT, method="POST", team="default", llm=target))
    await store.close()


async def traffic(relay: Running) -> None:
    """One call of each kind."""
    assert await relay.chat() == 200
    assert await relay.chat(stream=True, simulate="cached_tokens=2,reasoning_tokens=3,completion_tokens=9") == 200
    assert await relay.chat(simulate="usage=missing") == 200
    assert await relay.chat(simulate="completion_tokens=0") == 200
    assert await relay.chat(simulate="refusal=true") == 200
    assert await relay.chat(simulate="completion_tokens=9", max_tokens=2) == 200
    assert await relay.chat(simulate="status=503") == 503
    assert await relay.chat(model="unregistered-model") == 200
    assert (await relay.client.post(f"{relay.address}/mcp", json=INITIALIZE, headers=JSON)).status_code == 200
    assert (await relay.client.post(f"{relay.address}/mcp", content=b"{", headers=JSON)).status_code == 400
    async with mcp.Client(f"{relay.address}/mcp") as client:
        await client.call_tool("list_models", {})


def totals_of(recorder: Recorder) -> dict[str, int]:
    return {
        family.metric.name: sum(value for _, value, _ in family.values) + sum(sum(h[1]) for h in family.histograms)
        for family in recorder.snapshot()
    }


async def test_every_row_moves_under_real_calls(tmp_path: Path) -> None:
    async with running_relay(tmp_path) as relay:
        before = totals_of(relay.service.recorder)
        recovered = before[service_rows.LEDGER_RECOVERED.name]
        await traffic(relay)
        waiting = asyncio.create_task(relay.chat("stall=headers,stall_seconds=30"))
        await relay.upstream.billing_log.wait_until(lambda log: log.open_calls == 1)
        await relay.service.budgets.refresh()
        during = await relay.scrape()
        middle = totals_of(relay.service.recorder)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
    assert during.total("mcp_active_requests") == 1  # the stalled call; a scrape does not count itself
    assert during.total("mcp_ledger_open_rows") == 1
    assert recovered == 1
    after = totals_of(relay.service.recorder)
    assert after["mcp_active_requests"] == 0
    still = {row.name for row in ALL if before[row.name] == middle[row.name] == after[row.name]}
    set_at_start = {name for name in still if before[name]}
    assert set_at_start == {
        "mcp_budget_limit_usd",
        "mcp_budget_period_end_timestamp_seconds",
        "mcp_budget_soft_limit_usd",
        "mcp_ledger_recovered_total",
        "mcp_upstream_up",
        "mcpmeter_build_info",
        "mcpmeter_config_last_reload_successful",
        "mcpmeter_config_last_reload_success_timestamp_seconds",
    }
    assert still - set_at_start == {*NOT_MOVED_BY_A_HEALTHY_RELAY}


def assert_only_catalog_series(families: Iterator[Family]) -> None:
    kinds = {row.name.removesuffix("_total") if row.type == "counter" else row.name: row for row in ALL}
    for family in families:
        if family.name.startswith("process_"):
            continue
        row = kinds.pop(family.name)
        assert (family.type, family.documentation) == (row.type, row.help)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(row.label_names), sample
    assert kinds == {}


@pytest.mark.parametrize("accept", ["", "text/plain;version=1.0.0", OPENMETRICS])
async def test_metrics_has_every_row_and_otherwise_only_the_process(tmp_path: Path, accept: str) -> None:
    async with running_relay(tmp_path) as relay:
        await traffic(relay)
        text, content_type = await relay.text(accept)
        parse: Callable[[str], Iterator[Family]] = parse_openmetrics if "openmetrics" in content_type else parse_text
        assert_only_catalog_series(parse(text))


async def test_label_values_are_closed_and_only_one_model_overflows(tmp_path: Path) -> None:
    async with running_relay(tmp_path) as relay:
        before = await relay.scrape()
        await traffic(relay)
        after = await relay.scrape()
    for row in ALL:
        shown = after.families[row.name].samples
        for label in row.labels:
            values = label.values or relay.service.recorder.label_allowlist.of(label.allowlist)
            assert {s.labels[label.name] for s in shown} <= {*values, "other"}, (row.name, label.name)
    labels = {label.name for row in ALL for label in row.labels}
    overflown = {
        name
        for name in labels
        if after.value("mcp_label_overflow_total", label=name) > before.value("mcp_label_overflow_total", label=name)
    }
    assert overflown == {"model"}


async def test_a_recovered_call_is_counted_without_a_duration(tmp_path: Path) -> None:
    async with running_relay(tmp_path) as relay:
        scrape = await relay.scrape()
        assert scrape.total("mcp_ledger_recovered_total") == 1
        assert scrape.value("mcp_usage_missing_total", reason="crash") == 1
        assert scrape.value("mcp_tokens_total", model="gpt-4.1", token_type="prompt", source="estimated") == 7
        assert scrape.total("gen_ai_client_operation_duration_seconds") == 0


async def test_creation_times_and_exemplars_are_in_openmetrics_only(tmp_path: Path) -> None:
    async with running_relay(tmp_path) as relay:
        await relay.chat(stream=True)
        text, plain = await relay.text()
        assert plain.startswith("text/plain")
        assert not re.search(r"_created|trace_id", text)
        text, _ = await relay.text(OPENMETRICS)
        with_exemplar = {s.name for f in parse_openmetrics(text) for s in f.samples if s.exemplar}
        assert {"mcp_request_duration_seconds_bucket", "gen_ai_client_token_usage_bucket"} <= with_exemplar
        assert re.search(r"^mcp_requests_created\{", text, re.MULTILINE)


async def test_an_invalid_accept_header_gets_the_text_format(tmp_path: Path) -> None:
    async with running_relay(tmp_path) as relay:
        for accept in ("application/openmetrics-text;version=1.x", "text/plain;version=9", "é;;,=,", "*/*" * 2000):
            text, content_type = await relay.text(accept)
            assert content_type.startswith("text/plain; version=")
            assert list(parse_text(text))
