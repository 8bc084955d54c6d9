"""The demo: the service on the built-in simulator, with steady traffic of several teams."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import SecretStr

from mcpmeter.config import (
    BudgetSettings,
    KeySettings,
    LedgerSettings,
    MetricsSettings,
    ProviderSettings,
    ServerSettings,
    Settings,
    is_loopback,
)
from mcpmeter.demo.stack import StackStarted, find_prometheus
from mcpmeter.demo.stack import stack as run_stack
from mcpmeter.demo.traffic import TrafficCounts, steady
from mcpmeter.demo.webhook_receiver import Notice, receive_alerts
from mcpmeter.ledger.location import Location
from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.service.run import bind, running
from mcpmeter.service.service import Service
from mcpmeter.simulator import Latency, Simulator

TEAMS: Final = ("search", "support", "research")
MODELS: Final = ("gpt-4.1", "claude-sonnet-4.5", "gemini-2.5-flash", "deepseek-v3.2")
EMBEDDING_MODELS: Final = ("text-embedding-3-small", "text-embedding-3-large")
DRAIN_SECONDS: Final = 2.0
STACK_SPEEDUP: Final = 30


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """The options of the demo's command line."""

    host: str
    port: int
    folder: Path
    """The folder of the ledger and of the stack's data."""
    with_stack: bool
    calls_per_second: float
    seed: int
    allowed_hosts: tuple[str, ...] = ()
    """Names by which other machines call it; default: this machine's."""


@dataclass(frozen=True, slots=True)
class DemoStarted:
    """The addresses of the running demo, to print."""

    address: str
    stack: StackStarted | None
    ledger: Location
    key: str
    """A key of team `search` for this run."""
    key_needed: bool


async def run_demo(
    options: DemoOptions, on_start: Callable[[DemoStarted], None], on_alert: Callable[[str, Notice], None]
) -> TrafficCounts:
    """Run until SIGINT or SIGTERM; returns the results of the traffic. Raises SetupError, as `serve` does.

    With a stack, `on_alert` is called with the receiver and each alert.
    """
    if options.with_stack:
        find_prometheus()
    listener = bind(options.host, options.port)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    keys = {team: f"mk_{secrets.token_urlsafe(36)}" for team in TEAMS}
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(
            Simulator(
                seed=options.seed,
                first_byte=Latency.parse("lognormal:180,0.6"),
                between_chunks=Latency.from_rate("lognormal:60,0.4"),
            )
        )
        settings = demo_settings(options, upstream.base_url, keys)
        service = Service(lambda: settings, keys_optional=is_loopback(options.host))
        address = await stack.enter_async_context(running(service, listener))
        local = address.replace("0.0.0.0", "127.0.0.1")  # noqa: S104 (an address to call, not to listen on)
        monitoring = None
        if options.with_stack:
            notify = await stack.enter_async_context(receive_alerts(on_alert))
            monitoring = await stack.enter_async_context(
                run_stack(stack_options(local), options.folder / "stack", notify=notify)
            )
        on_start(DemoStarted(address, monitoring, service.ledger_path, keys["search"], not is_loopback(options.host)))
        return await steady(
            local,
            keys,
            models=MODELS,
            embedding_models=EMBEDDING_MODELS,
            per_second=options.calls_per_second,
            stop=stop,
            seed=options.seed,
        )


def stack_options(address: str) -> MonitoringOptions:
    """The generated rules, sped up 30 times: an alert that takes an hour to fire takes two minutes."""
    return MonitoringOptions(
        targets=(urlsplit(address).netloc,),
        scrape_interval_seconds=2,
        service_scrape_interval_seconds=2,
        evaluation_interval_seconds=2,
        speedup=STACK_SPEEDUP,
    )


def demo_settings(options: DemoOptions, upstream: str, keys: dict[str, str]) -> Settings:
    """The settings of the demo: the guide's provider, served by the simulator."""
    settings = Settings(
        server=ServerSettings(
            host=options.host,
            port=options.port,
            drain_seconds=DRAIN_SECONDS,
            allowed_hosts=options.allowed_hosts or (socket.gethostname(),),
        ),
        metrics=MetricsSettings(public=True),  # all figures are invented
        ledger=LedgerSettings(path=options.folder / "ledger.db"),
        providers=(
            ProviderSettings(name="holysheep", base_url=upstream, api_key=SecretStr("simulated")),
            ProviderSettings(
                name="embedder", type="generic", base_url=upstream, models=EMBEDDING_MODELS, price_list="demo"
            ),
        ),
        keys=tuple(KeySettings(name=f"{team}-demo", team=team, secret=SecretStr(key)) for team, key in keys.items()),
        # Soft budgets: a demo that refuses calls after a while would look broken.
        budgets=(
            BudgetSettings(name="search-daily", team="search", period="day", limit_usd=Decimal("0.25"), hard=False),
            BudgetSettings(name="all-teams-monthly", limit_usd=Decimal(20), hard=False),
        ),
    )
    settings._source = "the demo"
    return settings
