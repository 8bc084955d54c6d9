"""Recover the readable rows of a damaged SQLite ledger into a new one. The damaged file is only read."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from mcpmeter.errors import LedgerNotUsable
from mcpmeter.ledger.balances import amounts_by_balance
from mcpmeter.ledger.charges import CHARGE_COLUMNS, charge_of
from mcpmeter.ledger.maintenance.backup import sync
from mcpmeter.ledger.maintenance.sqlite_pages import Value, free_pages, rows_of_page
from mcpmeter.ledger.migrations import LEDGER_ID_SQL
from mcpmeter.ledger.rows import decode_reservations
from mcpmeter.ledger.sqlite.balances import read_balances
from mcpmeter.ledger.sqlite.connection import explain, open_for_writing
from mcpmeter.ledger.sqlite.migrations import transaction

TABLES: Final = (
    "calls",
    "charges",
    "keys",
    "pruned_calls",
    "pruned_lines",
    "pruned_claims",
    "top_ups",
    "balances",
    "audit",
    "provider_objects",
)
MIN_COLUMNS: Final = {"calls": 37, "charges": 9, "keys": 7, "audit": 8}
"""Of a row as the first migration made it. Rows of these tables are recognised by their content."""

_STATES: Final = ("open", "settled")
_UNREADABLE: Final = (apsw.Error, UnicodeDecodeError)
"""A flipped bit may leave a text that is not UTF-8."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_AUDIT_ID: Final = re.compile(r"aud_[0-9a-f]{16}")


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """How much of one table was recovered."""

    table: str
    kept: int
    refused: int
    """Rows that were readable and violate the ledger's checks."""
    lost: int | None
    """By the table's indexes; None if they are unreadable too."""


def recover(damaged: Path, target: Path) -> list[Recovered]:
    """Read a ledger by its tree, and page by page if that is broken, and write its intact rows into `target`.

    Raises `LedgerNotUsable` if `target` exists, or the file contains no row of a ledger.
    """
    if not damaged.is_file():
        raise LedgerNotUsable(f"There is no ledger at {damaged}.", hint="Name the damaged file.")
    if target.exists():
        raise LedgerNotUsable(f"{target} exists already.", hint="Name a file that does not exist.")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".recover-", dir=target.parent) as folder:
        copy = _copied(damaged, Path(folder))
        made = Path(folder) / "new.db"
        with contextlib.closing(open_for_writing(made)) as new, explain(made):
            found = [_recover_table(copy, new, table) for table in TABLES]
            if not any(table.kept for table in found):
                raise LedgerNotUsable(
                    f"Nothing of a ledger was found in {damaged}.", hint="Restore a backup: mcpmeter ledger backup."
                )
            _correct_balances(new)
            _keep_id(copy, new)
            new.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            new.pragma("journal_mode", "delete")  # one file without a log; the next start turns the log on again
        _move(made, target)
    return found


def _copied(damaged: Path, folder: Path) -> Path:
    """Copy the file and its log, which may have the newest rows."""
    copy = folder / "damaged.db"
    for ending in ("", "-wal"):
        source = damaged.with_name(damaged.name + ending)
        if source.exists():
            shutil.copyfile(source, folder / f"damaged.db{ending}")
    with contextlib.suppress(apsw.Error), contextlib.closing(apsw.Connection(str(copy))) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return copy


def _keep_id(copy: Path, new: apsw.Connection) -> None:
    """Settlements that wait in a file beside are for this ledger, and name it by its id."""
    with contextlib.suppress(*_UNREADABLE), contextlib.closing(apsw.Connection(str(copy))) as db:
        (made_at_ns,) = db.execute(LEDGER_ID_SQL).fetchone() or (None,)
        if isinstance(made_at_ns, int):
            new.execute("UPDATE migrations SET applied_at_ns = ?", (made_at_ns,))


def _move(made: Path, target: Path) -> None:
    sync(made)
    # A link, because a rename would overwrite a file created meanwhile.
    os.link(made, target)


def _recover_table(copy: Path, new: apsw.Connection, table: str) -> Recovered:
    columns = [str(row[1]) for row in new.execute(f"PRAGMA table_info({table})")]
    writer = _TableWriter(new, table, columns)
    whole = writer.write(_by_tree(copy, table, columns))
    if not whole and table in MIN_COLUMNS:
        writer.write(_by_page(copy, table, columns))
    lost = 0 if whole and not writer.refused else _lost(copy, table, writer.kept)
    return Recovered(table=table, kept=writer.kept, refused=writer.refused, lost=lost)


class _TableWriter:
    """Writes rows into one table of the new ledger, each once, and counts those that its checks refuse."""

    def __init__(self, db: apsw.Connection, table: str, columns: Sequence[str]) -> None:
        self._db = db
        self._table = table
        self._known = columns
        self.kept = self.refused = 0

    def write(self, rows: Iterable[dict[str, Any] | None]) -> bool:
        """Write rows; returns whether the source was readable to its end."""
        whole = True
        with transaction(self._db):
            for row in rows:
                if row is None:
                    whole = False
                else:
                    self._write_one(row)
        return whole

    def _write_one(self, row: dict[str, Any]) -> None:
        if not _has_readable_claims(row) or not _has_readable_charge(row):
            self.refused += 1
            return
        names = [name for name in self._known if name in row]
        sql = (
            f"INSERT INTO {self._table} ({', '.join(names)}) VALUES ({', '.join(f':{name}' for name in names)})"  # noqa: S608
            " ON CONFLICT DO NOTHING"
        )
        try:
            self._db.execute(sql, row)
        except (apsw.ConstraintError, apsw.MismatchError, apsw.TooBigError, OverflowError):
            self.refused += 1
        else:
            self.kept += self._db.changes()


def _has_readable_claims(row: dict[str, Any]) -> bool:
    """Balances are computed from claims, whose JSON no constraint checks."""
    try:
        decode_reservations(row.get("claims", ""))
    except (msgspec.MsgspecError, UnicodeDecodeError, TypeError):
        return False
    return True


def _has_readable_charge(row: dict[str, Any]) -> bool:
    """Reports are computed from the lines, whose JSON no constraint checks."""
    if "call_id" not in row:
        return True
    try:
        charge_of([row[name] for name in CHARGE_COLUMNS])
    except (LedgerNotUsable, TypeError, KeyError):
        return False
    return True


def _by_tree(copy: Path, table: str, columns: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    """Rows from the first on, then from the last back, up to where the tree is broken; None for the break."""
    for direction in ("ASC", "DESC"):
        try:
            with contextlib.closing(_opened(copy)) as db:
                existing = [str(row[1]) for row in db.execute(f"PRAGMA table_info({table})")]
                names = [name for name in columns if name in existing]
                if not names:
                    return
                order = _order(table, direction)
                for row in db.execute(f"SELECT {', '.join(names)} FROM {table} ORDER BY {order}"):  # noqa: S608
                    yield dict(zip(names, row, strict=True))
            return
        except _UNREADABLE:
            yield None


def _order(table: str, direction: str) -> str:
    if table in ("balances", "pruned_claims"):
        return f"balance {direction}, period_start_ns {direction}"
    return f"rowid {direction}"


def _opened(copy: Path) -> apsw.Connection:
    db = apsw.Connection(str(copy), flags=apsw.SQLITE_OPEN_READONLY)
    db.pragma("cell_size_check", "on")
    db.pragma("trusted_schema", "off")
    return db


def _by_page(copy: Path, table: str, columns: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    """Rows of a table on any page. Those that were read by the tree already conflict and are ignored."""
    with copy.open("rb") as file:
        size = int.from_bytes(file.read(20)[16:18], "big")
        size = 65536 if size == 1 else size
        if size < 512 or size & (size - 1):
            return

        pages = copy.stat().st_size // size

        def read(number: int) -> bytes:
            if not 0 < number <= pages:  # seeking beyond the file system's limit fails
                return b""
            file.seek((number - 1) * size)
            return file.read(size)

        free = free_pages(read)
        usable = size - (read(1)[20:21] or b"\0")[0]
        for number in range(1, pages + 1):
            if number not in free:
                rows = filter(None, rows_of_page(number, read, usable))
                # A row from before a migration lacks its columns and gets their defaults.
                yield from (dict(zip(columns, row, strict=False)) for row in rows if _is_of(table, row, columns))


def _is_of(table: str, row: Sequence[Value], columns: Sequence[str]) -> bool:
    if not MIN_COLUMNS[table] <= len(row) <= len(columns):
        return False
    if table == "calls":
        return row[1] in _STATES
    if table == "charges":
        return str(row[2]).startswith("[") and str(row[4]).startswith("{")
    if table == "audit":
        return bool(_AUDIT_ID.fullmatch(str(row[0])))
    return bool(_SHA256.fullmatch(str(row[columns.index("sha256")])))


def _lost(copy: Path, table: str, kept: int) -> int | None:
    """Lost rows by the index that counts most: a damaged table's indexes may be intact."""
    counts = []
    with contextlib.closing(_opened(copy)) as db, contextlib.suppress(*_UNREADABLE):
        for _, index, *_rest in db.execute(f"PRAGMA index_list({table})").fetchall():
            if index == "calls_open":
                continue
            with contextlib.suppress(*_UNREADABLE):
                ((count,),) = db.execute(f"SELECT count(*) FROM {table} INDEXED BY {index}")  # noqa: S608
                counts.append(int(count))
    return max(0, max(counts) - kept) if counts else None


def _correct_balances(db: apsw.Connection) -> None:
    """Keep what lost calls had spent, as carried; void what they had reserved."""
    db.execute("DELETE FROM charges WHERE call_id NOT IN (SELECT id FROM calls WHERE state = 'settled')")
    spent, reserved = amounts_by_balance(db.execute)
    with transaction(db):
        for kept in read_balances(db):
            key = (kept.balance, kept.period_start_ns)
            db.execute(
                "UPDATE balances SET spent = ?3, carried = ?4, reserved = ?5"
                " WHERE balance = ?1 AND period_start_ns = ?2",
                (*key, max(kept.spent, spent[key]), max(kept.spent - spent[key], 0), reserved[key]),
            )
        db.execute(
            "UPDATE balances SET credit = coalesce((SELECT sum(amount_nanousd) FROM top_ups"
            " WHERE top_ups.balance = balances.balance), 0)"
        )
