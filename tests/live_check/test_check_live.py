"""The live check with a real Prometheus, Alertmanager and PostgreSQL, and an imitation of Grafana's API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from mcpmeter.config import LedgerSettings, ProviderSettings, Settings
from mcpmeter.demo.stack import stack
from mcpmeter.demo.webhook_receiver import Notice, receive_alerts
from mcpmeter.live_check import Addresses, CheckResult, check_live
from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.monitoring.render import files
from mcpmeter.service import Service, bind, running
from mcpmeter.simulator import Simulator
from mcpmeter.simulator.server import serving

KEY = "sk-upstream-credential-0123456789"
pytestmark = pytest.mark.usefixtures("prometheus_is_here")


def settings_for(folder: Path, upstream: str, *, key: str = KEY, **more: object) -> Settings:
    provider = ProviderSettings(name="holysheep", base_url=upstream, api_key=SecretStr(key))
    return Settings(ledger=LedgerSettings(path=folder / "ledger.db"), providers=(provider,), **more)


async def run_checks(settings: Settings, addresses: Addresses) -> dict[str, CheckResult]:
    return {result.check: result async for result in check_live(settings, addresses)}


@asynccontextmanager
async def running_service(folder: Path) -> AsyncIterator[tuple[Settings, str]]:
    async with Simulator(seed=1, key=KEY) as simulator:
        settings = settings_for(folder, simulator.base_url)
        async with running(Service(lambda: settings), bind("127.0.0.1", 0)) as address:
            yield settings, address


def fast(address: str) -> MonitoringOptions:
    return MonitoringOptions(
        targets=(urlsplit(address).netloc,),
        scrape_interval_seconds=1,
        service_scrape_interval_seconds=1,
        evaluation_interval_seconds=1,
        speedup=30,
    )


async def until_scraped(prometheus: str) -> None:
    async with asyncio.timeout(120), httpx2.AsyncClient(verify=False) as http:
        while not (await http.get(f"{prometheus}/api/v1/query?query=mcpmeter_build_info")).json()["data"]["result"]:
            await asyncio.sleep(0.1)


async def test_a_healthy_deployment_passes_every_check(tmp_path, monkeypatch):
    alerts: list[tuple[str, Notice]] = []
    async with AsyncExitStack() as parts:
        settings, address = await parts.enter_async_context(running_service(tmp_path))
        notify = await parts.enter_async_context(
            receive_alerts(lambda receiver, notice: alerts.append((receiver, notice)))
        )
        options = fast(address)
        started = await parts.enter_async_context(stack(options, tmp_path / "stack", notify=notify))
        await until_scraped(started.prometheus)
        # The check expects the options that this stack was made from.
        monkeypatch.setattr(type(settings.monitoring), "options", lambda _: options)
        grafana = await parts.enter_async_context(grafana_api(options))
        results = await run_checks(
            settings,
            Addresses(
                service=address,
                metrics=address,
                prometheus=started.prometheus,
                alertmanager=started.alertmanager or "",
                grafana=grafana,
            ),
        )
        async with asyncio.timeout(120):
            while not any(receiver == "info" for receiver, _ in alerts):
                await asyncio.sleep(0.05)
    assert {name: result.says for name, result in results.items() if result.state != "ok"} == {}
    assert results["alertmanager"].says == "a test alert is routed to info, and receivers take notifications"
    assert {notice.labels["alertname"] for receiver, notice in alerts if receiver == "info"} == {"MCPMeterTestAlert"}


@asynccontextmanager
async def grafana_api(options: MonitoringOptions, missing: str = "") -> AsyncIterator[str]:
    """Grafana's API for provisioned dashboards; Grafana itself is in no package registry."""
    uids = {json.loads(text)["uid"] for path, text in files(options).items() if path.endswith(".json")}

    async def dashboard(request: Request) -> JSONResponse:
        if request.headers.get("authorization", "") == "Bearer wrong":
            return JSONResponse({}, 401)
        known = request.path_params["uid"] in uids - {missing}
        return JSONResponse({}, 200 if known else 404)

    async with serving(Starlette(routes=[Route("/api/dashboards/uid/{uid}", dashboard)])) as url:
        yield url


async def test_missing_rules_and_down_targets_fail(tmp_path):
    async with AsyncExitStack() as parts:
        settings, address = await parts.enter_async_context(running_service(tmp_path))
        elsewhere = replace(fast("http://127.0.0.1:9"), without=frozenset({"MCPHighErrorRate"}))
        started = await parts.enter_async_context(stack(elsewhere, tmp_path / "stack"))
        async with asyncio.timeout(120):
            while True:
                addresses = Addresses(service=address, metrics=address, prometheus=started.prometheus)
                results = await run_checks(settings, addresses)
                if "refused" in results["prometheus target"].says:
                    break
    assert results["prometheus target"].state == "failed"
    assert "1 of 1 targets are not up" in results["prometheus target"].says
    assert results["rules"].state == "failed"
    assert "MCPHighErrorRate" in results["rules"].says
    assert "monitoring write" in results["rules"].todo
    assert results["alertmanager"].state == results["dashboards"].state == "not checked"


async def test_a_refusing_receiver_fails(tmp_path):
    async with AsyncExitStack() as parts:
        settings, address = await parts.enter_async_context(running_service(tmp_path))
        nothing = "http://127.0.0.1:9/"
        started = await parts.enter_async_context(stack(fast(address), tmp_path / "stack", notify=nothing))
        results = await run_checks(
            settings, Addresses(service=address, metrics=address, alertmanager=started.alertmanager or "")
        )
    assert results["alertmanager"].state == "failed"
    assert "a receiver refuses notifications" in results["alertmanager"].says


async def test_with_nothing_running_every_check_still_runs(tmp_path):
    nothing = "http://127.0.0.1:9"
    settings = settings_for(tmp_path, f"{nothing}/v1")
    results = await run_checks(
        settings,
        Addresses(service=nothing, metrics=nothing, prometheus=nothing, alertmanager=nothing, grafana=nothing),
    )
    states = {name: result.state for name, result in results.items()}
    assert states == {
        "ledger": "ok",
        "service": "failed",
        "metrics": "failed",
        "clock": "not checked",
        "provider holysheep": "failed",
        "prometheus": "failed",
        "rules": "failed",
        "alertmanager": "failed",
        "dashboards": "failed",
    }
    assert "(Connection refused)" in results["service"].says
    assert all(result.todo for result in results.values() if result.state == "failed")
    assert not (tmp_path / "ledger.db").exists()


async def test_a_refused_key_is_named_by_id_only(tmp_path):
    async with Simulator(seed=1, key=KEY) as simulator:
        settings = settings_for(tmp_path, simulator.base_url, key="sk-wrong-000000000000000000000000")
        nothing = "http://127.0.0.1:9"
        results = await run_checks(settings, Addresses(service=nothing, metrics=nothing))
    provider = results["provider holysheep"]
    assert provider.state == "failed"
    assert "refuses the key holysheep-1 (HTTP 401)" in provider.says
    assert "sk-wrong" not in str(results)


async def test_an_unusable_ledger_fails(tmp_path):
    settings = settings_for(tmp_path, "http://127.0.0.1:9/v1")
    (tmp_path / "ledger.db").write_bytes(b"this is no ledger at all")
    nothing = "http://127.0.0.1:9"
    results = await run_checks(settings, Addresses(service=nothing, metrics=nothing))
    assert results["ledger"].state == "failed"
    assert "not a ledger" in results["ledger"].says


@pytest.mark.parametrize(
    ("response", "state", "says"),
    [
        (PlainTextResponse("not metrics {"), "failed", "not Prometheus text"),
        (PlainTextResponse("other_total 1\n"), "failed", "not mcpmeter's"),
        (PlainTextResponse("", 401), "failed", "status 401"),
    ],
)
async def test_another_program_at_the_metrics_address_fails(tmp_path, response: PlainTextResponse, state, says):
    async with serving(response) as address:
        results = await run_checks(settings_for(tmp_path, f"{address}/v1"), Addresses(service=address, metrics=address))
    assert (results["metrics"].state, says in results["metrics"].says) == (state, True)


async def test_a_missing_dashboard_fails(tmp_path):
    options = MonitoringOptions()
    async with grafana_api(options, missing="mcpmeter-overview") as grafana:
        nothing = "http://127.0.0.1:9"
        settings = settings_for(tmp_path, f"{nothing}/v1")
        results = await run_checks(settings, Addresses(service=nothing, metrics=nothing, grafana=grafana))
        refused = await run_checks(
            settings, Addresses(service=nothing, metrics=nothing, grafana=grafana, grafana_token="wrong")
        )
    assert results["dashboards"].state == "failed"
    assert "1 of" in results["dashboards"].says
    assert "refuses access (HTTP 401)" in refused["dashboards"].says


async def test_a_postgresql_ledger_is_checked(tmp_path, postgres_server):
    nothing = "http://127.0.0.1:9"
    url = postgres_server.new_database()
    states = {}
    for place in (url, "postgresql://meter:a-secret-word@127.0.0.1:9/ledger"):
        provider = ProviderSettings(name="holysheep", base_url=f"{nothing}/v1", api_key=SecretStr(KEY))
        settings = Settings(ledger=LedgerSettings(url=SecretStr(place)), providers=(provider,))
        result = (await run_checks(settings, Addresses(service=nothing, metrics=nothing)))["ledger"]
        assert "a-secret-word" not in str(result)
        states[place] = result.state
    assert list(states.values()) == ["ok", "failed"]
