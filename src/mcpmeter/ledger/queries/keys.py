"""Keys of a ledger, beside a service that may be writing to it: short transactions, no lock on the file."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from mcpmeter.ledger.audit import INSERT_AUDIT_SQL, audit_values, key_changed, key_created
from mcpmeter.ledger.location import Location
from mcpmeter.ledger.queries.reader import open_reader, open_writer, require_ledger
from mcpmeter.ledger.rows import (
    INSERT_KEY_SQL,
    SELECT_KEY_SQL,
    SELECT_KEYS_SQL,
    UPDATE_KEY_SQL,
    changed_values,
    key_of,
    key_values,
)
from mcpmeter.records import Actor, AuditAction, Key


def list_keys(ledger: Location) -> list[Key]:
    """All keys, oldest first. Raises `LedgerNotUsable`."""
    with open_reader(ledger) as reader:
        return [key_of(row) for row in reader.rows(SELECT_KEYS_SQL)]


def add_key(ledger: Location, key: Key, by: Actor) -> None:
    """Store a new key and its audit row; creates the ledger if there is none. Raises `LedgerNotUsable`."""
    with open_writer(ledger) as writer:
        writer.execute(INSERT_KEY_SQL, key_values(key))
        writer.execute(INSERT_AUDIT_SQL, audit_values(key_created(key, by)))


def revoke_key(ledger: Location, key_id: str, now_ns: int, by: Actor) -> Key | None:
    """Revoke a key and return it; None if there is no such key. A second revocation keeps the first time."""
    return _change_key(ledger, key_id, lambda key: revoked(key, now_ns), "key.revoke", by)


def revoked(key: Key, now_ns: int) -> Key:
    """The key with its end; one that was revoked already keeps its time."""
    return key if key.revoked_at_ns is not None else msgspec.structs.replace(key, revoked_at_ns=now_ns)


def rotate_key(ledger: Location, key_id: str, rotate: Callable[[Key], Key], by: Actor) -> Key | None:
    """Give a key another secret, as `rotate` returns it; None if there is no such key."""
    return _change_key(ledger, key_id, rotate, "key.rotate", by)


def _change_key(
    ledger: Location, key_id: str, change: Callable[[Key], Key], action: AuditAction, by: Actor
) -> Key | None:
    require_ledger(ledger)  # a wrong name must not create a ledger
    with open_writer(ledger) as writer:
        key = next(map(key_of, writer.execute(SELECT_KEY_SQL, (key_id,))), None)
        if key is None:
            return None
        changed = change(key)
        writer.execute(UPDATE_KEY_SQL, changed_values(changed))
        writer.execute(INSERT_AUDIT_SQL, audit_values(key_changed(action, key, changed, by)))
        return changed
