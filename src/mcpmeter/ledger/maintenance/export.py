"""Export every call as a row of CSV or Parquet. Money stays in whole nano-dollars; instants are UTC."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final, TextIO

from mcpmeter.errors import MissingDependency
from mcpmeter.ledger.queries.reader import Reader, Row
from mcpmeter.ledger.sums import MAX_INT64
from mcpmeter.records import LedgerRow

BATCH_ROWS: Final = 10_000
"""Rows per batch, and per row group of Parquet."""

_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r")
_INSTANTS: Final = {"started_at_ns": "started_at", "ended_at_ns": "ended_at"}
_OF_CALLS: Final = tuple(name for name in LedgerRow.__struct_fields__ if name != "claims")
_OF_CHARGES: Final = ("lines", "unknown")
"""JSON texts; empty for a call without lines."""

_TEXTS: Final = {name for name, kind in LedgerRow.__annotations__.items() if "int" not in kind and kind != "bool"} | {
    *_OF_CHARGES
}
SOURCE_COLUMNS: Final = _OF_CALLS + _OF_CHARGES
COLUMNS: Final = tuple(_INSTANTS.get(name, name) for name in SOURCE_COLUMNS)
_SQL: Final = (
    f"SELECT {', '.join(_OF_CALLS)}, coalesce(lines, ''), coalesce(unknown, '')"  # noqa: S608 (constants only)
    " FROM calls LEFT JOIN charges ON call_id = calls.id"
    " WHERE started_at_ns >= ?1 AND started_at_ns <= ?2 ORDER BY started_at_ns, id"
)


def batches(reader: Reader, since_ns: int, until_ns: int | None) -> Iterator[list[Row]]:
    """Calls that started in [since, until), oldest first, in the order of `SOURCE_COLUMNS`."""
    last_ns = MAX_INT64 if until_ns is None else min(until_ns - 1, MAX_INT64)
    rows = reader.rows(_SQL, (since_ns, last_ns))
    while batch := list(islice(rows, BATCH_ROWS)):
        yield batch


def write_csv(rows: Iterator[list[Row]], file: TextIO) -> int:
    """Write a header line and the rows; returns their number. Texts that start a formula are escaped by `'`."""
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(COLUMNS)
    count = 0
    for batch in rows:
        lines.writerows([_csv_values(row) for row in batch])
        count += len(batch)
    return count


def _csv_values(row: Sequence[Any]) -> list[Any]:
    return [
        _instant(value) if name in _INSTANTS else formula_safe(value)
        for name, value in zip(SOURCE_COLUMNS, row, strict=True)
    ]


def formula_safe(value: Any) -> Any:
    """Escape a text that a spreadsheet would run as a formula: callers choose some names."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def _instant(unix_ns: int | None) -> str:
    if unix_ns is None:
        return ""
    seconds, nanos = divmod(unix_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanos:09d}Z"


def write_parquet(rows: Iterator[list[Row]], path: Path) -> int:
    """Write with pyarrow, one row group per batch; returns the number of rows. Raises `MissingDependency`."""
    try:
        import pyarrow as pa  # noqa: PLC0415 (an optional dependency)
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise MissingDependency(
            f"Parquet needs the package '{missing.name}', which is not installed.",
            hint="Run: pip install 'mcpmeter[parquet]'",
        ) from None
    schema = pa.schema([_field(pa, name) for name in SOURCE_COLUMNS])
    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in rows:
            columns = [  # SQLite stores booleans as 0 and 1
                pa.array(map(bool, values) if pa.types.is_boolean(field.type) else values, type=field.type)
                for values, field in zip(zip(*batch, strict=True), schema, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            count += len(batch)
    return count


def _field(pa: Any, name: str) -> Any:
    kind = LedgerRow.__annotations__.get(name, "str")
    if name in _INSTANTS:
        return pa.field(_INSTANTS[name], pa.timestamp("ns", tz="UTC"), nullable=kind.endswith("None"))
    if kind == "bool":
        return pa.field(name, pa.bool_(), nullable=False)
    return pa.field(name, pa.string() if name in _TEXTS else pa.int64(), nullable=kind.endswith("None"))
