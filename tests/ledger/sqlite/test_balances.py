"""What calls reserve and spend of a limit: with their rows, in one step, whatever happens around it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmeter.ledger.queries.reader import open_writer
from mcpmeter.ledger.store import InsufficientBudget, RowRefused, SettlementConflict, Store
from mcpmeter.records import Balance, Charge, Reservation, Scope, TopUp, Usage

MONTH = (1_793_491_200_000_000_000, 1_796_083_200_000_000_000)  # November 2026, UTC


def claim(amount: int, limit: int = 100, balance: str = "team=research|month", **changes: object) -> Reservation:
    start, end = MONTH
    values = {"balance": balance, "period_start_ns": start, "period_end_ns": end, "amount": amount, "limit": limit}
    return Reservation(**{**values, "scope": Scope(team="research"), **changes})  # type: ignore[arg-type]


@pytest.fixture
def store(engine_store) -> Store:
    return engine_store


async def balance_of(store: Store, of: Reservation) -> Balance:
    (balance,) = await store.balances([of])
    return balance


async def test_a_call_reserves_its_most_and_settles_what_it_took(store, make_call, make_settlement):
    call = make_call(reservations=(claim(40),), reserved_nanousd=40)
    await store.open(call)
    assert (await balance_of(store, claim(0))).reserved == 40
    await store.settle(make_settlement(call, nanousd=7))
    balance = await balance_of(store, claim(0))
    assert (balance.spent, balance.reserved, balance.carried) == (7, 0, 0)


async def test_of_a_hundred_calls_at_once_as_many_are_let_in_as_the_limit_holds(store, make_call):
    calls = [make_call(reservations=(claim(30),)) for _ in range(100)]
    answers = await asyncio.gather(*(store.open(call) for call in calls), return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, InsufficientBudget)]
    assert len(refused) == 97
    assert {refusal.left for refusal in refused} == {10}
    assert (await balance_of(store, claim(0))).reserved == 90
    assert store.open_rows == 3


async def test_a_refused_call_reserves_nothing_of_its_other_limits_and_has_no_row(store, make_call, make_settlement):
    wide, narrow = claim(30, 1000, "wide"), claim(30, 20, "narrow")
    call = make_call(reservations=(wide, narrow))
    with pytest.raises(InsufficientBudget) as caught:
        await store.open(call)
    assert (caught.value.reservation, caught.value.left) == (narrow, 20)
    assert (await balance_of(store, wide)).reserved == 0
    with pytest.raises(SettlementConflict):
        await store.settle(make_settlement(call))


async def test_a_limit_that_only_warns_is_passed_and_counted(store, make_call, make_settlement):
    call = make_call(reservations=(claim(500, 100, refuses=False),))
    await store.open(call)
    await store.settle(make_settlement(call, nanousd=450))
    assert (await balance_of(store, claim(0))).spent == 450


async def test_a_settlement_that_comes_ten_thousand_times_counts_once(store, make_call, make_settlement):
    call = make_call(reservations=(claim(40),))
    await store.open(call)
    settlement = make_settlement(call, nanousd=7)
    for _ in range(10):
        await asyncio.gather(*(store.settle(settlement) for _ in range(1000)))
    assert (await balance_of(store, claim(0))).spent == 7


async def test_another_payload_for_the_same_call_changes_no_balance(store, make_call, make_settlement):
    call = make_call(reservations=(claim(40),))
    await store.open(call)
    await store.settle(make_settlement(call, nanousd=7))
    with pytest.raises(SettlementConflict):
        await store.settle(make_settlement(call, nanousd=8))
    assert (await balance_of(store, claim(0))).spent == 7


async def test_an_id_that_is_taken_reserves_nothing(store, make_call):
    call = make_call(reservations=(claim(40),))
    await store.open(call)
    with pytest.raises(RowRefused):
        await store.open(call)
    assert (await balance_of(store, claim(0))).reserved == 40


async def test_a_new_limit_counts_what_its_period_has_seen(store, make_call, make_settlement):
    for team, started_at_ns in (("research", MONTH[0]), ("research", MONTH[0] - 1), ("search", MONTH[0])):
        call = make_call(team=team, started_at_ns=started_at_ns)
        await store.open(call)
        await store.settle(make_settlement(call, nanousd=11))
    balance = await balance_of(store, claim(0))
    assert (balance.spent, balance.carried, balance.reserved) == (11, 11, 0)


async def test_a_new_limit_takes_in_the_calls_that_are_under_way(store, make_call, make_settlement):
    call = make_call(reserved_nanousd=40)
    await store.open(call)
    assert (await balance_of(store, claim(0))).reserved == 40
    await store.settle(make_settlement(call, nanousd=9))
    balance = await balance_of(store, claim(0))
    assert (balance.spent, balance.reserved) == (9, 0)


async def test_requests_and_tokens_are_limits_like_money(store, make_call, make_settlement):
    requests, tokens = (
        claim(1, 2, "key|rpm", unit="requests"),
        claim(50, 60, "key|tpm", unit="tokens"),
    )
    call = make_call(reservations=(requests, tokens))
    await store.open(call)
    await store.settle(
        make_settlement(call, usage=Usage(prompt_tokens=3, completion_tokens=4, source="reported"), nanousd=0)
    )
    spent = [balance.spent for balance in await store.balances([requests, tokens])]
    assert spent == [1, 7]


async def test_an_unpriced_call_counts_by_its_fallback_price(store, make_call, make_settlement):
    call = make_call(reservations=(claim(40),))
    await store.open(call)
    await store.settle(make_settlement(call, charge=Charge(unpriced_reason="unknown_model", fallback_nanousd=33)))
    assert (await balance_of(store, claim(0))).spent == 33


async def test_topping_up_lets_calls_in_again(store, make_call):
    call = make_call(reservations=(claim(60, 50, "once", period_start_ns=0, period_end_ns=0),))
    with pytest.raises(InsufficientBudget):
        await store.open(call)
    assert await store.top_up(TopUp(id="top_1", balance="once", amount_nanousd=10, at_ns=1, note="invoice 7")) == 10
    await store.open(call)
    with pytest.raises(RowRefused):
        await store.top_up(TopUp(id="top_1", balance="once", amount_nanousd=10, at_ns=1))
    (balance,) = await store.balances(call.reservations)
    assert (balance.credit, balance.reserved) == (10, 60)


async def test_balances_outlive_the_service_and_recovery_gives_back_what_was_reserved(
    make_store, ledger, make_call, make_settlement
):
    first = make_store(ledger)
    await first.start()
    lost, kept = (make_call(reservations=(claim(40),), reserved_nanousd=40) for _ in range(2))
    await first.open(lost)
    await first.open(kept)
    await first.settle(make_settlement(kept, nanousd=7))
    await first.close()

    second = make_store(ledger)
    await second.start()
    assert (await balance_of(second, claim(0))).reserved == 40
    (row,) = await second.left_open()
    assert row.id == lost.id
    await second.settle(make_settlement(make_call(id=row.id), nanousd=3, outcome="recovered"))
    balance = await balance_of(second, claim(0))
    assert (balance.spent, balance.reserved) == (10, 0)
    await second.close()


async def test_burn_is_what_the_scope_spent_in_the_time_asked_for(store, make_call, make_settlement):
    for started_at_ns in (MONTH[0], MONTH[0] + 10, MONTH[0] + 20):
        call = make_call(started_at_ns=started_at_ns)
        await store.open(call)
        await store.settle(make_settlement(call, nanousd=5))
    assert await store.burn_nanousd(claim(0), MONTH[0] + 5, MONTH[0] + 20) == 5


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
            # Kept from the beginning; a balance that comes later takes in what its scope has spent by then.
            await store.balances([claim(0, 200, name) for name in "ab"])
            for most, took, settles, names in calls:
                call = make_call(reservations=tuple(claim(most, 200, name) for name in names))
                (answer,) = await asyncio.gather(store.open(call), return_exceptions=True)
                if isinstance(answer, InsufficientBudget):
                    name = answer.reservation.balance
                    assert spent[name] + reserved[name] + most > 200
                    assert answer.left == 200 - spent[name] - reserved[name]
                    continue
                if settles:
                    await store.settle(make_settlement(call, nanousd=took))
                for name in names:
                    spent[name] += took if settles else 0
                    reserved[name] += 0 if settles else most
            found = await store.balances([claim(0, 200, name) for name in "ab"])
            assert [(b.spent, b.reserved) for b in found] == [(spent[n], reserved[n]) for n in "ab"]
        finally:
            await store.close()

    asyncio.run(run())
