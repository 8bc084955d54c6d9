"""Keys of a ledger, beside a service that may be writing to it: short transactions, no lock on the file."""

from __future__ import annotations

from collections.abc import Callable

from mcpmeter.ledger.location import Location
from mcpmeter.ledger.queries.reader import Writer, open_reader, open_writer, require_ledger
from mcpmeter.ledger.rows import (
    INSERT_KEY_SQL,
    SELECT_KEY_SQL,
    SELECT_KEYS_SQL,
    UPDATE_KEY_SQL,
    changed_values,
    key_of,
    key_values,
)
from mcpmeter.records import Key


def list_keys(ledger: Location) -> list[Key]:
    """All keys, oldest first. Raises `LedgerNotUsable`."""
    with open_reader(ledger) as reader:
        return [key_of(row) for row in reader.rows(SELECT_KEYS_SQL)]


def add_key(ledger: Location, key: Key) -> None:
    """Store a new key; creates the ledger if there is none. Raises `LedgerNotUsable`."""
    with open_writer(ledger) as writer:
        writer.execute(INSERT_KEY_SQL, key_values(key))


def revoke_key(ledger: Location, key_id: str, now_ns: int) -> Key | None:
    """Revoke a key and return it; None if there is no such key. A second revocation keeps the first time."""
    require_ledger(ledger)  # a wrong name must not create a ledger
    with open_writer(ledger) as writer:
        writer.execute("UPDATE keys SET revoked_at_ns = ? WHERE id = ? AND revoked_at_ns IS NULL", (now_ns, key_id))
        return _key(writer, key_id)


def rotate_key(ledger: Location, key_id: str, rotate: Callable[[Key], Key]) -> Key | None:
    """Give a key another secret, as `rotate` returns it; None if there is no such key."""
    require_ledger(ledger)  # a wrong name must not create a ledger
    with open_writer(ledger) as writer:
        key = _key(writer, key_id)
        if key is None:
            return None
        rotated = rotate(key)
        writer.execute(UPDATE_KEY_SQL, changed_values(rotated))
        return rotated


def _key(writer: Writer, key_id: str) -> Key | None:
    return next(map(key_of, writer.execute(SELECT_KEY_SQL, (key_id,))), None)
