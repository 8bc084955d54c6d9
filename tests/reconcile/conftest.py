"""Golden bills, and lines and calls as small as a test wants them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mcpmeter.reconcile.bills import formats
from mcpmeter.reconcile.bills.base import BillFormat
from mcpmeter.reconcile.lines import BillLine, Period
from mcpmeter.reconcile.reading import BillFile, read, recognise

GOLDEN = Path(__file__).parents[1] / "golden" / "bills"


def at(day: str) -> int:
    """An instant in UTC as Unix ns."""
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * 10**9


def figures(line: BillLine) -> dict[str, Any]:
    """What a line tells, but for its place."""
    names = ("at_ns", "request_id", "model", "requests", "prompt_tokens", "completion_tokens", "nanousd")
    return {name: getattr(line, name) for name in names}


def items_of(bill: BillFile) -> list[BillLine | Period]:
    return list(read(bill, lambda what, done, total: None))


def lines_of(bill: BillFile) -> list[BillLine]:
    return [item for item in items_of(bill) if isinstance(item, BillLine)]


Recognised = Callable[[str], tuple[BillFile, list[BillLine]]]


@pytest.fixture
def golden() -> Recognised:
    """A golden bill by its file's name, recognized by its content, and its lines."""

    def read_golden(name: str) -> tuple[BillFile, list[BillLine]]:
        bill = recognise(GOLDEN / name, formats())
        return bill, lines_of(bill)

    return read_golden


@pytest.fixture
def read_text(tmp_path: Path) -> Callable[[str | bytes], list[BillLine]]:
    """The lines of a bill that a test writes itself."""

    def read_it(text: str | bytes, known: dict[str, BillFormat] | None = None) -> list[BillLine]:
        path = tmp_path / "bill"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return lines_of(recognise(path, known or formats()))

    return read_it
