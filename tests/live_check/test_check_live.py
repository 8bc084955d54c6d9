"""The deployment checklist against the real parts: what is well is ok, and each thing that is broken is named."""

from __future__ import annotations

import asyncio
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
from mcpmeter.demo.webhook_receiver import Notice, pager
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


async def found(settings: Settings, addresses: Addresses) -> dict[str, CheckResult]:
    return {finding.check: finding async for finding in check_live(settings, addresses)}


@asynccontextmanager
async def a_service(folder: Path) -> AsyncIterator[tuple[Settings, str]]:
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
    async with asyncio.timeout(20), httpx2.AsyncClient(verify=False) as http:
        while not (await http.get(f"{prometheus}/api/v1/query?query=mcpmeter_build_info")).json()["data"]["result"]:
            await asyncio.sleep(0.1)


async def test_where_all_is_well_every_line_is_ok_and_the_test_alert_arrives(tmp_path, monkeypatch):
    told: list[tuple[str, Notice]] = []
    async with AsyncExitStack() as parts:
        settings, address = await parts.enter_async_context(a_service(tmp_path))
        notify = await parts.enter_async_context(pager(lambda receiver, notice: told.append((receiver, notice))))
        options = fast(address)
        started = await parts.enter_async_context(stack(options, tmp_path / "stack", notify=notify))
        await until_scraped(started.prometheus)
        # What the checklist expects is what this stack was made from.
        monkeypatch.setattr(type(settings.monitoring), "options", lambda _: options)
        grafana = await parts.enter_async_context(a_grafana(options))
        findings = await found(
            settings,
            Addresses(
                service=address,
                metrics=address,
                prometheus=started.prometheus,
                alertmanager=started.alertmanager or "",
                grafana=grafana,
            ),
        )
        async with asyncio.timeout(20):
            while not any(receiver == "info" for receiver, _ in told):
                await asyncio.sleep(0.05)
    assert {name: finding.says for name, finding in findings.items() if finding.state != "ok"} == {}
    assert findings["alertmanager"].says == "a test alert is routed to info, and receivers take notifications"
    assert {notice.labels["alertname"] for receiver, notice in told if receiver == "info"} == {"MCPMeterTestAlert"}


@asynccontextmanager
async def a_grafana(options: MonitoringOptions, missing: str = "") -> AsyncIterator[str]:
    """What Grafana's API says of the dashboards that were provisioned; Grafana itself is in none of the registries."""
    import json

    uids = {json.loads(text)["uid"] for path, text in files(options).items() if path.endswith(".json")}

    async def dashboard(request: Request) -> JSONResponse:
        if request.headers.get("authorization", "") == "Bearer wrong":
            return JSONResponse({}, 401)
        known = request.path_params["uid"] in uids - {missing}
        return JSONResponse({}, 200 if known else 404)

    async with serving(Starlette(routes=[Route("/api/dashboards/uid/{uid}", dashboard)])) as url:
        yield url


async def test_other_rules_than_ours_and_a_target_that_is_down_are_named(tmp_path):
    async with AsyncExitStack() as parts:
        settings, address = await parts.enter_async_context(a_service(tmp_path))
        elsewhere = replace(fast("http://127.0.0.1:9"), without=frozenset({"MCPHighErrorRate"}))
        started = await parts.enter_async_context(stack(elsewhere, tmp_path / "stack"))
        async with asyncio.timeout(20):
            while True:
                addresses = Addresses(service=address, metrics=address, prometheus=started.prometheus)
                findings = await found(settings, addresses)
                if "refused" in findings["prometheus target"].says:
                    break
    assert findings["prometheus target"].state == "failed"
    assert "1 of 1 targets are not up" in findings["prometheus target"].says
    assert findings["rules"].state == "failed"
    assert "MCPHighErrorRate" in findings["rules"].says
    assert "monitoring write" in findings["rules"].todo
    assert findings["alertmanager"].state == findings["dashboards"].state == "not checked"


async def test_a_receiver_that_refuses_is_told(tmp_path):
    async with AsyncExitStack() as parts:
        settings, address = await parts.enter_async_context(a_service(tmp_path))
        nobody = "http://127.0.0.1:9/"
        started = await parts.enter_async_context(stack(fast(address), tmp_path / "stack", notify=nobody))
        findings = await found(
            settings, Addresses(service=address, metrics=address, alertmanager=started.alertmanager or "")
        )
    assert findings["alertmanager"].state == "failed"
    assert "a receiver refuses notifications" in findings["alertmanager"].says


async def test_nothing_that_runs_is_one_line_each_and_no_check_stops_another(tmp_path):
    nobody = "http://127.0.0.1:9"
    settings = settings_for(tmp_path, f"{nobody}/v1")
    findings = await found(
        settings,
        Addresses(service=nobody, metrics=nobody, prometheus=nobody, alertmanager=nobody, grafana=nobody),
    )
    states = {name: finding.state for name, finding in findings.items()}
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
    assert "(Connection refused)" in findings["service"].says
    assert all(finding.todo for finding in findings.values() if finding.state == "failed")
    assert not (tmp_path / "ledger.db").exists()


async def test_a_key_that_the_provider_refuses_is_named_and_not_shown(tmp_path):
    async with Simulator(seed=1, key=KEY) as simulator:
        settings = settings_for(tmp_path, simulator.base_url, key="sk-wrong-000000000000000000000000")
        nobody = "http://127.0.0.1:9"
        findings = await found(settings, Addresses(service=nobody, metrics=nobody))
    provider = findings["provider holysheep"]
    assert provider.state == "failed"
    assert "refuses the key holysheep-1 (HTTP 401)" in provider.says
    assert "sk-wrong" not in str(findings)


async def test_a_ledger_that_cannot_be_written_is_told(tmp_path):
    settings = settings_for(tmp_path, "http://127.0.0.1:9/v1")
    (tmp_path / "ledger.db").write_bytes(b"this is no ledger at all")
    nobody = "http://127.0.0.1:9"
    findings = await found(settings, Addresses(service=nobody, metrics=nobody))
    assert findings["ledger"].state == "failed"
    assert "not a ledger" in findings["ledger"].says


@pytest.mark.parametrize(
    ("answer", "state", "says"),
    [
        (PlainTextResponse("not metrics {"), "failed", "no Prometheus text"),
        (PlainTextResponse("other_total 1\n"), "failed", "not mcpmeter's"),
        (PlainTextResponse("", 401), "failed", "answers 401"),
    ],
)
async def test_something_else_at_the_metrics_address_is_told(tmp_path, answer: PlainTextResponse, state, says):
    async with serving(answer) as address:
        findings = await found(settings_for(tmp_path, f"{address}/v1"), Addresses(service=address, metrics=address))
    assert (findings["metrics"].state, says in findings["metrics"].says) == (state, True)


async def test_a_dashboard_that_grafana_lacks_is_named(tmp_path):
    options = MonitoringOptions()
    async with a_grafana(options, missing="mcpmeter-overview") as grafana:
        nobody = "http://127.0.0.1:9"
        settings = settings_for(tmp_path, f"{nobody}/v1")
        findings = await found(settings, Addresses(service=nobody, metrics=nobody, grafana=grafana))
        refused = await found(
            settings, Addresses(service=nobody, metrics=nobody, grafana=grafana, grafana_token="wrong")
        )
    assert findings["dashboards"].state == "failed"
    assert "1 of" in findings["dashboards"].says
    assert "refuses to tell (HTTP 401)" in refused["dashboards"].says


async def test_a_ledger_on_postgresql_is_written_to_and_one_that_is_away_is_told(tmp_path, postgres_server):
    nobody = "http://127.0.0.1:9"
    url = postgres_server.new_database()
    states = {}
    for place in (url, "postgresql://meter:a-secret-word@127.0.0.1:9/ledger"):
        provider = ProviderSettings(name="holysheep", base_url=f"{nobody}/v1", api_key=SecretStr(KEY))
        settings = Settings(ledger=LedgerSettings(url=SecretStr(place)), providers=(provider,))
        finding = (await found(settings, Addresses(service=nobody, metrics=nobody)))["ledger"]
        assert "a-secret-word" not in str(finding)
        states[place] = finding.state
    assert list(states.values()) == ["ok", "failed"]
