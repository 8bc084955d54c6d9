"""`reading.Reader` and `reading.Writer` on PostgreSQL."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final
from zoneinfo import ZoneInfo

import psycopg
from psycopg import IsolationLevel, RawCursor, RawServerCursor
from psycopg.adapt import Buffer, Loader

from mcpmeter.ledger.location import PostgresUrl
from mcpmeter.ledger.postgres.balances import MAKING_LOCK
from mcpmeter.ledger.postgres.connection import connect, connect_for_reading, connect_for_writing, explain, may_be_used

ROWS_AT_ONCE: Final = 2_000

_PLACE: Final = re.compile(r"'(?:[^']|'')*'|\?(\d*)")


@contextlib.contextmanager
def open_reader(location: PostgresUrl) -> Iterator[PostgresReader]:
    """A transaction that reads, and sees the ledger as it was when it began to."""
    with contextlib.closing(connect_for_reading(location)) as db, explain(location):
        _read_whole_numbers(db)
        db.set_isolation_level(IsolationLevel.REPEATABLE_READ)
        db.set_read_only(True)
        with db.transaction():
            yield PostgresReader(db, location)


@contextlib.contextmanager
def open_writer(location: PostgresUrl) -> Iterator[PostgresWriter]:
    """A short transaction on tables that are up to date."""
    with contextlib.closing(connect_for_writing(location)) as db, explain(location):
        _read_whole_numbers(db)
        with db.transaction():
            # Sums of top-ups and of calls are made by one at a time, the services' own among them.
            db.execute("SELECT pg_advisory_xact_lock(%s)", (MAKING_LOCK,))
            yield PostgresWriter(db)


def has_tables(location: PostgresUrl) -> bool:
    """Whether the tables are there, made by this version; raises `LedgerNotUsable` where they could not be made."""
    with contextlib.closing(connect(location)) as db, explain(location):
        return may_be_used(db, location)


class PostgresReader:
    """`Reader` on PostgreSQL: by cursors of the server, so that a bill of a million lines is never in memory."""

    def __init__(self, db: psycopg.Connection[Any], location: PostgresUrl) -> None:
        self._db = db
        self._location = location
        self._cursors = 0

    def rows(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a SELECT, one by one."""
        self._cursors += 1
        with explain(self._location), RawServerCursor(self._db, f"rows_{self._cursors}") as cursor:
            cursor.itersize = ROWS_AT_ONCE
            yield from cursor.execute(*for_postgres(sql, values))

    def day(self, column: str, zone: str = "UTC") -> str:
        """SQL for the date of a column of Unix nanoseconds."""
        return f"to_char(to_timestamp({column} / 1000000000) AT TIME ZONE '{ZoneInfo(zone).key}', 'YYYY-MM-DD')"


class PostgresWriter:
    """`Writer` on PostgreSQL."""

    def __init__(self, db: psycopg.Connection[Any]) -> None:
        self._db = db

    def execute(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement; returns its rows, if it has any."""
        cursor = RawCursor(self._db).execute(*for_postgres(sql, values))
        return cursor.fetchall() if cursor.description else []


def for_postgres(sql: str, values: Sequence[Any]) -> tuple[bytes, list[Any]]:
    """Portable SQL as PostgreSQL takes it: `?1` becomes `$1` with its type, which the server could not always tell."""
    used: list[Any] = []
    numbers: dict[int, int] = {}
    last = 0

    def place(match: re.Match[str]) -> str:
        nonlocal last
        if match[1] is None:
            return match[0]
        last = int(match[1]) if match[1] else last + 1
        value = values[last - 1]
        if value is None:
            return "NULL"
        if last not in numbers:
            used.append(value)
            numbers[last] = len(used)
        return f"${numbers[last]}::{_TYPES[type(value)]}"

    return _PLACE.sub(place, sql).encode(), used


_TYPES: Final[dict[type, str]] = {int: "bigint", str: "text", bool: "boolean"}


class _WholeNumber(Loader):
    """A sum of bigints is numeric there, and an int here."""

    def load(self, data: Buffer) -> int:
        return int(bytes(data))


def _read_whole_numbers(db: psycopg.Connection[Any]) -> None:
    db.adapters.register_loader("numeric", _WholeNumber)
