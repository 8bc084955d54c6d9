"""A ledger that cannot be written fails every waiter, and recovers by itself once it can be."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import apsw
import pytest

from mcpmeter.errors import LedgerUnavailable
from mcpmeter.ledger.queries.totals import find_call
from mcpmeter.ledger.sqlite import writer
from mcpmeter.ledger.sqlite.store import SqliteStore


@contextmanager
def no_file_grows_beyond(size_bytes: int) -> Iterator[None]:
    """Writes past this size fail, as they do on a full disk or quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_unwritable_rows_fail_as_unavailable_and_writing_recovers(store, path, make_call, make_settlement):
    kept, lost = make_call(), [make_call() for _ in range(5)]
    await store.open(kept)
    with no_file_grows_beyond(path.with_name("ledger.db-wal").stat().st_size):
        errors = await asyncio.gather(*(store.open(call) for call in lost), return_exceptions=True)
        assert {type(error) for error in errors} == {LedgerUnavailable}
        assert all("could not be written" in str(error) and error.hint for error in errors)
        assert len({id(error) for error in errors}) == len(errors), "one error object must not go to two waiters"
        assert not store.healthy
        with pytest.raises(LedgerUnavailable):
            await store.probe()
        assert not store.healthy
    await store.probe()
    assert store.healthy
    assert store.open_rows == 1
    assert not any(find_call(path, call.id) for call in lost)
    await store.open(lost[0])
    await store.settle(make_settlement(kept))
    assert store.open_rows == 1


async def test_a_written_row_makes_it_healthy_again_and_reading_does_not(store, path, make_call):
    await store.open(make_call())
    with no_file_grows_beyond(path.with_name("ledger.db-wal").stat().st_size), pytest.raises(LedgerUnavailable):
        await store.open(make_call())
    await store.keys()
    assert not store.healthy
    await store.open(make_call())
    assert store.healthy


async def test_a_ledger_held_by_another_program_is_unavailable(path, make_call, monkeypatch):
    monkeypatch.setattr(writer, "BUSY_TIMEOUT_MS", 20)
    store = SqliteStore(path)
    await store.start()
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerUnavailable, match="another program holds it"):
        await store.open(make_call())
    assert not store.healthy
    other.close()
    await store.open(make_call())
    assert store.healthy
    await store.close()


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_moved_away_is_noticed_at_the_next_row(store, path, make_call, replaced):
    await store.open(make_call())
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        path.with_name(name).rename(path.with_name(f"away-{name}"))
    if replaced:
        path.touch()
    with pytest.raises(LedgerUnavailable, match="could not be written"):
        await store.open(make_call())
    assert not store.healthy
    if replaced:
        path.unlink()
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        path.with_name(f"away-{name}").rename(path.with_name(name))
    await store.open(make_call())
    assert store.healthy


async def test_closing_works_while_nothing_can_be_written(path, make_call):
    store = SqliteStore(path)
    await store.start()
    await store.open(make_call())
    with no_file_grows_beyond(path.with_name("ledger.db-wal").stat().st_size):
        waiting = store.open(make_call())
        await store.close()
        with pytest.raises(LedgerUnavailable):
            await waiting
    successor = SqliteStore(path)
    await successor.start()
    assert len(await successor.left_open()) == 1
    await successor.close()
