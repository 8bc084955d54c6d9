"""Portable SQL in PostgreSQL's spelling: parameters `?1` become `$1` with a type, SQLite's column types its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from psycopg import AsyncConnection, AsyncRawCursor

Db = AsyncConnection[Any]

_PARAMETER: Final = re.compile(r"'(?:[^']|'')*'|\?(\d*)")
_TYPES: Final[dict[type, str]] = {int: "bigint", str: "text", bool: "boolean"}


def for_postgres(sql: str, values: Sequence[Any]) -> tuple[bytes, list[Any]]:
    """A portable statement and its values. Parameters get a type because the server cannot always infer it."""
    used: list[Any] = []
    numbers: dict[int, int] = {}
    last = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal last
        if match[1] is None:
            return match[0]
        last = int(match[1]) if match[1] else last + 1
        value = values[last - 1]
        if value is None:
            return "NULL"
        if last not in numbers:
            used.append(value)
            numbers[last] = len(used)
        return f"${numbers[last]}::{_TYPES[type(value)]}"

    return _PARAMETER.sub(replace, sql).encode(), used


def tables_for_postgres(sql: str) -> str:
    """CREATE TABLE statements of SQLite. Texts compare by their bytes, as SQLite compares them."""
    return (
        sql.replace(" TEXT ", ' text COLLATE "C" ')
        .replace(" INTEGER ", " bigint ")
        .replace(") STRICT, WITHOUT ROWID", ")")
        .replace(") STRICT", ")")
    )


async def execute(db: Db, sql: bytes | str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Run one statement with `$1` parameters; returns its rows, if it has any."""
    cursor = AsyncRawCursor(db)
    await cursor.execute(sql if isinstance(sql, bytes) else sql.encode(), values)
    return await cursor.fetchall() if cursor.description else []


async def execute_portable(db: Db, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Run one portable statement, with `?1` parameters; returns its rows, if it has any."""
    return await execute(db, *for_postgres(sql, values))
