"""Rows written into a ledger as they are, past the store and its checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from mcpmeter.ledger.location import Location
from mcpmeter.ledger.queries.reader import open_writer
from mcpmeter.ledger.rows import ROW_COLUMNS
from mcpmeter.records import LedgerRow

NUMBERS = {name for name, kind in LedgerRow.__annotations__.items() if kind in ("int", "bool", "int | None")}
DEFAULTS = (
    dict.fromkeys(ROW_COLUMNS, "")
    | dict.fromkeys(NUMBERS, 0)
    | {"state": "settled", "ended_at_ns": 1, "outcome": "ok", "cost_source": "listed", "reported_cost_nanousd": None}
)
OPEN = {"state": "open", "ended_at_ns": None, "outcome": "", "cost_source": ""}
INSERT = f"INSERT INTO calls ({', '.join(ROW_COLUMNS)}) VALUES ({', '.join('?' * len(ROW_COLUMNS))})"


def write_rows(ledger: Location, rows: Iterable[Mapping[str, object]]) -> list[LedgerRow]:
    """Replace all calls of a ledger by these."""
    records = [{**DEFAULTS, "id": f"call_{number}", **row} for number, row in enumerate(rows)]
    with open_writer(ledger) as writer:
        for table in ("calls", "charges", "pruned_calls", "pruned_lines"):
            writer.execute(f"DELETE FROM {table}")
        for record in records:
            writer.execute(INSERT, [record[name] for name in ROW_COLUMNS])
    return [msgspec.convert(record, LedgerRow, strict=False) for record in records]
