"""Sorts the lines of bills on disk, in a temporary database private to this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Final

import apsw

from mcpmeter.errors import SetupError
from mcpmeter.reconcile.lines import BillLine

CACHE_KIB: Final = 32_768

_FIELDS: Final = (
    "request_id", "at_ns", "model", "part", "requests", "prompt_tokens", "completion_tokens", "nanousd", "file", "line",
)  # fmt: skip
_TABLE: Final = f"CREATE TABLE lines (bill, {', '.join(_FIELDS)})"
_INSERT: Final = f"INSERT INTO lines VALUES (?, {', '.join('?' * len(_FIELDS))})"  # noqa: S608 (constants only)
# The order of match.order_of: SQLite also sorts NULL first and texts by code points.
_SORTED: Final = (
    f"SELECT {', '.join(BillLine.__struct_fields__)} FROM lines "  # noqa: S608 (constants only)
    f"WHERE bill = ? AND at_ns >= ? AND at_ns < ? ORDER BY {', '.join(_FIELDS)}"
)


class SortedLines:
    """A context manager: takes lines bill by bill and returns them in the order that `match` requires."""

    def __init__(self) -> None:
        # For an empty name SQLite uses a temporary file under $TMPDIR that it unlinks at once.
        self._db = apsw.Connection("")
        for name, value in (("journal_mode", "off"), ("synchronous", "off"), ("cache_size", -CACHE_KIB)):
            self._db.pragma(name, value)
        self._db.execute(_TABLE)

    def __enter__(self) -> SortedLines:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._db.close()

    def add(self, bill: int, file: int, lines: Iterable[BillLine]) -> None:
        """Adds the lines of one file of a bill. Raises SetupError if the disk is full."""
        with _disk_faults():
            self._db.execute("BEGIN")
            self._db.executemany(
                _INSERT,
                (
                    (
                        bill, line.request_id, line.at_ns, line.model, line.part, line.requests, line.prompt_tokens,
                        line.completion_tokens, line.nanousd, file, line.line,
                    )
                    for line in lines
                ),
            )  # fmt: skip
            self._db.execute("COMMIT")

    def lines(self, bill: int, since_ns: int, until_ns: int) -> Iterator[BillLine]:
        """The lines of a bill in [since, until), sorted."""
        with _disk_faults():
            for row in self._db.execute(_SORTED, (bill, since_ns, until_ns)):
                yield BillLine(*row)


@contextlib.contextmanager
def _disk_faults() -> Iterator[None]:
    try:
        yield
    except (apsw.FullError, apsw.CantOpenError, apsw.IOError) as fault:
        raise SetupError(
            f"The lines of the bill cannot be sorted: {fault}.",
            hint="Set TMPDIR to a folder with free space for twice the bill.",
        ) from fault
