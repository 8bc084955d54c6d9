"""The status board on a real ledger: gauges, statuses, forecast, refusals and warnings."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.acting import BY

from mcpmeter.budgets.budget import Budget, Budgets
from mcpmeter.budgets.forecast import NS_PER_HOUR
from mcpmeter.budgets.period import Period
from mcpmeter.budgets.status_board import BudgetStatusBoard
from mcpmeter.catalog import budget as rows
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.meter import new_call_id
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.records import Call, Charge, LlmTarget, Reservation, Scope, Settlement, TopUp, Usage

USD = 10**9
MINUTE = NS_PER_HOUR // 60
MONTH = Period("month")
START, END = MONTH.bounds(1_795_777_200_000_000_000)  # November 2026
TEAM = Budget("search", Scope(team="search"), 100 * USD, MONTH)


class Ledger:
    """A ledger on a clock set by the test, and its board."""

    def __init__(self, store: SqliteStore) -> None:
        self.now_ns = START + 10 * NS_PER_HOUR
        self.store = store
        self.recorder = Recorder()
        self.board = BudgetStatusBoard(store, self.recorder, now=lambda: self.now_ns)

    async def spend(self, nanousd: int, *reservations: Reservation, at_ns: int = 0) -> None:
        call = self.call(*reservations, at_ns=at_ns)
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

    def call(self, *reservations: Reservation, at_ns: int = 0) -> Call:
        return Call(
            id=new_call_id(),
            started_at_ns=at_ns or self.now_ns,
            endpoint="/v1/chat/completions",
            method="POST",
            team="search",
            reservations=reservations,
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


async def test_gauges_and_statuses_agree(ledger: Ledger) -> None:
    ledger.board.configure(Budgets([TEAM]))
    await ledger.spend(20 * USD, TEAM.reservation(30 * USD, ledger.now_ns))
    await ledger.store.open(ledger.call(TEAM.reservation(5 * USD, ledger.now_ns)))
    await ledger.board.refresh()
    (status,) = ledger.board.status()
    assert (status.spent_nanousd, status.reserved_nanousd, status.left_nanousd) == (20 * USD, 5 * USD, 75 * USD)
    assert ledger.gauge(rows.SPENT) == 20 * USD
    assert ledger.gauge(rows.RESERVED) == 5 * USD
    assert ledger.gauge(rows.LIMIT) == 100 * USD
    assert ledger.gauge(rows.SOFT_LIMIT) == 80 * USD
    assert ledger.gauge(rows.PERIOD_END) == END // 10**9
    assert ledger.gauge(rows.EXHAUSTION) == (status.exhausted_at_ns or 0) // 10**9


async def test_the_forecast_includes_burn_from_before_the_start(ledger: Ledger) -> None:
    await ledger.spend(50 * USD, at_ns=ledger.now_ns - 7 * NS_PER_HOUR)
    await ledger.spend(30 * USD, at_ns=ledger.now_ns - NS_PER_HOUR)
    ledger.board.configure(Budgets([TEAM]))
    await ledger.board.refresh()
    (status,) = ledger.board.status()
    assert (status.spent_nanousd, status.burn_nanousd_per_hour) == (80 * USD, 5 * USD)
    assert status.exhausted_at_ns == ledger.now_ns + 4 * NS_PER_HOUR


async def test_the_ledger_is_summed_once_per_budget_one_per_refresh(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    summed: list[str] = []
    burn_of = ledger.store.burn_nanousd

    async def counted(reservation: Reservation, since_ns: int, until_ns: int) -> int:
        summed.append(reservation.balance)
        return await burn_of(reservation, since_ns, until_ns)

    monkeypatch.setattr(ledger.store, "burn_nanousd", counted)
    model = Budget("model", Scope(model="gpt-4.1"), USD, MONTH)
    ledger.board.configure(Budgets([TEAM, model]))
    for seconds, expected in ((0, 1), (1, 2), (2, 2), (3600, 2), (9 * 3600, 2)):
        ledger.now_ns = START + 10 * NS_PER_HOUR + seconds * 10**9
        await ledger.board.refresh()
        assert len(summed) == expected
    assert set(summed) == {TEAM.balance, model.balance}


async def test_the_forecast_follows_the_burn(ledger: Ledger) -> None:
    ledger.board.configure(Budgets([TEAM]))
    for _ in range(9 * 60):
        ledger.now_ns += MINUTE
        await ledger.spend(USD // 60, TEAM.reservation(USD, ledger.now_ns))
        await ledger.board.refresh()
    (status,) = ledger.board.status()
    assert status.burn_nanousd_per_hour == pytest.approx(USD, rel=0.01)
    ledger.now_ns += 6 * NS_PER_HOUR
    await ledger.board.refresh()
    (status,) = ledger.board.status()
    assert (status.burn_nanousd_per_hour, status.exhausted_at_ns) == (0, None)
    assert ledger.gauge(rows.EXHAUSTION) == 0


async def test_gauges_follow_the_period_of_the_clock_both_ways(ledger: Ledger) -> None:
    ledger.board.configure(Budgets([TEAM]))
    ledger.now_ns = END - 10**9
    await ledger.spend(20 * USD, TEAM.reservation(20 * USD, ledger.now_ns))
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


async def test_removing_a_budget_removes_gauges_not_counters(ledger: Ledger) -> None:
    ledger.board.configure(Budgets([TEAM]))
    await ledger.board.refresh()
    ledger.board.note_refusal(TEAM.reservation(1, ledger.now_ns))
    ledger.board.configure(Budgets())
    await ledger.board.refresh()
    assert ledger.board.status() == []
    assert [ledger.gauge(row) for row in rows.ROWS if row.type == "gauge"] == [None] * 6
    assert ledger.gauge(rows.REFUSALS) == 1


async def test_credit_raises_the_limit_gauge(ledger: Ledger) -> None:
    prepaid = Budget("credit", Scope(team="search"), 10 * USD, Period("once", start_ns=START))
    ledger.board.configure(Budgets([prepaid]))
    await ledger.board.refresh()
    await ledger.store.top_up(
        TopUp(id="top_1", balance=prepaid.balance, amount_nanousd=5 * USD, at_ns=1), budget="b", by=BY
    )
    await ledger.board.refresh()
    assert ledger.gauge(rows.LIMIT, budget="credit") == 15 * USD
    assert ledger.gauge(rows.PERIOD_END, budget="credit") == 0


async def test_refusals_are_counted_by_budget_from_zero(ledger: Ledger) -> None:
    wide = Budget("wide", Scope(), USD, MONTH)
    ledger.board.configure(Budgets([TEAM, wide]))
    assert (ledger.gauge(rows.REFUSALS), ledger.gauge(rows.REFUSALS, "", "wide")) == (0, 0)
    ledger.board.note_refusal(wide.reservation(1, ledger.now_ns))
    minute = Reservation(balance="key=key_1|requests|minute", unit="requests", period_start_ns=1, amount=1)
    ledger.board.note_refusal(minute)
    assert (ledger.gauge(rows.REFUSALS), ledger.gauge(rows.REFUSALS, "", "wide")) == (0, 1)


async def test_each_soft_share_is_logged_once_per_period(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="mcpmeter")
    shares = (Decimal("0.5"), Decimal("0.8"), Decimal("0.995"))
    budget = Budget("search", Scope(team="search"), 100 * USD, MONTH, shares)
    ledger.board.configure(Budgets([budget]))
    for spent in (49, 11, 5, 30, 4.6):
        await ledger.spend(round(spent * USD), budget.reservation(0, ledger.now_ns))
        await ledger.board.refresh()
        await ledger.board.refresh()
    assert [record.getMessage() for record in caplog.records] == [
        "budget 'search' has passed 50 % of $100.00: $60.00 is spent",
        "budget 'search' has passed 80 % of $100.00: $95.00 is spent",
        "budget 'search' has passed 99.5 % of $100.00: $99.60 is spent",
    ]
