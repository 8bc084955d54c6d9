"""What only SQLite has: the file, its lock, its log and the writer thread. The rest is in ../test_store.py."""

from __future__ import annotations

import asyncio
import stat
import threading
from pathlib import Path

import msgspec
import pytest
from tests.ledger.conftest import BUDGET

from mcpmeter.errors import LedgerNotUsable
from mcpmeter.ledger.maintenance.verify import verify
from mcpmeter.ledger.queries.totals import find_call
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.ledger.store import SettlementConflict
from mcpmeter.records import Usage


async def test_closing_commits_the_queue_and_releases_the_file(path, make_call):
    store = SqliteStore(path)
    await store.start()
    calls = [make_call() for _ in range(100)]
    futures = [store.open(call) for call in calls]
    await asyncio.gather(store.close(), store.close())
    assert all(future.done() and future.exception() is None for future in futures)
    assert not path.with_name("ledger.db-wal").exists()

    successor = SqliteStore(path)
    await successor.start()
    assert len(await successor.left_open()) == 100
    await successor.close()


def ledger_threads() -> set[threading.Thread]:
    """Writers of this process; other tests may keep a service running."""
    return {thread for thread in threading.enumerate() if thread.name == "mcpmeter-ledger"}


async def ended(threads: set[threading.Thread]) -> None:
    for thread in threads:
        await asyncio.to_thread(thread.join)


class TestTrueFiguresOverRecoveredOnes:
    @pytest.fixture
    async def recovered(self, store, make_call, make_settlement):
        """A settled call of 7 + 14 tokens that recovery had settled by an estimate of 3 before."""
        limits = [
            msgspec.structs.replace(BUDGET, balance=unit, unit=unit, amount=amount)
            for unit, amount in (("nanousd", 5_000), ("tokens", 50), ("requests", 1))
        ]
        call = make_call(reservations=tuple(limits), reserved_nanousd=5_000)
        await store.open(call)
        estimate = Usage(prompt_tokens=3, source="estimated")
        await store.settle(make_settlement(call, status="500", outcome="recovered", usage=estimate, nanousd=900))
        return make_settlement(call, nanousd=1_890), limits

    async def test_the_row_is_replaced_and_balances_move_by_the_difference(self, store, path, recovered):
        settlement, limits = recovered
        await store.settle(settlement)
        await store.settle(settlement)
        row = find_call(path, settlement.call.id)
        assert (row.outcome, row.status, row.token_source, row.cost_nanousd) == ("ok", "200", "reported", 1_890)
        assert [balance.spent for balance in await store.balances(limits)] == [1_890, 21, 1]
        assert [balance.reserved for balance in await store.balances(limits)] == [0, 0, 0]
        await store.close()
        assert verify(path).wrong == []

    async def test_recovery_never_replaces_anything(self, store, path, recovered):
        settlement, _ = recovered
        estimate = msgspec.structs.replace(settlement, outcome="recovered", status="500")
        with pytest.raises(SettlementConflict):
            await store.settle(estimate)
        await store.settle(settlement)
        with pytest.raises(SettlementConflict):
            await store.settle(estimate)
        assert find_call(path, settlement.call.id).outcome == "ok"

    async def test_true_figures_are_never_replaced(self, store, path, recovered):
        settlement, _ = recovered
        await store.settle(settlement)
        with pytest.raises(SettlementConflict):
            await store.settle(msgspec.structs.replace(settlement, status="502"))
        assert find_call(path, settlement.call.id).status == "200"


async def test_a_cancelled_start_releases_the_ledger(path):
    others = ledger_threads()
    starting = asyncio.ensure_future(SqliteStore(path).start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await ended(ledger_threads() - others)
    successor = SqliteStore(path)
    await successor.start()
    await successor.close()


async def test_queued_rows_outlive_a_loop_that_ends_without_closing(path, make_call):
    calls, others = [make_call() for _ in range(200)], ledger_threads()

    def careless_service() -> None:
        async def run() -> None:
            store = SqliteStore(path)
            await store.start()
            for call in calls:
                store.open(call)
            closing = asyncio.ensure_future(store.close())
            await asyncio.sleep(0)
            closing.cancel()

        asyncio.run(run())

    await asyncio.to_thread(careless_service)
    await ended(ledger_threads() - others)
    assert all(find_call(path, call.id) for call in calls)


async def test_only_the_owner_may_read_the_files(store, path, make_call):
    await store.open(make_call())
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert set(modes) == {"ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.db.lock"}
    assert set(modes.values()) == {0o600}


async def test_two_services_never_share_a_ledger(store, path: Path):
    with pytest.raises(LedgerNotUsable, match=r"in use by process \d+\..*ledger\.path"):
        await SqliteStore(path).start()
    assert store.healthy
