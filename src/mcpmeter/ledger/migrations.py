"""Named steps that make and change a ledger's tables, and the errors about them.

The steps are each engine's own. A step that is the same on both is written here, with SQLite's types.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from mcpmeter.errors import LedgerNotUsable
from mcpmeter.ledger.location import Location


class Migration(NamedTuple):
    """One step: a name that never changes and its SQL."""

    name: str
    sql: str


PRUNED_CALLS_SQL: Final = """
  CREATE TABLE pruned_calls (
    started_at_ns INTEGER NOT NULL CHECK (started_at_ns >= 0),
    team TEXT NOT NULL,
    project TEXT NOT NULL,
    key_id TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome <> ''),
    token_source TEXT NOT NULL,
    cost_source TEXT NOT NULL,
    calls INTEGER NOT NULL CHECK (calls > 0),
    prompt_tokens INTEGER NOT NULL CHECK (prompt_tokens >= 0),
    completion_tokens INTEGER NOT NULL CHECK (completion_tokens >= 0),
    cached_read_tokens INTEGER NOT NULL CHECK (cached_read_tokens >= 0),
    cache_write_tokens INTEGER NOT NULL CHECK (cache_write_tokens >= 0),
    reasoning_tokens INTEGER NOT NULL CHECK (reasoning_tokens >= 0),
    audio_tokens INTEGER NOT NULL CHECK (audio_tokens >= 0),
    cost_nanousd INTEGER NOT NULL CHECK (cost_nanousd >= 0),
    fallback_cost_nanousd INTEGER NOT NULL CHECK (fallback_cost_nanousd >= 0),
    fallback_calls INTEGER NOT NULL CHECK (fallback_calls >= 0),
    reported_cost_nanousd INTEGER NOT NULL CHECK (reported_cost_nanousd >= 0),
    reported_cost_calls INTEGER NOT NULL CHECK (reported_cost_calls >= 0)
  ) STRICT;
  CREATE INDEX pruned_calls_by_start ON pruned_calls (started_at_ns);

  CREATE TABLE pruned_claims (
    balance TEXT NOT NULL CHECK (balance <> ''),
    period_start_ns INTEGER NOT NULL CHECK (period_start_ns >= 0),
    spent INTEGER NOT NULL CHECK (spent >= 0),
    PRIMARY KEY (balance, period_start_ns)
  ) STRICT, WITHOUT ROWID;
"""

CHARGES_SQL: Final = """
  CREATE TABLE charges (
    call_id TEXT NOT NULL PRIMARY KEY CHECK (call_id <> ''),
    call_started_at_ns INTEGER NOT NULL CHECK (call_started_at_ns >= 0),
    lines TEXT NOT NULL,
    unknown TEXT NOT NULL,
    conditions TEXT NOT NULL,
    unpriced_items INTEGER NOT NULL CHECK (unpriced_items >= 0),
    other_models INTEGER NOT NULL CHECK (other_models = 0 OR other_models = 1),
    fallback_nanousd INTEGER NOT NULL CHECK (fallback_nanousd >= 0),
    listed_nanousd INTEGER CHECK (listed_nanousd >= 0)
  ) STRICT;
  CREATE INDEX charges_by_start ON charges (call_started_at_ns);

  ALTER TABLE pruned_calls ADD COLUMN unpriced_items INTEGER NOT NULL DEFAULT 0 CHECK (unpriced_items >= 0);
  ALTER TABLE pruned_calls ADD COLUMN unpriced_item_calls INTEGER NOT NULL DEFAULT 0 CHECK (unpriced_item_calls >= 0);

  CREATE TABLE pruned_lines (
    started_at_ns INTEGER NOT NULL CHECK (started_at_ns >= 0),
    team TEXT NOT NULL,
    project TEXT NOT NULL,
    key_id TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome <> ''),
    token_source TEXT NOT NULL,
    cost_source TEXT NOT NULL,
    item TEXT NOT NULL CHECK (item <> ''),
    line_model TEXT NOT NULL,
    lines INTEGER NOT NULL CHECK (lines > 0),
    unpriced_lines INTEGER NOT NULL CHECK (unpriced_lines >= 0),
    quantity INTEGER NOT NULL CHECK (quantity >= 0),
    line_nanousd INTEGER NOT NULL CHECK (line_nanousd >= 0)
  ) STRICT;
  CREATE INDEX pruned_lines_by_start ON pruned_lines (started_at_ns);
"""

PROVIDER_OBJECTS_SQL: Final = """
  CREATE TABLE provider_objects (
    id TEXT NOT NULL CHECK (id <> ''),
    provider TEXT NOT NULL CHECK (provider <> ''),
    kind TEXT NOT NULL CHECK (kind = 'response' OR kind = 'batch' OR kind = 'file'),
    call_id TEXT NOT NULL CHECK (call_id <> ''),
    team TEXT NOT NULL,
    project TEXT NOT NULL,
    key_id TEXT NOT NULL,
    credential_id TEXT NOT NULL,
    model TEXT NOT NULL,
    max_completion_tokens INTEGER NOT NULL CHECK (max_completion_tokens >= 0),
    conditions TEXT NOT NULL,
    created_at_ns INTEGER NOT NULL CHECK (created_at_ns >= 0),
    state TEXT NOT NULL CHECK (state = 'pending' OR state = 'settled' OR state = 'lost'),
    settled_at_ns INTEGER CHECK (settled_at_ns >= 0),
    PRIMARY KEY (id, provider)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX provider_objects_pending ON provider_objects (call_id) WHERE state = 'pending';
"""

AUDIT_SQL: Final = """
  CREATE TABLE audit (
    id TEXT NOT NULL PRIMARY KEY CHECK (id <> ''),
    at_ns INTEGER NOT NULL CHECK (at_ns >= 0),
    actor TEXT NOT NULL CHECK (actor <> ''),
    source TEXT NOT NULL,
    action TEXT NOT NULL CHECK (action <> ''),
    subject TEXT NOT NULL,
    change TEXT NOT NULL CHECK (length(change) <= 8192),
    outcome TEXT NOT NULL CHECK (outcome = 'done' OR outcome = 'refused')
  ) STRICT;
  CREATE INDEX audit_by_time ON audit (at_ns);
"""


LEDGER_ID_SQL: Final = "SELECT min(applied_at_ns) FROM migrations"
"""The instant of the first step, in nanoseconds: it tells ledgers apart, and stays when their data is moved."""


def ledger_id(rows: Iterable[Sequence[object]]) -> str:
    """A ledger's id from the row of `LEDGER_ID_SQL`."""
    return str(next(iter(rows))[0])


def applied_names(rows: Iterable[Sequence[object]], known: Sequence[Migration], ledger: Location) -> set[str]:
    """The steps that a ledger has run. Raises `LedgerNotUsable` if one of them is of a newer program."""
    names = {str(name) for (name,) in rows}
    unknown = sorted(names - {migration.name for migration in known})
    if unknown:
        raise LedgerNotUsable(
            f"The ledger {ledger} was written by a newer mcpmeter (it has the migration {unknown[-1]}).",
            hint="Run: pip install --upgrade mcpmeter",
        )
    return names


def outdated(ledger: Location) -> LedgerNotUsable:
    """The error of a reader, which does not migrate, on a ledger that lacks a step."""
    return LedgerNotUsable(
        f"The ledger {ledger} is empty or of an older mcpmeter.",
        hint="Start `mcpmeter serve` on it once: that brings it up to date.",
    )
