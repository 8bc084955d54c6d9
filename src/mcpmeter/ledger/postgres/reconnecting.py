"""A connection to PostgreSQL that reconnects, and what its errors mean for a transaction.

It is either connected or not; the next use connects. A transaction on it ends in one of four ways:

- It commits, or raises an error of its own statements (a row fault); the connection stays.
- PostgreSQL ends it in favour of another transaction (serialization failure, deadlock): it is tried again.
- The connection breaks, does not respond in time, or is to a server that is no longer the primary: the connection is
  dropped and `ConnectionLost` raised. Whether the transaction was committed is unknown; the caller has to find out.
- There is no connection and none can be made: `LedgerUnavailable`, and nothing was written.

A commit on a lost connection can still happen as long as the server works on it: a server that hung continues with what
it had received. Each connection therefore holds an advisory lock of its own, its session. The outcome is final once
another connection can take that lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import psycopg
from psycopg import errors

from mcpmeter.errors import LedgerUnavailable, MeterError
from mcpmeter.ledger.postgres.connecting import CONNECT_ERRORS, Connector, cut, finished, uncancelled
from mcpmeter.ledger.postgres.connection import error_line
from mcpmeter.ledger.postgres.sql import Db, execute
from mcpmeter.ledger.store import RowRefused, row_refused

_Result = TypeVar("_Result")

TASK_TIMEOUT_S: Final = 15.0
"""For a transaction that no call waits for."""

SUM_TIMEOUT_S: Final = 300.0
"""For sums over all calls of a period."""

MAX_ATTEMPTS: Final = 8
"""For a transaction that PostgreSQL ends in favour of another one."""

ROW_FAULTS: Final = (psycopg.IntegrityError, psycopg.DataError, errors.ProgramLimitExceeded)
"""Faults of one row, not of the ledger."""

RETRY_AFTER: Final = "1"
"""Seconds, for a caller whose call is refused: a database that responds again is noticed within one."""

_RETRYABLE: Final = (errors.SerializationFailure, errors.DeadlockDetected)
_NOT_PRIMARY: Final = (errors.ReadOnlySqlTransaction, errors.CannotConnectNow)

_TAKE_SESSION_SQL: Final = "SELECT pg_advisory_lock($1::bigint)"
_HAS_ENDED_SQL: Final = "SELECT pg_try_advisory_xact_lock($1::bigint)"
_END_SQL: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND pid IS NOT NULL"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND (classid::bigint << 32) + objid::bigint = $1::bigint"
)


class ConnectionLost(Exception):
    """The connection broke during a transaction: whether it was committed is unknown until `session` has ended."""

    def __init__(self, cause: Exception, session: int = 0) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.session = session


class ReconnectingConnection:
    """A connection for one transaction at a time. After an error the next use connects again.

    `is_lost` says during a long transaction that the database does not respond elsewhere either. `never_cancelled`:
    by a task that is never cancelled, which saves a task per transaction.
    """

    def __init__(
        self, connector: Connector, is_lost: Callable[[], bool] = lambda: False, *, never_cancelled: bool = False
    ) -> None:
        self._connector = connector
        self._is_lost = is_lost
        self._never_cancelled = never_cancelled
        self._db: Db | None = None
        self._session = 0
        self._in_use = asyncio.Lock()
        self._closed = False

    async def run(self, work: Callable[[Db], Awaitable[_Result]], *, timeout_s: float = TASK_TIMEOUT_S) -> _Result:
        """Run `work` in its own transaction. Raises `ConnectionLost`, `LedgerUnavailable`, and errors of statements."""
        async with self._in_use:
            began = time.monotonic()
            db = await self._connected(timeout_s)
            left_s = timeout_s - (time.monotonic() - began)
            try:
                running = finished(db, self._try(db, work), left_s, self._is_lost)
                return await (running if self._never_cancelled else uncancelled(db, running))
            except (psycopg.OperationalError, psycopg.InterfaceError, TimeoutError) as error:
                if db.broken or db.closed or isinstance(error, (TimeoutError, *_NOT_PRIMARY)):
                    await self._drop()
                    raise ConnectionLost(error, self._session) from error
                raise
            except asyncio.CancelledError:
                await self._drop()
                raise

    async def _try(self, db: Db, work: Callable[[Db], Awaitable[_Result]]) -> _Result:
        for _ in range(MAX_ATTEMPTS - 1):
            with contextlib.suppress(*_RETRYABLE):
                async with db.transaction():
                    return await work(db)
        async with db.transaction():
            return await work(db)

    async def close(self) -> None:
        """End the connection, if there is one, and with it a transaction that still runs."""
        self._closed = True
        if self._db is not None and self._in_use.locked():
            cut(self._db)
        async with self._in_use:
            await self._drop()

    async def _connected(self, timeout_s: float) -> Db:
        if self._db is None or self._db.closed:
            if self._closed:
                raise LedgerUnavailable("The ledger is closed.", hint="The service is stopping.")
            try:
                async with asyncio.timeout(timeout_s):
                    self._db, self._session = await self._connect()
            except (*CONNECT_ERRORS, TimeoutError) as error:
                raise unavailable(error) from error
        return self._db

    async def _connect(self) -> tuple[Db, int]:
        db, session = await self._connector.connect(), secrets.randbits(62)
        try:
            await uncancelled(db, finished(db, execute(db, _TAKE_SESSION_SQL, (session,)), self._connector.connect_s))
        except BaseException:
            await db.close()
            raise
        return db, session

    async def _drop(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            await db.close()


async def has_ended(db: Db, session: int) -> bool:
    """Whether the server is done with a lost connection, so that this transaction sees what it committed.

    Asks the server to end it otherwise.
    """
    if await execute(db, _HAS_ENDED_SQL, (session,)) == [(True,)]:
        return True
    await execute(db, _END_SQL, (session,))
    return False


def refusal(error: Exception) -> RowRefused:
    """The error for one row. PostgreSQL names the constraint, and values only in a detail, which is left out."""
    return row_refused(error_line(error) if isinstance(error, psycopg.Error) else type(error).__name__)


def unavailable(error: Exception) -> MeterError:
    """The error for a row that could not be written."""
    if isinstance(error, MeterError):
        return error
    cause: Any = error.cause if isinstance(error, ConnectionLost) else error
    if isinstance(cause, psycopg.Error):
        reason = error_line(cause)
    elif isinstance(cause, TimeoutError):
        reason = "PostgreSQL does not respond"
    else:
        reason = f"{getattr(cause, 'strerror', None) or type(cause).__name__}"
    return LedgerUnavailable(
        f"The ledger could not be written: {reason}.",
        hint="Look at PostgreSQL; writing goes on by itself.",
        retry_after=RETRY_AFTER,
    )
