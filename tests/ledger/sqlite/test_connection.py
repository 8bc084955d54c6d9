"""Every fault of a ledger's file is one line with what to do."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apsw
import pytest

from mcpmeter.errors import LedgerNotUsable
from mcpmeter.ledger.sqlite import connection
from mcpmeter.ledger.sqlite.connection import open_for_reading, open_for_writing
from mcpmeter.ledger.sqlite.migrations import MIGRATIONS
from mcpmeter.ledger.sqlite.store import SqliteStore


@pytest.fixture
def folder_of_another() -> Iterator[Path]:
    """A folder in which this process may not write, as root or as another user."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    (folder / "ledger.db").touch(0o644)
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    else:
        (folder / "ledger.db").chmod(0o444)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def refusal_of(path: Path) -> str:
    with pytest.raises(LedgerNotUsable) as refused:
        open_for_writing(path).close()
    line = str(refused.value)
    assert "\n" not in line
    assert refused.value.hint
    return line


async def test_an_unwritable_folder_is_refused_with_the_command_to_run(folder_of_another):
    with pytest.raises(LedgerNotUsable, match=r"cannot be written: Permission denied\. Run: chown .* MCPMETER_LEDGER"):
        await SqliteStore(folder_of_another / "ledger.db").start()


def test_an_unwritable_file_is_refused(folder_of_another):
    assert "cannot be written: Permission denied" in refusal_of(folder_of_another / "ledger.db")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be made" in refusal_of(tmp_path / "file" / "state" / "ledger.db")
    assert "mkdir -p" in refusal_of(Path("/proc/mcpmeter/ledger.db"))


def test_a_folder_instead_of_a_file_is_refused(tmp_path):
    assert f"{tmp_path} is a folder. Name a file in it: MCPMETER_LEDGER={tmp_path}/ledger.db" in refusal_of(tmp_path)


def test_a_file_that_is_no_database_is_refused_unchanged(tmp_path):
    path = tmp_path / "ledger.db"
    path.write_text("dear diary, this is no database, but long enough to have a header")
    assert "not an SQLite database" in refusal_of(path)
    assert path.read_text().startswith("dear diary")
    with pytest.raises(LedgerNotUsable, match="not an SQLite database"):
        open_for_reading(path)


def test_a_database_of_another_program_is_refused_unchanged(tmp_path):
    path = tmp_path / "ledger.db"
    other = apsw.Connection(str(path))
    other.execute("CREATE TABLE notes (text)")
    other.close()
    assert "database of another program" in refusal_of(path)
    assert [row[0] for row in apsw.Connection(str(path)).execute("SELECT name FROM sqlite_schema")] == ["notes"]


def test_a_damaged_ledger_is_refused_with_the_command_to_run(tmp_path):
    path = tmp_path / "ledger.db"
    open_for_writing(path).close()
    content = bytearray(path.read_bytes())
    at = int(len(content) * 0.6) // 4096 * 4096
    content[at : at + 4096] = os.urandom(4096)
    path.write_bytes(content)
    assert f"mcpmeter ledger recover {path} {path}.new" in refusal_of(path)


def test_a_ledger_cut_short_is_refused(tmp_path):
    path = tmp_path / "ledger.db"
    open_for_writing(path).close()
    os.truncate(path, 4096 + 100)
    assert "damaged" in refusal_of(path)


def test_a_ledger_held_by_another_program_is_refused_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "BUSY_TIMEOUT_MS", 20)
    path = tmp_path / "ledger.db"
    open_for_writing(path).close()
    other = apsw.Connection(str(path))
    other.execute("BEGIN EXCLUSIVE")
    assert "held by another program" in refusal_of(path)
    other.close()


def test_a_sqlite_with_the_lost_row_fault_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(apsw, "sqlite_lib_version", lambda: "3.51.2")
    assert "SQLite in use is 3.51.2" in refusal_of(tmp_path / "ledger.db")


def test_a_quick_check_that_takes_too_long_is_skipped(tmp_path, monkeypatch):
    path = tmp_path / "ledger.db"
    db = open_for_writing(path)
    db.execute(
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 20000) "
        "INSERT INTO keys (id, name, team, prefix, sha256, created_at_ns) "
        "SELECT 'key_' || i, 'n', 't', '', printf('%064d', i), 1 FROM n"
    )
    db.close()
    monkeypatch.setattr(connection, "CHECK_TIMEOUT_S", 0.0)
    db = open_for_writing(path)
    assert db.execute("SELECT count(*) FROM keys").fetchone() == (20_000,)
    db.close()


@pytest.mark.parametrize(("options", "pragma"), [((), 2), (("full",), 2), (("normal",), 1)])
def test_commits_are_flushed_as_configured(tmp_path, options, pragma):
    db = open_for_writing(tmp_path / "ledger.db", *options)
    assert (db.pragma("synchronous"), db.pragma("journal_mode")) == (pragma, "wal")
    db.close()


def test_a_reader_makes_no_ledger(tmp_path):
    with pytest.raises(LedgerNotUsable, match=r"no ledger at .* Start `mcpmeter serve`, or name .* --ledger"):
        open_for_reading(tmp_path / "ledger.db")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_cannot_write(tmp_path):
    open_for_writing(tmp_path / "ledger.db").close()
    db = open_for_reading(tmp_path / "ledger.db")
    with pytest.raises(apsw.ReadOnlyError):
        db.execute("DELETE FROM keys")
    db.close()


def test_several_connections_may_create_a_ledger_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: open_for_writing(tmp_path / "ledger.db").close(), range(16)):
            pass
    db = open_for_reading(tmp_path / "ledger.db")
    assert db.execute("SELECT count(*) FROM migrations").fetchone() == (len(MIGRATIONS),)
    db.close()
