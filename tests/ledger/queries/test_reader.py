"""Reading on both engines: the same SQL, the same rows, one snapshot, and no password in any error."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.acting import BY

from mcpmeter.errors import LedgerNotUsable
from mcpmeter.ledger.location import PostgresUrl, default_location, location_of
from mcpmeter.ledger.postgres.sql import for_postgres
from mcpmeter.ledger.queries.keys import add_key, list_keys, revoke_key
from mcpmeter.ledger.queries.reader import open_reader, open_writer
from mcpmeter.records import Key

KEY = Key(id="key_aaaaaaaaaaaa", name="a", team="research", prefix="mk_abc", sha256="0" * 64, created_at_ns=1)
PROBE = "INSERT INTO top_ups (id, balance, amount_nanousd, at_ns, note) VALUES (?, ?, ?, ?, ?)"


def put(ledger, **at_ns: int) -> None:
    with open_writer(ledger) as writer:
        for name, instant in at_ns.items():
            writer.execute(PROBE, (name, "b", 1, instant, ""))


def put_and_fail(writer) -> None:
    for _ in range(2):
        writer.execute(PROBE, ("b", "b", 1, 2, ""))


def test_rows_are_tuples_and_parameters_are_typed(ledger):
    put(ledger, a=1, b=2, c=3)
    with open_reader(ledger) as reader:
        found = list(reader.rows("SELECT id, at_ns FROM top_ups WHERE at_ns >= ?2 AND note = ?1 ORDER BY 1", ("", 2)))
        none = list(reader.rows("SELECT id FROM top_ups WHERE ?1 IS NULL OR at_ns < ?1 ORDER BY 1", (None,)))
    assert found == [("b", 2), ("c", 3)]
    assert none == [("a",), ("b",), ("c",)]


def test_a_sum_beyond_64_bits_is_an_int_by_halves(ledger):
    with open_writer(ledger) as writer:
        for name in ("a", "b"):
            writer.execute(PROBE, (name, "b", 2**63 - 1, 0, ""))
    with open_reader(ledger) as reader:
        [(high, low)] = reader.rows("SELECT sum(amount_nanousd >> 32), sum(amount_nanousd & 4294967295) FROM top_ups")
    assert (type(high), (high << 32) + low) == (int, 2 * (2**63 - 1))


def test_one_reader_reads_one_snapshot(ledger):
    put(ledger, a=1)
    with open_reader(ledger) as reader:
        assert list(reader.rows("SELECT count(*) FROM top_ups")) == [(1,)]
        put(ledger, b=2)
        assert list(reader.rows("SELECT count(*) FROM top_ups")) == [(1,)]
    with open_reader(ledger) as reader:
        assert list(reader.rows("SELECT count(*) FROM top_ups")) == [(2,)]


def test_rows_are_streamed_and_two_queries_may_run_at_once(ledger):
    put(ledger, **{f"t{number:05d}": number for number in range(5_000)})
    with open_reader(ledger) as reader:
        all_of_them = reader.rows("SELECT at_ns FROM top_ups ORDER BY at_ns")
        assert next(all_of_them) == (0,)
        assert list(reader.rows("SELECT max(at_ns) FROM top_ups")) == [(4_999,)]
        assert [at_ns for (at_ns,) in all_of_them] == list(range(1, 5_000))


def test_a_reader_cannot_write_and_a_failed_writer_rolls_back(ledger):
    put(ledger, a=1)
    with pytest.raises(LedgerNotUsable), open_reader(ledger) as reader:
        list(reader.rows("DELETE FROM top_ups RETURNING id"))
    with pytest.raises(LedgerNotUsable), open_writer(ledger) as writer:
        put_and_fail(writer)
    with open_reader(ledger) as reader:
        assert list(reader.rows("SELECT id FROM top_ups")) == [("a",)]


def test_texts_are_ordered_by_their_bytes(ledger):
    put(ledger, é=1, Z=2, a=3, _=4)
    with open_reader(ledger) as reader:
        assert [name for (name,) in reader.rows("SELECT id FROM top_ups ORDER BY id")] == ["Z", "_", "a", "é"]


def test_keys_are_stored_and_revoked_once(ledger):
    add_key(ledger, KEY, BY)
    assert list_keys(ledger) == [KEY]
    revoked = revoke_key(ledger, KEY.id, 5, BY)
    assert revoke_key(ledger, KEY.id, 6, BY) == revoked
    assert list_keys(ledger) == [revoked]
    assert revoked.revoked_at_ns == 5
    assert revoke_key(ledger, "key_unknown", 7, BY) is None


def test_reading_creates_no_ledger(ledger):
    for read in (list_keys, lambda place: revoke_key(place, KEY.id, 1, BY)):
        with pytest.raises(LedgerNotUsable, match=r"There is no ledger at|is empty"):
            read(ledger)


# Locations -----------------------------------------------------------------------------------------------------------


def test_a_location_is_a_path_or_a_url_without_its_password():
    assert location_of("state/ledger.db") == Path("state/ledger.db")
    for url in ("postgresql://ann:s3cret@db:5432/meter?password=s3cret&x=1", "postgres://ann:s3cret@db:5432/meter"):
        place = location_of(url)
        assert isinstance(place, PostgresUrl)
        assert (str(place), place.reveal()) == ("postgresql://ann@db:5432/meter", url)
        assert "s3cret" not in f"{place!r} {place}"
    with pytest.raises(LedgerNotUsable, match="begins with postgresql://") as refused:
        location_of("mysql://ann:s3cret@db/meter")
    assert "s3cret" not in str(refused.value)


def test_the_environment_names_the_default_ledger(monkeypatch):
    monkeypatch.delenv("MCPMETER_LEDGER", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/user")
    assert default_location() == Path("/home/user/.local/state/mcpmeter/ledger.db")
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert default_location() == Path("/var/state/mcpmeter/ledger.db")
    monkeypatch.setenv("MCPMETER_LEDGER", "~/own.db")
    assert default_location() == Path("/home/user/own.db")
    monkeypatch.setenv("MCPMETER_LEDGER", "postgresql://db/meter")
    assert default_location() == PostgresUrl("postgresql://db/meter")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("meter:", "nobody:"), "does not accept this user"),
        (("s3cret", "s3crot"), "does not accept this user"),
        (("/ledger", "/lodger"), "does not exist"),
        (("127.0.0.1:", "127.0.0.1:1"), "cannot be reached|no address"),
        (("@127.0.0.1", "%zz@127.0.0.1"), "no address that libpq understands"),
        (("/ledger", "/ledger?s3cret"), "no address that libpq understands"),
    ],
)
def test_an_unusable_url_is_one_line_without_the_password(postgres_url, change, message):
    with pytest.raises(LedgerNotUsable, match=message) as refused, open_reader(postgres_url.replace(*change, 1)):
        pass
    assert "\n" not in str(refused.value)
    assert "s3cr" not in repr(refused.value) + str(refused.value)


def test_a_user_without_rights_gets_the_statement_to_run(postgres_server):
    url = postgres_server.new_database()
    with psycopg.connect(url, autocommit=True) as db:
        role = f"reader_{url.rpartition('_')[2]}"
        db.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'weak'".encode())
    limited = url.replace(f"meter:{postgres_server.PASSWORD}", f"{role}:weak")
    with pytest.raises(LedgerNotUsable, match=r"rights it needs.*CREATE SCHEMA mcpmeter"), open_writer(limited):
        pass
    # The right to read is enough for reports.
    put(url, a=1)
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(f"GRANT USAGE ON SCHEMA mcpmeter TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA mcpmeter TO {role}")
    with open_reader(limited) as reader:
        assert list(reader.rows("SELECT id FROM top_ups")) == [("a",)]


def test_a_ledger_of_a_newer_program_is_refused(ledger):
    put(ledger)
    with open_writer(ledger) as writer:
        writer.execute("INSERT INTO migrations VALUES (?, ?)", ("9999_from_the_future", 1))
    for opened in (open_reader, open_writer):
        with pytest.raises(LedgerNotUsable, match=r"newer mcpmeter.*9999_from_the_future"), opened(ledger):
            pass


@settings(deadline=None, max_examples=200)
@given(
    values=st.lists(st.none() | st.integers(0, 9) | st.text("ab?'", max_size=3), min_size=1, max_size=4),
    numbers=st.lists(st.integers(1, 4), min_size=1, max_size=8),
)
def test_parameters_in_any_order_become_postgresqls(values, numbers):
    numbers = [1 + (number - 1) % len(values) for number in numbers]
    sql, used = for_postgres("SELECT '?', " + ", ".join(f"?{number}" for number in numbers), values)
    row = sqlite3.connect(":memory:").execute(
        sql.decode().replace("::bigint", "").replace("::text", "").replace("$", "?"), used
    )
    assert row.fetchone() == ("?", *(values[number - 1] for number in numbers))
