"""One durable row per call, opened once and settled once, on both engines."""

from __future__ import annotations

import asyncio
import threading

import msgspec
import pytest
from tests.acting import BY

from mcpmeter.errors import InvalidRequest, LedgerUnavailable
from mcpmeter.ledger.queries.keys import revoke_key
from mcpmeter.ledger.queries.totals import find_call
from mcpmeter.ledger.store import RowRefused, SettlementConflict, Store
from mcpmeter.records import Charge, Key, Usage

KEY = Key(id="key_aaaaaaaaaaaa", name="a", team="research", prefix="mk_abc", sha256="0" * 64, created_at_ns=1)


@pytest.fixture
def path(ledger):
    return ledger


@pytest.fixture
def store(engine_store) -> Store:
    return engine_store


async def test_a_settled_row_holds_every_figure_of_its_settlement(store, path, make_call, make_settlement):
    call = make_call(parent_id="call_parent", trace_id="0af7651916cd43dd8448eb211c80319c")
    settlement = make_settlement(
        call,
        outcome="partial",
        error_type="client_disconnected",
        error_id="caller_gone",
        usage=Usage(
            prompt_tokens=1,
            completion_tokens=2,
            cached_read_tokens=3,
            cache_write_tokens=4,
            reasoning_tokens=5,
            audio_tokens=6,
            source="partial",
        ),
        charge=Charge(nanousd=7, source="reported", price_list="p", reported_nanousd=8),
        response_model="deepseek-v3.2-exp",
        finish_reason="stop",
        upstream_status=200,
        upstream_request_id="req_1",
        time_to_first_chunk_ns=9,
        chunks=10,
    )
    await store.open(call)
    opened = find_call(path, call.id)
    assert opened is not None
    assert (opened.state, opened.ended_at_ns, opened.outcome, opened.stream) == ("open", None, "", True)

    await store.settle(settlement)
    row = find_call(path, call.id)
    assert row is not None
    usage, charge = settlement.usage, settlement.charge
    counts = {name: count for name, count in msgspec.structs.asdict(usage).items() if name.endswith("_tokens")}
    assert {name: getattr(row, name) for name in counts} == counts
    assert (row.state, row.team, row.key_id, row.token_source) == ("settled", call.team, call.key_id, "partial")
    assert (row.cost_nanousd, row.cost_source, row.price_list) == (charge.nanousd, charge.source, charge.price_list)
    assert row.reported_cost_nanousd == charge.reported_nanousd
    assert (row.parent_id, row.trace_id) == (call.parent_id, call.trace_id)
    for name in ("outcome", "error_type", "error_id", "response_model", "finish_reason", "upstream_status",
                 "upstream_request_id", "time_to_first_chunk_ns", "chunks", "duration_ns"):  # fmt: skip
        assert getattr(row, name) == getattr(settlement, name), name


async def test_a_call_that_reaches_no_model_has_no_source_of_tokens_or_cost(store, path, make_call, make_settlement):
    call = make_call(llm=None)
    await store.open(call)
    await store.settle(make_settlement(call, usage=None, charge=None))
    row = find_call(path, call.id)
    assert row is not None
    assert (row.provider, row.model, row.token_source, row.cost_source, row.cost_nanousd) == ("", "", "", "", 0)


async def test_rows_queued_during_a_commit_share_the_next_one(make_store, path, make_call, held):
    commits: list[tuple[int, threading.Thread]] = []
    store = make_store(path, on_commit=lambda ns: commits.append((ns, threading.current_thread())))
    await store.start()
    with held(path):
        futures = [store.open(make_call()) for _ in range(300)]
    await asyncio.gather(*futures)
    await store.close()
    assert 1 <= len(commits) <= 2
    assert all(ns > 0 and thread is threading.current_thread() for ns, thread in commits)


async def test_opening_and_settling_in_one_batch_works(store, path, make_call, make_settlement, held):
    calls = [make_call() for _ in range(50)]
    with held(path):
        futures = [future for call in calls for future in (store.open(call), store.settle(make_settlement(call)))]
    await asyncio.gather(*futures)
    assert {find_call(path, call.id).state for call in calls} == {"settled"}
    assert store.open_rows == 0


async def test_the_same_settlement_twice_leaves_one_row(store, path, make_call, make_settlement):
    call = make_call()
    await store.open(call)
    settlement = make_settlement(call)
    await asyncio.gather(store.settle(settlement), store.settle(settlement))
    await store.settle(settlement)
    assert find_call(path, call.id).cost_nanousd == 1_890


async def test_a_second_settlement_with_other_figures_is_refused(store, path, make_call, make_settlement):
    call = make_call()
    await store.open(call)
    await store.settle(make_settlement(call, nanousd=10))
    with pytest.raises(SettlementConflict, match="with other figures"):
        await store.settle(make_settlement(call, nanousd=11))
    assert find_call(path, call.id).cost_nanousd == 10
    assert store.healthy


async def test_settling_a_call_that_was_never_opened_is_refused(store, path, make_call, make_settlement):
    call = make_call()
    with pytest.raises(SettlementConflict, match="No call with this id"):
        await store.settle(make_settlement(call))
    assert find_call(path, call.id) is None


async def test_one_bad_row_fails_alone_in_its_batch(store, path, make_call, make_settlement, held):
    good = [make_call() for _ in range(20)]
    taken = good[0]
    bad = [
        make_call(started_at_ns=-1),
        make_call(started_at_ns=2**63),
        make_call(team="\ud800"),
        make_call(team=None),
        make_call(id=taken.id),
    ]
    with held(path):
        kept = [store.open(call) for call in good]
        refused = [store.open(call) for call in bad]
        settled = [store.settle(make_settlement(call)) for call in good[:10]]
        conflict = store.settle(make_settlement(make_call()))
    await asyncio.gather(*kept, *settled)
    for future in refused:
        with pytest.raises(RowRefused):
            await future
    with pytest.raises(SettlementConflict):
        await conflict
    assert [find_call(path, call.id).state for call in good] == ["settled"] * 10 + ["open"] * 10
    assert store.open_rows == 10
    assert store.healthy


async def test_a_refusal_names_the_column_and_never_the_value(store, make_call, make_settlement):
    call = make_call()
    await store.open(call)
    with pytest.raises(RowRefused, match=r"(prompt|completion)_tokens") as refused:
        await store.settle(make_settlement(call, tokens=-987_654))
    assert "987654" not in str(refused.value)
    with pytest.raises(RowRefused, match="not valid Unicode") as refused:
        await store.settle(make_settlement(call, response_model="private words \udfff"))
    assert "private" not in str(refused.value)


async def test_an_unpriced_call_cannot_have_a_cost(store, make_call, make_settlement):
    call = make_call()
    await store.open(call)
    with pytest.raises(RowRefused):
        await store.settle(make_settlement(call, charge=Charge(nanousd=1, source="unpriced")))
    await store.settle(make_settlement(call, charge=Charge()))


async def test_a_cancelled_waiters_row_is_written(store, path, make_call, held):
    cancelled, stays = make_call(), make_call()
    with held(path):
        waiter = asyncio.ensure_future(asyncio.wait_for(store.open(cancelled), 120))
        other = store.open(stays)
        await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
    await other
    await store.open(make_call())
    assert find_call(path, cancelled.id) is not None


async def test_open_rows_are_those_of_this_process(make_store, path, make_call, make_settlement):
    first = make_store(path)
    await first.start()
    calls = [make_call() for _ in range(3)]
    for call in calls:
        await first.open(call)
    await first.settle(make_settlement(calls[0]))
    assert first.open_rows == 2
    assert await first.left_open() == []
    await first.close()

    second = make_store(path)
    await second.start()
    await second.open(make_call())
    left = await second.left_open()
    assert [row.id for row in left] == [call.id for call in calls[1:]]
    assert second.open_rows == 1
    for call in calls[1:]:
        await second.settle(make_settlement(call, outcome="recovered"))
    assert await second.left_open() == []
    assert second.open_rows == 1
    await second.close()


async def test_every_method_fails_before_start_and_after_close(make_store, path, make_call, make_settlement):
    store = make_store(path)
    for started in (False, True):
        if started:
            await store.start()
            await store.close()
            await store.close()
        with pytest.raises(LedgerUnavailable):
            await store.open(make_call())
        with pytest.raises(LedgerUnavailable):
            await store.settle(make_settlement(make_call()))
        for method in (store.left_open, store.keys, store.keys_changed, store.probe):
            with pytest.raises(LedgerUnavailable):
                await method()
        with pytest.raises(LedgerUnavailable):
            await store.add_key(KEY, BY)
        with pytest.raises(LedgerUnavailable):
            await store.change_key(KEY.id, lambda key: key, action="key.rotate", by=BY)


async def test_a_key_whose_hash_is_taken_is_refused(store):
    await store.add_key(KEY, BY)
    assert await store.keys() == [KEY]
    with pytest.raises(RowRefused):
        await store.add_key(Key(id="key_b", name="b", team="t", prefix="", sha256=KEY.sha256, created_at_ns=2), BY)
    assert store.healthy


async def test_a_revocation_by_another_process_is_noticed(store, path):
    await store.add_key(KEY, BY)
    assert await store.keys() == [KEY]
    assert not await store.keys_changed()
    revoke_key(path, KEY.id, 5, BY)
    assert await store.keys_changed()
    assert [key.revoked_at_ns for key in await store.keys()] == [5]
    assert not await store.keys_changed()


async def test_a_change_of_a_key_changes_only_its_changeable_columns(store):
    await store.add_key(KEY, BY)
    rotated = msgspec.structs.replace(
        KEY, prefix="mk_new", sha256="b" * 64, previous_sha256=KEY.sha256, previous_until_ns=9, revoked_at_ns=None
    )
    more = msgspec.structs.replace(rotated, name="another", team="another", role="admin")
    assert await store.change_key(KEY.id, lambda key: more, action="key.rotate", by=BY) == more
    assert await store.keys() == [rotated]
    assert await store.change_key("key_none", lambda key: rotated, action="key.rotate", by=BY) is None
    assert await store.keys() == [rotated]


async def test_an_error_in_a_change_leaves_key_and_ledger_as_they_were(store):
    def refuse(key: Key) -> Key:
        raise InvalidRequest("Not this one.")

    await store.add_key(KEY, BY)
    with pytest.raises(InvalidRequest, match="Not this one"):
        await store.change_key(KEY.id, refuse, action="key.rotate", by=BY)
    assert store.healthy
    assert await store.keys() == [KEY]


async def test_concurrent_changes_of_a_key_see_each_other(store):
    await store.add_key(msgspec.structs.replace(KEY, previous_until_ns=0), BY)

    def count(key: Key) -> Key:
        return msgspec.structs.replace(key, previous_until_ns=(key.previous_until_ns or 0) + 1)

    await asyncio.gather(*(store.change_key(KEY.id, count, action="key.rotate", by=BY) for _ in range(20)))
    assert [key.previous_until_ns for key in await store.keys()] == [20]
