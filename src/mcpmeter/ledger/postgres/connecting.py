"""New connections of a running service: one attempt at a time, within a deadline, with a pause after a failure.

All connections of a store share one `Connector`. While PostgreSQL is away, many calls therefore cause one attempt, not
one each. Several hosts in the address are tried in turn, each after its share of the deadline even if the one before
has not answered, because a host that hangs must not use up the time of the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import psycopg
from psycopg import AsyncConnection

from mcpmeter.ledger.location import PostgresUrl
from mcpmeter.ledger.postgres.connection import DURABLE_SQL, WRITER_SQL, conninfo
from mcpmeter.ledger.postgres.sql import Db
from mcpmeter.ledger.postgres.waiting import Wait

_Result = TypeVar("_Result")

MIN_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 1.0
"""Between attempts: doubled after each failure."""

CONNECT_ERRORS: Final = (psycopg.Error, OSError)
"""What an attempt raises; `TimeoutError` is an OSError."""

_KEEP_ALIVE: Final = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
_SETTINGS_SQL: Final = f"{WRITER_SQL}; SET idle_in_transaction_session_timeout TO '3s'"
"""A replica that stops inside a transaction must not hold its locks, for which other replicas wait."""


class Connector:
    """Connects the connections of one store."""

    def __init__(self, location: PostgresUrl, connect_s: float) -> None:
        self.connect_s = connect_s
        self.is_failing = False
        """Whether the last attempt failed."""
        self.reached: dict[str, Any] = {}
        """libpq's parameters for the host that was reached last."""
        self._location = location
        self._one_at_a_time = asyncio.Lock()
        self._pause_s = 0.0
        self._next_at = 0.0

    async def connect(self) -> Db:
        """A connection in autocommit mode, ready for transactions. Raises one of `CONNECT_ERRORS`."""
        async with self._one_at_a_time:
            await asyncio.sleep(max(self._next_at - time.monotonic(), 0))
            try:
                async with asyncio.timeout(self.connect_s):
                    db, self.reached = await self._first_host()
            except CONNECT_ERRORS:
                self.is_failing = True
                self._pause_s = min(max(2 * self._pause_s, MIN_PAUSE_S), MAX_PAUSE_S)
                self._next_at = time.monotonic() + self._pause_s
                raise
            self.is_failing = False
            self._pause_s = 0.0
            return db

    async def _first_host(self) -> tuple[Db, dict[str, Any]]:
        attempts = one_per_host(conninfo(self._location, connect_s=self.connect_s))
        share_s = self.connect_s / len(attempts)
        running: dict[asyncio.Task[Db], dict[str, Any]] = {}
        fault: BaseException | None = None
        try:
            while attempts or running:
                if attempts:
                    parameters = attempts.pop(0)
                    running[asyncio.create_task(_connect(parameters))] = parameters
                done, _ = await asyncio.wait(
                    running, timeout=share_s if attempts else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    parameters = running.pop(task)
                    fault = task.exception()
                    if fault is None:
                        return task.result(), parameters
        finally:
            for task in running:
                task.cancel()
                task.add_done_callback(_close_unused)
        raise fault or TimeoutError


def one_per_host(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """libpq's parameters, once for each host that they list."""
    listed = {name: str(parameters[name]).split(",") for name in ("host", "hostaddr", "port") if parameters.get(name)}
    count = max(len(listed.get("host", ())), len(listed.get("hostaddr", ())))
    # A preference can only be decided over all hosts, which psycopg does one after the other.
    if count <= 1 or parameters.get("target_session_attrs") == "prefer-standby":
        return [parameters]
    single = [
        {**parameters, **{name: values[number if len(values) > 1 else 0] for name, values in listed.items()}}
        for number in range(count)
        if all(len(values) in (1, count) for values in listed.values())
    ]
    if parameters.get("load_balance_hosts") == "random":
        random.shuffle(single)
    return single or [parameters]


async def _connect(parameters: dict[str, Any]) -> Db:
    db: Db = await AsyncConnection.connect(**{**_KEEP_ALIVE, **parameters}, autocommit=True)
    try:
        await uncancelled(db, _set_up(db))
    except BaseException:
        await db.close()
        raise
    return db


async def _set_up(db: Db) -> None:
    await db.execute(_SETTINGS_SQL.encode())
    await db.execute(DURABLE_SQL.encode())


def _close_unused(task: asyncio.Task[Db]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().pgconn.finish()


class _Deadline:
    """Cuts a connection after a time, or soon after `is_lost`."""

    __slots__ = ("_db", "_is_lost", "_timeout_s", "_wait", "has_cut")

    def __init__(self, db: Db, timeout_s: float, is_lost: Callable[[], bool]) -> None:
        self.has_cut = False
        self._db = db
        self._timeout_s = timeout_s
        self._is_lost = is_lost
        self._wait = Wait(self._look)

    def cancel(self) -> None:
        self._wait.end()

    def _look(self) -> None:
        if self._wait.seconds >= self._timeout_s or self._is_lost():
            self.has_cut = True
            self.cancel()
            cut(self._db)


async def finished(
    db: Db, work: Awaitable[_Result], timeout_s: float, is_lost: Callable[[], bool] = lambda: False
) -> _Result:
    """The result of `work` on a connection. Raises `TimeoutError` after `timeout_s`, or soon after `is_lost`.

    The connection is cut then, which ends the work with an error of the connection. Must not be cancelled itself.
    """
    deadline = _Deadline(db, timeout_s, is_lost)
    try:
        return await work
    except psycopg.Error as error:
        if deadline.has_cut:
            raise TimeoutError from error
        raise
    finally:
        deadline.cancel()


async def uncancelled(db: Db, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of `work` on a connection; if this wait is cancelled, the connection is cut.

    psycopg would send a cancel request and wait ten seconds for a server that hangs.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        cut(db)
        await asyncio.wait({task})
        task.exception()
        raise


def cut(db: Db | psycopg.Connection[Any]) -> None:
    """End a connection at its socket, so that whatever waits on it fails at once."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(db.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)
