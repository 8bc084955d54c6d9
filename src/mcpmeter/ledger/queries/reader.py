"""One way to read a ledger, whichever engine keeps it, and to change a few rows of it beside a running service.

SQL is written once, for both engines: parameters are `?1`, `?2` or `?` in order, and what the engines spell differently
is asked of the reader (`day`). All that one reader reads is of one instant.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import apsw

from mcpmeter.errors import MissingDependency
from mcpmeter.ledger.location import Location, PostgresUrl, location_of
from mcpmeter.ledger.sqlite.connection import explain, open_for_reading, open_for_writing
from mcpmeter.ledger.sqlite.migrations import transaction

Row = tuple[Any, ...]


class Reader(Protocol):
    """A ledger that is being read. Every method may raise `LedgerNotUsable`."""

    def rows(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Row]:
        """The rows of a SELECT, one by one: as many as there are fit through. Whole numbers are int, whatever size."""

    def day(self, column: str, zone: str = "UTC") -> str:
        """SQL for the date (`2026-11-27`) of a column of Unix nanoseconds, in a time zone of the tz database."""


class Writer(Protocol):
    """A ledger in a short transaction, which is kept when the block ends without an error."""

    def execute(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Run a statement; returns its rows, if it has any."""


@contextlib.contextmanager
def open_reader(location: str | Location) -> Iterator[Reader]:
    """Open a ledger for reading; a service may be writing to it. Raises `LedgerNotUsable`, `MissingDependency`."""
    place = location_of(location)
    if isinstance(place, PostgresUrl):
        with _postgres().open_reader(place) as reader:
            yield reader
        return
    with contextlib.closing(open_for_reading(place)) as db, explain(place):
        db.execute("BEGIN")
        yield SqliteReader(db, place)


@contextlib.contextmanager
def open_writer(location: str | Location) -> Iterator[Writer]:
    """Open a ledger, made if there is none, for a few changes. Raises `LedgerNotUsable`, `MissingDependency`."""
    place = location_of(location)
    if isinstance(place, PostgresUrl):
        with _postgres().open_writer(place) as writer:
            yield writer
        return
    with contextlib.closing(open_for_writing(place)) as db, explain(place), transaction(db):
        yield SqliteWriter(db)


def require_ledger(location: str | Location) -> None:
    """Raises `LedgerNotUsable` unless there is a ledger that can be read: for commands that must not make one."""
    with open_reader(location):
        pass


def has_tables(location: str | Location) -> bool:
    """Whether a ledger has been made there; looks and changes nothing.

    Raises `LedgerNotUsable` where none could be made, or what is there cannot be used; `MissingDependency`.
    """
    place = location_of(location)
    if isinstance(place, PostgresUrl):
        return bool(_postgres().has_tables(place))
    if not place.is_file() or not place.stat().st_size:
        return False
    require_ledger(place)
    return True


class SqliteReader:
    """`Reader` on SQLite."""

    def __init__(self, db: apsw.Connection, path: Path) -> None:
        self._db = db
        self._path = path
        self._zones: dict[str, str] = {}

    def rows(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Row]:
        """The rows of a SELECT, one by one."""
        with explain(self._path):
            for row in self._db.execute(sql, tuple(values)):
                yield tuple(row)

    def day(self, column: str, zone: str = "UTC") -> str:
        """SQL for the date of a column of Unix nanoseconds."""
        if zone == "UTC":
            return f"strftime('%Y-%m-%d', {column} / 1000000000, 'unixepoch')"
        return f"{self._day_in(zone)}({column})"

    def _day_in(self, zone: str) -> str:
        """A function of SQL, because SQLite knows no time zones."""
        if zone not in self._zones:
            there = ZoneInfo(zone)

            def day(*values: Any) -> str:
                return datetime.fromtimestamp(values[0] // 10**9, there).date().isoformat()

            self._zones[zone] = f"day_in_zone_{len(self._zones)}"
            self._db.create_scalar_function(self._zones[zone], day, 1, deterministic=True)
        return self._zones[zone]


class SqliteWriter:
    """`Writer` on SQLite."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db

    def execute(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Run a statement; returns its rows, if it has any."""
        return [tuple(row) for row in self._db.execute(sql, tuple(values))]


def _postgres() -> Any:
    try:
        from mcpmeter.ledger.postgres import reader as postgres_reading  # noqa: PLC0415 (needs an extra that SQLite does without)
    except ModuleNotFoundError as missing:
        raise postgres_missing(missing) from None
    return postgres_reading


def postgres_missing(missing: ModuleNotFoundError) -> MissingDependency:
    """What to say where psycopg is not installed. Raises `missing` if it is anything else that is."""
    if (missing.name or "").partition(".")[0] not in ("psycopg", "psycopg_pool"):
        raise missing
    return MissingDependency(
        "The ledger is on PostgreSQL, and what talks to it is not installed.",
        hint="Run: pip install 'mcpmeter[server,postgres]'",
    )
