"""What providers keep for teams, and the calls that pay for it: columns, SQL, records to rows and back.

A row outlives its call's: a team may read a response also after its call was pruned. SQL here runs on both engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from mcpmeter.ledger.rows import ROW_COLUMNS
from mcpmeter.records import Conditions, LedgerRow, ProviderObject

OBJECT_COLUMNS: Final = ProviderObject.__struct_fields__
MAX_PENDING: Final = 100_000
"""Read at once."""

_SELECT: Final = f"SELECT {', '.join(OBJECT_COLUMNS)} FROM provider_objects"  # noqa: S608
INSERT_OBJECT_SQL: Final = (
    f"INSERT INTO provider_objects ({', '.join(OBJECT_COLUMNS)}) VALUES ({', '.join('?' * len(OBJECT_COLUMNS))})"  # noqa: S608
)
FIND_OBJECT_SQL: Final = f"{_SELECT} WHERE id = ?1 AND team = ?2 ORDER BY created_at_ns DESC LIMIT 1"
END_OBJECT_SQL: Final = (
    "UPDATE provider_objects SET state = ?3, settled_at_ns = ?4 WHERE id = ?1 AND provider = ?2 AND state = 'pending'"
)
PENDING_OBJECTS_SQL: Final = f"{_SELECT} WHERE state = 'pending' ORDER BY created_at_ns LIMIT {MAX_PENDING}"
PENDING_IDS_SQL: Final = "SELECT call_id FROM provider_objects WHERE state = 'pending'"
PENDING_ROWS_SQL: Final = f"SELECT {', '.join(ROW_COLUMNS)} FROM calls WHERE id IN ({PENDING_IDS_SQL})"  # noqa: S608
ROW_SQL: Final = f"SELECT {', '.join(ROW_COLUMNS)} FROM calls WHERE id = ?1"  # noqa: S608


def object_values(kept: ProviderObject) -> tuple[Any, ...]:
    """The parameters of `INSERT_OBJECT_SQL`."""
    values = msgspec.structs.asdict(kept) | {"conditions": msgspec.json.encode(kept.conditions).decode()}
    return tuple(values[name] for name in OBJECT_COLUMNS)


def object_of(row: Sequence[Any]) -> ProviderObject:
    """An object from its columns, in the order of `OBJECT_COLUMNS`."""
    values = dict(zip(OBJECT_COLUMNS, row, strict=True))
    values["conditions"] = msgspec.json.decode(values["conditions"], type=Conditions)
    return msgspec.convert(values, ProviderObject)


def with_rows(
    objects: Iterable[ProviderObject], rows: Mapping[str, LedgerRow]
) -> list[tuple[ProviderObject, LedgerRow]]:
    """The objects whose rows were found, with them."""
    return [(kept, rows[kept.call_id]) for kept in objects if kept.call_id in rows]
