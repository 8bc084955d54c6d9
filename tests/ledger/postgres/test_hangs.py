"""A PostgreSQL that hangs: connections stay, nothing is answered. Also what is lost with a connection, and hosts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator

import psycopg
import pytest
from tests.conftest import PostgresServer, _running_postgres

from mcpmeter.errors import LedgerNotUsable, LedgerUnavailable
from mcpmeter.ledger.location import PostgresUrl, location_of
from mcpmeter.ledger.postgres import connecting, reader
from mcpmeter.ledger.postgres.connecting import Connector, one_per_host
from mcpmeter.ledger.postgres.store import PostgresStore
from mcpmeter.ledger.postgres.waiting import SILENT_S
from mcpmeter.ledger.queries.reader import open_reader
from mcpmeter.ledger.queries.totals import find_call
from mcpmeter.records import Call, Reservation

CONNECT_S = 1.0
LEASE_S = 1.0


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with _running_postgres(safe=False) as running:
        yield running


@pytest.fixture
def place(server: PostgresServer) -> Iterator[PostgresUrl]:
    yield location_of(server.new_database())
    server.thaw()


@pytest.fixture
async def store(place: PostgresUrl, server: PostgresServer) -> AsyncIterator[PostgresStore]:
    started = PostgresStore(place, lease_s=LEASE_S, connect_s=CONNECT_S)
    await started.start()
    yield started
    server.thaw()
    await started.close()


async def until(holds: Callable[[], bool], seconds: float = 10) -> float:
    """Wait for a condition. Returns how long that took."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)
    return time.monotonic() - began


def reservation(amount: int) -> Reservation:
    return Reservation(balance="b", period_start_ns=1, period_end_ns=2**62, amount=amount, limit=1_000)


async def spent(store: PostgresStore) -> tuple[int, int]:
    [balance] = await store.balances([reservation(0)])
    return balance.spent, balance.reserved


def stop_before_commit(store: PostgresStore, stop: Callable[[int], None]) -> None:
    """Calls `stop` with the backend's pid once, when the next row is written and its commit is about to be sent."""
    run = store._writer_connection.run

    async def stopping(work, **options):
        async def then_stop(db):
            result = await work(db)
            store._writer_connection.run = run
            stop(db.info.backend_pid)
            return result

        return await run(then_stop, **options)

    store._writer_connection.run = stopping


async def test_a_hang_is_noticed_without_traffic(store, server, make_call):
    server.freeze()
    assert await until(lambda: not store.healthy) < 3  # 1.8 s, on a machine that is not busy
    began = time.monotonic()
    with pytest.raises(LedgerUnavailable, match="PostgreSQL does not respond") as refused:
        await store.open(make_call())
    assert time.monotonic() - began < 0.2
    assert refused.value.retry_after == "1"
    server.thaw()
    assert await until(lambda: store.healthy) < 3
    await store.open(make_call())


async def test_an_event_loop_that_was_held_is_no_hang(store, server, make_call):
    await store.open(make_call())  # so that it is connected
    server.freeze()  # so that both are seen to wait
    try:
        heartbeat, opening = (
            asyncio.ensure_future(work) for work in (store._replica.send_heartbeat(), store.open(make_call()))
        )
        await until(lambda: bool(store._replica._waits and store._writer._wait))
    finally:
        server.thaw()
    time.sleep(2 * SILENT_S)  # as on a starved machine: responses arrive and are not read
    assert store.healthy
    await heartbeat
    await opening
    assert store.healthy


async def test_calls_that_meet_a_hang_fail_within_the_deadline(store, server, place, make_call, make_settlement):
    kept, refused = make_call(reservations=(reservation(40),)), [make_call() for _ in range(20)]
    await store.open(kept)
    server.freeze()
    began = time.monotonic()
    errors = await asyncio.gather(
        store.settle(make_settlement(kept)), *(store.open(call) for call in refused), return_exceptions=True
    )
    assert {type(error) for error in errors} == {LedgerUnavailable}
    assert time.monotonic() - began < CONNECT_S + 1
    server.thaw()
    await until(lambda: store.healthy)
    assert [row.id for row in await store.left_open()] == [kept.id]
    await store.settle(make_settlement(kept, nanousd=7))
    assert (await spent(store), store.open_rows) == ((7, 0), 0)
    assert not any(find_call(place, call.id) for call in refused)


async def test_a_refused_call_whose_commit_arrives_late_leaves_no_row(store, server, place, make_call):
    await spent(store)
    call = make_call(reservations=(reservation(40),))
    stop_before_commit(store, lambda pid: server.freeze())
    with pytest.raises(LedgerUnavailable):
        await store.open(call)
    server.thaw()
    await until(lambda: store.healthy and not store._writer._in_doubt)
    assert await store.left_open() == []
    assert find_call(place, call.id) is None
    assert (await spent(store), store.open_rows) == ((0, 0), 0)


async def test_one_backend_that_hangs_stops_no_other_call(store, place, make_call, make_settlement):
    await spent(store)
    stopped: list[int] = []

    def stop(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        stopped.append(pid)

    lost, later = make_call(), make_call()
    stop_before_commit(store, stop)
    with pytest.raises(LedgerUnavailable):
        await store.open(lost)
    await store.open(later)
    await store.settle(make_settlement(later))
    assert store.healthy
    assert store._writer._in_doubt, "its session has not ended, so the row may still be committed"
    assert await store.left_open() == []
    os.kill(stopped[0], signal.SIGCONT)
    await until(lambda: not store._writer._in_doubt)
    assert find_call(place, lost.id) is None


async def test_a_refused_call_that_another_replica_recovered_is_removed(store, place, make_call, make_settlement):
    other = PostgresStore(place, lease_s=LEASE_S, connect_s=CONNECT_S)
    await other.start()
    await spent(store)
    call = make_call(reservations=(reservation(40),))
    await other.open(call)  # as if the commit of `store` had arrived, and its lease had expired
    await other.settle(make_settlement(call, nanousd=9, outcome="recovered"))
    assert await spent(store) == (9, 0)
    store._writer._in_doubt[1] = {call.id}
    await store.probe()
    assert find_call(place, call.id) is None
    assert await spent(store) == (0, 0)
    await other.close()


async def test_a_hang_longer_than_the_lease_expires_no_lease(store, server, place, make_call, make_settlement):
    other = PostgresStore(place, lease_s=LEASE_S, connect_s=CONNECT_S)
    await other.start()
    calls = {each: make_call(reservations=(reservation(40),)) for each in (store, other)}
    for each, call in calls.items():
        await each.open(call)
    server.freeze()
    await asyncio.sleep(2 * LEASE_S)
    server.thaw()
    deadline = time.monotonic() + 1.5 * LEASE_S
    while time.monotonic() < deadline:
        for each in calls:
            with contextlib.suppress(LedgerUnavailable):
                assert await each.left_open() == []
        await asyncio.sleep(0.02)
    for each, call in calls.items():
        await each.settle(make_settlement(call, nanousd=7))
    assert await spent(store) == (14, 0)
    await other.close()


async def test_closing_during_a_hang_takes_seconds_at_most(place, server, make_call, make_settlement):
    store = PostgresStore(place, connect_s=CONNECT_S)
    await store.start()
    call = make_call()
    await store.open(call)
    server.freeze()
    began = time.monotonic()
    waiting = [store.settle(make_settlement(call)), *(store.open(make_call()) for _ in range(5))]
    polling = asyncio.ensure_future(store.keys())
    await asyncio.sleep(0.1)
    polling.cancel()
    await store.close()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(result) for result in results} == {LedgerUnavailable}
    assert time.monotonic() - began < CONNECT_S + 2


async def test_a_start_during_a_hang_fails_within_the_deadline(place, server):
    server.freeze()
    began = time.monotonic()
    with pytest.raises(LedgerNotUsable, match="cannot be reached: it does not respond") as fault:
        await PostgresStore(place, connect_s=CONNECT_S).start()
    assert time.monotonic() - began < CONNECT_S + 1
    assert "\n" not in str(fault.value)
    assert server.PASSWORD not in str(fault.value)


def test_a_report_that_meets_a_hang_ends_with_an_error(place, server, monkeypatch):
    monkeypatch.setattr(reader, "LOOK_S", 0.2)
    with psycopg.connect(place.reveal(), autocommit=True) as db:
        db.execute("CREATE SCHEMA mcpmeter")
    monkeypatch.setattr("mcpmeter.ledger.postgres.connection.require_current", lambda db, location: None)
    monkeypatch.setattr(reader, "conninfo", lambda location: {**connecting.conninfo(location), "connect_timeout": 2})

    def report() -> None:
        with open_reader(place) as reading:
            server.freeze()
            list(reading.rows("SELECT 1"))

    with pytest.raises(LedgerNotUsable, match="cannot be reached"):
        report()


async def was_refused(store: PostgresStore, call: Call) -> bool:
    try:
        await store.open(call)
    except LedgerUnavailable:
        return True
    return False


async def test_many_calls_share_one_attempt_to_reconnect(store, server, make_call, monkeypatch):
    attempts: list[float] = []
    connect = connecting._connect

    async def counted(parameters):
        attempts.append(time.monotonic())
        return await connect(parameters)

    monkeypatch.setattr(connecting, "_connect", counted)
    await asyncio.to_thread(server.stop, signal.SIGKILL)
    began = time.monotonic()
    refused = 0
    while time.monotonic() - began < 2:
        refused += sum([await was_refused(store, make_call()) for _ in range(20)])
        await asyncio.sleep(0.01)
    assert refused > 100
    assert len(attempts) <= 8  # with pauses of 0.1, 0.2, 0.4, 0.8 and 1 s
    await asyncio.to_thread(server.start)
    assert await until(lambda: store.healthy) < 3


# Hosts ---------------------------------------------------------------------------------------------------------------


async def test_a_host_that_hangs_does_not_use_up_the_deadline_of_the_next(server, place):
    with socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen(16)  # accepted by the kernel, answered by nothing
        address = place.reveal().replace(
            f"127.0.0.1:{server.port}", f"127.0.0.1:{hanging.getsockname()[1]},127.0.0.1:{server.port}"
        )
        store = PostgresStore(PostgresUrl(f"{address}?target_session_attrs=read-write"), connect_s=CONNECT_S)
        began = time.monotonic()
        await store.start()
        assert time.monotonic() - began < CONNECT_S + 1
        await store.probe()
        await store.close()


async def test_hosts_that_all_hang_share_one_deadline():
    with socket.socket() as hanging:
        hanging.bind(("127.0.0.1", 0))
        hanging.listen(16)
        hosts = ",".join([f"127.0.0.1:{hanging.getsockname()[1]}"] * 4)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await Connector(PostgresUrl(f"postgresql://meter@{hosts}/x"), 0.5).connect()
        assert time.monotonic() - began < 1.5


@pytest.mark.parametrize(
    ("given", "hosts"),
    [
        ({"host": "a"}, [("a", None)]),
        ({"host": "a,b", "port": "1"}, [("a", "1"), ("b", "1")]),
        ({"host": "a,b", "port": "1,2", "target_session_attrs": "primary"}, [("a", "1"), ("b", "2")]),
        ({"host": "a,b", "target_session_attrs": "prefer-standby"}, [("a,b", None)]),
        ({"hostaddr": "::1,::2"}, [(None, None), (None, None)]),
        ({"dbname": "x"}, [(None, None)]),
    ],
)
def test_each_listed_host_is_one_attempt(given, hosts):
    assert [(each.get("host"), each.get("port")) for each in one_per_host(given)] == hosts


# Encodings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
async def test_a_new_ledger_needs_utf8(server, encoding, caplog):
    name = f"in_{encoding.lower()}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as db:
        db.execute(
            f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'".encode()
        )
    place = location_of(server.url(name))
    with pytest.raises(LedgerNotUsable, match=rf"has the encoding {encoding}.*createdb -E UTF8 -T template0"):
        await PostgresStore(place).start()

    with psycopg.connect(place.reveal()) as db:
        db.execute("CREATE SCHEMA mcpmeter")
        db.execute("CREATE TABLE mcpmeter.migrations (name text PRIMARY KEY, applied_at_ns bigint NOT NULL)")
    store = PostgresStore(place)
    await store.start()  # a ledger that exists goes on
    await store.probe()
    await store.close()
    assert f"has the encoding {encoding}, not UTF8" in caplog.text
