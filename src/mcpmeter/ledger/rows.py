"""Records to rows and back: the only place that knows the order of the columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import apsw
import msgspec

from mcpmeter.ledger.reservations import kept_claims
from mcpmeter.ledger.sqlite.balances import settle_claims
from mcpmeter.ledger.store import SettlementConflict
from mcpmeter.records import Call, Charge, Key, LedgerRow, LlmTarget, Settlement, Usage

_Record = TypeVar("_Record", bound=msgspec.Struct)

OPEN_COLUMNS: Final = (
    "id",
    "started_at_ns",
    "endpoint",
    "method",
    "team",
    "project",
    "key_id",
    "parent_id",
    "trace_id",
    "provider",
    "model",
    "operation",
    "stream",
    "prompt_tokens_estimate",
    "reserved_nanousd",
    "claims",
)
SETTLED_COLUMNS: Final = (
    "provider",
    "model",
    "ended_at_ns",
    "duration_ns",
    "status",
    "outcome",
    "error_type",
    "error_id",
    "prompt_tokens",
    "completion_tokens",
    "cached_read_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "audio_tokens",
    "token_source",
    "cost_nanousd",
    "cost_source",
    "price_list",
    "reported_cost_nanousd",
    "fallback_cost_nanousd",
    "response_model",
    "finish_reason",
    "upstream_status",
    "upstream_request_id",
    "time_to_first_chunk_ns",
    "chunks",
)
ROW_COLUMNS: Final = LedgerRow.__struct_fields__
KEY_COLUMNS: Final = Key.__struct_fields__

# Only the constants above are ever joined into SQL; every value is a parameter.
OPEN_SQL: Final = f"INSERT INTO calls ({', '.join(OPEN_COLUMNS)}) VALUES ({', '.join('?' * len(OPEN_COLUMNS))})"  # noqa: S608
SETTLE_SQL: Final = (
    "UPDATE calls SET state = 'settled', "  # noqa: S608
    + ", ".join(f"{column} = ?{place}" for place, column in enumerate(SETTLED_COLUMNS, start=2))
    + " WHERE id = ?1 AND state = 'open'"
)
SETTLE_RETURNING_SQL: Final = f"{SETTLE_SQL} RETURNING claims"
"""The same where balances are kept. What the row says counts: a limit may be newer than the call."""

_SETTLED_ALREADY_SQL: Final = (
    "SELECT state = 'settled' AND "  # noqa: S608
    + " AND ".join(f"{column} IS ?{place}" for place, column in enumerate(SETTLED_COLUMNS, start=2))
    + " FROM calls WHERE id = ?1"
)
SELECT_ROWS_SQL: Final = f"SELECT {', '.join(ROW_COLUMNS)} FROM calls"  # noqa: S608
# PathParams, because SQLite would rather walk through all rows than sort the few that are open.
OPEN_ROWS_SQL: Final = f"{SELECT_ROWS_SQL} INDEXED BY calls_open WHERE state = 'open'"
SELECT_KEYS_SQL: Final = f"SELECT {', '.join(KEY_COLUMNS)} FROM keys ORDER BY created_at_ns, id"  # noqa: S608
CHANGING_KEY_COLUMNS: Final = ("prefix", "sha256", "previous_sha256", "previous_until_ns", "revoked_at_ns")
"""Of a key, what a rotation or a revocation changes; all else stays as it was made."""
UPDATE_KEY_SQL: Final = f"UPDATE keys SET {', '.join(f'{name} = ?' for name in CHANGING_KEY_COLUMNS)} WHERE id = ?"  # noqa: S608
INSERT_KEY_SQL: Final = f"INSERT INTO keys ({', '.join(KEY_COLUMNS)}) VALUES ({', '.join('?' * len(KEY_COLUMNS))})"  # noqa: S608

_NO_MODEL: Final = LlmTarget(provider="", model="", operation="")
_NO_USAGE: Final = Usage()
_NO_CHARGE: Final = Charge()


def open_values(call: Call) -> tuple[Any, ...]:
    """A call as `OPEN_SQL` wants it."""
    llm = call.llm or _NO_MODEL
    return (
        call.id,
        call.started_at_ns,
        call.endpoint,
        call.method,
        call.team,
        call.project,
        call.key_id,
        call.parent_id,
        call.trace_id,
        llm.provider,
        llm.model,
        llm.operation,
        llm.stream,
        llm.prompt_tokens_estimate,
        call.reserved_nanousd,
        kept_claims(call),
    )


def settled_values(settlement: Settlement) -> tuple[Any, ...]:
    """A settlement as `SETTLE_SQL` wants it. A call that reached no model has empty sources."""
    usage = settlement.usage or _NO_USAGE
    charge = settlement.charge or _NO_CHARGE
    target = settlement.call.llm or _NO_MODEL
    return (
        settlement.call.id,
        # Again: a call may have gone elsewhere than it was opened for.
        target.provider,
        target.model,
        settlement.ended_at_ns,
        settlement.duration_ns,
        settlement.status,
        settlement.outcome,
        settlement.error_type,
        settlement.error_id,
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_read_tokens,
        usage.cache_write_tokens,
        usage.reasoning_tokens,
        usage.audio_tokens,
        usage.source if settlement.usage else "",
        charge.nanousd,
        charge.source if settlement.charge else "",
        charge.price_list,
        charge.reported_nanousd,
        charge.fallback_nanousd,
        settlement.response_model,
        settlement.finish_reason,
        settlement.upstream_status,
        settlement.upstream_request_id,
        settlement.time_to_first_chunk_ns,
        settlement.chunks,
    )


def settle_one(db: apsw.Connection, settlement: Settlement) -> None:
    """Settle one row and its claims. The same settlement once more is fine; anything else is a `SettlementConflict`."""
    values = settled_values(settlement)
    settled = db.execute(SETTLE_RETURNING_SQL, values).fetchall()
    if settled:
        settle_claims(db, str(settled[0][0]), settlement)
        return
    same = db.execute(_SETTLED_ALREADY_SQL, values).fetchone()
    if same is None:
        raise SettlementConflict("No call with this id was opened.", hint="Open the call before settling it.")
    if not same[0]:
        raise SettlementConflict("This call was settled already, with other figures.", hint="The first ones stay.")


def read_open_rows(db: apsw.Connection) -> list[LedgerRow]:
    """Rows that are not settled, oldest first."""
    rows = [row_of(tuple(row)) for row in db.execute(OPEN_ROWS_SQL)]
    return sorted(rows, key=lambda row: (row.started_at_ns, row.id))


def read_row(db: apsw.Connection, call_id: str) -> LedgerRow | None:
    """The row of one call."""
    row = db.execute(f"{SELECT_ROWS_SQL} WHERE id = ?", (call_id,)).fetchone()
    return None if row is None else row_of(row)


def row_of(row: tuple[Any, ...]) -> LedgerRow:
    """A row from its columns, in the order of `ROW_COLUMNS`."""
    return _as(LedgerRow, ROW_COLUMNS, row)


def read_keys(db: apsw.Connection) -> list[Key]:
    """All keys, oldest first."""
    return [key_of(row) for row in db.execute(SELECT_KEYS_SQL)]


def key_of(row: tuple[Any, ...]) -> Key:
    """A key from its columns, in the order of `KEY_COLUMNS`."""
    return _as(Key, KEY_COLUMNS, tuple(_models(value) if name == "models" else value for name, value in _named(row)))


def key_values(key: Key) -> tuple[Any, ...]:
    """A key's columns, in the order of `KEY_COLUMNS`."""
    values = msgspec.structs.asdict(key)
    return tuple(values[name] if name != "models" else msgspec.json.encode(key.models).decode() for name in KEY_COLUMNS)


def _named(row: tuple[Any, ...]) -> zip[tuple[str, Any]]:
    return zip(KEY_COLUMNS, row, strict=True)


def _models(kept: str) -> list[str]:
    return msgspec.json.decode(kept, type=list[str])


def insert_key(db: apsw.Connection, key: Key) -> None:
    """Keep one key."""
    db.execute(INSERT_KEY_SQL, key_values(key))


def change_key(db: apsw.Connection, key_id: str, change: Callable[[Key], Key]) -> Key | None:
    """Give one key what may change of it; None if there is no such key."""
    key = next((key for key in read_keys(db) if key.id == key_id), None)
    if key is None:
        return None
    changed = change(key)
    db.execute(UPDATE_KEY_SQL, changed_values(changed))
    return changed


def changed_values(key: Key) -> tuple[Any, ...]:
    """The parameters of `UPDATE_KEY_SQL`."""
    return tuple(getattr(key, name) for name in (*CHANGING_KEY_COLUMNS, "id"))


def _as(record: type[_Record], columns: tuple[str, ...], row: tuple[Any, ...]) -> _Record:
    return msgspec.convert(dict(zip(columns, row, strict=True)), record, strict=False)
