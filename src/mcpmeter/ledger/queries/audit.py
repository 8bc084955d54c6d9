"""The audit for the command that shows it: entries of a period, action and actor, the newest ones first in line."""

from __future__ import annotations

from typing import Final

import msgspec

from mcpmeter.ledger.audit import AUDIT_COLUMNS
from mcpmeter.ledger.location import Location
from mcpmeter.ledger.queries.reader import open_reader
from mcpmeter.ledger.sums import MAX_INT64
from mcpmeter.records import AuditEntry

_WHERE: Final = (
    "FROM audit WHERE at_ns >= ?1 AND at_ns < ?2 AND (?3 = '' OR action = ?3)"
    " AND (?4 = '' OR actor = ?4 OR (actor >= ?5 AND actor < ?6))"
)
_COUNT_SQL: Final = f"SELECT count(*) {_WHERE}"
_SELECT_SQL: Final = f"SELECT {', '.join(AUDIT_COLUMNS)} {_WHERE} ORDER BY at_ns DESC, id DESC LIMIT ?7"


class AuditQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries are wanted; an empty or missing field wants all."""

    since_ns: int | None = None
    until_ns: int | None = None
    action: str = ""
    actor: str = ""
    """A whole actor, or its first word: a key's id or an operating system's user."""
    limit: int = 100


class AuditPage(msgspec.Struct, frozen=True, kw_only=True):
    """The newest entries that a query wants, oldest first."""

    entries: list[AuditEntry]
    left_out: int
    """How many older ones the limit leaves out."""


def read_audit(ledger: Location, query: AuditQuery) -> AuditPage:
    """The entries of a query. Raises `LedgerNotUsable`."""
    until_ns = MAX_INT64 if query.until_ns is None else query.until_ns
    # Texts compare by their bytes on both engines, and "!" follows the blank.
    first_word = f"{query.actor} ", f"{query.actor}!"
    values = (query.since_ns or 0, until_ns, query.action, query.actor, *first_word)
    with open_reader(ledger) as reader:
        ((count,),) = reader.rows(_COUNT_SQL, values)
        rows = [_entry(row) for row in reader.rows(_SELECT_SQL, (*values, query.limit))]
    return AuditPage(entries=rows[::-1], left_out=int(count) - len(rows))


def _entry(row: tuple[object, ...]) -> AuditEntry:
    return msgspec.convert(dict(zip(AUDIT_COLUMNS, row, strict=True)), AuditEntry)
