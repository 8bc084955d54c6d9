"""A connection to PostgreSQL that reconnects, and what its errors mean for a transaction.

It is either connected or not; the next use connects. A transaction on it ends in one of four ways:

- It commits, or raises an error of its own statements (a row fault); the connection stays.
- PostgreSQL ends it in favour of another transaction (serialization failure, deadlock): it is tried again.
- The connection breaks, does not respond in time, or is to a server that is no longer the primary: the connection is
  dropped and `ConnectionLost` raised. Whether the transaction was committed is unknown; the caller has to find out.
- There is no connection and none can be made: `LedgerUnavailable`, and nothing was written.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import psycopg
from psycopg import AsyncConnection, errors

from mcpmeter.errors import LedgerUnavailable, MeterError
from mcpmeter.ledger.location import PostgresUrl
from mcpmeter.ledger.postgres.connection import DURABLE_SQL, WRITER_SQL, conninfo, error_line
from mcpmeter.ledger.postgres.sql import Db
from mcpmeter.ledger.store import RowRefused, row_refused

_Result = TypeVar("_Result")

TRANSACTION_TIMEOUT_S: Final = 15.0
"""After this time without a result the connection counts as lost."""

SUM_TIMEOUT_S: Final = 300.0
"""For sums over all calls of a period."""

MAX_ATTEMPTS: Final = 8
"""For a transaction that PostgreSQL ends in favour of another one."""

_KEEP_ALIVE: Final = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}

ROW_FAULTS: Final = (psycopg.IntegrityError, psycopg.DataError, errors.ProgramLimitExceeded)
"""Faults of one row, not of the ledger."""

_RETRYABLE: Final = (errors.SerializationFailure, errors.DeadlockDetected)
_NOT_PRIMARY: Final = (errors.ReadOnlySqlTransaction, errors.CannotConnectNow)


class ConnectionLost(Exception):
    """The connection broke during a transaction: whether it was committed is unknown."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class ReconnectingConnection:
    """A connection for one transaction at a time. After an error the next use connects again."""

    def __init__(self, location: PostgresUrl) -> None:
        self._location = location
        self._db: Db | None = None
        self._in_use = asyncio.Lock()

    async def run(
        self, work: Callable[[Db], Awaitable[_Result]], *, timeout_s: float = TRANSACTION_TIMEOUT_S
    ) -> _Result:
        """Run `work` in its own transaction. Raises `ConnectionLost`, `LedgerUnavailable`, and errors of statements."""
        async with self._in_use:
            db = await self._connected()
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._try(db, work)
            except (psycopg.OperationalError, psycopg.InterfaceError, TimeoutError) as error:
                if db.broken or db.closed or isinstance(error, (TimeoutError, *_NOT_PRIMARY)):
                    await self._drop()
                    raise ConnectionLost(error) from error
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
        """End the connection, if there is one."""
        async with self._in_use:
            await self._drop()

    async def _connected(self) -> Db:
        if self._db is None or self._db.closed:
            self._db = await self._connect()
        return self._db

    async def _connect(self) -> Db:
        try:
            db: Db = await AsyncConnection.connect(**{**_KEEP_ALIVE, **conninfo(self._location)}, autocommit=True)
        except (psycopg.Error, OSError) as error:
            raise unavailable(error) from error
        try:
            await db.execute(WRITER_SQL.encode())
            await db.execute(DURABLE_SQL.encode())
        except psycopg.Error as error:
            await db.close()
            raise unavailable(error) from error
        return db

    async def _drop(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            await db.close()


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
        f"The ledger could not be written: {reason}.", hint="Look at PostgreSQL; writing goes on by itself."
    )
