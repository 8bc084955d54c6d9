"""Quotas through the real service: API, gauges and command show the provider's last report."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from mcpmeter.config import LedgerSettings, ProviderSettings, Settings
from mcpmeter.config.relay import RouteSettings
from mcpmeter.service import Service, bind, running
from mcpmeter.simulator import Fault, Plan, Quota, Simulator

COMMAND = Path(sys.executable).with_name("mcpmeter")
KEY = "sk-upstream-credential-0123456789"
GAUGES = {
    "limit": "mcp_upstream_quota_limit",
    "remaining": "mcp_upstream_quota_remaining",
    "exhausted_in_seconds": "mcp_upstream_quota_exhaustion_seconds",
}
Serve = Callable[..., AbstractAsyncContextManager[Any]]


def provider(name: str, base_url: str, *keys: str) -> ProviderSettings:
    return ProviderSettings(name=name, base_url=base_url, api_keys=tuple(SecretStr(key) for key in keys or (KEY,)))


@pytest.fixture
def serve(tmp_path: Path, client_of: Callable[[str, Service], Any]) -> Serve:
    """Starts the service with these providers; yields its client."""

    @asynccontextmanager
    async def started(*providers: ProviderSettings, **more: Any) -> AsyncIterator[Any]:
        settings = Settings(ledger=LedgerSettings(path=tmp_path / "ledger.db"), providers=providers, **more)
        service = Service(lambda: settings)
        async with running(service, bind("127.0.0.1", 0)) as url:
            yield client_of(url, service)

    return started


async def quotas(relay: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """The API's quotas by credential and resource, checked against the gauges."""
    found = (await relay.ask(path="/api/quota", method="GET")).json["quotas"]
    scrape = await relay.scrape()
    for quota in found:
        labels = {name: quota[name] for name in ("provider", "credential", "resource")}
        for field, gauge in GAUGES.items():
            shown = [
                value
                for (name, having), value in scrape.counts.items()
                if name == gauge and labels.items() <= set(having)
            ]
            if field != "exhausted_in_seconds" or not quota[field]:
                assert shown == ([] if quota[field] is None else [quota[field]]), (gauge, labels)
    return {(quota["credential"], quota["resource"]): quota for quota in found}


async def test_nothing_is_shown_before_the_first_response(serve):
    async with Simulator(seed=1) as sim:
        async with serve(provider("openai", sim.base_url)) as relay:
            assert await quotas(relay) == {}
            scrape = await relay.scrape()
    assert [name for name, _ in scrape.counts if name.startswith("mcp_upstream_quota")] == []


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_openais_quotas_are_those_of_the_last_response(serve, stream):
    async with Simulator(seed=1, quota=Quota(requests=500, tokens=90_000)) as sim:
        async with serve(provider("openai", sim.base_url)) as relay:
            for _ in range(3):
                reply = await relay.chat(stream=stream)
            shown = await quotas(relay)
    assert {resource for _, resource in shown} == {"requests", "tokens"}
    for resource, limit in (("requests", 500), ("tokens", 90_000)):
        quota = shown["openai-1", resource]
        assert quota["limit"] == limit
        assert quota["remaining"] == int(reply.headers[f"x-ratelimit-remaining-{resource}"]) < limit
        assert 0 < quota["resets_in_seconds"] <= 60
    assert shown["openai-1", "requests"]["remaining"] == 497


async def test_a_used_up_quota_is_exhausted_now(serve):
    async with Simulator(seed=1, quota=Quota(requests=2, enforce=True)) as sim:
        async with serve(provider("openai", sim.base_url)) as relay:
            assert [(await relay.chat()).status for _ in range(3)] == [200, 200, 429]
            shown = await quotas(relay)
            scrape = await relay.scrape()
    requests = shown["openai-1", "requests"]
    assert (requests["remaining"], requests["exhausted_in_seconds"]) == (0, 0)
    exhaustion = {
        dict(labels)["resource"]: value
        for (name, labels), value in scrape.counts.items()
        if name == "mcp_upstream_quota_exhaustion_seconds"
    }
    assert exhaustion["requests"] == 0


async def test_failover_shows_the_quotas_of_both_providers(serve):
    route = RouteSettings(models=("*",), upstreams=("openai", "groq"))
    async with Simulator(quota=Quota(requests=70)) as first, Simulator(quota=Quota(requests=90)) as second:
        first.plan = Plan(faults=(Fault.parse("status=429,retry_after=30"),))
        providers = provider("openai", first.base_url), provider("groq", second.base_url)
        async with serve(*providers, routes=(route,)) as relay:
            assert (await relay.chat()).headers["x-mcpmeter-provider"] == "groq"
            shown = await quotas(relay)
    assert shown["openai-1", "requests"]["limit"] == 70
    assert shown["groq-1", "requests"]["limit"] == 90
    assert 0 < shown["openai-1", "retry_after"]["resets_in_seconds"] <= 30


async def test_each_key_has_its_own_quota_and_is_never_shown(serve):
    keys = ("sk-first-key-000000000000", "sk-second-key-00000000000")
    async with Simulator(seed=1, quota=Quota(requests=50)) as sim:  # ignores keys: all of them spend from one window
        async with serve(provider("openai", sim.base_url, *keys)) as relay:
            for _ in range(4):
                await relay.chat()
            shown = await quotas(relay)
            page = (await relay.ask(path="/metrics", method="GET")).body + json.dumps(str(shown)).encode()
    assert shown["openai-1", "requests"]["remaining"] == 47
    assert shown["openai-2", "requests"]["remaining"] == 46
    assert not any(key.encode() in page for key in keys)


async def test_the_command_prints_the_apis_quotas(serve):
    async with Simulator(seed=1, quota=Quota(requests=50)) as sim:
        async with serve(provider("openai", sim.base_url)) as relay:
            await relay.chat()
            shown = await quotas(relay)
            process = await asyncio.create_subprocess_exec(
                COMMAND, "quota", "--url", relay.url, "--json", stdout=asyncio.subprocess.PIPE
            )
            output, _ = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
    printed = {(quota["credential"], quota["resource"]): quota for quota in json.loads(output)["quotas"]}
    assert printed.keys() == shown.keys()
    for quota, status in shown.items():
        assert printed[quota]["remaining"] == status["remaining"]
        assert printed[quota]["reset_at"] == status["reset_at"]
