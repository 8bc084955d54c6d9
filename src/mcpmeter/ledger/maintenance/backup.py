"""A copy of a ledger that a service is writing to: one state of it, checked before it gets its name."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import apsw

from mcpmeter.errors import LedgerNotUsable
from mcpmeter.ledger.sqlite.connection import explain, open_for_reading

PAGES_AT_ONCE: Final = 20_000


def backup(path: Path, target: Path, on_progress: Callable[[int, int], None] = lambda done, all_: None) -> int:
    """Copy the ledger into a new file of mode 0600, check it, name it; returns its bytes.

    `on_progress` hears of pages done and pages in all. Raises `LedgerNotUsable`, also if the copy is not whole.
    """
    if target.exists():
        raise LedgerNotUsable(f"There is something at {target} already.", hint="Name a file that is not there yet.")
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=target.parent) as folder:
        copy = Path(folder) / target.name
        os.close(os.open(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with contextlib.closing(open_for_reading(path)) as source, explain(path):
            source.execute("BEGIN")  # or each commit of the service would make it begin again
            source.execute("SELECT 1 FROM migrations").fetchall()
            _copy(source, copy, on_progress)
        # A link and not a rename, which would overwrite what came to be there meanwhile.
        os.link(copy, target)
        _sync(target.parent)
    return target.stat().st_size


def _copy(source: apsw.Connection, copy: Path, on_progress: Callable[[int, int], None]) -> None:
    with contextlib.closing(apsw.Connection(str(copy))) as target:
        with target.backup("main", source, "main") as copying:
            while not copying.done:
                copying.step(PAGES_AT_ONCE)
                on_progress(copying.page_count - copying.remaining, copying.page_count)
        # Of the log, too, nothing is left beside it: the copy is one file.
        target.pragma("journal_mode", "delete")
        verdict = target.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != ("ok",):
        raise LedgerNotUsable(
            "The copy is not whole, so the ledger is damaged.", hint="Run: mcpmeter ledger verify, then ledger recover."
        )
    _sync(copy)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
