"""Named steps make the tables, once each."""

from __future__ import annotations

import apsw
import pytest

from mcpmeter.errors import LedgerNotUsable
from mcpmeter.ledger.migrations import Migration
from mcpmeter.ledger.queries.keys import list_keys
from mcpmeter.ledger.queries.totals import find_call
from mcpmeter.ledger.rows import OPEN_COLUMNS, SETTLED_COLUMNS
from mcpmeter.ledger.sqlite import migrations
from mcpmeter.ledger.sqlite.connection import open_for_reading, open_for_writing
from mcpmeter.ledger.sqlite.migrations import MIGRATIONS
from mcpmeter.records import Balance, Key, LedgerRow, TopUp


def columns(db: apsw.Connection, table: str) -> tuple[str, ...]:
    return tuple(row[0] for row in db.execute("SELECT name FROM pragma_table_info(?)", (table,)))


def test_tables_have_the_fields_of_the_records(tmp_path):
    db = open_for_writing(tmp_path / "ledger.db")
    assert columns(db, "calls") == LedgerRow.__struct_fields__
    assert columns(db, "keys") == Key.__struct_fields__
    assert columns(db, "top_ups") == TopUp.__struct_fields__
    assert set(columns(db, "balances")) == set(Balance.__struct_fields__)
    db.close()


def test_opening_and_settling_write_every_column():
    assert {*OPEN_COLUMNS, *SETTLED_COLUMNS, "state"} == set(LedgerRow.__struct_fields__)
    assert {*OPEN_COLUMNS} & {*SETTLED_COLUMNS} == {"provider", "model"}


def test_every_table_is_strict(tmp_path):
    db = open_for_writing(tmp_path / "ledger.db")
    tables = dict(
        db.execute("SELECT name, strict FROM pragma_table_list WHERE schema = 'main' AND name NOT LIKE 'sqlite_%'")
    )
    names = (
        "audit balances calls charges keys migrations probe provider_objects pruned_calls pruned_claims pruned_lines"
        " top_ups"
    )
    assert tables == dict.fromkeys(names.split(), 1)
    db.close()


@pytest.mark.parametrize(
    "name", [n for n in LedgerRow.__struct_fields__ if n.endswith(("_ns", "tokens", "nanousd", "chunks"))]
)
def test_no_figure_may_be_negative(tmp_path, name):
    db = open_for_writing(tmp_path / "ledger.db")
    settled = {"state": "settled", "outcome": "ok", "ended_at_ns": 1, "cost_source": "unpriced"}
    settled |= {"cost_source": "listed"} if name == "cost_nanousd" else {}
    row = {
        column: 0 if column in ("started_at_ns", "stream", "prompt_tokens_estimate", "reserved_nanousd") else "x"
        for column in OPEN_COLUMNS
    }

    def insert(values: dict[str, object]) -> None:
        places = ", ".join(f":{column}" for column in values)
        db.execute(f"INSERT OR REPLACE INTO calls ({', '.join(values)}) VALUES ({places})", values)

    insert({**row, **settled, name: 2**63 - 1})
    with pytest.raises(apsw.ConstraintError, match=f"{name} >= 0"):
        insert({**row, **settled, name: -1})
    db.close()


def test_steps_run_once_and_are_stored_with_their_time(tmp_path):
    path = tmp_path / "ledger.db"
    open_for_writing(path).close()
    db = open_for_writing(path)
    applied = list(db.execute("SELECT name, applied_at_ns FROM migrations ORDER BY name"))
    assert [name for name, _ in applied] == [step.name for step in MIGRATIONS]
    assert all(applied_at_ns > 1_700_000_000_000_000_000 for _, applied_at_ns in applied)
    db.close()


def test_a_new_step_runs_for_writers_and_is_required_by_readers(tmp_path, monkeypatch):
    path = tmp_path / "ledger.db"
    open_for_writing(path).close()
    monkeypatch.setattr(
        migrations, "MIGRATIONS", (*MIGRATIONS, Migration("0999_test", "CREATE TABLE more (x INTEGER) STRICT"))
    )
    with pytest.raises(LedgerNotUsable, match="older mcpmeter"):
        open_for_reading(path)
    db = open_for_writing(path)
    assert columns(db, "more") == ("x",)
    db.close()
    open_for_reading(path).close()


def test_a_ledger_of_the_first_release_keeps_its_rows(tmp_path, monkeypatch):
    path = tmp_path / "ledger.db"
    monkeypatch.setattr(migrations, "MIGRATIONS", MIGRATIONS[:1])
    db = open_for_writing(path)
    db.execute(
        "INSERT INTO calls (id, state, started_at_ns, ended_at_ns, endpoint, method, team, key_id, parent_id, trace_id,"
        " provider, model, operation, stream, prompt_tokens_estimate, outcome, cost_source)"
        " VALUES ('call_1', 'settled', 1, 2, '', '', 'search', 'key_1', '', '', '', '', '', 0, 0, 'ok', 'unpriced')"
    )
    db.execute(
        "INSERT INTO keys (id, name, team, prefix, sha256, created_at_ns) VALUES ('key_1', 'n', 't', '', ?, 1)",
        ("0" * 64,),
    )
    db.close()
    monkeypatch.undo()
    open_for_writing(path).close()
    row = find_call(path, "call_1")
    assert row is not None
    assert (row.team, row.project, row.claims, row.reserved_nanousd) == ("search", "", "", 0)
    (key,) = list_keys(path)
    assert (key.role, key.models, key.requests_per_minute, key.expires_at_ns) == ("caller", (), None, None)


def test_a_step_that_fails_is_rolled_back(tmp_path, monkeypatch):
    path = tmp_path / "ledger.db"
    broken = Migration("0999_test", "CREATE TABLE more (x INTEGER) STRICT; INSERT INTO nowhere VALUES (1)")
    monkeypatch.setattr(migrations, "MIGRATIONS", (*MIGRATIONS, broken))
    with pytest.raises(LedgerNotUsable, match="nowhere"):
        open_for_writing(path)
    monkeypatch.undo()
    db = open_for_writing(path)
    assert columns(db, "more") == ()
    db.close()


def test_names_are_numbered_in_order_and_unique():
    names = [step.name for step in MIGRATIONS]
    assert names == sorted(set(names))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
