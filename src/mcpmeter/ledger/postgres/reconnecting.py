"""One connection to PostgreSQL that is made anew when it is gone, and what its errors mean for the rows it carried."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import psycopg
from psycopg import AsyncConnection, errors

from mcpmeter.errors import LedgerUnavailable, MeterError
from mcpmeter.ledger.location import PostgresUrl
from mcpmeter.ledger.postgres.connection import DURABLE_SQL, WRITER_SQL, conninfo, what_it_said
from mcpmeter.ledger.postgres.rows import Db, refused
from mcpmeter.ledger.store import RowRefused

_Result = TypeVar("_Result")

ANSWER_LIMIT_S: Final = 15.0
"""A server that says nothing for so long is as good as gone."""

SUM_LIMIT_S: Final = 300.0
"""For sums over the calls of a whole period, which may be many."""

ROUNDS: Final = 8
"""How often a transaction is tried that PostgreSQL ended in favour of another one."""

_KEEP_ALIVE: Final = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}

ROW_FAULTS: Final = (psycopg.IntegrityError, psycopg.DataError, errors.ProgramLimitExceeded)
"""Faults of one row and not of the ledger."""

_LOST_TO_ANOTHER: Final = (errors.SerializationFailure, errors.DeadlockDetected)
_NO_LONGER_THE_PRIMARY: Final = (errors.ReadOnlySqlTransaction, errors.CannotConnectNow)


class ConnectionLost(Exception):
    """The connection broke while a transaction was under way: nobody knows whether it was kept."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class ReconnectingConnection:
    """A connection for one user at a time. Nothing here outlives an error: the next use connects again."""

    def __init__(self, location: PostgresUrl) -> None:
        self._location = location
        self._db: Db | None = None
        self._turn = asyncio.Lock()

    async def run(self, work: Callable[[Db], Awaitable[_Result]], *, limit_s: float = ANSWER_LIMIT_S) -> _Result:
        """Run `work` in a transaction of its own; again if PostgreSQL ended it in favour of another's.

        Raises `ConnectionLost` if it broke on the way, `LedgerUnavailable` if there is no connection, and whatever
        PostgreSQL says of the statements themselves.
        """
        async with self._turn:
            db = await self._connected()
            try:
                async with asyncio.timeout(limit_s):
                    return await self._try(db, work)
            except (psycopg.OperationalError, psycopg.InterfaceError, TimeoutError) as error:
                if db.broken or db.closed or isinstance(error, (TimeoutError, *_NO_LONGER_THE_PRIMARY)):
                    await self._drop()
                    raise ConnectionLost(error) from error
                raise
            except asyncio.CancelledError:
                await self._drop()
                raise

    async def _try(self, db: Db, work: Callable[[Db], Awaitable[_Result]]) -> _Result:
        for _ in range(ROUNDS - 1):
            with contextlib.suppress(*_LOST_TO_ANOTHER):
                async with db.transaction():
                    return await work(db)
        async with db.transaction():
            return await work(db)

    async def close(self) -> None:
        """End the connection, if there is one."""
        async with self._turn:
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
    """What PostgreSQL says of one row: it names the constraint, and the values only in a detail that is left out."""
    return refused(what_it_said(error) if isinstance(error, psycopg.Error) else type(error).__name__)


def unavailable(error: Exception) -> MeterError:
    """What a caller is told whose row could not be written."""
    if isinstance(error, MeterError):
        return error
    cause: Any = error.cause if isinstance(error, ConnectionLost) else error
    if isinstance(cause, psycopg.Error):
        what = what_it_said(cause)
    elif isinstance(cause, TimeoutError):
        what = "PostgreSQL does not answer"
    else:
        what = f"{getattr(cause, 'strerror', None) or type(cause).__name__}"
    return LedgerUnavailable(
        f"The ledger could not be written: {what}.", hint="Look at PostgreSQL; writing goes on by itself."
    )
