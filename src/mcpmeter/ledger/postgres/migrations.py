"""The ledger's tables on PostgreSQL. Steps are appended, never edited: ledgers in the field have run them.

Columns and checks are those of SQLite, which a test holds; texts compare by their bytes, as they do there, so that a
report has the same order on both. Only here: `owner`, the replica that opened a call. The first step is written out,
because PostgreSQL names checks by their order, and a later step may drop one by its name.
"""

from __future__ import annotations

import time
from typing import Any, Final

import psycopg

from mcpmeter.ledger.location import PostgresUrl
from mcpmeter.ledger.migrations import (
    AUDIT_SQL,
    CHARGES_SQL,
    PROVIDER_OBJECTS_SQL,
    PRUNED_CALLS_SQL,
    Migration,
    applied_names,
    outdated,
)
from mcpmeter.ledger.postgres.sql import tables_for_postgres

SCHEMA: Final = "mcpmeter"
"""The schema of all tables, so that a ledger can share a database with other programs."""

ADVISORY_LOCK: Final = 0x6D63706D
"""`mcpm`: held while migrating, so that replicas that start together migrate one after the other."""

POSTGRES_MIGRATIONS: Final = (
    Migration(
        "0001_calls_keys_balances",
        """
        CREATE TABLE calls (
          id text COLLATE "C" NOT NULL PRIMARY KEY CHECK (id <> ''),
          state text COLLATE "C" NOT NULL DEFAULT 'open' CHECK (state = 'open' OR state = 'settled'),
          started_at_ns bigint NOT NULL CHECK (started_at_ns >= 0),
          ended_at_ns bigint CHECK (ended_at_ns >= 0),
          endpoint text COLLATE "C" NOT NULL,
          method text COLLATE "C" NOT NULL,
          team text COLLATE "C" NOT NULL,
          key_id text COLLATE "C" NOT NULL,
          parent_id text COLLATE "C" NOT NULL,
          trace_id text COLLATE "C" NOT NULL,
          provider text COLLATE "C" NOT NULL,
          model text COLLATE "C" NOT NULL,
          response_model text COLLATE "C" NOT NULL DEFAULT '',
          operation text COLLATE "C" NOT NULL,
          stream smallint NOT NULL CHECK (stream = 0 OR stream = 1),
          prompt_tokens_estimate bigint NOT NULL CHECK (prompt_tokens_estimate >= 0),
          status text COLLATE "C" NOT NULL DEFAULT '',
          outcome text COLLATE "C" NOT NULL DEFAULT ''
            CHECK (outcome = '' OR outcome = 'ok' OR outcome = 'error' OR outcome = 'partial' OR outcome = 'recovered'),
          error_type text COLLATE "C" NOT NULL DEFAULT '',
          error_id text COLLATE "C" NOT NULL DEFAULT '',
          prompt_tokens bigint NOT NULL DEFAULT 0 CHECK (prompt_tokens >= 0),
          completion_tokens bigint NOT NULL DEFAULT 0 CHECK (completion_tokens >= 0),
          cached_read_tokens bigint NOT NULL DEFAULT 0 CHECK (cached_read_tokens >= 0),
          cache_write_tokens bigint NOT NULL DEFAULT 0 CHECK (cache_write_tokens >= 0),
          reasoning_tokens bigint NOT NULL DEFAULT 0 CHECK (reasoning_tokens >= 0),
          audio_tokens bigint NOT NULL DEFAULT 0 CHECK (audio_tokens >= 0),
          token_source text COLLATE "C" NOT NULL DEFAULT ''
            CHECK (token_source = '' OR token_source = 'reported' OR token_source = 'estimated'
              OR token_source = 'partial' OR token_source = 'missing'),
          cost_nanousd bigint NOT NULL DEFAULT 0 CHECK (cost_nanousd >= 0),
          cost_source text COLLATE "C" NOT NULL DEFAULT ''
            CHECK (cost_source = '' OR cost_source = 'reported' OR cost_source = 'listed' OR cost_source = 'unpriced'),
          price_list text COLLATE "C" NOT NULL DEFAULT '',
          reported_cost_nanousd bigint CHECK (reported_cost_nanousd >= 0),
          duration_ns bigint NOT NULL DEFAULT 0 CHECK (duration_ns >= 0),
          time_to_first_chunk_ns bigint NOT NULL DEFAULT 0 CHECK (time_to_first_chunk_ns >= 0),
          chunks bigint NOT NULL DEFAULT 0 CHECK (chunks >= 0),
          finish_reason text COLLATE "C" NOT NULL DEFAULT '',
          upstream_status bigint NOT NULL DEFAULT 0 CHECK (upstream_status >= 0),
          upstream_request_id text COLLATE "C" NOT NULL DEFAULT '',
          project text COLLATE "C" NOT NULL DEFAULT '',
          fallback_cost_nanousd bigint NOT NULL DEFAULT 0
            CHECK (fallback_cost_nanousd >= 0 AND (fallback_cost_nanousd = 0 OR cost_source = 'unpriced')),
          reserved_nanousd bigint NOT NULL DEFAULT 0 CHECK (reserved_nanousd >= 0),
          claims text COLLATE "C" NOT NULL DEFAULT '',
          owner text COLLATE "C" NOT NULL DEFAULT '',
          CHECK ((state = 'open') = (ended_at_ns IS NULL)),
          CHECK ((state = 'open') = (outcome = '')),
          CHECK (cost_source <> 'unpriced' OR cost_nanousd = 0)
        );

        CREATE INDEX calls_by_start ON calls (started_at_ns);
        CREATE INDEX calls_open ON calls (id) WHERE state = 'open';

        CREATE TABLE keys (
          id text COLLATE "C" NOT NULL PRIMARY KEY CHECK (id <> ''),
          name text COLLATE "C" NOT NULL CHECK (name <> ''),
          team text COLLATE "C" NOT NULL CHECK (team <> ''),
          prefix text COLLATE "C" NOT NULL,
          sha256 text COLLATE "C" NOT NULL UNIQUE CHECK (length(sha256) = 64),
          created_at_ns bigint NOT NULL CHECK (created_at_ns >= 0),
          revoked_at_ns bigint CHECK (revoked_at_ns >= 0),
          expires_at_ns bigint CHECK (expires_at_ns >= 0),
          project text COLLATE "C" NOT NULL DEFAULT '',
          role text COLLATE "C" NOT NULL DEFAULT 'caller' CHECK (role = 'caller' OR role = 'admin'),
          models text COLLATE "C" NOT NULL DEFAULT '[]',
          requests_per_minute bigint CHECK (requests_per_minute > 0),
          tokens_per_minute bigint CHECK (tokens_per_minute > 0),
          previous_sha256 text COLLATE "C" NOT NULL DEFAULT ''
            CHECK (previous_sha256 = '' OR length(previous_sha256) = 64),
          previous_until_ns bigint CHECK (previous_until_ns >= 0)
        );

        CREATE TABLE key_changes (
          id bigint NOT NULL PRIMARY KEY CHECK (id = 1),
          version bigint NOT NULL
        );
        INSERT INTO key_changes VALUES (1, 0);
        CREATE FUNCTION note_key_change() RETURNS trigger LANGUAGE plpgsql AS $$
          BEGIN
            UPDATE mcpmeter.key_changes SET version = version + 1;
            RETURN NULL;
          END $$;
        CREATE TRIGGER keys_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON keys
          FOR EACH STATEMENT EXECUTE FUNCTION note_key_change();

        CREATE TABLE probe (
          id bigint NOT NULL PRIMARY KEY CHECK (id = 1),
          probed_at_ns bigint NOT NULL
        );

        CREATE TABLE balances (
          balance text COLLATE "C" NOT NULL CHECK (balance <> ''),
          period_start_ns bigint NOT NULL CHECK (period_start_ns >= 0),
          unit text COLLATE "C" NOT NULL CHECK (unit = 'nanousd' OR unit = 'requests' OR unit = 'tokens'),
          period_end_ns bigint NOT NULL CHECK (period_end_ns = 0 OR period_end_ns > period_start_ns),
          spent bigint NOT NULL CHECK (spent >= 0),
          reserved bigint NOT NULL DEFAULT 0 CHECK (reserved >= 0),
          credit bigint NOT NULL DEFAULT 0,
          carried bigint NOT NULL CHECK (carried >= 0),
          PRIMARY KEY (balance, period_start_ns)
        ) WITH (fillfactor = 50);

        CREATE TABLE top_ups (
          id text COLLATE "C" NOT NULL PRIMARY KEY CHECK (id <> ''),
          balance text COLLATE "C" NOT NULL CHECK (balance <> ''),
          amount_nanousd bigint NOT NULL CHECK (amount_nanousd <> 0),
          at_ns bigint NOT NULL CHECK (at_ns >= 0),
          note text COLLATE "C" NOT NULL
        );

        CREATE TABLE replicas (
          id text COLLATE "C" NOT NULL PRIMARY KEY CHECK (id <> ''),
          beat_at timestamptz NOT NULL
        );
        """,
    ),
    Migration(
        "0002_pruned_calls",
        tables_for_postgres(PRUNED_CALLS_SQL),
    ),
    Migration(
        "0003_audit",
        tables_for_postgres(AUDIT_SQL),
    ),
    Migration(
        "0004_charges",
        tables_for_postgres(CHARGES_SQL),
    ),
    Migration(
        "0005_provider_objects",
        tables_for_postgres(PROVIDER_OBJECTS_SQL),
    ),
)


def migrate(db: psycopg.Connection[Any], location: PostgresUrl) -> None:
    """Run the steps that this ledger lacks, each in its own transaction. `db` is in autocommit mode.

    Raises `LedgerNotUsable` for a ledger of a newer program.
    """
    if is_current(db, location):
        return
    with db.transaction():
        _take_lock(db)
        _make_schema(db)
    for migration in POSTGRES_MIGRATIONS:
        with db.transaction():
            _take_lock(db)
            if migration.name not in _applied(db, location):
                db.execute(migration.sql.encode())
                db.execute("INSERT INTO migrations VALUES (%s, %s)", (migration.name, time.time_ns()))


def require_current(db: psycopg.Connection[Any], location: PostgresUrl) -> None:
    """Check for readers, which do not migrate. Raises `LedgerNotUsable` unless exactly the known steps have run."""
    if not is_current(db, location):
        raise outdated(location)


def is_current(db: psycopg.Connection[Any], location: PostgresUrl) -> bool:
    """Whether every step has run. Raises `LedgerNotUsable` if one of a newer program has."""
    return has_ledger(db) and len(_applied(db, location)) == len(POSTGRES_MIGRATIONS)


def _make_schema(db: psycopg.Connection[Any]) -> None:
    # Checked first, because CREATE SCHEMA IF NOT EXISTS needs a right on the database that the schema's owner may lack.
    if not _found(db, "to_regnamespace", SCHEMA):
        db.execute(f"CREATE SCHEMA {SCHEMA}".encode())
    if not has_ledger(db):
        db.execute(
            'CREATE TABLE migrations (name text COLLATE "C" NOT NULL PRIMARY KEY, applied_at_ns bigint NOT NULL)'
        )


def _take_lock(db: psycopg.Connection[Any]) -> None:
    db.execute("SELECT pg_advisory_xact_lock(%s)", (ADVISORY_LOCK,))


def _applied(db: psycopg.Connection[Any], location: PostgresUrl) -> set[str]:
    return applied_names(db.execute("SELECT name FROM mcpmeter.migrations"), POSTGRES_MIGRATIONS, location)


def has_ledger(db: psycopg.Connection[Any]) -> bool:
    """Whether a ledger was made in this database, of whatever version."""
    return _found(db, "to_regclass", f"{SCHEMA}.migrations")


def _found(db: psycopg.Connection[Any], look_up: str, name: str) -> bool:
    row = db.execute(f"SELECT {look_up}(%s) IS NOT NULL".encode(), (name,)).fetchone()
    return bool(row and row[0])
