"""Sorts the lines of bills outside of memory, in a database that is nobody's but this process's and gone with it."""

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
# As match.order_of says: SQLite too puts what is NULL first, and texts in the order of their code points.
_SORTED: Final = (
    f"SELECT {', '.join(BillLine.__struct_fields__)} FROM lines "  # noqa: S608 (constants only)
    f"WHERE bill = ? AND at_ns >= ? AND at_ns < ? ORDER BY {', '.join(_FIELDS)}"
)


class SortedLines:
    """A context: lines are added bill by bill and come back in the order that `match` wants."""

    def __init__(self) -> None:
        # An empty name is SQLite's for a temporary file that is unlinked from the start, under $TMPDIR.
        self._db = apsw.Connection("")
        for name, value in (("journal_mode", "off"), ("synchronous", "off"), ("cache_size", -CACHE_KIB)):
            self._db.pragma(name, value)
        self._db.execute(_TABLE)

    def __enter__(self) -> SortedLines:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._db.close()

    def add(self, bill: int, file: int, lines: Iterable[BillLine]) -> None:
        """Take all lines of one file of a bill. Raises SetupError when the disk is full."""
        with _explained():
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
        with _explained():
            for row in self._db.execute(_SORTED, (bill, since_ns, until_ns)):
                yield BillLine(*row)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (apsw.FullError, apsw.CantOpenError, apsw.IOError) as fault:
        raise SetupError(
            f"The lines of the bill cannot be sorted: {fault}.",
            hint="Set TMPDIR to a folder with room for the bill twice.",
        ) from fault
