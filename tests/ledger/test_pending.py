"""Settlements that the ledger cannot take: kept, offered again until it takes them, and never in the way of others."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mcpmeter.errors import LedgerUnavailable
from mcpmeter.ledger import pending as module
from mcpmeter.ledger.pending import Callbacks, PendingSettlements, pending_place
from mcpmeter.ledger.queries.totals import find_call
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.ledger.store import RowRefused
from mcpmeter.records import Call, Settlement


class AwayStore:
    """The real store, while `is_away` without an answer to settlements but a fault."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.is_away = True
        self.offered = 0

    def settle(self, settlement: Settlement) -> asyncio.Future[None]:
        self.offered += 1
        if self.is_away:
            raise LedgerUnavailable("Away.")
        return self._store.settle(settlement)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Counted:
    """What the owner of the pending settlements counted."""

    def __init__(self) -> None:
        self.late: list[Settlement] = []
        self.rejected = self.unwritten = 0
        self.callbacks = Callbacks(self.late.append, self._reject, self._leave)

    def _reject(self) -> None:
        self.rejected += 1

    def _leave(self) -> None:
        self.unwritten += 1


@pytest.fixture
def away(store: SqliteStore) -> AwayStore:
    return AwayStore(store)


@pytest.fixture
def counted() -> Counted:
    return Counted()


Begin = Callable[..., Any]


@pytest.fixture
async def begin(away: AwayStore, path: Path, counted: Counted) -> AsyncIterator[Begin]:
    """Start another process's life on the same ledger; `kill` ends it as kill -9 does."""
    begun: list[PendingSettlements] = []

    async def start(**options: Any) -> PendingSettlements:
        started = PendingSettlements(away, pending_place(path), counted.callbacks, **options)
        await started.start()
        begun.append(started)
        return started

    yield start
    for started in begun:
        await started.close(0.1)


def kill(pending: PendingSettlements) -> None:
    """Nothing more is offered or written, and the lock is free, as after kill -9."""
    if pending._retrying is not None:
        pending._retrying.cancel()
    pending._entries.clear()
    pending.unwritten.clear()
    pending._files.close(is_empty=False)


async def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)


@pytest.fixture
def opened(store: SqliteStore, make_call: Callable[..., Call], make_settlement: Callable[..., Settlement]) -> Any:
    """Settlements of rows that are open in the ledger."""

    async def make(count: int, **changes: Any) -> list[Settlement]:
        calls = [make_call() for _ in range(count)]
        await asyncio.gather(*(store.open(call) for call in calls))
        return [make_settlement(call, **changes) for call in calls]

    return make


async def test_what_is_kept_is_settled_when_the_ledger_is_back(begin, away, opened, path):
    pending, settlements = await begin(), await opened(5)
    await asyncio.gather(*(pending.keep(settlement) for settlement in settlements))
    assert (len(pending), pending.unwritten, away.open_rows) == (5, set(), 5)
    away.is_away = False
    await until(lambda: not len(pending))
    assert {find_call(path, one.call.id).cost_nanousd for one in settlements} == {1_890}
    assert away.open_rows == 0


async def test_what_was_kept_survives_a_kill(begin, away, opened, path):
    settlements = await opened(3)
    first = await begin()
    await asyncio.gather(*(first.keep(settlement) for settlement in settlements))
    kill(first)
    away.is_away = False
    second = await begin()
    assert await second.settle_left() == 3
    assert {find_call(path, one.call.id).outcome for one in settlements} == {"ok"}
    await second.close(1)
    assert await (await begin()).settle_left() == 0


async def test_a_kill_between_ledger_and_file_settles_nothing_twice(begin, away, store, opened, path):
    settlements = await opened(3)
    first = await begin()
    await asyncio.gather(*(first.keep(settlement) for settlement in settlements))
    kill(first)
    await store.settle(settlements[0])
    away.is_away = False
    assert await (await begin()).settle_left() == 3
    assert find_call(path, settlements[0].call.id).cost_nanousd == 1_890


async def test_a_start_fails_while_the_ledger_takes_nothing(begin, away, opened):
    first = await begin()
    await first.keep((await opened(1))[0])
    kill(first)
    with pytest.raises(LedgerUnavailable):
        await (await begin()).settle_left()


async def test_a_refused_settlement_is_kept_aside_and_holds_up_no_other(begin, away, store, opened, path, counted):
    good, bad, unknown = await opened(3)
    await store.settle(msgspec.structs.replace(bad, status="500"))
    unknown = msgspec.structs.replace(unknown, call=msgspec.structs.replace(unknown.call, id="call_never_opened"))
    pending = await begin()
    await asyncio.gather(*(pending.keep(settlement) for settlement in (bad, unknown, good)))
    away.is_away = False
    await until(lambda: not len(pending))
    assert find_call(path, good.call.id).state == "settled"
    assert counted.rejected == 2
    aside = path.with_name("ledger.db.pending.rejected")
    await until(lambda: aside.exists() and aside.read_bytes().count(b"\n") == 2)
    assert {json.loads(line)["call"]["id"] for line in aside.read_text().splitlines()} == {bad.call.id, unknown.call.id}
    assert aside.stat().st_mode & 0o777 == 0o600


async def test_a_call_that_was_never_opened_and_cost_nothing_leaves_no_trace(begin, away, make_call, counted):
    pending = await begin()
    nothing = Settlement(call=make_call(), ended_at_ns=9, duration_ns=1, status="499", outcome="partial")
    await pending.keep(nothing)
    away.is_away = False
    await until(lambda: not len(pending))
    assert counted.rejected == 0


async def test_a_settlement_that_cannot_be_encoded_is_refused_at_once(begin, opened):
    (settlement,) = await opened(1, finish_reason="\ud800")
    with pytest.raises(RowRefused):
        await (await begin()).keep(settlement)


class TestWithoutAFile:
    """The file cannot be written either."""

    @pytest.fixture
    def broken(self, monkeypatch):
        """Every flush of the file fails until it is mended."""
        real, state = os.fdatasync, {"broken": True}

        def flush(fd: int) -> None:
            if state["broken"]:
                raise OSError(5, "Input/output error")
            real(fd)

        monkeypatch.setattr("mcpmeter.ledger.pending_file.os.fdatasync", flush)
        return lambda: state.update(broken=False)

    async def test_the_client_gets_an_error_and_memory_keeps_it(self, begin, opened, broken, counted):
        pending, (settlement,) = await begin(), await opened(1)
        with pytest.raises(LedgerUnavailable, match="Neither the ledger nor"):
            await pending.keep(settlement)
        assert pending.unwritten == {settlement.call.id}
        await pending.close(0.1)
        assert counted.unwritten == 1

    async def test_it_is_counted_once_the_file_takes_it(self, begin, opened, broken, counted):
        pending, (settlement,) = await begin(), await opened(1)
        with pytest.raises(LedgerUnavailable):
            await pending.keep(settlement)
        broken()
        await until(lambda: not pending.unwritten)
        assert (counted.late, len(pending)) == ([settlement], 1)
        await pending.close(0.1)
        assert (counted.late, counted.unwritten) == ([settlement], 0)

    async def test_it_is_counted_once_the_ledger_takes_it(self, begin, away, opened, broken, counted):
        pending, (settlement,) = await begin(), await opened(1)
        with pytest.raises(LedgerUnavailable):
            await pending.keep(settlement)
        away.is_away = False
        await until(lambda: not len(pending))
        assert (counted.late, pending.unwritten) == ([settlement], set())

    async def test_a_flush_that_hangs_holds_a_client_up_to_a_limit(self, begin, opened, monkeypatch):
        monkeypatch.setattr(module, "WRITE_SECONDS", 0.05)
        reading, writing = os.pipe()
        monkeypatch.setattr("mcpmeter.ledger.pending_file.os.fdatasync", lambda fd: os.read(reading, 1))
        pending, (settlement,) = await begin(), await opened(1)
        with pytest.raises(LedgerUnavailable):
            await pending.keep(settlement)
        assert pending.unwritten
        os.close(writing)
        await until(lambda: not pending.unwritten)
        os.close(reading)

    async def test_a_removed_file_in_a_lost_folder_makes_all_unwritten(
        self, begin, opened, path, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(module, "RETRY_SECONDS", (0.01, 0.05))
        pending, settlements = await begin(), await opened(2)
        await asyncio.gather(*(pending.keep(settlement) for settlement in settlements))
        path.parent.rename(tmp_path / "moved")
        await until(lambda: len(pending.unwritten) == 2)
        (tmp_path / "moved").rename(path.parent)
        await until(lambda: not pending.unwritten)
        assert len(pending) == 2


async def test_more_than_the_file_holds_stays_in_memory_until_there_is_room(begin, away, opened):
    pending, settlements = await begin(size_bytes=8192), await opened(8)
    for settlement in settlements:
        pending.keep(settlement)
        await until(lambda one=settlement: pending._entries[one.call.id].is_kept or one.call.id in pending.unwritten)
    assert 0 < len(pending.unwritten) < 8
    away.is_away = False
    await until(lambda: not len(pending))
    assert not pending.unwritten


async def test_closing_offers_everything_once_more(begin, away, opened, path):
    pending, settlements = await begin(), await opened(3)
    await asyncio.gather(*(pending.keep(settlement) for settlement in settlements))
    away.is_away = False
    await pending.close(5)
    assert {find_call(path, one.call.id).state for one in settlements} == {"settled"}


async def test_closing_does_not_wait_for_a_ledger_that_stays_away(begin, opened):
    pending, settlements = await begin(), await opened(3)
    await asyncio.gather(*(pending.keep(settlement) for settlement in settlements))
    async with asyncio.timeout(2):
        await pending.close(60)


async def test_five_thousand_pending_settlements_drain(begin, away, opened):
    pending, settlements = await begin(), await opened(5000)
    await asyncio.gather(*(pending.keep(settlement) for settlement in settlements), return_exceptions=True)
    away.is_away = False
    await until(lambda: not len(pending), 30)
    assert (away.open_rows, pending.unwritten) == (0, set())
