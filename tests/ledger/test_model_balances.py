"""Balances of single models: a call that may go to several, and a call that several are billed for, on both engines."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace
from tests.acting import BY

from mcpmeter.ledger.maintenance.prune import prune
from mcpmeter.ledger.maintenance.verify import verify
from mcpmeter.ledger.store import InsufficientBudget, Store
from mcpmeter.records import Call, Charge, ChargeLine, LlmTarget, Reservation, Scope, Settlement

MONTH = (1_793_491_200_000_000_000, 1_796_083_200_000_000_000)  # November 2026, UTC
DAY_NS = 86_400 * 10**9


def budget_of(model: str, amount: int = 0, *, limit: int = 1000, several: bool = True) -> Reservation:
    """A reservation of a model's budget; of everything, if the model is empty."""
    start, end = MONTH
    return Reservation(
        balance=f"model={model}",
        period_start_ns=start,
        period_end_ns=end,
        amount=amount,
        limit=limit,
        scope=Scope(model=model),
        answered_by=model if several else "",
    )


BOTH = (budget_of("", 40), budget_of("cheap", 10), budget_of("dear", 40))


def answered_by(call: Call, model: str) -> Call:
    """The call as it is sent by weight, or after a failover."""
    return replace(call, llm=LlmTarget(provider="p", model=model))


async def spent(store: Store, *models: str) -> list[tuple[int, int]]:
    found = await store.balances([budget_of(model) for model in models])
    return [(balance.spent, balance.reserved) for balance in found]


async def intact(store: Store, ledger: Any) -> bool:
    await store.close()
    found = await asyncio.to_thread(verify, ledger)
    return [fault for fault in found.wrong if "has spent" in fault or "has reserved" in fault] == []


@pytest.fixture
async def store(make_store, ledger):
    opened = make_store(ledger)
    await opened.start()
    yield opened
    await opened.close()


async def test_only_the_answering_models_budget_is_charged(store, ledger, make_call, make_settlement):
    for model, nanousd in (("cheap", 3), ("dear", 20)):
        call = make_call(model="cheap", reservations=BOTH)
        await store.open(call)
        await store.settle(make_settlement(answered_by(call, model), nanousd=nanousd))
    assert await spent(store, "", "cheap", "dear") == [(23, 0), (3, 0), (20, 0)]
    assert await intact(store, ledger)


async def test_a_refusal_names_the_model_whose_budget_is_full(store, make_call):
    full = (*BOTH[:2], budget_of("dear", 40, limit=30))
    with pytest.raises(InsufficientBudget) as caught:
        await store.open(make_call(model="cheap", reservations=full))
    assert caught.value.reservation.answered_by == "dear"
    assert await spent(store, "", "cheap", "dear") == [(0, 0)] * 3


async def test_a_budget_made_while_a_call_runs_counts_its_own_model_only(store, ledger, make_call, make_settlement):
    calls = [make_call(model="cheap", reserved_nanousd=40) for _ in range(2)]
    for call in calls:
        await store.open(call)
    assert await spent(store, "cheap", "dear") == [(0, 80), (0, 0)]
    for call, model in zip(calls, ("cheap", "dear"), strict=True):
        await store.settle(make_settlement(answered_by(call, model), nanousd=9))
    assert await spent(store, "cheap") == [(9, 0)]
    assert await intact(store, ledger)


def of_two_models(call: Call, make_settlement: Any, own: int, other: int, **more: Any) -> Settlement:
    """A call of `cheap` at which an advisor of the model `dear` was billed too."""
    postings = (budget_of("cheap", own, several=False), budget_of("dear", other, several=False))
    lines = (ChargeLine("prompt", 3, own), ChargeLine("prompt", 3, other, model="dear"))
    charge = Charge(nanousd=own + other, source="listed", listed_nanousd=own + other, lines=lines)
    return make_settlement(call, **{"charge": charge, "postings": postings, **more})


async def test_each_models_budget_gets_its_own_lines(store, ledger, make_call, make_settlement):
    one = (budget_of("", 40, several=False), budget_of("cheap", 40, several=False))
    call = make_call(model="cheap", reservations=one)
    await store.open(call)
    settlement = of_two_models(call, make_settlement, 5, 8)
    for _ in range(2):
        await store.settle(settlement)
    assert await spent(store, "", "cheap", "dear") == [(13, 0), (5, 0), (8, 0)]
    assert await intact(store, ledger)


async def test_lines_of_another_model_count_though_nothing_was_reserved(store, ledger, make_call, make_settlement):
    call = make_call(model="cheap")
    await store.open(call)
    await store.settle(of_two_models(call, make_settlement, 5, 8))
    assert await spent(store, "dear") == [(8, 0)]
    assert await intact(store, ledger)


async def test_true_figures_replace_recovered_ones_of_two_models(store, ledger, make_call, make_settlement):
    call = make_call(model="cheap", reservations=BOTH)
    await store.open(call)
    await store.settle(make_settlement(call, nanousd=7, outcome="recovered"))
    assert await spent(store, "", "cheap", "dear") == [(7, 0), (7, 0), (0, 0)]
    await store.settle(make_settlement(answered_by(call, "dear"), nanousd=20))
    assert await spent(store, "", "cheap", "dear") == [(20, 0), (0, 0), (20, 0)]

    call = make_call(model="cheap", reservations=BOTH)
    await store.open(call)
    await store.settle(make_settlement(call, nanousd=7, outcome="recovered"))
    await store.settle(of_two_models(call, make_settlement, 1, 2))
    assert await spent(store, "", "cheap", "dear") == [(23, 0), (1, 0), (22, 0)]
    assert await intact(store, ledger)


async def test_pruning_keeps_what_each_model_spent(store, ledger, make_call, make_settlement):
    for _ in range(2):
        call = make_call(model="cheap", reservations=BOTH)
        await store.open(call)
        await store.settle(make_settlement(answered_by(call, "dear"), nanousd=20))
    call = make_call(model="cheap", reservations=BOTH)
    await store.open(call)
    await store.settle(of_two_models(call, make_settlement, 1, 2))
    assert await asyncio.to_thread(prune, ledger, MONTH[1], MONTH[1] + 3 * DAY_NS, BY) == 3
    assert await spent(store, "", "cheap", "dear") == [(43, 0), (1, 0), (42, 0)]
    assert await intact(store, ledger)


async def test_a_budget_that_is_added_later_counts_each_models_lines(store, ledger, make_call, make_settlement):
    for response_model in ("cheap", "dear"):  # as an advisor, and after a fallback
        call = make_call(model="cheap")
        await store.open(call)
        await store.settle(of_two_models(call, make_settlement, 5, 8, postings=(), response_model=response_model))
    assert await spent(store, "", "cheap", "dear") == [(26, 0), (10, 0), (16, 0)]
    await asyncio.to_thread(prune, ledger, MONTH[1], MONTH[1] + 3 * DAY_NS, BY)
    later = [replace(budget_of(model), balance=f"later {model}") for model in ("", "cheap", "dear")]
    assert [balance.spent for balance in await store.balances(later)] == [26, 10, 16]
    assert await intact(store, ledger)
