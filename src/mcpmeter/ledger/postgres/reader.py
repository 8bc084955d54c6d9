"""`queries.reader.Reader` and `Writer` on PostgreSQL."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Final

import psycopg
from psycopg import IsolationLevel, RawCursor, RawServerCursor, errors
from psycopg.adapt import Buffer, Loader

from mcpmeter.ledger.location import PostgresUrl
from mcpmeter.ledger.postgres.balances import MAKING_LOCK
from mcpmeter.ledger.postgres.connecting import cut
from mcpmeter.ledger.postgres.connection import (
    connect,
    connect_for_reading,
    connect_for_writing,
    conninfo,
    explain,
    may_be_used,
)
from mcpmeter.ledger.postgres.sql import for_postgres

LOOK_S: Final = 3.0
"""How often a read that takes so long looks whether PostgreSQL hangs."""

FETCH_ROWS: Final = 2_000
"""Rows per round trip of a server-side cursor."""


@contextlib.contextmanager
def open_reader(location: PostgresUrl) -> Iterator[PostgresReader]:
    """A read-only transaction on one snapshot of the ledger."""
    with contextlib.closing(connect_for_reading(location)) as db, explain(location), _cut_if_it_hangs(db, location):
        _load_numeric_as_int(db)
        db.set_isolation_level(IsolationLevel.REPEATABLE_READ)
        db.set_read_only(True)
        with db.transaction():
            yield PostgresReader(db, location)


@contextlib.contextmanager
def _cut_if_it_hangs(db: psycopg.Connection[Any], location: PostgresUrl) -> Iterator[None]:
    """End a long read if PostgreSQL accepts no new connection in time: the read alone cannot tell a hang from work."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(LOOK_S):
            try:
                psycopg.connect(**conninfo(location)).close()
            except errors.ConnectionTimeout:
                cut(db)
            except psycopg.Error:
                continue  # it responds, or the read's own connection breaks too

    threading.Thread(target=look, name="mcpmeter-reader", daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextlib.contextmanager
def open_writer(location: PostgresUrl) -> Iterator[PostgresWriter]:
    """A short transaction on tables that are up to date."""
    with contextlib.closing(connect_for_writing(location)) as db, explain(location):
        _load_numeric_as_int(db)
        with db.transaction():
            # Sums of top-ups and of calls are made one at a time, those of running services included.
            db.execute("SELECT pg_advisory_xact_lock(%s)", (MAKING_LOCK,))
            yield PostgresWriter(db)


def has_tables(location: PostgresUrl) -> bool:
    """Whether the tables exist and are up to date. Raises `LedgerNotUsable` if they could not be made."""
    with contextlib.closing(connect(location)) as db, explain(location):
        return may_be_used(db, location)


class PostgresReader:
    """`Reader` on PostgreSQL, by server-side cursors: a bill of a million lines is never in memory as a whole."""

    def __init__(self, db: psycopg.Connection[Any], location: PostgresUrl) -> None:
        self._db = db
        self._location = location
        self._cursors = 0

    def rows(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a SELECT, one by one."""
        self._cursors += 1
        with explain(self._location), RawServerCursor(self._db, f"rows_{self._cursors}") as cursor:
            cursor.itersize = FETCH_ROWS
            yield from cursor.execute(*for_postgres(sql, values))


class PostgresWriter:
    """`Writer` on PostgreSQL."""

    def __init__(self, db: psycopg.Connection[Any]) -> None:
        self._db = db

    def execute(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement; returns its rows, if it has any."""
        cursor = RawCursor(self._db).execute(*for_postgres(sql, values))
        return cursor.fetchall() if cursor.description else []


class _NumericLoader(Loader):
    """Loads numeric, the type of a sum of bigints, as int."""

    def load(self, data: Buffer) -> int:
        return int(bytes(data))


def _load_numeric_as_int(db: psycopg.Connection[Any]) -> None:
    db.adapters.register_loader("numeric", _NumericLoader)
