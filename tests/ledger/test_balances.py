"""What calls reserve and spend of a limit, in one step with their rows, on both engines."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.acting import BY

from mcpmeter.ledger.queries.reader import open_writer
from mcpmeter.ledger.store import InsufficientBudget, RowRefused, SettlementConflict, Store
from mcpmeter.records import Balance, Charge, Reservation, Scope, TopUp, Usage

MONTH = (1_793_491_200_000_000_000, 1_796_083_200_000_000_000)  # November 2026, UTC


def reservation(amount: int, limit: int = 100, balance: str = "team=research|month", **changes: object) -> Reservation:
    start, end = MONTH
    values = {"balance": balance, "period_start_ns": start, "period_end_ns": end, "amount": amount, "limit": limit}
    return Reservation(**{**values, "scope": Scope(team="research"), **changes})  # type: ignore[arg-type]


@pytest.fixture
def store(engine_store) -> Store:
    return engine_store


async def balance_of(store: Store, of: Reservation) -> Balance:
    (balance,) = await store.balances([of])
    return balance


async def test_a_call_reserves_its_maximum_and_posts_what_it_took(store, make_call, make_settlement):
    call = make_call(reservations=(reservation(40),), reserved_nanousd=40)
    await store.open(call)
    assert (await balance_of(store, reservation(0))).reserved == 40
    await store.settle(make_settlement(call, nanousd=7))
    balance = await balance_of(store, reservation(0))
    assert (balance.spent, balance.reserved, balance.carried) == (7, 0, 0)


async def test_concurrent_calls_are_admitted_up_to_the_limit(store, make_call):
    calls = [make_call(reservations=(reservation(30),)) for _ in range(100)]
    results = await asyncio.gather(*(store.open(call) for call in calls), return_exceptions=True)
    refused = [result for result in results if isinstance(result, InsufficientBudget)]
    assert len(refused) == 97
    assert {refusal.left for refusal in refused} == {10}
    assert (await balance_of(store, reservation(0))).reserved == 90
    assert store.open_rows == 3


async def test_a_refused_call_reserves_nothing_and_has_no_row(store, make_call, make_settlement):
    wide, narrow = reservation(30, 1000, "wide"), reservation(30, 20, "narrow")
    call = make_call(reservations=(wide, narrow))
    with pytest.raises(InsufficientBudget) as caught:
        await store.open(call)
    assert (caught.value.reservation, caught.value.left) == (narrow, 20)
    assert (await balance_of(store, wide)).reserved == 0
    with pytest.raises(SettlementConflict):
        await store.settle(make_settlement(call))


async def test_a_limit_that_only_warns_admits_and_counts(store, make_call, make_settlement):
    call = make_call(reservations=(reservation(500, 100, refuses=False),))
    await store.open(call)
    await store.settle(make_settlement(call, nanousd=450))
    assert (await balance_of(store, reservation(0))).spent == 450


async def test_a_repeated_settlement_counts_once(store, make_call, make_settlement):
    call = make_call(reservations=(reservation(40),))
    await store.open(call)
    settlement = make_settlement(call, nanousd=7)
    for _ in range(2):
        await asyncio.gather(*(store.settle(settlement) for _ in range(100)))
    assert (await balance_of(store, reservation(0))).spent == 7


async def test_another_payload_for_the_same_call_changes_no_balance(store, make_call, make_settlement):
    call = make_call(reservations=(reservation(40),))
    await store.open(call)
    await store.settle(make_settlement(call, nanousd=7))
    with pytest.raises(SettlementConflict):
        await store.settle(make_settlement(call, nanousd=8))
    assert (await balance_of(store, reservation(0))).spent == 7


async def test_an_id_that_is_taken_reserves_nothing(store, make_call):
    call = make_call(reservations=(reservation(40),))
    await store.open(call)
    with pytest.raises(RowRefused):
        await store.open(call)
    assert (await balance_of(store, reservation(0))).reserved == 40


async def test_a_new_limit_counts_its_periods_calls_so_far(store, make_call, make_settlement):
    for team, started_at_ns in (("research", MONTH[0]), ("research", MONTH[0] - 1), ("search", MONTH[0])):
        call = make_call(team=team, started_at_ns=started_at_ns)
        await store.open(call)
        await store.settle(make_settlement(call, nanousd=11))
    balance = await balance_of(store, reservation(0))
    assert (balance.spent, balance.carried, balance.reserved) == (11, 11, 0)


async def test_a_new_limit_reserves_for_open_calls(store, make_call, make_settlement):
    call = make_call(reserved_nanousd=40)
    await store.open(call)
    assert (await balance_of(store, reservation(0))).reserved == 40
    await store.settle(make_settlement(call, nanousd=9))
    balance = await balance_of(store, reservation(0))
    assert (balance.spent, balance.reserved) == (9, 0)


async def test_requests_and_tokens_are_limits_like_money(store, make_call, make_settlement):
    requests, tokens = (
        reservation(1, 2, "key|rpm", unit="requests"),
        reservation(50, 60, "key|tpm", unit="tokens"),
    )
    call = make_call(reservations=(requests, tokens))
    await store.open(call)
    await store.settle(
        make_settlement(call, usage=Usage(prompt_tokens=3, completion_tokens=4, source="reported"), nanousd=0)
    )
    spent = [balance.spent for balance in await store.balances([requests, tokens])]
    assert spent == [1, 7]


async def test_an_unpriced_call_counts_by_its_fallback_price(store, make_call, make_settlement):
    call = make_call(reservations=(reservation(40),))
    await store.open(call)
    await store.settle(make_settlement(call, charge=Charge(unpriced_reason="unknown_model", fallback_nanousd=33)))
    assert (await balance_of(store, reservation(0))).spent == 33


async def test_a_top_up_admits_calls_again(store, make_call):
    call = make_call(reservations=(reservation(60, 50, "once", period_start_ns=0, period_end_ns=0),))
    with pytest.raises(InsufficientBudget):
        await store.open(call)
    assert (
        await store.top_up(
            TopUp(id="top_1", balance="once", amount_nanousd=10, at_ns=1, note="invoice 7"), budget="once", by=BY
        )
        == 10
    )
    await store.open(call)
    with pytest.raises(RowRefused):
        await store.top_up(TopUp(id="top_1", balance="once", amount_nanousd=10, at_ns=1), budget="once", by=BY)
    (balance,) = await store.balances(call.reservations)
    assert (balance.credit, balance.reserved) == (10, 60)


async def test_balances_outlive_the_service_and_recovery_voids(make_store, ledger, make_call, make_settlement):
    first = make_store(ledger)
    await first.start()
    lost, kept = (make_call(reservations=(reservation(40),), reserved_nanousd=40) for _ in range(2))
    await first.open(lost)
    await first.open(kept)
    await first.settle(make_settlement(kept, nanousd=7))
    await first.close()

    second = make_store(ledger)
    await second.start()
    assert (await balance_of(second, reservation(0))).reserved == 40
    (row,) = await second.left_open()
    assert row.id == lost.id
    await second.settle(make_settlement(make_call(id=row.id), nanousd=3, outcome="recovered"))
    balance = await balance_of(second, reservation(0))
    assert (balance.spent, balance.reserved) == (10, 0)
    await second.close()


async def test_burn_is_what_a_scope_spent_in_a_period(store, make_call, make_settlement):
    for started_at_ns in (MONTH[0], MONTH[0] + 10, MONTH[0] + 20):
        call = make_call(started_at_ns=started_at_ns)
        await store.open(call)
        await store.settle(make_settlement(call, nanousd=5))
    assert await store.burn_nanousd(reservation(0), MONTH[0] + 5, MONTH[0] + 20) == 5


@pytest.fixture(scope="module")
def emptied(new_ledger):
    """One ledger for all examples of a property, which empty it."""
    return new_ledger()


@settings(deadline=None, max_examples=40)
@given(
    calls=st.lists(
        st.tuples(st.integers(0, 60), st.integers(0, 60), st.booleans(), st.sampled_from(["a", "b", "ab"])), max_size=25
    )
)
def test_a_balance_is_always_the_sum_of_its_calls(calls, make_store, emptied, make_call, make_settlement):
    with open_writer(emptied) as writer:
        for table in ("calls", "balances"):
            writer.execute(f"DELETE FROM {table}")

    async def run() -> None:
        store = make_store(emptied)
        await store.start()
        try:
            spent, reserved = {"a": 0, "b": 0}, {"a": 0, "b": 0}
            # Made first; a balance made later would start with what its scope has spent so far.
            await store.balances([reservation(0, 200, name) for name in "ab"])
            for maximum, took, settles, names in calls:
                call = make_call(reservations=tuple(reservation(maximum, 200, name) for name in names))
                (result,) = await asyncio.gather(store.open(call), return_exceptions=True)
                if isinstance(result, InsufficientBudget):
                    name = result.reservation.balance
                    assert spent[name] + reserved[name] + maximum > 200
                    assert result.left == 200 - spent[name] - reserved[name]
                    continue
                if settles:
                    await store.settle(make_settlement(call, nanousd=took))
                for name in names:
                    spent[name] += took if settles else 0
                    reserved[name] += 0 if settles else maximum
            found = await store.balances([reservation(0, 200, name) for name in "ab"])
            assert [(b.spent, b.reserved) for b in found] == [(spent[n], reserved[n]) for n in "ab"]
        finally:
            await store.close()

    asyncio.run(run())
