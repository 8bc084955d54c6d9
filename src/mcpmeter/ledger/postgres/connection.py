"""Connections to PostgreSQL: checks before, settings after, and a one-line error with a hint for every fault."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any, Final

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict

from mcpmeter.errors import LedgerNotUsable
from mcpmeter.ledger.location import PostgresUrl
from mcpmeter.ledger.postgres.migrations import SCHEMA, has_ledger, is_current, migrate, require_current

MIN_SERVER_VERSION: Final = 140000
CONNECT_S: Final = 3.0
"""Default of `ledger.connect_seconds`."""

# READ COMMITTED, because a statement after a lock has to see what was committed while it waited for the lock.
SESSION_SQL: Final = (
    f"SET search_path TO {SCHEMA}; SET timezone TO 'UTC'; SET default_transaction_isolation TO 'read committed'"
)
WRITER_SQL: Final = f"{SESSION_SQL}; SET default_transaction_read_only TO off"
DURABLE_SQL: Final = (
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')"
)
"""A commit has to be on disk before it returns; `remote_apply`, which waits for more, stays."""


def conninfo(location: PostgresUrl, *, connect_s: float = CONNECT_S) -> dict[str, Any]:
    """The URL's parameters for libpq, with our defaults for those it lacks. Raises `LedgerNotUsable`."""
    try:
        given = conninfo_to_dict(location.reveal())
    except psycopg.Error:
        # libpq quotes the part it cannot parse, which may be the password, so its message is left out.
        raise LedgerNotUsable(
            "The ledger's address is no address that libpq understands.",
            hint="Write postgresql://user:password@host:5432/database; in the password @ as %40, / as %2F.",
        ) from None
    # libpq applies its timeout to each host and address, in whole seconds.
    defaults = {"connect_timeout": math.ceil(connect_s), "application_name": "mcpmeter"}
    # psycopg returns bytes for texts if the client's encoding follows a server without one.
    return {**defaults, **given, "client_encoding": "UTF8"}


def connect_for_writing(location: PostgresUrl) -> psycopg.Connection[Any]:
    """Connect and migrate; in autocommit mode. Raises `LedgerNotUsable`."""
    return _connect(location, writes=True)


def prepare(location: PostgresUrl, parameters: dict[str, Any]) -> list[str]:
    """Migrate, on the host that libpq's parameters name. Returns warnings. Raises `LedgerNotUsable`."""
    with contextlib.closing(_connect(location, parameters, writes=True)) as db, explain(location):
        warnings = []
        if (encoding := _encoding(db)) != "UTF8":
            warnings.append(
                f"the ledger's database has the encoding {encoding}, not UTF8: calls with texts that it cannot hold"
                " are refused; move the ledger to a database made by: " + CREATE_DATABASE
            )
        if db.execute("SHOW fsync").fetchone() != ("on",):
            warnings.append("PostgreSQL runs with fsync off: when the machine fails, settled calls can be lost")
        return warnings


def connect_for_reading(location: PostgresUrl) -> psycopg.Connection[Any]:
    """Connect without changing anything; in autocommit mode. Raises `LedgerNotUsable`."""
    return _connect(location, writes=False)


@contextlib.contextmanager
def explain(location: PostgresUrl) -> Iterator[None]:
    """Turn errors of PostgreSQL into `LedgerNotUsable`."""
    try:
        yield
    except psycopg.Error as error:
        raise not_usable(location, error) from error


def not_usable(location: PostgresUrl, error: psycopg.Error) -> LedgerNotUsable:
    """The one-line error for a fault of PostgreSQL, with what to do."""
    line = error_line(error)
    for kinds, pattern, what, hint in _KNOWN:
        if isinstance(error, kinds) and re.search(pattern, line, re.IGNORECASE):
            return LedgerNotUsable(f"The ledger {location} {what}: {line}.", hint=hint)
    return LedgerNotUsable(f"The ledger {location} cannot be used: {line}.", hint="Look at PostgreSQL's log.")


def error_line(error: psycopg.Error) -> str:
    """The first line of PostgreSQL's message; its detail, which may quote a row, is left out."""
    primary = error.diag.message_primary
    if primary:
        return primary.rstrip(".")
    first = str(error).strip().partition("\n")[0]
    return re.sub(r"^.*(failed|FATAL): +", "", first).rstrip(".") or type(error).__name__


CREATE_DATABASE: Final = "createdb -E UTF8 -T template0 --locale=C NAME"
_CHECK_THAT_IT_RUNS: Final = "Check that PostgreSQL runs there and that this machine may connect to it."
_ANYTHING: Final = r""
_KNOWN: Final[tuple[tuple[type[psycopg.Error] | tuple[type[psycopg.Error], ...], str, str, str], ...]] = (
    (
        psycopg.OperationalError,
        r"password|authentication|pg_hba|role .* does not exist",
        "does not accept this user and password",
        "Correct user and password in the address, or pg_hba.conf on the server.",
    ),
    (
        psycopg.OperationalError,
        r"database .* does not exist",
        "does not exist",
        "Run: createdb (as PostgreSQL's administrator), or name another database.",
    ),
    (
        psycopg.OperationalError,
        r"too many (clients|connections)|connection slots",
        "has no free connection",
        "Raise max_connections on the server, or end what holds them (SELECT * FROM pg_stat_activity).",
    ),
    (
        (errors.InsufficientPrivilege,),
        _ANYTHING,
        "does not give this user the rights it needs",
        f"Run on it, as its owner: CREATE SCHEMA {SCHEMA} AUTHORIZATION <the user>.",
    ),
    (
        (errors.ReadOnlySqlTransaction,),
        _ANYTHING,
        "is read-only (a standby?)",
        "Name the primary server; with several hosts add ?target_session_attrs=read-write.",
    ),
    (
        psycopg.OperationalError,
        _ANYTHING,
        "cannot be reached",
        _CHECK_THAT_IT_RUNS,
    ),
)


def connect(location: PostgresUrl, parameters: dict[str, Any] | None = None) -> psycopg.Connection[Any]:
    """Connect to a server that is new enough, whatever its tables; in autocommit mode. Raises `LedgerNotUsable`."""
    with explain(location):
        db = psycopg.connect(**(parameters or conninfo(location)), autocommit=True)
        try:
            _require_server(db, location)
        except BaseException:
            db.close()
            raise
    return db


def may_be_used(db: psycopg.Connection[Any], location: PostgresUrl) -> bool:
    """Whether the tables exist and are up to date. Raises `LedgerNotUsable` if this user may not create them."""
    if _encoding(db) != "UTF8" and not has_ledger(db):
        raise _wrong_encoding(location, _encoding(db))
    schema = db.execute("SELECT to_regnamespace(%s) IS NOT NULL", (SCHEMA,)).fetchone() == (True,)
    row = db.execute(
        f"SELECT has_schema_privilege('{SCHEMA}', 'USAGE')"
        if schema
        else "SELECT has_database_privilege(current_database(), 'CREATE')"
    ).fetchone()
    if row != (True,):
        raise not_usable(location, errors.InsufficientPrivilege(f"permission denied for schema {SCHEMA}"))
    return is_current(db, location)


def _connect(
    location: PostgresUrl, parameters: dict[str, Any] | None = None, *, writes: bool
) -> psycopg.Connection[Any]:
    db = connect(location, parameters)
    try:
        with explain(location):
            db.execute(WRITER_SQL.encode() if writes else SESSION_SQL.encode())
            if writes:
                db.execute(DURABLE_SQL.encode())
                if _encoding(db) != "UTF8" and not has_ledger(db):
                    raise _wrong_encoding(location, _encoding(db))
                migrate(db, location)
            else:
                require_current(db, location)
    except BaseException:
        db.close()
        raise
    return db


def _require_server(db: psycopg.Connection[Any], location: PostgresUrl) -> None:
    if db.info.server_version < MIN_SERVER_VERSION:
        major = db.info.server_version // 10_000
        raise LedgerNotUsable(
            f"The ledger {location} is on PostgreSQL {major}; it has to be {MIN_SERVER_VERSION // 10_000} or newer.",
            hint="Name another server, or upgrade this one.",
        )


def _encoding(db: psycopg.Connection[Any]) -> str:
    return db.info.parameter_status("server_encoding") or ""


def _wrong_encoding(location: PostgresUrl, encoding: str) -> LedgerNotUsable:
    return LedgerNotUsable(
        f"The database of the ledger {location} has the encoding {encoding}; it has to be UTF8.",
        hint=f"Make another one and name it: {CREATE_DATABASE}",
    )


def cannot_be_reached(location: PostgresUrl, reason: str) -> LedgerNotUsable:
    """The error of a server that does not respond."""
    return LedgerNotUsable(f"The ledger {location} cannot be reached: {reason}.", hint=_CHECK_THAT_IT_RUNS)
