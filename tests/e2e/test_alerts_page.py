"""Every alert, by making it happen: a fault in the running service, a notification at fake pagers, its end.

Our own rules and routes on a real Prometheus and Alertmanager, a hundred times as fast: five minutes are three seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import apsw
import httpx2
import mcp
import pytest
from mcp.server.mcpserver import MCPServer
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import mcpmeter
from mcpmeter.config import BudgetSettings, KeySettings, LedgerSettings, ProviderSettings, Settings
from mcpmeter.demo.stack import stack
from mcpmeter.monitoring.alerts import alerts
from mcpmeter.monitoring.options import MonitoringOptions, PagerDuty, Receivers, Slack, Webhook
from mcpmeter.service import Service, bind, running
from mcpmeter.simulator import Latency, Price, Quota, Simulator
from mcpmeter.simulator.server import serving

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("prometheus_is_here", "ahead_of_others")]

NOBODY = "http://127.0.0.1:9/v1"
KEYS = {
    team: f"pk-7Rq2vX9bLw4TnZ8mKs1HdJ6yCf3Ga{number}"
    for number, team in enumerate(("ops", "search", "support", "research"))
}
LISTED = Price(Decimal("2.5"), Decimal(10))
DEARER = Price(Decimal(5), Decimal(20))

# Volumes are those of a test; shares and windows stay what they are.
THRESHOLDS = {
    "MCPHighErrorRate": {"ratio": "0.4"},
    "MCPErrorRateSpike": {"failures": "2"},
    "MCPErrorBudgetBurn": {"failures": "3"},
    "MCPLatencyDegraded": {"seconds": "1", "requests": "3"},
    "MCPActiveRequestsSpike": {"requests": "25"},
    "MCPUpstreamDown": {"attempts": "3"},
    "HolySheepRelayDown": {"attempts": "3"},
    "MCPCostDrift": {"usd": "0.000001"},
    "MCPToolErrors": {"calls": "3"},
    # Tokens per second fall on a busy machine, truly.
    "MCPQualityDegraded": {"answers": "3", "slowdown": "0.01"},
    "MCPUnpricedTraffic": {"calls": "3"},
    "MCPLabelOverflow": {"values": "5"},
}


def far_from_today() -> int:
    """A day of the month two weeks away: on a budget period's last evening nothing is exhausted before its end."""
    return (datetime.now(UTC).day + 14) % 28 + 1


@dataclass
class Pagers:
    """Slack, PagerDuty and a webhook, as far as Alertmanager can see; they keep what they are told."""

    url: str = ""
    hook: list[dict[str, Any]] = field(default_factory=list)
    slack: list[str] = field(default_factory=list)
    pagerduty: list[dict[str, Any]] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, request: Request) -> Response:
        told = await request.json()
        match request.url.path:
            case "/hook":
                self.hook += told["alerts"]
            case "/slack":
                self.slack += [f"{part.get('title', '')}\n{part.get('text', '')}" for part in told["attachments"]]
            case "/pagerduty":
                self.pagerduty.append(told)
        self._news.set()
        return JSONResponse({"status": "success"}, 202 if request.url.path == "/pagerduty" else 200)

    def names(self, status: str) -> set[str]:
        return {alert["labels"]["alertname"] for alert in self.hook if alert["status"] == status} - {"Watchdog"}

    async def until(self, holds: Callable[[], object], what: str, seconds: float = 90) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not holds():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pytest.fail(f"{what}; fired {sorted(self.names('firing'))}, over {sorted(self.names('resolved'))}")


@asynccontextmanager
async def listening_on(routes: Mapping[str, Callable[[Request], Awaitable[Response]]]) -> AsyncIterator[str]:
    app = Starlette(routes=[Route(path, take, methods=["GET", "POST"]) for path, take in routes.items()])
    async with serving(app) as url:
        yield url


class World:
    """The service, what it stands before, and traffic that can be told to go wrong."""

    def __init__(self, folder: Path, http: httpx2.AsyncClient) -> None:
        self.folder = folder
        self.http = http
        self.places: dict[str, str] = {}
        self.limits = dict.fromkeys(("low", "gone", "soon"), Decimal(1000))
        self.share_failing = 0.0
        self.cut_short = False
        self.tool_fails = False
        self.service: Service
        self.address = ""
        self.tools = MCPServer("weather")
        self.tools.add_tool(self.forecast, name="forecast")
        self._tasks: list[asyncio.Task[None]] = []
        self._sent = 0

    def forecast(self, city: str) -> str:
        """Tomorrow's weather."""
        if self.tool_fails:
            raise RuntimeError("the weather service is away")
        return f"{city}: sun"

    def settings(self) -> Settings:
        def provider(name: str, kind: str) -> ProviderSettings:
            return ProviderSettings(name=name, type=kind, base_url=self.places[name], api_key=SecretStr("any"))

        def budget(name: str, team: str, *, hard: bool) -> BudgetSettings:
            return BudgetSettings(
                name=name, team=team, limit_usd=self.limits[name], hard=hard, start_day=far_from_today()
            )

        return Settings(
            ledger=LedgerSettings(path=self.folder / "ledger.db"),
            providers=(
                provider("holysheep", "holysheep"),
                provider("backup", "openai"),
                provider("slow", "openai"),
                provider("dear", "holysheep"),
                provider("short", "openai"),
            ),
            keys=tuple(KeySettings(name=team, team=team, secret=SecretStr(key)) for team, key in KEYS.items()),
            budgets=(
                budget("low", "search", hard=False),
                budget("gone", "support", hard=True),
                budget("soon", "research", hard=False),
            ),
        )

    async def chat(
        self, model: str, *, simulate: str = "", team: str = "ops", path: str = "/v1/chat/completions", most: int = 2000
    ) -> int:
        body: dict[str, Any] = {"model": model, "metadata": {"simulate": simulate}} if simulate else {"model": model}
        if path.endswith("responses"):
            body |= {"input": "Hello", "max_output_tokens": most}
        else:
            body |= {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": most}
        headers = {"authorization": f"Bearer {KEYS[team]}"}
        with contextlib.suppress(httpx2.HTTPError):
            return (await self.http.post(self.address + path, json=body, headers=headers)).status_code
        return 0

    async def spend(self, team: str, calls: int = 10) -> Decimal:
        """What a team has spent by now, in US dollars."""
        await asyncio.gather(*(self.chat("gpt-4.1", team=team) for _ in range(calls)))
        await self.service.budgets.refresh()
        name = {"search": "low", "research": "soon"}[team]
        (status,) = [status for status in self.service.budgets.status() if status.name == name]
        return Decimal(status.spent_nanousd).scaleb(-9)

    async def steady(self) -> None:
        """Twenty calls a second, of which a share fails at the provider."""
        while True:
            self._sent += 1
            failing = self._sent % 20 < self.share_failing * 20
            simulate = "status=500" if failing else ""
            self._tasks.append(
                asyncio.create_task(
                    self._quietly(self.chat("gpt-4.1", simulate=simulate, most=2 if self.cut_short else 2000))
                )
            )
            await asyncio.sleep(0.05)

    async def others(self) -> None:
        """A few calls a second to everybody else, and to the tools."""
        async with mcp.Client(self.tools) as client:
            while True:
                await asyncio.gather(
                    self.chat("backup/gpt-4.1"),
                    self.chat("slow/gpt-4.1", path="/v1/responses"),
                    self.chat("dear/gpt-4.1"),
                    self.chat("short/gpt-4.1"),
                    client.call_tool("forecast", {"city": "Oslo"}),
                )
                await asyncio.sleep(0.1)

    async def unknown(self, calls: int) -> None:
        for number in range(calls):
            await self.chat(f"nobody-knows-{number}")

    async def crowd(self, until: asyncio.Event) -> None:
        """Fifty callers at once who all have to wait."""

        async def caller() -> None:
            while not until.is_set():
                await self.chat("slow/gpt-4.1", path="/v1/responses")

        await asyncio.gather(*(caller() for _ in range(50)))

    async def _quietly(self, call: Awaitable[int]) -> None:
        await call


@pytest.fixture
async def pagers() -> AsyncIterator[Pagers]:
    pagers = Pagers()
    async with listening_on(dict.fromkeys(("/hook", "/slack", "/pagerduty", "/watchdog"), pagers.take)) as url:
        pagers.url = url
        yield pagers


def options_for(pagers: Pagers, folder: Path, *targets: str) -> MonitoringOptions:
    secrets = folder / "secrets"
    secrets.mkdir(exist_ok=True)
    (secrets / "slack").write_text(f"{pagers.url}/slack")
    (secrets / "pagerduty").write_text("0123456789abcdef0123456789abcdef")
    return MonitoringOptions(
        targets=tuple(urlsplit(target).netloc for target in targets),
        scrape_interval_seconds=1,
        service_scrape_interval_seconds=1,
        evaluation_interval_seconds=1,
        speedup=100,
        thresholds={name: {key: Decimal(text) for key, text in own.items()} for name, own in THRESHOLDS.items()},
        receivers=Receivers(
            pagerduty=PagerDuty(routing_key_file=str(secrets / "pagerduty"), url=f"{pagers.url}/pagerduty"),
            slack=Slack(api_url_file=str(secrets / "slack"), channel="#ops"),
            webhook=Webhook(url=f"{pagers.url}/hook"),
            dead_mans_switch=Webhook(url=f"{pagers.url}/hook"),
        ),
    )


@asynccontextmanager
async def a_world(folder: Path) -> AsyncIterator[World]:
    prices = {"gpt-4.1": LISTED}
    async with AsyncExitStack() as parts:
        http = await parts.enter_async_context(httpx2.AsyncClient(timeout=120, verify=False))
        world = World(folder, http)
        good = await parts.enter_async_context(Simulator(seed=1, prices=prices))
        world.places = dict.fromkeys(("holysheep", "backup", "slow", "dear", "short"), good.base_url)
        world.service = Service(world.settings)
        world.address = await parts.enter_async_context(running(world.service, bind("127.0.0.1", 0)))
        yield world


@dataclass(frozen=True)
class Expected:
    """An alert that has to come: what its text says, and who is told besides the webhook."""

    text: str
    paged: bool = False
    chat: bool = True


FAULTS = {
    "MCPErrorRateSpike": Expected("failed in the last five minutes"),
    "MCPErrorBudgetBurn": Expected("objective of 99.9 %", paged=True),
    "MCPUpstreamDown": Expected("to backup fail", paged=True),
    "MCPLatencyDegraded": Expected("/v1/responses"),
    "MCPActiveRequestsSpike": Expected("requests are in progress"),
    "MCPTokenBudgetWarning": Expected("budget low of team search"),
    "MCPBudgetForecastExceeded": Expected("budget soon of team research"),
    "MCPBudgetExhausted": Expected("budget gone of team support", paged=True),
    "MCPCostDrift": Expected("dear"),
    "MCPQuotaNearlyExhausted": Expected("short"),
    "MCPToolErrors": Expected("forecast"),
    "MCPQualityDegraded": Expected("gpt-4.1"),
    "MCPUnpricedTraffic": Expected("have no price"),
    "MCPLabelOverflow": Expected("model", chat=False),
}
LATER = {
    "MCPHighErrorRate": Expected("of the requests of mcpmeter failed", paged=True),
    "HolySheepRelayDown": Expected("holysheep", paged=True),
}
LAST = {
    "MCPLedgerFailing": Expected("cannot be written", paged=True),
    "MCPTargetDown": Expected("", paged=True),
}
ALONE = {"MCPCostSpike", "MCPAbsent", "Watchdog"}
SECONDS_OF_HEALTH = 70.0
"""About as long as the faults are left alone."""


def test_no_alert_is_left_out():
    assert {alert.name for alert in alerts(MonitoringOptions())} == {*FAULTS, *LATER, *LAST, *ALONE}


async def test_each_fault_is_told_to_the_right_people_and_its_end_too_and_health_is_silent(tmp_path, pagers):
    async with AsyncExitStack() as parts:
        world = await parts.enter_async_context(a_world(tmp_path))
        metered = mcpmeter.instrument(world.tools, registry=CollectorRegistry(), port=0)
        parts.callback(metered.close)
        options = options_for(pagers, tmp_path, world.address, f"http://127.0.0.1:{metered.port}")
        started = await parts.enter_async_context(stack(options, tmp_path / "stack"))
        traffic = [asyncio.create_task(world.steady()), asyncio.create_task(world.others())]
        spent = {team: await world.spend(team) for team in ("search", "research")}
        await at_rest(pagers, started.prometheus)

        await asyncio.sleep(SECONDS_OF_HEALTH)
        assert pagers.names("firing") == set(), "nothing is wrong, and somebody was told"
        assert any(alert["labels"]["alertname"] == "Watchdog" for alert in pagers.hook)

        crowd_may_go = asyncio.Event()
        async with faults(world, spent, crowd_may_go):
            await told_of(pagers, FAULTS)
            crowd_may_go.set()
            world.share_failing = 0.9
            await told_of(pagers, LATER)
        await over(pagers, {*FAULTS, *LATER})

        for task in traffic:
            task.cancel()
        with locked(tmp_path / "ledger.db"):
            await asyncio.gather(*(world.chat("gpt-4.1") for _ in range(3)))
            await told_of(pagers, {"MCPLedgerFailing": LAST["MCPLedgerFailing"]})
        await over(pagers, {"MCPLedgerFailing"})
        metered.close()
        await pagers.until(lambda: _fired(pagers, "MCPTargetDown"), "a target was killed and nobody told")


@asynccontextmanager
async def faults(world: World, spent: Mapping[str, Decimal], crowd_may_go: asyncio.Event) -> AsyncIterator[None]:
    """Everything goes wrong at once, each on its own provider, team, tool or endpoint; then it is mended."""
    health = dict(world.places)
    async with AsyncExitStack() as parts:
        slow = await parts.enter_async_context(Simulator(seed=2, first_byte=Latency.fixed(1_500)))
        dear = await parts.enter_async_context(Simulator(seed=3, prices={"gpt-4.1": DEARER}))
        short = await parts.enter_async_context(Simulator(seed=4, quota=Quota(requests=20, window_seconds=3600)))
        world.places |= {
            "backup": NOBODY,
            "slow": slow.base_url,
            "dear": dear.base_url,
            "short": short.base_url,
        }
        world.limits = {
            "low": spent["search"] * Decimal("1.1"),
            "gone": Decimal("0.000000001"),
            "soon": spent["research"] * Decimal("1.3"),
        }
        await world.service.reload()
        world.share_failing, world.cut_short, world.tool_fails = 0.2, True, True
        refused = asyncio.create_task(_again(lambda: world.chat("gpt-4.1", team="support")))
        crowd = asyncio.create_task(world.crowd(crowd_may_go))
        await world.unknown(40)
        await asyncio.gather(*(world.chat("dear/gpt-4.1") for _ in range(100)))
        try:
            yield
        finally:
            crowd_may_go.set()
            refused.cancel()
            world.share_failing, world.cut_short, world.tool_fails = 0.0, False, False
            world.places = health
            world.limits = dict.fromkeys(world.limits, Decimal(1000))
            await world.service.reload()
            await crowd
            # Drift is over all calls since start: the right ones have to outweigh the others.
            for _ in range(100):
                await asyncio.gather(*(world.chat("dear/gpt-4.1") for _ in range(20)))


async def _again(call: Callable[[], Awaitable[object]]) -> None:
    while True:
        await call()
        await asyncio.sleep(0.2)


async def at_rest(pagers: Pagers, prometheus: str) -> None:
    """Wait until all targets are scraped and nothing but Watchdog is active, and forget what the start has told.

    Three seconds, which are the five minutes of MCPAbsent here, may pass on a busy machine before the first scrape.
    """
    async with asyncio.timeout(120), httpx2.AsyncClient(base_url=f"{prometheus}/api/v1", verify=False) as http:
        while True:
            up = (await http.get("/query", params={"query": 'min(up{job="mcpmeter"})'})).json()["data"]["result"]
            alerts = (await http.get("/alerts")).json()["data"]["alerts"]
            active = {alert["labels"]["alertname"] for alert in alerts}
            told = {alert["labels"]["alertname"] for alert in pagers.hook}
            if up and up[0]["value"][1] == "1" and active == {"Watchdog"} <= told:
                break
            await asyncio.sleep(0.5)
    for notices in (pagers.slack, pagers.pagerduty):
        notices.clear()
    pagers.hook[:] = [alert for alert in pagers.hook if alert["labels"]["alertname"] == "Watchdog"]


async def told_of(pagers: Pagers, expected: Mapping[str, Expected]) -> None:
    """Each of these comes, says whom it is about, and wakes whom it should and nobody else."""
    for name, alert in expected.items():
        await pagers.until(partial(_says, pagers, name, alert.text), f"{name} did not come")
        assert all(notice["annotations"]["runbook_url"].endswith(f"{name}.md") for notice in _fired(pagers, name))
        if alert.chat:
            await pagers.until(partial(_in_chat, pagers, name), f"{name}: Slack is silent")
        if alert.paged:
            await pagers.until(partial(_paged, pagers, name, "trigger"), f"{name}: nobody was paged")
        else:
            assert not _paged(pagers, name, "trigger"), f"{name} woke somebody"


def _fired(pagers: Pagers, name: str) -> list[dict[str, Any]]:
    return [n for n in pagers.hook if n["labels"]["alertname"] == name and n["status"] == "firing"]


def _says(pagers: Pagers, name: str, text: str) -> bool:
    return any(text in notice["annotations"]["description"] for notice in _fired(pagers, name))


def _in_chat(pagers: Pagers, name: str) -> bool:
    return any(name in text for text in pagers.slack)


def _paged(pagers: Pagers, name: str, action: str) -> bool:
    return any(
        name in json.dumps(event.get("payload", event)) for event in pagers.pagerduty if event["event_action"] == action
    )


async def over(pagers: Pagers, names: set[str]) -> None:
    await pagers.until(lambda: names <= pagers.names("resolved"), "not all ended", seconds=150)


@contextlib.contextmanager
def locked(ledger: Path):
    """Another program holds the ledger's write lock."""
    other = apsw.Connection(str(ledger))
    other.set_busy_timeout(5_000)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


async def test_a_jump_in_spending_is_told_once_there_is_a_yesterday(tmp_path, pagers):
    """A day is 72 seconds here."""
    async with AsyncExitStack() as parts:
        world = await parts.enter_async_context(a_world(tmp_path))
        options = replace(
            options_for(pagers, tmp_path, world.address),
            speedup=1200,
            thresholds={"MCPCostSpike": {"usd": Decimal("0.0001")}},
        )
        await parts.enter_async_context(stack(options, tmp_path / "stack"))
        calm = asyncio.create_task(_again(lambda: world.chat("gpt-4.1", team="search")))
        await asyncio.sleep(80)
        assert "MCPCostSpike" not in pagers.names("firing")
        calm.cancel()
        wild = [asyncio.create_task(_again(lambda: world.chat("gpt-4.1", team="search"))) for _ in range(25)]
        await pagers.until(lambda: "MCPCostSpike" in pagers.names("firing"), "the spike was not told")
        (text,) = {n["annotations"]["description"] for n in pagers.hook if n["labels"]["alertname"] == "MCPCostSpike"}
        assert "search" in text
        for task in wild:
            task.cancel()
        await over(pagers, {"MCPCostSpike"})


async def test_a_target_that_shows_nothing_of_ours_is_told_as_absent(tmp_path, pagers):
    metrics = {"text": "something_else 1\n"}

    async def page(_: Request) -> Response:
        return PlainTextResponse(metrics["text"])

    async with listening_on({"/metrics": page}) as target, AsyncExitStack() as parts:
        await parts.enter_async_context(stack(options_for(pagers, tmp_path, target), tmp_path / "stack"))
        await pagers.until(lambda: "MCPAbsent" in pagers.names("firing"), "nobody was told")
        await pagers.until(lambda: _paged(pagers, "MCPAbsent", "trigger"), "nobody was paged")
        metrics["text"] = "mcp_active_requests 0\n"
        await over(pagers, {"MCPAbsent"})


async def test_a_killed_service_is_told_and_its_return_too(tmp_path, pagers):
    alive = asyncio.Event()
    alive.set()

    async def page(request: Request) -> Response:
        if not alive.is_set():
            await request.scope["state"]["connection"].reset()
        return PlainTextResponse("mcp_active_requests 0\n")

    async with listening_on({"/metrics": page}) as target, AsyncExitStack() as parts:
        started = await parts.enter_async_context(stack(options_for(pagers, tmp_path, target), tmp_path / "stack"))
        await at_rest(pagers, started.prometheus)
        alive.clear()
        await pagers.until(lambda: "MCPTargetDown" in pagers.names("firing"), "nobody was told")
        await pagers.until(lambda: _paged(pagers, "MCPTargetDown", "trigger"), "nobody was paged")
        assert "MCPAbsent" not in pagers.names("firing"), "what follows from a dead target is not told beside it"
        alive.set()
        await over(pagers, {"MCPTargetDown"})
