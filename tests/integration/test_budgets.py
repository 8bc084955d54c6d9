"""Budgets in the running service: what is set aside, refused, shown and foretold; after a restart and a reload too."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mcpmeter.budgets.budget import Budget, Budgets
from mcpmeter.budgets.forecast import NS_PER_HOUR
from mcpmeter.budgets.period import Period
from mcpmeter.budgets.status_board import BudgetStatusBoard
from mcpmeter.catalog import budget as rows
from mcpmeter.config import AttributionSettings, BudgetSettings
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.meter import new_call_id
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.records import Call, Charge, LlmTarget, Reservation, Scope, Settlement, TopUp, Usage
from mcpmeter.service import Service, bind
from mcpmeter.service.run import running

USD = 10**9
MINUTE = NS_PER_HOUR // 60
MONTH = Period("month")
START, END = MONTH.bounds(1_795_777_200_000_000_000)  # November 2026
CHAT_BODY = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}]}
TEAM = Budget("search", Scope(team="search"), 100 * USD, MONTH)


class Ledger:
    """A ledger at instants of the test's choosing, and the board that looks at it."""

    def __init__(self, store: SqliteStore) -> None:
        self.now_ns = START + 10 * NS_PER_HOUR
        self.store = store
        self.recorder = Recorder()
        self.board = BudgetStatusBoard(store, self.recorder, now=lambda: self.now_ns)

    async def spend(self, nanousd: int, *claims: Reservation, at_ns: int = 0) -> None:
        call = self.call(*claims, at_ns=at_ns)
        await self.store.open(call)
        await self.store.settle(
            Settlement(
                call=call,
                ended_at_ns=call.started_at_ns + 1,
                duration_ns=1,
                status="200",
                usage=Usage(prompt_tokens=1, source="reported"),
                charge=Charge(nanousd=nanousd, source="listed", price_list="test"),
            )
        )

    def call(self, *claims: Reservation, at_ns: int = 0) -> Call:
        return Call(
            id=new_call_id(),
            started_at_ns=at_ns or self.now_ns,
            endpoint="/v1/chat/completions",
            method="POST",
            team="search",
            reservations=claims,
            llm=LlmTarget(provider="openai", model="gpt-4.1"),
        )

    def gauge(self, row: Any, team: str = "search", budget: str = "search") -> int | None:
        cell = self.recorder.families[row.name].cells.get((team, budget))
        return None if cell is None else cell.value


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    store = SqliteStore(tmp_path / "ledger.db")
    await store.start()
    yield Ledger(store)
    await store.close()


class TestBoard:
    async def test_gauges_and_statuses_are_one_and_the_same(self, ledger: Ledger) -> None:
        ledger.board.configure(Budgets([TEAM]))
        await ledger.spend(20 * USD, TEAM.claim(30 * USD, ledger.now_ns))
        await ledger.store.open(ledger.call(TEAM.claim(5 * USD, ledger.now_ns)))
        await ledger.board.refresh()
        (status,) = ledger.board.status()
        assert (status.spent_nanousd, status.reserved_nanousd, status.left_nanousd) == (20 * USD, 5 * USD, 75 * USD)
        assert ledger.gauge(rows.SPENT) == 20 * USD
        assert ledger.gauge(rows.RESERVED) == 5 * USD
        assert ledger.gauge(rows.LIMIT) == 100 * USD
        assert ledger.gauge(rows.SOFT_LIMIT) == 80 * USD
        assert ledger.gauge(rows.PERIOD_END) == END // 10**9
        assert ledger.gauge(rows.EXHAUSTION) == (status.exhausted_at_ns or 0) // 10**9

    async def test_what_burned_before_the_service_started_is_in_the_forecast(self, ledger: Ledger) -> None:
        await ledger.spend(50 * USD, at_ns=ledger.now_ns - 7 * NS_PER_HOUR)
        await ledger.spend(30 * USD, at_ns=ledger.now_ns - NS_PER_HOUR)
        ledger.board.configure(Budgets([TEAM]))
        await ledger.board.refresh()
        (status,) = ledger.board.status()
        assert (status.spent_nanousd, status.burn_nanousd_per_hour) == (80 * USD, 5 * USD)
        assert status.exhausted_at_ns == ledger.now_ns + 4 * NS_PER_HOUR

    async def test_the_ledger_is_added_up_once_a_budget_and_for_one_budget_at_a_time(
        self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[str] = []
        burn_of = ledger.store.burn_nanousd

        async def counted(claim: Reservation, since_ns: int, until_ns: int) -> int:
            asked.append(claim.balance)
            return await burn_of(claim, since_ns, until_ns)

        monkeypatch.setattr(ledger.store, "burn_nanousd", counted)
        model = Budget("model", Scope(model="gpt-4.1"), USD, MONTH)
        ledger.board.configure(Budgets([TEAM, model]))
        for seconds, expected in ((0, 1), (1, 2), (2, 2), (3600, 2), (9 * 3600, 2)):
            ledger.now_ns = START + 10 * NS_PER_HOUR + seconds * 10**9
            await ledger.board.refresh()
            assert len(asked) == expected
        assert set(asked) == {TEAM.balance, model.balance}

    async def test_the_forecast_follows_what_burns_while_the_service_runs(self, ledger: Ledger) -> None:
        ledger.board.configure(Budgets([TEAM]))
        for _ in range(9 * 60):
            ledger.now_ns += MINUTE
            await ledger.spend(USD // 60, TEAM.claim(USD, ledger.now_ns))
            await ledger.board.refresh()
        (status,) = ledger.board.status()
        assert status.burn_nanousd_per_hour == pytest.approx(USD, rel=0.01)
        ledger.now_ns += 6 * NS_PER_HOUR
        await ledger.board.refresh()
        (status,) = ledger.board.status()
        assert (status.burn_nanousd_per_hour, status.exhausted_at_ns) == (0, None)
        assert ledger.gauge(rows.EXHAUSTION) == 0

    async def test_at_the_turn_of_the_period_everything_starts_anew_and_a_clock_set_back_finds_the_old_one(
        self, ledger: Ledger
    ) -> None:
        ledger.board.configure(Budgets([TEAM]))
        ledger.now_ns = END - 10**9
        await ledger.spend(20 * USD, TEAM.claim(20 * USD, ledger.now_ns))
        await ledger.board.refresh()
        spent = {}
        for at_ns in (END - 10**9, END, END - 10**9, END + NS_PER_HOUR):
            ledger.now_ns = at_ns
            await ledger.board.refresh()
            spent[at_ns] = ledger.gauge(rows.SPENT)
        assert spent == {END - 10**9: 20 * USD, END: 0, END + NS_PER_HOUR: 0}
        (status,) = ledger.board.status()
        assert status.period_start_ns == END
        assert status.exhausted_at_ns is None

    async def test_a_budget_that_a_reload_takes_out_takes_its_gauges_with_it_and_leaves_its_counter(
        self, ledger: Ledger
    ) -> None:
        ledger.board.configure(Budgets([TEAM]))
        await ledger.board.refresh()
        ledger.board.note_refusal(TEAM.claim(1, ledger.now_ns))
        ledger.board.configure(Budgets())
        await ledger.board.refresh()
        assert ledger.board.status() == []
        assert [ledger.gauge(row) for row in rows.ROWS if row.type == "gauge"] == [None] * 6
        assert ledger.gauge(rows.REFUSALS) == 1

    async def test_a_renamed_budget_keeps_what_was_spent(self, ledger: Ledger) -> None:
        ledger.board.configure(Budgets([TEAM]))
        await ledger.spend(20 * USD, TEAM.claim(20 * USD, ledger.now_ns))
        ledger.board.configure(Budgets([Budget("renamed", TEAM.scope, USD, MONTH)]))
        await ledger.board.refresh()
        assert ledger.gauge(rows.SPENT, budget="renamed") == 20 * USD
        assert ledger.gauge(rows.SPENT) is None

    async def test_credit_raises_the_limit_that_is_shown(self, ledger: Ledger) -> None:
        prepaid = Budget("credit", Scope(team="search"), 10 * USD, Period("once", start_ns=START))
        ledger.board.configure(Budgets([prepaid]))
        await ledger.board.refresh()
        await ledger.store.top_up(TopUp(id="top_1", balance=prepaid.balance, amount_nanousd=5 * USD, at_ns=1))
        await ledger.board.refresh()
        assert ledger.gauge(rows.LIMIT, budget="credit") == 15 * USD
        assert ledger.gauge(rows.PERIOD_END, budget="credit") == 0

    async def test_refusals_are_counted_by_the_budget_that_refused_and_exist_at_zero(self, ledger: Ledger) -> None:
        wide = Budget("wide", Scope(), USD, MONTH)
        ledger.board.configure(Budgets([TEAM, wide]))
        assert (ledger.gauge(rows.REFUSALS), ledger.gauge(rows.REFUSALS, "", "wide")) == (0, 0)
        ledger.board.note_refusal(wide.claim(1, ledger.now_ns))
        minute = Reservation(balance="key=key_1|requests|minute", unit="requests", period_start_ns=1, amount=1)
        ledger.board.note_refusal(minute)
        assert (ledger.gauge(rows.REFUSALS), ledger.gauge(rows.REFUSALS, "", "wide")) == (0, 1)

    async def test_each_soft_share_is_logged_once_a_period(
        self, ledger: Ledger, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING, logger="mcpmeter")
        shares = (Decimal("0.5"), Decimal("0.8"), Decimal("0.995"))
        budget = Budget("search", Scope(team="search"), 100 * USD, MONTH, shares)
        ledger.board.configure(Budgets([budget]))
        for spent in (49, 11, 5, 30, 4.6):
            await ledger.spend(round(spent * USD), budget.claim(0, ledger.now_ns))
            await ledger.board.refresh()
            await ledger.board.refresh()
        assert [record.getMessage() for record in caplog.records] == [
            "budget 'search' has passed 50 % of $100.00: $60.00 is spent",
            "budget 'search' has passed 80 % of $100.00: $95.00 is spent",
            "budget 'search' has passed 99.5 % of $100.00: $99.60 is spent",
        ]

    async def test_without_budgets_the_ledger_is_left_alone(self, ledger: Ledger) -> None:
        await ledger.store.close()
        await ledger.board.refresh()
        assert ledger.board.status() == []


@pytest.fixture
def new_place(place_of_either_engine):
    return place_of_either_engine


def tight(**changes: Any) -> BudgetSettings:
    """Room for one call of a hundred completion tokens of gpt-4.1, which cost a tenth of a cent, its prompt beside."""
    return BudgetSettings(**{"name": "tight", "limit_usd": Decimal("0.002"), **changes})


async def chat(relay: Any, tokens: int = 100, most: int = 100, **more: Any) -> Any:
    return await relay.chat(f"completion_tokens={tokens}", max_tokens=most, **more)


async def test_a_call_beyond_the_budget_is_402_and_says_which_what_is_left_and_until_when(start_relay) -> None:
    relay = await start_relay(budgets=(tight(),))
    assert (await chat(relay)).status == 200
    refused = await chat(relay)
    assert refused.status == 402
    assert refused.error["code"] == "budget_exhausted"
    assert "The budget 'tight' has $0.000" in refused.error["message"]
    assert "It resets at 20" in refused.error["message"]
    scrape = relay.counts()
    assert scrape.of("mcp_budget_refusals_total", budget="tight") == 1
    assert scrape.of("mcp_errors_total", error_type="budget_exceeded", side="client") == 1
    assert len(relay.rows()) == 1  # the refused one has no row, and never went upstream
    assert len(list(relay.simulator.billing_log.calls())) == 1


async def test_a_budget_that_only_warns_lets_calls_go_on_and_shows_them(start_relay) -> None:
    relay = await start_relay(budgets=(tight(hard=False),))
    assert [(await chat(relay)).status for _ in range(4)] == [200] * 4
    await relay.service.budgets.refresh()
    (status,) = relay.service.budgets.status()
    assert status.left_nanousd < 0
    assert relay.counts().of("mcp_budget_spent_usd", budget="tight") > 0.004


async def test_what_is_spent_outlives_the_service(start_relay) -> None:
    relay = await start_relay(budgets=(tight(),))
    assert (await chat(relay)).status == 200
    await relay.end()
    service = Service(lambda: relay.settings)
    async with running(service, bind("127.0.0.1", 0)) as relay.url, httpx2.AsyncClient(verify=False) as relay.http:
        (status,) = service.budgets.status()
        assert status.spent_nanousd == sum(row.cost_nanousd for row in relay.rows()) > 0
        assert (await chat(relay)).status == 402


async def test_a_reload_raises_the_limit_and_forgets_nothing(start_relay) -> None:
    relay = await start_relay(budgets=(tight(),))
    assert [(await chat(relay)).status for _ in range(2)] == [200, 402]
    raised = relay.settings.model_copy(update={"budgets": (tight(limit_usd=Decimal("0.004")),)})
    relay.service._load = lambda: raised
    assert (await relay.ask(path="/-/reload")).status == 200
    assert relay.counts().of("mcp_budget_limit_usd", budget="tight") == 0.004
    assert [(await chat(relay)).status for _ in range(3)] == [200, 200, 402]


async def test_a_top_up_by_another_process_lets_calls_in_again_within_a_second(start_relay) -> None:
    relay = await start_relay(budgets=(tight(period="once", start="2026-01-01"),))
    assert [(await chat(relay)).status for _ in range(2)] == [200, 402]
    ((budget, _),) = relay.service.pipeline.runtime.limits.budgets.current(0)
    await relay.service._store.top_up(TopUp(id="top_1", balance=budget.balance, amount_nanousd=USD // 500, at_ns=1))
    assert (await chat(relay)).status == 200


async def test_an_unpriced_model_counts_by_the_fallback_price_and_is_counted(start_relay) -> None:
    relay = await start_relay(budgets=(tight(),))
    assert (await chat(relay, model="nobody-prices-this")).status == 200
    await relay.service.budgets.refresh()
    (status,) = relay.service.budgets.status()
    (row,) = relay.rows()
    assert (row.cost_nanousd, row.fallback_cost_nanousd) == (0, status.spent_nanousd)
    assert status.spent_nanousd > 100 * 15_000  # $15 a million completion tokens
    scrape = relay.counts()
    assert scrape.of("mcp_budget_fallback_priced_total", provider="holysheep") == 1
    assert scrape.of("mcp_unpriced_requests_total", provider="holysheep", reason="unknown_model") == 1
    assert (await chat(relay, model="nobody-prices-this")).status == 402


async def test_a_failed_call_gives_back_what_was_set_aside(start_relay) -> None:
    relay = await start_relay(budgets=(tight(),))
    assert (await relay.chat("status=503", max_tokens=100)).status == 503
    await relay.service.budgets.refresh()
    (status,) = relay.service.budgets.status()
    assert (status.spent_nanousd, status.reserved_nanousd) == (0, 0)
    assert (await chat(relay)).status == 200


async def test_while_a_call_runs_its_most_is_set_aside(start_relay) -> None:
    relay = await start_relay(budgets=(tight(),))
    stalled = asyncio.create_task(relay.chat("stall=headers,stall_seconds=30", max_tokens=100))
    await relay.simulator.billing_log.wait_until(lambda log: log.open_calls == 1)
    await relay.service.budgets.refresh()
    (status,) = relay.service.budgets.status()
    assert status.reserved_nanousd >= 1_000_000
    assert (await chat(relay)).status == 402
    stalled.cancel()
    await asyncio.wait([stalled])
    await relay.until_idle()
    await relay.service.budgets.refresh()
    assert relay.service.budgets.status()[0].reserved_nanousd == 0


async def test_the_header_names_the_project_whose_budget_counts(start_relay) -> None:
    relay = await start_relay(
        attribution=AttributionSettings(values=("web", "mobile")), budgets=(tight(project="web"),)
    )

    async def call(project: str) -> int:
        body = {**CHAT_BODY, "max_tokens": 100, "metadata": {"simulate": "completion_tokens=100"}}
        return int((await relay.ask(body, headers={"X-Mcpmeter-Project": project})).status)

    assert [await call(project) for project in ("web", "web", "mobile", "mobile", "desk")] == [200, 402, 200, 200, 403]
    assert [row.project for row in relay.rows()] == ["web", "mobile", "mobile"]


async def test_the_api_tells_a_caller_of_its_own_budgets_only(start_relay) -> None:
    keys = {"search": "mk_q7Zk2vXw9LtRbN4mJcHs8dPfYg3eUaT5", "support": "mk_aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xY"}
    budgets = (tight(name="search", team="search"), tight(name="support", team="support"), tight(name="all"))
    relay = await start_relay(keys=keys, budgets=budgets)
    for team, secret in keys.items():
        answer = await relay.ask(path="/api/budgets", method="GET", headers={"authorization": f"Bearer {secret}"})
        assert [budget["name"] for budget in answer.json["budgets"]] == [team]
    assert (await relay.ask(path="/api/budgets", method="GET")).status == 401
