"""The store for a ledger, by the engine that its location names."""

from __future__ import annotations

from mcpmeter.ledger.location import Location, PostgresUrl
from mcpmeter.ledger.queries.reader import postgres_missing
from mcpmeter.ledger.sqlite.connection import Synchronous
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.ledger.store import OnCommit, Store


def open_store(
    location: Location,
    on_commit: OnCommit | None = None,
    *,
    lease_s: float,
    connect_s: float = 3.0,
    synchronous: Synchronous = "full",
) -> Store:
    """A store, not started yet. `lease_s` and `connect_s` apply to PostgreSQL only, `synchronous` to SQLite only.

    Raises `MissingDependency` if the extra for PostgreSQL is needed and not installed.
    """
    if not isinstance(location, PostgresUrl):
        return SqliteStore(location, on_commit=on_commit, synchronous=synchronous)
    try:
        from mcpmeter.ledger.postgres.store import PostgresStore  # noqa: PLC0415 (needs an extra that SQLite does without)
    except ModuleNotFoundError as missing:
        raise postgres_missing(missing) from None
    return PostgresStore(location, on_commit=on_commit, lease_s=lease_s, connect_s=connect_s)
