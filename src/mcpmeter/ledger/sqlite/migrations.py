"""The ledger's tables on SQLite. Steps are appended, never edited: ledgers in the field have run them.

The checks are the last defence against a wrong number: STRICT tables alone accept -5, and a NaN arrives as NULL.
`error_type` has no check, because a new type must not require rewriting every row. Closed sets are spelled with OR:
SQLite builds a temporary index for each IN at each statement, which doubled the cost of a row.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import apsw

from mcpmeter.errors import LedgerNotUsable
from mcpmeter.ledger.migrations import (
    AUDIT_SQL,
    CHARGES_SQL,
    PROVIDER_OBJECTS_SQL,
    PRUNED_CALLS_SQL,
    Migration,
    applied_names,
    outdated,
)

MIGRATIONS: Final = (
    Migration(
        "0001_calls_and_keys",
        """
        CREATE TABLE calls (
          id TEXT NOT NULL PRIMARY KEY CHECK (id <> ''),
          state TEXT NOT NULL DEFAULT 'open' CHECK (state = 'open' OR state = 'settled'),
          started_at_ns INTEGER NOT NULL CHECK (started_at_ns >= 0),
          ended_at_ns INTEGER CHECK (ended_at_ns >= 0),
          endpoint TEXT NOT NULL,
          method TEXT NOT NULL,
          team TEXT NOT NULL,
          key_id TEXT NOT NULL,
          parent_id TEXT NOT NULL,
          trace_id TEXT NOT NULL,
          provider TEXT NOT NULL,
          model TEXT NOT NULL,
          response_model TEXT NOT NULL DEFAULT '',
          operation TEXT NOT NULL,
          stream INTEGER NOT NULL CHECK (stream = 0 OR stream = 1),
          prompt_tokens_estimate INTEGER NOT NULL CHECK (prompt_tokens_estimate >= 0),
          status TEXT NOT NULL DEFAULT '',
          outcome TEXT NOT NULL DEFAULT ''
            CHECK (outcome = '' OR outcome = 'ok' OR outcome = 'error' OR outcome = 'partial' OR outcome = 'recovered'),
          error_type TEXT NOT NULL DEFAULT '',
          error_id TEXT NOT NULL DEFAULT '',
          prompt_tokens INTEGER NOT NULL DEFAULT 0 CHECK (prompt_tokens >= 0),
          completion_tokens INTEGER NOT NULL DEFAULT 0 CHECK (completion_tokens >= 0),
          cached_read_tokens INTEGER NOT NULL DEFAULT 0 CHECK (cached_read_tokens >= 0),
          cache_write_tokens INTEGER NOT NULL DEFAULT 0 CHECK (cache_write_tokens >= 0),
          reasoning_tokens INTEGER NOT NULL DEFAULT 0 CHECK (reasoning_tokens >= 0),
          audio_tokens INTEGER NOT NULL DEFAULT 0 CHECK (audio_tokens >= 0),
          token_source TEXT NOT NULL DEFAULT ''
            CHECK (token_source = '' OR token_source = 'reported' OR token_source = 'estimated'
              OR token_source = 'partial' OR token_source = 'missing'),
          cost_nanousd INTEGER NOT NULL DEFAULT 0 CHECK (cost_nanousd >= 0),
          cost_source TEXT NOT NULL DEFAULT ''
            CHECK (cost_source = '' OR cost_source = 'reported' OR cost_source = 'listed' OR cost_source = 'unpriced'),
          price_list TEXT NOT NULL DEFAULT '',
          reported_cost_nanousd INTEGER CHECK (reported_cost_nanousd >= 0),
          duration_ns INTEGER NOT NULL DEFAULT 0 CHECK (duration_ns >= 0),
          time_to_first_chunk_ns INTEGER NOT NULL DEFAULT 0 CHECK (time_to_first_chunk_ns >= 0),
          chunks INTEGER NOT NULL DEFAULT 0 CHECK (chunks >= 0),
          finish_reason TEXT NOT NULL DEFAULT '',
          upstream_status INTEGER NOT NULL DEFAULT 0 CHECK (upstream_status >= 0),
          upstream_request_id TEXT NOT NULL DEFAULT '',
          CHECK ((state = 'open') = (ended_at_ns IS NULL)),
          CHECK ((state = 'open') = (outcome = '')),
          CHECK (cost_source <> 'unpriced' OR cost_nanousd = 0)
        ) STRICT;

        CREATE INDEX calls_by_start ON calls (started_at_ns);
        CREATE INDEX calls_open ON calls (id) WHERE state = 'open';

        CREATE TABLE keys (
          id TEXT NOT NULL PRIMARY KEY CHECK (id <> ''),
          name TEXT NOT NULL CHECK (name <> ''),
          team TEXT NOT NULL CHECK (team <> ''),
          prefix TEXT NOT NULL,
          sha256 TEXT NOT NULL UNIQUE CHECK (length(sha256) = 64),
          created_at_ns INTEGER NOT NULL CHECK (created_at_ns >= 0),
          revoked_at_ns INTEGER CHECK (revoked_at_ns >= 0)
        ) STRICT;

        CREATE TABLE probe (
          id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
          probed_at_ns INTEGER NOT NULL
        ) STRICT;
        """,
    ),
    Migration(
        "0002_balances",
        """
        ALTER TABLE calls ADD COLUMN project TEXT NOT NULL DEFAULT '';
        ALTER TABLE calls ADD COLUMN fallback_cost_nanousd INTEGER NOT NULL DEFAULT 0
          CHECK (fallback_cost_nanousd >= 0 AND (fallback_cost_nanousd = 0 OR cost_source = 'unpriced'));
        ALTER TABLE calls ADD COLUMN reserved_nanousd INTEGER NOT NULL DEFAULT 0 CHECK (reserved_nanousd >= 0);
        ALTER TABLE calls ADD COLUMN claims TEXT NOT NULL DEFAULT '';

        CREATE TABLE balances (
          balance TEXT NOT NULL CHECK (balance <> ''),
          period_start_ns INTEGER NOT NULL CHECK (period_start_ns >= 0),
          unit TEXT NOT NULL CHECK (unit = 'nanousd' OR unit = 'requests' OR unit = 'tokens'),
          period_end_ns INTEGER NOT NULL CHECK (period_end_ns = 0 OR period_end_ns > period_start_ns),
          spent INTEGER NOT NULL CHECK (spent >= 0),
          reserved INTEGER NOT NULL DEFAULT 0 CHECK (reserved >= 0),
          credit INTEGER NOT NULL DEFAULT 0,
          carried INTEGER NOT NULL CHECK (carried >= 0),
          PRIMARY KEY (balance, period_start_ns)
        ) STRICT, WITHOUT ROWID;

        CREATE TABLE top_ups (
          id TEXT NOT NULL PRIMARY KEY CHECK (id <> ''),
          balance TEXT NOT NULL CHECK (balance <> ''),
          amount_nanousd INTEGER NOT NULL CHECK (amount_nanousd <> 0),
          at_ns INTEGER NOT NULL CHECK (at_ns >= 0),
          note TEXT NOT NULL
        ) STRICT;
        """,
    ),
    Migration(
        "0003_key_limits",
        """
        ALTER TABLE keys ADD COLUMN expires_at_ns INTEGER CHECK (expires_at_ns >= 0);
        ALTER TABLE keys ADD COLUMN project TEXT NOT NULL DEFAULT '';
        ALTER TABLE keys ADD COLUMN role TEXT NOT NULL DEFAULT 'caller' CHECK (role = 'caller' OR role = 'admin');
        ALTER TABLE keys ADD COLUMN models TEXT NOT NULL DEFAULT '[]';
        ALTER TABLE keys ADD COLUMN requests_per_minute INTEGER CHECK (requests_per_minute > 0);
        ALTER TABLE keys ADD COLUMN tokens_per_minute INTEGER CHECK (tokens_per_minute > 0);
        ALTER TABLE keys ADD COLUMN previous_sha256 TEXT NOT NULL DEFAULT ''
          CHECK (previous_sha256 = '' OR length(previous_sha256) = 64);
        ALTER TABLE keys ADD COLUMN previous_until_ns INTEGER CHECK (previous_until_ns >= 0);
        """,
    ),
    Migration(
        "0004_pruned_calls",
        PRUNED_CALLS_SQL,
    ),
    Migration(
        "0005_audit",
        AUDIT_SQL,
    ),
    Migration(
        "0006_charges",
        CHARGES_SQL,
    ),
    Migration(
        "0007_provider_objects",
        PROVIDER_OBJECTS_SQL,
    ),
)

APPLICATION_ID: Final = 0x6D63706D
"""`mcpm`, in the file's header, so that another program's database is never mistaken for a ledger."""

_MIGRATIONS_SQL: Final = (
    "CREATE TABLE migrations (name TEXT NOT NULL PRIMARY KEY, applied_at_ns INTEGER NOT NULL) STRICT"
)


def migrate(db: apsw.Connection, path: Path) -> None:
    """Run the steps that this ledger lacks, each in its own transaction.

    Raises `LedgerNotUsable` for a ledger of a newer program or a database of another program.
    """
    with transaction(db):
        if not _has_tables(db, path):
            db.pragma("application_id", APPLICATION_ID)
            db.execute(_MIGRATIONS_SQL)
    for migration in MIGRATIONS:
        with transaction(db):
            if migration.name not in _applied(db, path):
                db.execute(migration.sql)
                db.execute("INSERT INTO migrations VALUES (?, ?)", (migration.name, time.time_ns()))


def require_current(db: apsw.Connection, path: Path) -> None:
    """Check for readers, which do not migrate. Raises `LedgerNotUsable` unless exactly the known steps have run."""
    if not _has_tables(db, path) or len(_applied(db, path)) < len(MIGRATIONS):
        raise outdated(path)


@contextlib.contextmanager
def transaction(db: apsw.Connection) -> Iterator[None]:
    """A transaction that takes the write lock at once; a deferred one may fail when it first writes.

    apsw's own `with db:` holds the interpreter's lock while it waits for the file and while it flushes.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _applied(db: apsw.Connection, path: Path) -> set[str]:
    return applied_names(db.execute("SELECT name FROM migrations"), MIGRATIONS, path)


def _has_tables(db: apsw.Connection, path: Path) -> bool:
    # Tables are checked before the id: both are written in one commit, which may happen between the two reads.
    if not db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone():
        return False
    if db.pragma("application_id") != APPLICATION_ID:
        raise LedgerNotUsable(
            f"{path} is a database of another program.",
            hint="Name another file: set MCPMETER_LEDGER or the setting `ledger.path`.",
        )
    return True
