"""`queries.reader.Reader` and `Writer` on SQLite."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw

from mcpmeter.ledger.sqlite.connection import explain, open_for_reading, open_for_writing
from mcpmeter.ledger.sqlite.migrations import transaction


@contextlib.contextmanager
def open_reader(path: Path) -> Iterator[SqliteReader]:
    """A read-only transaction on one snapshot of the ledger."""
    with contextlib.closing(open_for_reading(path)) as db, explain(path):
        db.execute("BEGIN")
        yield SqliteReader(db, path)


@contextlib.contextmanager
def open_writer(path: Path) -> Iterator[SqliteWriter]:
    """A short transaction on a migrated ledger, created if there is none."""
    with contextlib.closing(open_for_writing(path)) as db, explain(path), transaction(db):
        yield SqliteWriter(db)


class SqliteReader:
    """`Reader` on SQLite."""

    def __init__(self, db: apsw.Connection, path: Path) -> None:
        self._db = db
        self._path = path

    def rows(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a SELECT, one by one."""
        with explain(self._path):
            for row in self._db.execute(sql, tuple(values)):
                yield tuple(row)


class SqliteWriter:
    """`Writer` on SQLite."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db

    def execute(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement; returns its rows, if it has any."""
        return [tuple(row) for row in self._db.execute(sql, tuple(values))]
