"""A backup is one snapshot, made beside a service that writes, and restored by copying."""

from __future__ import annotations

import asyncio
import shutil
import stat

import pytest

from mcpmeter.errors import LedgerNotUsable
from mcpmeter.ledger.maintenance import backup as backing_up
from mcpmeter.ledger.maintenance.backup import backup
from mcpmeter.ledger.maintenance.verify import verify
from mcpmeter.ledger.queries.totals import find_call, totals
from mcpmeter.ledger.sqlite.store import SqliteStore


async def test_a_backup_beside_a_writing_service_has_all_earlier_rows(
    path, store, tmp_path, make_call, make_settlement, monkeypatch
):
    monkeypatch.setattr(backing_up, "PAGES_PER_STEP", 1)
    before = [make_call() for _ in range(200)]
    for call in before:
        await asyncio.gather(store.open(call))
        await store.settle(make_settlement(call))
    stop = asyncio.Event()

    async def write() -> int:
        count = 0
        while not stop.is_set():
            await store.open(make_call())
            count += 1
        return count

    writing = asyncio.create_task(write())
    copy = tmp_path / "copy.db"
    size = await asyncio.to_thread(backup, path, copy)
    stop.set()
    assert await writing > 0
    assert size == copy.stat().st_size
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.db", "state"]
    assert all(find_call(copy, call.id) for call in before)


def test_a_copy_put_in_the_ledgers_place_is_the_ledger(path, fill, tmp_path):
    calls = fill(30, left_open=1)
    copy = tmp_path / "copy.db"
    backup(path, copy)
    for file in path.parent.iterdir():
        file.unlink()
    shutil.copy(copy, path)

    async def restart() -> list[str]:
        store = SqliteStore(path)
        await store.start()
        left = [row.id for row in await store.left_open()]
        await store.close()
        return left

    assert asyncio.run(restart()) == [calls[-1].id]
    assert totals(path, by=[])[0].calls == 30


def test_an_existing_file_is_not_overwritten(path, fill, tmp_path):
    fill(1)
    taken = tmp_path / "taken.db"
    taken.write_text("mine")
    with pytest.raises(LedgerNotUsable, match="exists already"):
        backup(path, taken)
    assert taken.read_text() == "mine"


def test_a_damaged_ledger_gives_no_backup(path, fill, tmp_path):
    fill(400)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(bytes(4096))
    with pytest.raises(LedgerNotUsable, match=r"damaged"):
        backup(path, tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()
    assert verify(path).wrong
