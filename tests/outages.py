"""What takes a ledger's file away from a running service, and gives it back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def moved(ledger: Path) -> Iterator[None]:
    """The file has another name."""
    ledger.rename(ledger.with_name("moved.db"))
    try:
        yield
    finally:
        ledger.with_name("moved.db").rename(ledger)


@contextlib.contextmanager
def replaced(ledger: Path) -> Iterator[None]:
    """Another file has its name."""
    with moved(ledger):
        ledger.write_bytes(b"")
        yield
        ledger.unlink()
