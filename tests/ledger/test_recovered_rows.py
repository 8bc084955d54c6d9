"""The true figures of a call replace those of its recovery, on both engines."""

from __future__ import annotations

import pytest
from tests.ledger.conftest import BUDGET, STARTED_AT_NS

from mcpmeter.ledger.queries.totals import find_call
from mcpmeter.ledger.store import SettlementConflict
from mcpmeter.records import Reservation, Scope

YEAR = Reservation(
    balance="model=deepseek-v3.2|year", period_start_ns=1, amount=9_000, limit=10**15,
    period_end_ns=2 * STARTED_AT_NS, scope=Scope(model="deepseek-v3.2"),
)  # fmt: skip
MINUTE = Reservation(
    balance="key=k|tokens|minute", unit="tokens", period_start_ns=STARTED_AT_NS, amount=90, limit=10**6,
    period_end_ns=STARTED_AT_NS + 60 * 10**9, scope=Scope(key_id="key_0123456789ab"),
)  # fmt: skip
LIMITS = (BUDGET, YEAR, MINUTE)


@pytest.fixture
async def store(engine_store):
    return engine_store


@pytest.fixture
async def recovered(store, make_call, make_settlement):
    """A call that was settled by recovery: 10 tokens of the prompt, 100 nano-dollars."""
    call = make_call(reservations=LIMITS, reserved_nanousd=5_000)
    await store.open(call)
    await store.settle(make_settlement(call, tokens=10, nanousd=100, outcome="recovered"))
    return call


async def spent(store) -> list[tuple[int, int]]:
    return [(balance.spent, balance.reserved) for balance in await store.balances(LIMITS)]


@pytest.mark.parametrize("nanousd", [1_890, 100, 0])
async def test_true_figures_replace_recovered_ones_once(store, ledger, recovered, make_settlement, nanousd):
    assert await spent(store) == [(100, 0), (100, 0), (30, 0)]
    true = make_settlement(recovered, tokens=7, nanousd=nanousd, upstream_request_id="req_1")
    for _ in range(3):
        await store.settle(true)
        assert await spent(store) == [(nanousd, 0), (nanousd, 0), (21, 0)]
    row = find_call(ledger, recovered.id)
    assert (row.outcome, row.prompt_tokens, row.completion_tokens, row.cost_nanousd, row.upstream_request_id) == (
        "ok", 7, 14, nanousd, "req_1"
    )  # fmt: skip


async def test_another_recovery_replaces_nothing(store, ledger, recovered, make_settlement):
    with pytest.raises(SettlementConflict, match="with other figures"):
        await store.settle(make_settlement(recovered, tokens=3, nanousd=7, outcome="recovered"))
    await store.settle(make_settlement(recovered, nanousd=50))
    with pytest.raises(SettlementConflict, match="with other figures"):
        await store.settle(make_settlement(recovered, tokens=10, nanousd=100, outcome="recovered"))
    assert find_call(ledger, recovered.id).cost_nanousd == 50
    assert (await spent(store))[0] == (50, 0)


async def test_two_different_true_settlements_conflict(store, ledger, recovered, make_settlement):
    await store.settle(make_settlement(recovered, nanousd=50))
    with pytest.raises(SettlementConflict, match="with other figures"):
        await store.settle(make_settlement(recovered, nanousd=51))
    assert find_call(ledger, recovered.id).cost_nanousd == 50
    assert (await spent(store))[0] == (50, 0)
