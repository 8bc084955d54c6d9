"""Export as CSV and Parquet, with whole nano-dollars and instants to the nanosecond."""

from __future__ import annotations

import csv
import io
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mcpmeter.errors import MissingDependency
from mcpmeter.ledger.maintenance import export
from mcpmeter.ledger.maintenance.export import COLUMNS, batches, write_csv, write_parquet
from mcpmeter.ledger.queries.reader import open_reader, open_writer

MINUTE_NS = 60 * 10**9
START_NS = 1_793_534_400_000_000_000


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    monkeypatch.setattr(export, "BATCH_ROWS", 7)


def read(path, since_ns=0, until_ns=None):
    with open_reader(path) as reader:
        yield from batches(reader, since_ns, until_ns)


def test_parquet_has_typed_columns_and_a_row_group_per_batch(path, fill, tmp_path):
    calls = fill(20, left_open=1)
    target = tmp_path / "calls.parquet"
    assert write_parquet(read(path), target) == 21
    file = pq.ParquetFile(target)
    assert file.num_row_groups == 3
    schema = file.schema_arrow
    assert schema.names == list(COLUMNS)
    assert schema.field("started_at").type == pa.timestamp("ns", tz="UTC")
    assert {schema.field(name).type for name in COLUMNS if name.endswith("_nanousd")} == {pa.int64()}
    assert schema.field("stream").type == pa.bool_()
    table = file.read()
    assert table["id"].to_pylist() == [call.id for call in calls]
    assert sum(table["cost_nanousd"].to_pylist()) == 20 * 1_890
    assert table["started_at"].cast(pa.int64()).to_pylist() == [call.started_at_ns for call in calls]
    assert table["ended_at"].null_count == 1


def test_csv_has_the_same_rows(path, fill):
    calls = fill(20, left_open=1)
    text = io.StringIO()
    assert write_csv(read(path), text) == 21
    rows = list(csv.DictReader(io.StringIO(text.getvalue())))
    assert [row["id"] for row in rows] == [call.id for call in calls]
    assert sum(int(row["cost_nanousd"]) for row in rows) == 20 * 1_890
    assert (rows[1]["started_at"], rows[-1]["ended_at"]) == ("2026-11-01T12:01:00.000000000Z", "")


def test_a_charge_is_exported_as_json_beside_its_call(path, fill):
    calls = fill(2)
    lines = '[["web_search",2,7,"10/1000","list","listed"]]'
    with open_writer(path) as writer:
        insert = f"INSERT INTO charges VALUES ({', '.join('?' * 9)})"
        writer.execute(insert, (calls[0].id, START_NS, lines, '[["usage.new",4]]', "{}", 1, 0, 0, None))
    text = io.StringIO()
    write_csv(read(path), text)
    rows = csv.DictReader(io.StringIO(text.getvalue()))
    assert [(row["lines"], row["unknown"]) for row in rows] == [(lines, '[["usage.new",4]]'), ("", "")]


def test_a_period_includes_its_start_and_excludes_its_end(path, fill):
    calls = fill(30)
    found = [row for batch in read(path, START_NS + 2 * MINUTE_NS, START_NS + 20 * MINUTE_NS) for row in batch]
    assert [row[0] for row in found] == [call.id for call in calls[2:20]]


def test_a_callers_formula_is_escaped_for_spreadsheets(path, fill):
    fill(1, model="=HYPERLINK(1)", reservations=())
    text = io.StringIO()
    write_csv(read(path), text)
    assert next(csv.DictReader(io.StringIO(text.getvalue())))["model"] == "'=HYPERLINK(1)"


def test_without_pyarrow_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match=r"pip install 'mcpmeter\[parquet\]'"):
        write_parquet(iter([]), tmp_path / "calls.parquet")
    assert not (tmp_path / "calls.parquet").exists()
