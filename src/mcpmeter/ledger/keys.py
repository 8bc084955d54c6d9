"""Keys on a ledger that a service may be writing to: short transactions, no lock on the file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from mcpmeter.ledger.connection import explain, open_for_reading, open_for_writing
from mcpmeter.ledger.migrations import transaction
from mcpmeter.ledger.rows import insert_key, read_keys
from mcpmeter.records import Key


def list_keys(path: Path) -> list[Key]:
    """All keys, oldest first. Raises `LedgerNotUsable`."""
    with contextlib.closing(open_for_reading(path)) as db, explain(path):
        return read_keys(db)


def add_key(path: Path, key: Key) -> None:
    """Keep a new key, making the ledger if there is none yet. Raises `LedgerNotUsable`."""
    with contextlib.closing(open_for_writing(path)) as db, explain(path), transaction(db):
        insert_key(db, key)


def revoke_key(path: Path, key_id: str, now_ns: int) -> Key | None:
    """Revoke a key and return it as it is now; None if there is no such key. Revoking twice keeps the first time."""
    open_for_reading(path).close()  # never makes a ledger just to find nothing in it
    with contextlib.closing(open_for_writing(path)) as db, explain(path), transaction(db):
        db.execute("UPDATE keys SET revoked_at_ns = ? WHERE id = ? AND revoked_at_ns IS NULL", (now_ns, key_id))
        return next((key for key in read_keys(db) if key.id == key_id), None)


def rotate_key(path: Path, key_id: str, turn: Callable[[Key], Key]) -> Key | None:
    """Give a key another secret, as `turn` makes it of the record; None if there is no such key."""
    open_for_reading(path).close()  # never makes a ledger just to find nothing in it
    with contextlib.closing(open_for_writing(path)) as db, explain(path), transaction(db):
        key = next((key for key in read_keys(db) if key.id == key_id), None)
        if key is None:
            return None
        turned = turn(key)
        db.execute(
            "UPDATE keys SET prefix = ?, sha256 = ?, previous_sha256 = ?, previous_until_ns = ? WHERE id = ?",
            (turned.prefix, turned.sha256, turned.previous_sha256, turned.previous_until_ns, key_id),
        )
        return turned
