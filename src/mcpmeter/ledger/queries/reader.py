"""Read a ledger on either engine, and change a few rows of it beside a running service.

SQL is written once for both engines, with parameters `?1`, `?2` or `?` in order. All that one reader reads is one
snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from mcpmeter.errors import MissingDependency
from mcpmeter.ledger.location import Location, PostgresUrl, location_of
from mcpmeter.ledger.sqlite import reader as sqlite_reader

Row = tuple[Any, ...]


class Reader(Protocol):
    """An open ledger. Every method may raise `LedgerNotUsable`."""

    def rows(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Row]:
        """The rows of a SELECT, one by one, so that any number fits. Whole numbers are int, whatever their size."""


class Writer(Protocol):
    """A ledger in a short transaction, which commits if the block ends without an error."""

    def execute(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Run a statement; returns its rows, if it has any."""


def open_reader(location: str | Location) -> AbstractContextManager[Reader]:
    """Open a ledger for reading; a service may be writing to it. Raises `LedgerNotUsable`, `MissingDependency`."""
    ledger = location_of(location)
    if isinstance(ledger, PostgresUrl):
        reader: AbstractContextManager[Reader] = _postgres_reader().open_reader(ledger)
        return reader
    return sqlite_reader.open_reader(ledger)


def open_writer(location: str | Location) -> AbstractContextManager[Writer]:
    """Open a ledger for a few changes, created if there is none. Raises `LedgerNotUsable`, `MissingDependency`."""
    ledger = location_of(location)
    if isinstance(ledger, PostgresUrl):
        writer: AbstractContextManager[Writer] = _postgres_reader().open_writer(ledger)
        return writer
    return sqlite_reader.open_writer(ledger)


def require_ledger(location: str | Location) -> None:
    """Raise `LedgerNotUsable` unless there is a readable ledger: for commands that must not create one."""
    with open_reader(location):
        pass


def has_tables(location: str | Location) -> bool:
    """Whether there is a ledger; changes nothing.

    Raises `LedgerNotUsable` if none could be created or the one that exists cannot be used; `MissingDependency`.
    """
    ledger = location_of(location)
    if isinstance(ledger, PostgresUrl):
        return bool(_postgres_reader().has_tables(ledger))
    if not ledger.is_file() or not ledger.stat().st_size:
        return False
    require_ledger(ledger)
    return True


def _postgres_reader() -> Any:
    try:
        from mcpmeter.ledger.postgres import reader as postgres_reader  # noqa: PLC0415 (needs an extra that SQLite does without)
    except ModuleNotFoundError as missing:
        raise postgres_missing(missing) from None
    return postgres_reader


def postgres_missing(missing: ModuleNotFoundError) -> MissingDependency:
    """The error if psycopg is not installed. Raises `missing` itself if it is about any other module."""
    if (missing.name or "").partition(".")[0] not in ("psycopg", "psycopg_pool"):
        raise missing
    return MissingDependency(
        "The ledger is on PostgreSQL, and the package 'psycopg' is not installed.",
        hint="Run: pip install 'mcpmeter[server,postgres]'",
    )
