"""Whatever a settlement contains, every waiter gets a result and the writer survives."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmeter.errors import ServiceFault
from mcpmeter.ledger.queries.totals import find_call, totals
from mcpmeter.records import Call, Charge, LlmTarget, Settlement, Usage

NUMBERS = st.one_of(
    st.integers(0, 10**6),
    st.integers(-(2**70), 2**70),
    st.sampled_from([2**63 - 1, 2**63, -(2**63), -1]),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=5),
)
TEXTS = st.one_of(
    st.text(st.characters(), max_size=20),
    st.sampled_from(["\ud800", "a\x00b", "", "ok", "open", "'; DROP TABLE calls; --"]),
    st.binary(max_size=4),
    st.integers(),
    st.none(),
)
USAGES = st.none() | st.builds(
    Usage, **dict.fromkeys(("prompt_tokens", "completion_tokens", "reasoning_tokens"), NUMBERS), source=TEXTS
)
CHARGES = st.none() | st.builds(Charge, nanousd=NUMBERS, source=TEXTS, price_list=TEXTS, reported_nanousd=NUMBERS)
TARGETS = st.none() | st.builds(LlmTarget, provider=TEXTS, model=TEXTS, stream=NUMBERS, prompt_tokens_estimate=NUMBERS)
CALLS = st.builds(
    Call, id=TEXTS, started_at_ns=NUMBERS, endpoint=TEXTS, method=TEXTS, team=TEXTS, key_id=TEXTS, llm=TARGETS
)
SETTLED = {
    "ended_at_ns": NUMBERS,
    "duration_ns": NUMBERS,
    "status": TEXTS,
    "outcome": st.sampled_from(["ok", "error", "partial", "recovered", "great", "", None]),
    "error_type": TEXTS,
    "usage": USAGES,
    "charge": CHARGES,
    "response_model": TEXTS,
    "upstream_status": NUMBERS,
    "chunks": NUMBERS,
}


@pytest.fixture(scope="module")
def service(new_ledger, make_store) -> Iterator[SimpleNamespace]:
    path = new_ledger()
    with asyncio.Runner() as runner:
        store = make_store(path)
        runner.run(store.start())
        yield SimpleNamespace(run=runner.run, store=store, path=path)
        runner.run(store.close())


@settings(deadline=None, max_examples=100)
@given(hostile=st.lists(st.tuples(CALLS, st.fixed_dictionaries(SETTLED)), min_size=1, max_size=6))
def test_good_rows_are_written_beside_hostile_ones(service, make_call, make_settlement, hostile):
    good = make_call()

    async def serve() -> list[object]:
        store = service.store
        futures = [store.open(good)]
        for call, settled in hostile:
            futures += [store.open(call), store.settle(Settlement(call=call, **settled))]
        futures.append(store.settle(make_settlement(good)))
        first, *results, last = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 20)
        assert first is None
        assert last is None
        return results

    results = service.run(serve())
    assert all(result is None or isinstance(result, ServiceFault) for result in results)
    assert find_call(service.path, good.id).state == "settled"
    assert service.store.healthy


@settings(deadline=None, max_examples=40)
@given(changed=st.fixed_dictionaries({}, optional=SETTLED))
def test_a_settlement_is_either_repeatable_or_leaves_its_row_open(service, make_call, make_settlement, changed):
    call = make_call()
    settlement = make_settlement(call, **changed)

    async def serve() -> None:
        await service.store.open(call)
        try:
            await service.store.settle(settlement)
        except ServiceFault:
            assert find_call(service.path, call.id).state == "open"
        else:
            assert find_call(service.path, call.id).state == "settled"
            await service.store.settle(settlement)

    service.run(serve())
    # Reports still work on whatever was written.
    for by in ("team", "model", "provider", "key", "day", "outcome"):
        assert totals(service.path, by=[by])
