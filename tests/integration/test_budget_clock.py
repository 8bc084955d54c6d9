"""Budgets of a running service while its clock passes every kind of turn, and is set back across it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import time_machine
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmeter.budgets.budget import Budget, Budgets
from mcpmeter.budgets.period import NS_PER_S, Period
from mcpmeter.config import BudgetSettings
from mcpmeter.ledger.sqlite.balances import read_balances
from mcpmeter.ledger.sqlite.connection import open_for_reading
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.meter import new_call_id
from mcpmeter.records import Balance, Call, Charge, LlmTarget, Scope, Settlement, Usage

SECOND = timedelta(seconds=1)

TURNS = [
    pytest.param("Europe/Berlin", "day", 1, "2026-03-30T00:00:00", id="a day of 23 hours ends"),
    pytest.param("America/Sao_Paulo", "day", 1, "2017-10-15T01:00:00", id="midnight does not exist"),
    pytest.param("America/Havana", "day", 1, "2026-11-01T00:00:00", id="midnight comes twice"),
    pytest.param("Pacific/Apia", "day", 1, "2011-12-31T00:00:00", id="a day is left out"),
    pytest.param("Europe/Berlin", "week", 1, "2026-03-30T00:00:00", id="a week of 167 hours ends"),
    pytest.param("UTC", "month", 1, "2028-03-01T00:00:00", id="29 February ends"),
    pytest.param("UTC", "month", 31, "2027-02-28T00:00:00", id="day 31 in February"),
    pytest.param("Asia/Tokyo", "month", 1, "2027-01-01T00:00:00", id="the year turns"),
]


@pytest.fixture
def clock() -> Iterator[time_machine.Traveller]:
    with time_machine.travel(datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")), tick=False) as traveller:
        yield traveller


async def statuses(relay, count: int = 2) -> list[int]:
    """A budget of $0.002 has room for one such call per period."""
    return [(await relay.chat("completion_tokens=100", max_tokens=100)).status for _ in range(count)]


def kept(relay) -> list[Balance]:
    """The ledger's balances, read as another process would."""
    reader = open_for_reading(relay.ledger)
    try:
        return read_balances(reader)
    finally:
        reader.close()


@pytest.mark.parametrize(("zone", "period", "start_day", "turn"), TURNS)
async def test_each_period_has_its_own_room_for_any_clock(
    start_relay, clock, zone: str, period: str, start_day: int, turn: str
) -> None:
    at = datetime.fromisoformat(turn).replace(tzinfo=ZoneInfo(zone))
    begins = datetime.fromtimestamp(at.timestamp(), ZoneInfo("UTC"))
    clock.move_to(begins - SECOND)
    more = {"start_day": start_day} if period != "day" else {}
    budget = BudgetSettings(name="tight", limit_usd=Decimal("0.002"), period=period, time_zone=zone, **more)
    relay = await start_relay(budgets=(budget,))

    assert await statuses(relay) == [200, 402]
    clock.move_to(begins)
    assert await statuses(relay) == [200, 402]
    clock.move_to(begins - SECOND)  # set back across the turn: the earlier period is still spent
    assert await statuses(relay, 1) == [402]
    clock.move_to(begins)
    assert await statuses(relay, 1) == [402]

    before, after = kept(relay)
    assert before.period_end_ns == after.period_start_ns == round(begins.timestamp()) * NS_PER_S
    # The price list begins in November 2026; a call before it counts by the fallback price.
    costs = [row.cost_nanousd + row.fallback_cost_nanousd for row in relay.rows()]
    assert [before.spent, after.spent] == costs
    assert (before.reserved, after.reserved) == (0, 0)


async def test_a_call_belongs_to_the_period_it_started_in(start_relay, clock) -> None:
    turn = datetime(2026, 12, 1, tzinfo=ZoneInfo("UTC"))
    clock.move_to(turn - SECOND)
    relay = await start_relay(budgets=(BudgetSettings(name="tight", limit_usd=Decimal("0.002")),))
    running = asyncio.create_task(relay.chat("completion_tokens=100,stall=headers,stall_seconds=0.3", max_tokens=100))
    await relay.simulator.billing_log.wait_until(lambda log: log.open_calls == 1)
    clock.move_to(turn + SECOND)
    assert await statuses(relay) == [200, 402]
    assert (await running).status == 200
    before, after = kept(relay)
    assert (before.reserved, after.reserved) == (0, 0)
    assert before.spent == after.spent == relay.rows()[0].cost_nanousd


@settings(deadline=None, max_examples=30)
@given(
    zone=st.sampled_from(["Europe/Berlin", "America/Sao_Paulo", "America/Havana", "Australia/Lord_Howe", "UTC"]),
    kind=st.sampled_from(["day", "week", "month"]),
    steps=st.lists(st.tuples(st.integers(-3 * 86_400, 40 * 86_400), st.integers(1, 50)), max_size=25),
)
def test_balances_follow_any_walk_of_the_clock(
    zone: str, kind: str, steps: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    asyncio.run(_walk(zone, kind, steps, tmp_path_factory.mktemp("clock") / "ledger.db"))


async def _walk(zone: str, kind: str, steps: list[tuple[int, int]], path: Path) -> None:
    period = Period(kind, zone)  # type: ignore[arg-type]
    budget = Budget("b", Scope(team="search"), 10**6, period)
    budgets, store, now_s = Budgets([budget]), SqliteStore(path), 1_508_000_000  # October 2017
    await store.start()
    expected: dict[tuple[int, int], int] = {}
    try:
        for step_s, cost in steps:
            now_s += step_s
            at_ns = now_s * NS_PER_S
            reservations = budgets.reservations(team="search", max_cost_nanousd=60, at_ns=at_ns)
            call = Call(id=new_call_id(), started_at_ns=at_ns, endpoint="/v1/chat/completions", method="POST",
                        team="search", reservations=reservations, llm=LlmTarget(provider="p", model="m"))  # fmt: skip
            await store.open(call)
            charge = Charge(nanousd=cost, source="listed", price_list="test")
            usage = Usage(prompt_tokens=1, source="reported")
            await store.settle(
                Settlement(call=call, ended_at_ns=at_ns, duration_ns=0, status="200", usage=usage, charge=charge)
            )
            bounds = period.bounds(at_ns)
            expected[bounds] = expected.get(bounds, 0) + cost
        found = await store.balances([budget.reservation(0, start) for start, _ in expected])
        assert {(b.period_start_ns, b.period_end_ns): b.spent for b in found} == expected
        assert all(balance.reserved == 0 and balance.carried == 0 for balance in found)
    finally:
        await store.close()
