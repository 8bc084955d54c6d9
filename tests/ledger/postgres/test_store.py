"""What only PostgreSQL has: replicas and their leases, the order of locks, broken connections, settings."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random

import psycopg
import pytest
from tests.acting import BY

from mcpmeter.errors import LedgerNotUsable, LedgerUnavailable, MissingDependency
from mcpmeter.ledger.location import PostgresUrl, location_of
from mcpmeter.ledger.opening import open_store
from mcpmeter.ledger.postgres import connection as postgres_connection
from mcpmeter.ledger.postgres.reconnecting import ConnectionLost
from mcpmeter.ledger.postgres.store import PostgresStore
from mcpmeter.ledger.queries.reader import open_reader, open_writer
from mcpmeter.ledger.queries.totals import find_call
from mcpmeter.ledger.sqlite.connection import open_for_writing
from mcpmeter.ledger.store import InsufficientBudget, RowRefused
from mcpmeter.records import Reservation, TopUp

StartStore = Callable[..., Awaitable[PostgresStore]]


@pytest.fixture
def place(postgres_url: str) -> PostgresUrl:
    found = location_of(postgres_url)
    assert isinstance(found, PostgresUrl)
    return found


@pytest.fixture
async def start(place: PostgresUrl) -> AsyncIterator[StartStore]:
    """Starts replicas on one database and closes them after the test."""
    stores: list[PostgresStore] = []

    async def started(**options: object) -> PostgresStore:
        store = PostgresStore(place, **options)  # type: ignore[arg-type]
        await store.start()
        stores.append(store)
        return store

    yield started
    for store in stores:
        await store.close()


def reservation(amount: int, limit: int = 100, balance: str = "b") -> Reservation:
    return Reservation(balance=balance, period_start_ns=1, period_end_ns=2**62, amount=amount, limit=limit)


def stop_heartbeats(store: PostgresStore) -> None:
    """As when the process is killed."""
    store._heartbeats.cancel()


SHORT_LEASE_S = 2.0
"""For replicas on a server that runs for longer, so that all heartbeats have been received."""


async def age(place: PostgresUrl, store: PostgresStore, seconds: float) -> None:
    # In a thread, because a cancelled heartbeat that locks the row has to end on the loop first.
    await asyncio.to_thread(_set_back, place, store._replica.id, seconds)


def _set_back(place: PostgresUrl, replica: str, seconds: float) -> None:
    with psycopg.connect(place.reveal()) as db:
        up = "extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())"
        db.execute(f"SELECT pg_sleep(greatest(0, {SHORT_LEASE_S + 0.1} - {up}))".encode())
        db.execute(
            "UPDATE mcpmeter.replicas SET beat_at = beat_at - make_interval(secs => %s) WHERE id = %s",
            (seconds, replica),
        )


def one(place: PostgresUrl, sql: str) -> object:
    with psycopg.connect(place.reveal()) as db:
        row = db.execute(sql.encode()).fetchone()
        return row and row[0]


# Replicas ------------------------------------------------------------------------------------------------------------


async def test_open_calls_of_a_dead_replica_are_taken_over_once(start, place, make_call, make_settlement):
    dead, *living = [await start(lease_s=SHORT_LEASE_S) for _ in range(3)]
    calls = [make_call() for _ in range(20)]
    await asyncio.gather(*(dead.open(call) for call in calls))
    assert [await store.left_open() for store in living] == [[], []]
    stop_heartbeats(dead)
    await age(place, dead, 60)
    first, second = await asyncio.gather(*(store.left_open() for store in living))
    assert sorted(row.id for row in [*first, *second]) == sorted(call.id for call in calls)
    for store, rows in zip(living, (first, second), strict=True):
        for row in rows:
            await store.settle(make_settlement(make_call(id=row.id), outcome="recovered"))
        assert await store.left_open() == []
    # The replica was alive after all: the first settlement stays.
    await dead.settle(make_settlement(make_call(id=calls[0].id), outcome="recovered"))
    assert find_call(place, calls[0].id).outcome == "recovered"


async def test_a_dead_takers_open_calls_are_taken_over_again(start, place, make_call):
    first, second, third = [await start(lease_s=SHORT_LEASE_S) for _ in range(3)]
    call = make_call()
    await first.open(call)
    for before, after in itertools.pairwise((first, second, third)):
        stop_heartbeats(before)
        await age(place, before, 60)
        assert [row.id for row in await after.left_open()] == [call.id]


async def test_a_restarted_server_declares_no_replica_dead(start, place, make_call):
    dead, living = [await start(lease_s=3600) for _ in range(2)]
    await dead.open(make_call())
    stop_heartbeats(dead)
    await age(place, dead, 2 * 3600)
    assert await living.left_open() == []  # the server itself is not up for an hour


async def test_a_closed_replicas_open_calls_are_taken_over_at_once(start, make_call):
    leaving, staying = [await start() for _ in range(2)]
    call = make_call()
    await leaving.open(call)
    await leaving.close()
    assert [row.id for row in await staying.left_open()] == [call.id]


async def test_replicas_that_start_together_migrate_once(start):
    stores = await asyncio.gather(*(start() for _ in range(5)))
    assert [await store.keys() for store in stores] == [[]] * 5


# Balances ------------------------------------------------------------------------------------------------------------


async def test_reservations_in_any_order_never_deadlock_or_overspend(start, place, make_call, make_settlement):
    stores = [await start() for _ in range(3)]
    random = Random(5)
    settled = 0

    async def customer(store: PostgresStore) -> None:
        nonlocal settled
        for _ in range(12):
            names = random.sample("abcdef", 4)
            call = make_call(reservations=tuple(reservation(7, 600, name) for name in names), reserved_nanousd=7)
            try:
                await store.open(call)
            except InsufficientBudget:
                continue
            await store.settle(make_settlement(call, nanousd=7))
            settled += 1

    await asyncio.gather(*(customer(store) for store in stores for _ in range(10)))
    balances = await stores[0].balances([reservation(0, 600, name) for name in "abcdef"])
    assert max(balance.spent for balance in balances) == 595
    assert sum(balance.spent for balance in balances) == settled * 4 * 7
    assert [balance.reserved for balance in balances] == [0] * 6
    assert one(place, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0


async def test_three_replicas_admit_calls_up_to_one_limit(start, make_call):
    stores = [await start() for _ in range(3)]
    for number in range(5):
        name = f"round-{number}"
        results = await asyncio.gather(
            *(stores[place % 3].open(make_call(reservations=(reservation(30, 100, name),))) for place in range(100)),
            return_exceptions=True,
        )
        assert sum(result is None for result in results) == 3
        assert sum(isinstance(result, InsufficientBudget) for result in results) == 97


async def test_a_balance_made_while_others_settle_misses_no_call(start, make_call, make_settlement):
    busy, maker = [await start() for _ in range(2)]
    calls = [make_call(started_at_ns=5, reserved_nanousd=10) for _ in range(60)]
    await asyncio.gather(*(busy.open(call) for call in calls))

    async def settle() -> None:
        for call in calls:
            await busy.settle(make_settlement(call, nanousd=3))

    async def make() -> None:
        for number in range(10):
            await maker.balances([reservation(0, 0, f"b{number}")])

    await asyncio.gather(settle(), make())
    found = await maker.balances([reservation(0, 0, f"b{number}") for number in range(10)])
    assert [(balance.spent, balance.reserved) for balance in found] == [(180, 0)] * 10


async def test_top_ups_at_the_same_moment_all_count(start):
    stores = [await start() for _ in range(3)]
    await stores[0].balances([reservation(0)])
    await asyncio.gather(
        *(
            stores[number % 3].top_up(
                TopUp(id=f"top_{number}", balance="b", amount_nanousd=10, at_ns=1), budget="b", by=BY
            )
            for number in range(12)
        )
    )
    [balance] = await stores[0].balances([reservation(0)])
    assert balance.credit == 120


# Connections that break ----------------------------------------------------------------------------------------------


async def test_a_connection_closed_by_the_server_fails_no_call(start, place, make_call, make_settlement):
    store = await start()
    call = make_call(reservations=(reservation(40),))
    await store.open(call)
    one(place, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
               " AND datname = current_database()")  # fmt: skip
    await store.settle(make_settlement(call, nanousd=7))
    await store.open(make_call(reservations=(reservation(40),)))
    assert store.healthy
    [balance] = await store.balances([reservation(0)])
    assert (balance.spent, balance.reserved) == (7, 40)


def break_after_commit(store: PostgresStore, times: int) -> None:
    """The writer's next transactions commit, and their responses are lost."""
    run, left = store._writer_connection.run, iter(range(times))

    async def broken(work, **options):
        result = await run(work, **options)
        if next(left, None) is not None:
            raise ConnectionLost(psycopg.OperationalError("gone"))
        return result

    store._writer_connection.run = broken


async def test_a_commit_whose_response_was_lost_counts_once(start, place, make_call, make_settlement):
    store = await start()
    await store.balances([reservation(0)])
    call, refused = make_call(reservations=(reservation(40),)), make_call(reservations=(reservation(70),))
    break_after_commit(store, 1)
    results = await asyncio.gather(store.open(call), store.open(refused), return_exceptions=True)
    assert results[0] is None
    assert isinstance(results[1], InsufficientBudget)
    break_after_commit(store, 1)
    await store.settle(make_settlement(call, nanousd=7))
    [balance] = await store.balances([reservation(0)])
    assert (balance.spent, balance.reserved, store.open_rows) == (7, 0, 0)
    assert find_call(place, call.id).state == "settled"


async def test_a_failed_opening_leaves_no_row_even_if_it_committed(start, place, make_call):
    store = await start()
    await store.balances([reservation(0)])
    call = make_call(reservations=(reservation(40),))
    break_after_commit(store, 2)  # the transaction, and the check whether it committed
    with pytest.raises(LedgerUnavailable):
        await store.open(call)
    assert not store.healthy
    assert find_call(place, call.id).state == "open"
    await store.open(make_call())
    assert find_call(place, call.id) is None
    [balance] = await store.balances([reservation(0)])
    assert (balance.reserved, store.open_rows, store.healthy) == (0, 1, True)


async def until_writable(store: PostgresStore) -> None:
    """Attempts to connect have pauses, in which the last one's error is raised."""
    async with asyncio.timeout(120):
        while not store.healthy:
            with contextlib.suppress(LedgerUnavailable):
                await store.probe()
            await asyncio.sleep(0.05)


async def test_calls_fail_while_the_database_is_away_and_then_recover(postgres_to_kill, make_call, make_settlement):
    place = location_of(postgres_to_kill.new_database())
    store = PostgresStore(place, lease_s=0.2)
    await store.start()
    kept = make_call()
    await store.open(kept)
    await asyncio.to_thread(postgres_to_kill.stop, signal.SIGKILL)
    for attempt in (store.open(make_call()), store.settle(make_settlement(kept)), store.probe(), store.keys()):
        with pytest.raises(LedgerUnavailable, match=r"could not be written: .*") as unavailable:
            await attempt
        assert "\n" not in str(unavailable.value)
        assert postgres_to_kill.PASSWORD not in str(unavailable.value)
    assert not store.healthy

    await asyncio.to_thread(postgres_to_kill.start)
    await until_writable(store)
    # A settlement that failed is not retried, so its row is recovered.
    assert [row.id for row in await store.left_open()] == [kept.id]
    await store.settle(make_settlement(kept, outcome="recovered"))
    assert (await store.left_open(), store.open_rows) == ([], 0)
    await store.close()


async def test_a_settlement_that_committed_is_not_recovered(start, make_call, make_settlement):
    store = await start()
    call = make_call()
    await store.open(call)
    break_after_commit(store, 2)
    with pytest.raises(LedgerUnavailable):
        await store.settle(make_settlement(call))
    assert store.open_rows == 1
    assert await store.left_open() == []
    assert store.open_rows == 0


# Settings and rights -------------------------------------------------------------------------------------------------


async def test_commits_are_durable_whatever_the_server_is_set_to(start, place):
    with psycopg.connect(place.reveal(), autocommit=True) as db:
        name = one(place, "SELECT current_database()")
        for setting in ("synchronous_commit = off", "default_transaction_isolation = 'serializable'"):
            db.execute(f"ALTER DATABASE {name} SET {setting}".encode())
    store = await start()

    async def settings(db) -> list[object]:
        names = ("synchronous_commit", "transaction_isolation")
        return [(await (await db.execute(f"SHOW {name}".encode())).fetchone())[0] for name in names]

    for connection in (store._writer_connection, store._connection):
        assert await connection.run(settings) == ["on", "read committed"]


async def test_texts_postgresql_cannot_store_are_refused_alone(start, make_call):
    store = await start()
    results = await asyncio.gather(
        *(store.open(make_call(team=team)) for team in ("a\x00b", "\ud800", "fine")), return_exceptions=True
    )
    assert [type(result) for result in results] == [RowRefused, RowRefused, type(None)]
    assert "a\x00b" not in str(results[0])


def test_an_old_server_is_refused(place, monkeypatch):
    monkeypatch.setattr(postgres_connection, "MIN_SERVER_VERSION", 990_000)
    with pytest.raises(LedgerNotUsable, match=r"PostgreSQL \d+; it has to be 99 or newer"), open_reader(place):
        pass


def test_without_psycopg_the_error_names_the_extra(place, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("psycopg", "mcpmeter.ledger.postgres"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delattr("mcpmeter.ledger.postgres.store", raising=False)
    monkeypatch.delattr("mcpmeter.ledger.postgres.reader", raising=False)
    with pytest.raises(MissingDependency, match=r"pip install 'mcpmeter\[server,postgres\]'"):
        open_store(place, lease_s=1)
    with pytest.raises(MissingDependency, match=r"pip install 'mcpmeter\[server,postgres\]'"), open_reader(place):
        pass


def test_the_tables_have_the_columns_of_sqlite(place, path):
    with open_writer(place) as writer:
        rows = writer.execute(
            "SELECT table_name, column_name, is_nullable FROM information_schema.columns"
            " WHERE table_schema = 'mcpmeter'"
        )
    only_here = {"replicas", "key_changes"}
    postgres = {(table, column, null == "YES") for table, column, null in rows if table not in only_here}
    db = open_for_writing(path)
    sqlite = {
        (table, column, not required)
        for (table,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        for _, column, _, required, _, _ in db.execute(f"PRAGMA table_info({table})")
    }
    db.close()
    assert postgres - {("calls", "owner", False)} == sqlite
