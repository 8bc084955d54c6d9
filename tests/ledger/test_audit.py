"""Rows of the audit are bounded and printable, and every maintenance command keeps them."""

from __future__ import annotations

import asyncio
import json
import time

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.acting import BY

from mcpmeter.access.keys import new_key
from mcpmeter.ledger.audit import (
    CUT,
    INSERT_AUDIT_SQL,
    MAX_CHANGE_BYTES,
    MAX_TEXT,
    audit_entry,
    audit_values,
    key_created,
)
from mcpmeter.ledger.maintenance.backup import backup
from mcpmeter.ledger.maintenance.prune import prune
from mcpmeter.ledger.maintenance.recover import recover
from mcpmeter.ledger.maintenance.verify import verify
from mcpmeter.ledger.queries.audit import AuditQuery, read_audit
from mcpmeter.ledger.queries.reader import open_writer
from mcpmeter.records import Actor

DAY_NS = 86_400 * 10**9
TEXTS = st.text(st.characters(codec=None), max_size=400)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=60) | st.dictionaries(TEXTS, inner, max_size=60),
    max_leaves=30,
)


@settings(max_examples=15)
@given(TEXTS, TEXTS, TEXTS, st.dictionaries(TEXTS, VALUES, max_size=60))
def test_any_act_makes_a_bounded_printable_row(name, source, subject, change):
    entry = audit_entry("config.reload", Actor(name=name, source=source), subject, change)
    for text in (entry.actor, entry.source, entry.subject):
        assert len(text) <= MAX_TEXT
        assert text.isprintable()
        text.encode()
    assert len(entry.change.encode()) <= MAX_CHANGE_BYTES
    assert isinstance(json.loads(entry.change), dict)


def test_what_is_cut_is_visible():
    many = {f"setting_{n}": "x" * 200 for n in range(99)}
    entry = audit_entry("config.reload", Actor(name="a" * 999, source=""), "b", many)
    assert entry.actor == "a" * (MAX_TEXT - 1) + CUT
    change = json.loads(entry.change)
    assert change[CUT] == f"{99 - (len(change) - 1)} more"


@pytest.fixture
def ledger(tmp_path):
    path = tmp_path / "ledger.db"
    with open_writer(path) as writer:
        for number in range(300):
            entry = key_created(new_key(f"key {number}", "t", number + 1)[1], BY)
            writer.execute(INSERT_AUDIT_SQL, audit_values(entry))
    return path


def ids(path):
    return {entry.id for entry in read_audit(path, AuditQuery(limit=10_000)).entries}


def test_backup_and_recovery_keep_the_audit(ledger, tmp_path):
    before = ids(ledger)
    backup(ledger, tmp_path / "copy.db")
    assert ids(tmp_path / "copy.db") == before
    with apsw.Connection(str(ledger)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (root,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'audit'").fetchone()
        size = db.pragma("page_size")
    data = bytearray(ledger.read_bytes())
    data[(root - 1) * size : root * size] = bytes(size)
    ledger.write_bytes(data)
    found = {table.table: table for table in recover(ledger, tmp_path / "new.db")}
    assert (found["audit"].kept, found["audit"].lost) == (300, 0)
    assert ids(tmp_path / "new.db") == before
    assert verify(tmp_path / "new.db").wrong == []


def test_verify_names_a_row_that_was_tampered_with(ledger):
    assert (verify(ledger).audit_rows, verify(ledger).wrong) == (300, [])
    apsw.Connection(str(ledger)).execute("UPDATE audit SET change = 'x' WHERE rowid = 1")
    apsw.Connection(str(ledger)).execute("UPDATE audit SET action = 'key.steal' WHERE rowid = 2")
    [fault] = verify(ledger).wrong
    assert fault.startswith("2 rows of the audit have an unknown action or an unreadable change")


async def test_a_prune_of_many_batches_is_one_row_with_the_right_count(path, store, make_call, make_settlement):
    for _ in range(30):
        call = make_call(started_at_ns=1)
        await store.open(call)
        await store.settle(make_settlement(call))
    stopped_after = []

    def stop(calls: int) -> None:
        stopped_after.append(calls)
        raise KeyboardInterrupt

    at = 900 * 10**9
    monkey = pytest.MonkeyPatch()
    monkey.setattr("mcpmeter.ledger.maintenance.prune.BATCH_CALLS", 10)
    try:
        with pytest.raises(KeyboardInterrupt):
            await asyncio.to_thread(prune, path, at, time.time_ns(), BY, stop)
        await asyncio.to_thread(prune, path, at, time.time_ns(), BY)
    finally:
        monkey.undo()
    rows = await asyncio.to_thread(read_audit, path, AuditQuery(action="ledger.prune"))
    assert [json.loads(row.change)["calls_kept_as_sums"] for row in rows.entries] == [10, 20]
    await asyncio.to_thread(prune, path, at, time.time_ns(), BY)
    assert len((await asyncio.to_thread(read_audit, path, AuditQuery())).entries) == 2, "nothing was pruned"
