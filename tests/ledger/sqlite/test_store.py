"""What only SQLite has: the file, its lock, its log and the writer thread. The rest is in ../test_store.py."""

from __future__ import annotations

import asyncio
import stat
import threading
from pathlib import Path

import pytest

from mcpmeter.errors import LedgerNotUsable
from mcpmeter.ledger.queries.totals import find_call
from mcpmeter.ledger.sqlite.store import SqliteStore


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
