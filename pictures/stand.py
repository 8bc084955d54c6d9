"""A live stack: the service on two simulated providers, an instrumented MCP server, callers, a real Prometheus."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import mcp
from mcp.client.streamable_http import (  # type: ignore[attr-defined]  # its documentation imports it from here
    create_mcp_http_client,
    streamable_http_client,
)
from mcp.server.mcpserver import MCPServer
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

import mcpmeter
from mcpmeter.config import KeySettings, LedgerSettings, ProviderSettings, ServerSettings, Settings
from mcpmeter.config.budgets import BudgetSettings
from mcpmeter.config.relay import RelaySettings, RouteSettings
from mcpmeter.demo.stack import prometheus
from mcpmeter.demo.traffic import steady
from mcpmeter.monitoring import MonitoringOptions, files
from mcpmeter.service import Service, bind
from mcpmeter.service.run import running
from mcpmeter.simulator import Latency, Price, Quota, Simulator

TEAMS: Final = ("search", "support", "research")
MODELS: Final = ("gpt-4.1", "claude-sonnet-4.5", "gemini-2.5-flash", "deepseek-v3.2")
PRICES: Final = {
    "gpt-4.1": Price(Decimal("2.50"), Decimal("10.00")),
    "gemini-2.5-flash": Price(Decimal("0.11"), Decimal("0.43")),
}
"""Costs reported by one provider; for the second model they differ from the price list."""

ODD_CALLS: Final[tuple[Mapping[str, Any], ...]] = (
    {"model": "llama-of-our-own"},
    {"model": "gpt-4.1", "metadata": {"simulate": "usage=missing"}},
    {"model": "gpt-4.1", "metadata": {"simulate": "usage=invented"}},
    {"model": "deepseek-v3.2", "metadata": {"simulate": "cached_tokens=40,reasoning_tokens=20,completion_tokens=90"}},
    {"model": "deepseek-v3.2", "metadata": {"simulate": "completion_tokens=0"}},
    {"model": "claude-sonnet-4.5", "metadata": {"simulate": "refusal=true"}},
    {"model": "gemini-2.5-flash", "metadata": {"simulate": "completion_tokens=90"}, "max_tokens": 20},
)
BUDGETS: Final[tuple[Mapping[str, Any], ...]] = (
    {"name": "search-monthly", "team": "search", "limit_usd": "5"},
    {"name": "support-daily", "team": "support", "limit_usd": "0.30", "period": "day", "soft": ["0.5"]},
    {"name": "claude-daily", "team": "research", "model": "claude-sonnet-4.5", "limit_usd": "0.03", "period": "day"},
)
"""One that lasts, one that may not, and one that is soon exhausted and refuses calls."""

CITIES: Final = ("Oslo", "Lima", "Nairobi", "Atlantis", "Perth")
REGION: Final = "eu-west"

Caller = Callable[[], Awaitable[None]]


class Stand:
    """Addresses of the service and of Prometheus."""

    def __init__(self, service: str, scraper: str) -> None:
        self.service = service
        self.prometheus = scraper


@asynccontextmanager
async def stand(folder: Path, *, seed: int = 1, calls_per_second: float = 8.0) -> AsyncIterator[Stand]:
    """Run the stack with its callers until the block ends."""
    keys = {team: f"mk_{secrets.token_urlsafe(36)}" for team in TEAMS}
    async with AsyncExitStack() as stack:
        first_byte, between = Latency.parse("lognormal:180,0.6"), Latency.from_rate("lognormal:60,0.4")
        quota = Quota(requests=20_000, tokens=60_000, window_seconds=900)
        first = await stack.enter_async_context(
            Simulator(seed=seed, prices=PRICES, first_byte=first_byte, between_chunks=between)
        )
        second = await stack.enter_async_context(
            Simulator(seed=seed + 1, quota=quota, first_byte=first_byte, between_chunks=between)
        )
        settings = _settings(folder, first.base_url, second.base_url, keys)
        service = Service(lambda: settings)
        address = await stack.enter_async_context(running(service, bind("127.0.0.1", 0)))
        weather = _weather(Random(seed))
        metered = mcpmeter.instrument(weather, registry=CollectorRegistry(), port=0)
        stack.callback(metered.close)
        config = _monitoring(folder, address, f"http://127.0.0.1:{metered.port}")
        scraper = await stack.enter_async_context(prometheus(address, folder / "prometheus-data", config=config))
        http = await stack.enter_async_context(httpx2.AsyncClient(timeout=60, trust_env=False))
        stop = asyncio.Event()
        callers = await stack.enter_async_context(asyncio.TaskGroup())
        chance = Random(seed)
        callers.create_task(steady(address, keys, models=MODELS, per_second=calls_per_second, stop=stop, seed=seed))
        for call, every in (
            (_odd_calls(http, address, keys["research"], chance), 1.0),
            (_embeddings(http, address, keys["search"]), 0.7),
            (_bad_messages(http, address, keys["support"]), 2.0),
            (_relay_tools(address, keys["support"]), 1.5),
            (_weather_calls(weather, chance), 0.3),
        ):
            callers.create_task(_repeat(call, every, stop))
        stack.callback(stop.set)
        yield Stand(address, scraper)


async def _repeat(call: Caller, every: float, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await call()
        try:
            async with asyncio.timeout(every):
                await stop.wait()
        except TimeoutError:
            continue


def _settings(folder: Path, first: str, second: str, keys: Mapping[str, str]) -> Settings:
    return Settings(
        server=ServerSettings(host="127.0.0.1", port=0, drain_seconds=1.0),
        ledger=LedgerSettings(path=folder / "ledger.db"),
        providers=(
            ProviderSettings(name="holysheep", base_url=first, api_key=SecretStr("simulated")),
            ProviderSettings(
                name="openai", base_url=second, api_key=SecretStr("simulated"), models=("text-embedding-3-*",)
            ),
        ),
        routes=(
            RouteSettings.model_validate({"models": ["gpt-4.1"], "upstreams": ["openai", "holysheep"]}),
            RouteSettings.model_validate({"models": ["deepseek-v3.2"], "upstreams": ["holysheep", "openai"]}),
        ),
        relay=RelaySettings(assumed_completion_tokens=400),
        budgets=tuple(map(BudgetSettings.model_validate, BUDGETS)),
        keys=tuple(KeySettings(name=f"{team}-key", team=team, secret=SecretStr(key)) for team, key in keys.items()),
    )


def _monitoring(folder: Path, *targets: str) -> Path:
    """What `mcpmeter monitoring write` makes, with everything every second."""
    options = MonitoringOptions(
        targets=tuple(urlsplit(target).netloc for target in targets),
        matchers={"region": REGION},
        scrape_interval_seconds=1,
        service_scrape_interval_seconds=1,
        evaluation_interval_seconds=1,
        alertmanagers=(),
    )
    for path, content in files(options).items():
        place = folder / "deploy" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content)
    return folder / "deploy" / "prometheus" / "prometheus.yml"


def _odd_calls(http: httpx2.AsyncClient, address: str, key: str, chance: Random) -> Caller:
    async def call() -> None:
        body = {"messages": [{"role": "user", "content": "Hello"}], **chance.choice(ODD_CALLS)}
        await _post(http, f"{address}/v1/chat/completions", key, body)

    return call


def _embeddings(http: httpx2.AsyncClient, address: str, key: str) -> Caller:
    async def call() -> None:
        body = {"model": "text-embedding-3-small", "input": ["a text of some words", "and another one"]}
        await _post(http, f"{address}/v1/embeddings", key, body)

    return call


def _bad_messages(http: httpx2.AsyncClient, address: str, key: str) -> Caller:
    async def call() -> None:
        await _post(http, f"{address}/mcp", key, "{")
        await _post(http, f"{address}/mcp", key, {"jsonrpc": "2.0", "id": 1, "method": "no/such/method", "params": {}})

    return call


async def _post(http: httpx2.AsyncClient, url: str, key: str, body: Any) -> None:
    headers = {
        "Authorization": f"Bearer {key}",
        "Accept": "application/json, text/event-stream",
        "Content-Type": "application/json",
        "traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01",
    }
    content = body if isinstance(body, str) else json.dumps(body)
    await http.post(url, headers=headers, content=content)


def _relay_tools(address: str, key: str) -> Caller:
    async def call() -> None:
        async with (
            create_mcp_http_client(headers={"Authorization": f"Bearer {key}"}) as http,
            mcp.Client(streamable_http_client(f"{address}/mcp", http_client=http)) as client,
        ):
            await client.list_tools()
            await client.call_tool("list_models", {})
            await client.call_tool(
                "chat", {"model": "deepseek-v3.2", "messages": [{"role": "user", "content": "Hello"}]}
            )

    return call


def _weather(chance: Random) -> MCPServer[Any]:
    server: MCPServer[Any] = MCPServer("weather", log_level="CRITICAL")

    @server.tool()
    async def forecast(city: str) -> str:
        """The weather of tomorrow."""
        await asyncio.sleep(chance.lognormvariate(-2.5, 0.5))
        if city == "Atlantis":
            raise ValueError("no such place")
        return f"Rain in {city}."

    @server.tool()
    async def radar(city: str) -> str:
        """A map of the rain."""
        await asyncio.sleep(chance.lognormvariate(-1.2, 0.6))
        return f"A map of {city}."

    return server


def _weather_calls(server: MCPServer[Any], chance: Random) -> Caller:
    async def call() -> None:
        mode = chance.choice(("auto", "legacy"))
        async with mcp.Client(server, mode=mode) as client:
            await client.list_tools()
            for _ in range(3):
                tool = chance.choice(("forecast", "forecast", "radar"))
                await client.call_tool(tool, {"city": chance.choice(CITIES)})
            await client.call_tool("forecast", {"town": "Oslo"})

    return call
