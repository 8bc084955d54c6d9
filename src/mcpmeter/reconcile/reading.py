"""Recognizes the format of a bill file and reads its lines one by one. A malformed line is an error, never skipped."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from mcpmeter.reconcile.bills.base import BillFormat, BillInvalid, Columns, Unreadable, shown
from mcpmeter.reconcile.lines import BillLine, Period

MAX_JSON_BYTES: Final = 256 * 2**20
"""A page is read as a whole; the largest of the APIs have a few megabytes."""

MAX_LINE_BYTES: Final = 1 << 20
SNIFFED_BYTES: Final = 1 << 20
PROGRESS_LINES: Final = 10_000

Progress = Callable[[str, int, int], None]
"""Takes the task, the amount done and the total amount (0: unknown)."""


@dataclass(frozen=True)
class BillFile:
    """A bill's file and its format."""

    path: Path
    format: BillFormat
    is_json: bool
    is_empty: bool = False
    """It has only empty buckets and may be a page of any of the provider's formats."""

    def location(self, line: int) -> str:
        """The file and line for a message."""
        return f"{self.path}, {'result' if self.is_json else 'line'} {line}"


def recognise(path: Path, formats: Mapping[str, BillFormat]) -> BillFile:
    """Recognizes a file's format by its first bytes. Raises BillInvalid that names what is missing."""
    try:
        with path.open("rb") as file:
            head = file.read(SNIFFED_BYTES)
    except OSError as fault:
        raise BillInvalid(
            f"The bill {path} cannot be read: {fault.strerror}.", hint="Name the downloaded file."
        ) from None
    if not head.strip():
        raise BillInvalid(f"The bill {path} is empty.", hint="Download it again, for a period that has calls.")
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in {b"{", b"["}:
        return _json_file(path, head, formats)
    return BillFile(path, _csv_format(path, head, formats), is_json=False)


def read(bill: BillFile, progress: Progress) -> Iterator[BillLine | Period]:
    """The lines of a bill one by one, each period before its lines.

    Raises BillInvalid naming the file and the line.
    """
    return _json_lines(bill, _decoded(bill)) if bill.is_json else _csv_lines(bill, progress)


def has_more(bill: BillFile) -> bool:
    """Whether another page follows this one, according to the API."""
    page = _decoded(bill) if bill.is_json else None
    return bool(getattr(page, "has_more", False) or getattr(page, "next_page", None))


def _json_file(path: Path, head: bytes, formats: Mapping[str, BillFormat]) -> BillFile:
    known = [found for found in formats.values() if found.document is not None]
    for found in known:
        if found.marks and all(mark in head for mark in found.marks):
            return BillFile(path, found, is_json=True)
    if len(known) == 1 == len(formats):
        return BillFile(path, known[0], is_json=True)
    for found in known:
        if found.empty_marks and all(mark in head for mark in found.empty_marks):
            return BillFile(path, found, is_json=True, is_empty=True)
    raise BillInvalid(
        f"The bill {path} is JSON in no known format ({_names(known)}), or nothing is billed in it.",
        hint="Name the format: --format. Or give a CSV file with a mapping: --mapping.",
    )


def _csv_format(path: Path, head: bytes, formats: Mapping[str, BillFormat]) -> BillFormat:
    known = [found for found in formats.values() if found.columns]
    if not known:
        raise BillInvalid(f"The bill {path} is no JSON, but this format is.", hint="Name another one: --format.")
    nearest, missing = min(
        ((found, _missing(path, head, found)) for found in known),
        key=lambda pair: (len(pair[1]), len(pair[1]) - len(pair[0].columns)),
    )
    if not missing:
        return nearest
    if len(known) > 1 and len(missing) == len(nearest.columns):
        raise BillInvalid(
            f"The bill {path} has the columns of no known format ({_names(known)}); it has: {_columns(path, head)}.",
            hint="Name its columns: --mapping FILE.toml (docs/reconcile.md).",
        )
    lacks = ", ".join(f"'{column}'" for column in missing)
    raise BillInvalid(
        f"The bill {path} lacks columns of {nearest.name}: {lacks}; it has: {_columns(path, head, nearest.delimiter)}.",
        hint="Export it again with all columns, or name its columns: --mapping FILE.toml (docs/reconcile.md).",
    )


def _missing(path: Path, head: bytes, format_: BillFormat) -> list[str]:
    names = _header(path, head, format_.delimiter)
    return [column for column in format_.columns if column not in names]


def _names(formats: list[BillFormat]) -> str:
    return ", ".join(found.name for found in formats)


def _columns(path: Path, head: bytes, delimiter: str = ",") -> str:
    return ", ".join(shown(name) for name in _header(path, head, delimiter)[:30])


def _header(path: Path, head: bytes, delimiter: str) -> list[str]:
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n").partition(b"\n")[0]
    try:
        return [name.strip() for name in next(csv.reader([first.decode()], delimiter=delimiter, strict=True), [])]
    except UnicodeDecodeError:
        raise BillInvalid(f"The bill {path}, line 1: not UTF-8.", hint="Save it as CSV UTF-8.") from None
    except csv.Error as fault:
        raise BillInvalid(f"The bill {path}, line 1: {fault}.", hint="Download it again.") from None


def _csv_lines(bill: BillFile, progress: Progress) -> Iterator[BillLine | Period]:
    size = bill.path.stat().st_size
    with bill.path.open("rb") as file:
        texts = _Texts(file, bill.path, size, progress)
        rows = csv.reader(texts, delimiter=bill.format.delimiter, strict=True)
        try:
            yield from _rows(bill, rows, texts)
        except csv.Error as fault:
            raise _broken(bill, texts.line, str(fault)) from None


def _rows(bill: BillFile, rows: Iterator[list[str]], texts: _Texts) -> Iterator[BillLine | Period]:
    names = [name.strip() for name in next((row for row in rows if row), [])]
    missing = [column for column in bill.format.columns if column not in names]
    if missing or bill.format.row_reader is None:
        raise _broken(bill, texts.line, f"the columns {missing} are missing")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _broken(bill, texts.line, f"the column {shown(twice)} exists twice")
    columns, width = Columns(names), len(names)
    read_row = bill.format.row_reader(columns)
    read_period = bill.format.period_reader(columns) if bill.format.period_reader else None
    last: Period | None = None
    for row in rows:
        if not row:
            continue
        if len(row) != width:
            raise _broken(bill, texts.line, f"{len(row)} cells under {width} columns")
        try:
            named = read_period(row) if read_period else None
            line = read_row(texts.line, row)
        except Unreadable as fault:
            raise _broken(bill, texts.line, str(fault)) from None
        if named is not None and named != last:
            yield (last := named)
        if line is not None:
            yield line


class _Texts:
    """The lines of a file as text, counted; reports progress in bytes."""

    def __init__(self, file: BinaryIO, path: Path, size: int, progress: Progress) -> None:
        self._file = file
        self._path = path
        self._size = size
        self._progress = progress
        self._bytes = 0
        self.line = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw = self._file.readline(MAX_LINE_BYTES)
        if not raw:
            raise StopIteration
        self.line += 1
        if len(raw) == MAX_LINE_BYTES:
            raise BillInvalid(f"The bill {self._path}, line {self.line}: too long.", hint="Is it a CSV file?")
        if self.line == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        self._bytes += len(raw)
        if self.line % PROGRESS_LINES == 0:
            self._progress(f"{self._path.name}: {self.line:,} lines", self._bytes, self._size)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise BillInvalid(
                f"The bill {self._path}, line {self.line}: not UTF-8.", hint="Save it as CSV UTF-8."
            ) from None


def _json_lines(bill: BillFile, page: object) -> Iterator[BillLine | Period]:
    if bill.format.lines_of is None:
        raise BillInvalid(f"{bill.path}: {bill.format.name} has no JSON form.", hint="Give the CSV file.")
    if bill.is_empty and any(bucket.results for bucket in getattr(page, "data", ())):
        raise BillInvalid(f"The bill {bill.path} has results of no known format.", hint="Name its format: --format.")
    number = 0
    try:
        for item in bill.format.lines_of(page):
            if isinstance(item, BillLine):
                number = item.line
            yield item
    except Unreadable as fault:
        raise BillInvalid(f"{bill.location(number)} or the next: {fault}.", hint="Fetch the page again.") from None


def _decoded(bill: BillFile) -> object:
    size = bill.path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise BillInvalid(
            f"The bill {bill.path} has {size:,} bytes; a page of JSON may have {MAX_JSON_BYTES:,}.",
            hint="Fetch it in several pages, or give the CSV export, which may have any size.",
        )
    try:
        return msgspec.json.decode(bill.path.read_bytes().removeprefix(b"\xef\xbb\xbf"), type=bill.format.document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise BillInvalid(
            f"The bill {bill.path} is no {bill.format.name}: {fault}.", hint="Fetch the page again."
        ) from None


def _broken(bill: BillFile, line: int, what: str) -> BillInvalid:
    return BillInvalid(
        f"{bill.location(line)}: {what}.", hint="Nothing was compared. Correct the line or download the bill again."
    )
