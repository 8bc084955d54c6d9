"""The store for a ledger, by the engine that its place names."""

from __future__ import annotations

from mcpmeter.ledger.location import Location, PostgresUrl
from mcpmeter.ledger.queries.reader import postgres_missing
from mcpmeter.ledger.sqlite.connection import Synchronous
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.ledger.store import OnCommit, Store


def open_store(
    place: Location, on_commit: OnCommit | None = None, *, lease_s: float, synchronous: Synchronous = "full"
) -> Store:
    """A store that is not started yet. Raises `MissingDependency` where the extra for PostgreSQL is not installed.

    `lease_s` is PostgreSQL's alone, `synchronous` SQLite's.
    """
    if not isinstance(place, PostgresUrl):
        return SqliteStore(place, on_commit=on_commit, synchronous=synchronous)
    try:
        from mcpmeter.ledger.postgres.store import PostgresStore  # noqa: PLC0415 (needs an extra that SQLite does without)
    except ModuleNotFoundError as missing:
        raise postgres_missing(missing) from None
    return PostgresStore(place, on_commit=on_commit, lease_s=lease_s)
