"""What is SQLite's own: the file, its lock, its log and the thread that writes. The rest is in test_store.py."""

from __future__ import annotations

import asyncio
import stat
import threading
from pathlib import Path

import apsw
import pytest

from mcpmeter.errors import LedgerNotUsable
from mcpmeter.ledger.queries.totals import find_call
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.ledger.store import Store
from mcpmeter.records import Key

KEY = Key(id="key_aaaaaaaaaaaa", name="a", team="research", prefix="mk_abc", sha256="0" * 64, created_at_ns=1)


async def test_closing_commits_the_queue_folds_the_log_and_lets_go(path, make_call):
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


async def test_a_start_that_is_cancelled_lets_go_of_the_ledger(path):
    starting = asyncio.ensure_future(SqliteStore(path).start())
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    for thread in threading.enumerate():
        if thread.name == "mcpmeter-ledger":
            await asyncio.to_thread(thread.join)
    successor = SqliteStore(path)
    await successor.start()
    await successor.close()


async def test_a_loop_that_ends_without_closing_loses_nothing_that_was_queued(path, make_call):
    calls = [make_call() for _ in range(200)]

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
    for thread in threading.enumerate():
        if thread.name == "mcpmeter-ledger":
            await asyncio.to_thread(thread.join)
    assert all(find_call(path, call.id) for call in calls)


async def test_keys_changed_only_by_another_process(store, path):
    await store.keys()
    await store.add_key(KEY)
    assert not await store.keys_changed()
    other = apsw.Connection(str(path))
    other.execute("UPDATE keys SET revoked_at_ns = 5")
    other.close()
    assert await store.keys_changed()
    assert [key.revoked_at_ns for key in await store.keys()] == [5]
    assert not await store.keys_changed()


async def test_only_the_owner_may_read_the_files(store, path, make_call):
    await store.open(make_call())
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert set(modes) == {"ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.db.lock"}
    assert set(modes.values()) == {0o600}


async def test_commits_are_synchronous_and_the_log_is_a_wal(store, path):
    pragmas = await store._run(
        lambda db: (db.pragma("synchronous"), db.pragma("journal_mode"), db.pragma("foreign_keys"))
    )
    assert pragmas == (2, "wal", 1)


async def test_it_is_a_store(store: SqliteStore):
    used_as: Store = store
    assert used_as.healthy


async def test_two_services_never_share_a_ledger(store, path: Path):
    with pytest.raises(LedgerNotUsable, match=r"in use by process \d+\..*ledger\.path"):
        await SqliteStore(path).start()
    assert store.healthy
