"""Every intact row of a damaged ledger is recovered, once; the damaged file does not change."""

from __future__ import annotations

import contextlib
import hashlib
from random import Random

import apsw
import pytest
from tests.acting import BY

from mcpmeter.access.keys import new_key
from mcpmeter.errors import LedgerNotUsable
from mcpmeter.ledger.maintenance.recover import recover
from mcpmeter.ledger.maintenance.sqlite_pages import free_pages, rows_of_page
from mcpmeter.ledger.maintenance.verify import verify
from mcpmeter.ledger.migrations import LEDGER_ID_SQL, ledger_id
from mcpmeter.ledger.queries.keys import add_key, list_keys
from mcpmeter.ledger.sqlite.connection import open_for_reading

PAGE = 4096


def rows(path) -> dict[str, tuple]:
    with contextlib.closing(open_for_reading(path)) as db:
        return {str(row[0]): tuple(row) for row in db.execute("SELECT * FROM calls")}


def table_pages(path, kinds: bytes) -> list[int]:
    """Numbers of the pages of the table `calls` of these kinds, past its root."""
    with contextlib.closing(apsw.Connection(str(path))) as db:
        pages = [int(row[0]) for row in db.execute("SELECT pageno FROM dbstat WHERE name = 'calls'")]
    content = path.read_bytes()
    return [number for number in pages if content[(number - 1) * PAGE] in kinds]


def destroy(path, *numbers: int, by: bytes = b"\xa5") -> None:
    with path.open("r+b") as file:
        for number in numbers:
            file.seek((number - 1) * PAGE)
            file.write(by * PAGE)


def digest(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kept_of(found) -> dict[str, tuple[int, int | None]]:
    return {table.table: (table.kept, table.lost) for table in found}


def test_an_intact_ledger_is_recovered_completely(path, fill, tmp_path):
    fill(300, left_open=3)
    before, mark = rows(path), digest(path)
    target = tmp_path / "new.db"
    found = kept_of(recover(path, target))
    assert (found["calls"], found["balances"]) == ((303, 0), (1, 0))
    assert rows(target) == before
    assert digest(path) == mark
    assert oct(target.stat().st_mode & 0o777) == "0o600"
    assert len(verify(target).wrong) == 1, "the calls that are open"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.db", "state"]


def test_a_recovered_ledger_is_the_same_one_for_its_pending_settlements(path, fill, tmp_path):
    fill(3)
    target = tmp_path / "new.db"
    recover(path, target)
    ids = []
    for ledger in (path, target):
        with contextlib.closing(open_for_reading(ledger)) as db:
            ids.append(ledger_id(db.execute(LEDGER_ID_SQL)))
    assert ids[0] == ids[1]


def test_rows_in_the_log_are_recovered(path, tmp_path, fill, make_call):
    calls = fill(50)
    away = tmp_path / "copy.db"
    with contextlib.closing(apsw.Connection(str(path))) as db:
        db.execute("DELETE FROM calls WHERE id = ?", (calls[0].id,))
        away.write_bytes(path.read_bytes())
        away.with_name("copy.db-wal").write_bytes(path.with_name("ledger.db-wal").read_bytes())
    recover(away, tmp_path / "new.db")
    assert len(rows(tmp_path / "new.db")) == 49


def test_a_destroyed_leaf_loses_only_its_own_rows(path, fill, tmp_path):
    fill(600)
    before = rows(path)
    leaf = Random(4).choice(table_pages(path, b"\x0d"))
    on_it = [row for row in rows_of_page(leaf, lambda n: path.read_bytes()[(n - 1) * PAGE : n * PAGE], PAGE) if row]
    assert on_it
    destroy(path, leaf)
    found = kept_of(recover(path, tmp_path / "new.db"))
    assert found["calls"] == (600 - len(on_it), len(on_it))
    after = rows(tmp_path / "new.db")
    assert after == {call: row for call, row in before.items() if call not in {row[0] for row in on_it}}
    assert verify(tmp_path / "new.db").wrong == [], "what the lost rows had spent is carried"
    assert verify(tmp_path / "new.db").calls == 600 - len(on_it)


def test_a_destroyed_root_loses_no_row(path, fill, tmp_path):
    fill(600)
    before = rows(path)
    destroy(path, *table_pages(path, b"\x05"))
    found = kept_of(recover(path, tmp_path / "new.db"))
    assert found["calls"] == (600, 0)
    assert rows(tmp_path / "new.db") == before
    assert verify(tmp_path / "new.db").wrong == []


def test_deleted_rows_are_not_recovered_from_free_pages(path, fill, tmp_path):
    fill(600)
    with contextlib.closing(apsw.Connection(str(path))) as db:
        db.execute("DELETE FROM calls WHERE rowid <= 300")
        db.execute("DELETE FROM balances")
    before = rows(path)
    destroy(path, *table_pages(path, b"\x05"))
    recover(path, tmp_path / "new.db")
    assert rows(tmp_path / "new.db") == before


@pytest.mark.parametrize("seed", range(6))
def test_after_random_damage_every_recovered_row_is_true(path, fill, tmp_path, seed):
    random = Random(seed)
    fill(400)
    key = new_key("backend", "research", 1)[1]
    add_key(path, key, BY)
    before = rows(path)
    pages = path.stat().st_size // PAGE
    for _ in range(3):
        destroy(path, random.randrange(2, pages + 1), by=random.randbytes(1))
    found = kept_of(recover(path, tmp_path / "new.db"))
    after = rows(tmp_path / "new.db")
    assert len(after) == found["calls"][0] > 0
    assert all(before[call] == row for call, row in after.items())
    assert list_keys(tmp_path / "new.db") in ([], [key])
    assert verify(tmp_path / "new.db").wrong == []


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bits_lose_only_the_rows_they_hit(path, fill, tmp_path, seed):
    random = Random(seed)
    fill(400)
    before = rows(path)
    content = bytearray(path.read_bytes())
    for _ in range(40):
        content[random.randrange(PAGE, len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    found = kept_of(recover(path, tmp_path / "new.db"))
    after = rows(tmp_path / "new.db")
    assert len(after) == found["calls"][0]
    assert sum(before.get(call) == row for call, row in after.items()) > 350
    verify(tmp_path / "new.db")


def test_page_numbers_beyond_the_file_are_ignored(path, fill, tmp_path):
    fill(400)
    with path.open("r+b") as file:
        file.seek(16)
        file.write(b"\x00\x01")  # pages of 65,536 bytes
        file.seek(32)
        file.write(b"\xff" * 4)  # the first free page
    recover(path, tmp_path / "new.db")
    assert verify(tmp_path / "new.db").calls == len(rows(tmp_path / "new.db"))


def test_keys_are_recovered_without_their_tables_root(path, fill, tmp_path):
    fill(1)
    key = new_key("backend", "research", 1)[1]
    add_key(path, key, BY)
    with contextlib.closing(apsw.Connection(str(path))) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        db.execute("PRAGMA writable_schema = on")
        db.execute("UPDATE sqlite_schema SET rootpage = 4000 WHERE name = 'keys'")
    recover(path, tmp_path / "new.db")
    assert list_keys(tmp_path / "new.db") == [key]


@pytest.mark.parametrize("root", ["intact", "broken"])
def test_charges_are_recovered_with_their_calls(path, fill, tmp_path, root):
    call = fill(1)[0]
    insert = f"INSERT INTO charges VALUES ({', '.join('?' * 9)})"
    charge = (call.id, call.started_at_ns, '[["web_search",2,1890]]', '[["usage.new",4]]', "{}", 1, 0, 5, None)
    with contextlib.closing(apsw.Connection(str(path))) as db:
        db.execute(insert, charge)
        db.execute(insert, ("call_lost", *charge[1:]))
        db.execute(insert, ("call_unreadable", call.started_at_ns, "[[", *charge[3:]))
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if root == "broken":
            db.execute("PRAGMA writable_schema = on")
            db.execute("UPDATE sqlite_schema SET rootpage = 4000 WHERE name = 'charges'")
    found = kept_of(recover(path, tmp_path / "new.db"))
    assert found["charges"][0] == 2
    with contextlib.closing(open_for_reading(tmp_path / "new.db")) as db:
        assert db.execute("SELECT * FROM charges").fetchall() == [charge]
    assert [fault for fault in verify(tmp_path / "new.db").wrong if "charge" in fault] == []


def test_nothing_is_overwritten_and_nothing_made_of_nothing(path, fill, tmp_path):
    fill(1)
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(LedgerNotUsable, match="exists already"):
        recover(path, taken)
    assert taken.read_text() == "mine"
    with pytest.raises(LedgerNotUsable, match="no ledger at"):
        recover(tmp_path / "absent.db", tmp_path / "new.db")
    with pytest.raises(LedgerNotUsable, match="Nothing of a ledger"):
        recover(taken, tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()


class TestPages:
    def test_random_bytes_are_read_as_rows_or_none(self):
        random = Random(0)
        for _ in range(200):
            pages = {n: b"\x0d" + random.randbytes(2) + b"\x00\x20" + random.randbytes(507) for n in range(1, 5)}
            free_pages(lambda number, pages=pages: pages.get(number, b""))
            for number in pages:
                rows = list(rows_of_page(number, lambda number, pages=pages: pages.get(number, b""), 512))
                assert all(row is None or isinstance(row, list) for row in rows)

    @pytest.mark.parametrize("length", [0, 10, 4_000, 4_061, 4_062, 5_000, 50_000])
    def test_rows_with_and_without_overflow_are_read_as_sqlite_reads_them(self, tmp_path, length):
        path = tmp_path / "any.db"
        row = ["x" * length, None, 0, 1, -1, 2**63 - 1, -(2**40), 1.5, b"\x00\xff", "é"]
        with contextlib.closing(apsw.Connection(str(path))) as db:
            db.execute(f"CREATE TABLE t ({', '.join(f'c{n}' for n in range(len(row)))})")
            db.execute(f"INSERT INTO t VALUES ({', '.join('?' * len(row))})", row)
            ((root,),) = db.execute("SELECT rootpage FROM sqlite_schema")
        content = path.read_bytes()
        read = lambda number: content[(number - 1) * PAGE : number * PAGE]  # noqa: E731
        assert list(rows_of_page(int(root), read, PAGE)) == [row]
