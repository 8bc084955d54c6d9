"""An intact ledger verifies; every kind of damage is named."""

from __future__ import annotations

import asyncio
import contextlib

import apsw
import pytest
from tests.acting import BY

from mcpmeter.ledger.maintenance.verify import verify
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.records import TopUp


def change(path, sql: str) -> None:
    """Change rows without the table's checks, as another program could."""
    with contextlib.closing(apsw.Connection(str(path))) as db:
        db.pragma("ignore_check_constraints", True)
        db.execute(sql)


def test_a_ledger_of_settled_calls_verifies(path, fill):
    fill(40)
    verdict = verify(path)
    assert verdict.wrong == []
    assert (verdict.calls, verdict.open_calls, verdict.balances, verdict.service) == (40, 0, 1, "")
    assert verdict.cost_nanousd == 40 * 1_890


def test_later_and_topped_up_balances_verify(path, fill, make_call, make_settlement):
    fill(3, reservations=())
    calls = fill(2)

    async def top_up() -> None:
        store = SqliteStore(path)
        await store.start()
        await store.top_up(
            TopUp(id="top_1", balance=calls[0].reservations[0].balance, amount_nanousd=7, at_ns=1), budget="b", by=BY
        )
        await store.close()

    asyncio.run(top_up())
    assert verify(path).wrong == []


def test_open_calls_without_a_service_are_named(path, fill):
    fill(1, left_open=2)
    assert verify(path).wrong == ["2 calls are open and no service runs: the next start settles them as recovered."]


async def test_open_calls_are_a_fault_if_older_than_the_service(path, store, make_call):
    await store.open(make_call(started_at_ns=4_000_000_000_000_000_000))
    verdict = await asyncio.to_thread(verify, path)
    assert verdict.wrong == []
    assert verdict.service.isdecimal()
    await store.open(make_call())
    (wrong,) = (await asyncio.to_thread(verify, path)).wrong
    assert wrong == f"1 calls are open that started before the service did (process {verdict.service})."


async def test_it_reads_one_snapshot_while_a_service_writes(path, store, make_call, make_settlement):
    async def write() -> None:
        for _ in range(200):
            call = make_call(started_at_ns=4_000_000_000_000_000_000)
            await store.open(call)
            await store.settle(make_settlement(call))

    writing = asyncio.create_task(write())
    while not writing.done():
        assert (await asyncio.to_thread(verify, path)).wrong == []
    await writing


@pytest.mark.parametrize(
    ("sql", "fault"),
    [
        ("UPDATE calls SET ended_at_ns = NULL WHERE rowid = 1", "1 calls are settled without an end"),
        ("UPDATE calls SET outcome = '' WHERE rowid = 1", "1 calls are settled without an outcome"),
        ("UPDATE calls SET outcome = 'fine' WHERE rowid = 1", "1 rows of calls have an unknown outcome"),
        ("UPDATE calls SET cost_source = 'unpriced' WHERE rowid = 1", "1 calls are unpriced and have a cost"),
        ("UPDATE calls SET fallback_cost_nanousd = 1 WHERE rowid = 1", "1 calls have a fallback price"),
        ("UPDATE calls SET token_source = '' WHERE rowid = 1", "1 calls have tokens of no source"),
        ("UPDATE calls SET cost_source = '' WHERE rowid = 1", "1 calls have a cost of no source"),
        ("UPDATE calls SET prompt_tokens = -1 WHERE rowid = 1", "1 calls have a negative number"),
        ("UPDATE calls SET cost_nanousd = cost_nanousd + 1 WHERE rowid = 1", "has spent 18900; its calls say 18901"),
        ("UPDATE balances SET reserved = 5", "has reserved 5; its calls say 0"),
        ("UPDATE balances SET credit = 5", "has credit 5; its calls say 0"),
        ("DELETE FROM calls WHERE rowid = 1", "has spent 18900; its calls say 17010"),
    ],
)
def test_every_fault_is_named(path, fill, sql, fault):
    fill(10)
    change(path, sql)
    found = verify(path).wrong
    assert any(fault in line for line in found), found


def test_a_damaged_page_is_the_only_fault_named(path, fill):
    fill(400)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2 // 4096 * 4096)
        file.write(bytes(4096))
    verdict = verify(path)
    assert verdict.wrong
    assert all("is damaged" in fault for fault in verdict.wrong)
