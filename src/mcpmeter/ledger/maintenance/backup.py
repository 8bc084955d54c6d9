"""Copy a ledger that a service is writing to: one snapshot, checked before it gets its name."""

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

PAGES_PER_STEP: Final = 20_000


def backup(path: Path, target: Path, on_progress: Callable[[int, int], None] = lambda done, all_: None) -> int:
    """Copy the ledger into a new file of mode 0600, check it, name it; returns its bytes.

    `on_progress` gets pages done and pages in total. Raises `LedgerNotUsable`, also if the copy is damaged.
    """
    if target.exists():
        raise LedgerNotUsable(f"{target} exists already.", hint="Name a file that does not exist.")
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=target.parent) as folder:
        copy = Path(folder) / target.name
        os.close(os.open(copy, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with contextlib.closing(open_for_reading(path)) as source, explain(path):
            source.execute("BEGIN")  # otherwise each commit of the service would restart the copy
            source.execute("SELECT 1 FROM migrations").fetchall()
            _copy(source, copy, on_progress)
        # A link, because a rename would overwrite a file created meanwhile.
        os.link(copy, target)
        sync(target.parent)
    return target.stat().st_size


def _copy(source: apsw.Connection, copy: Path, on_progress: Callable[[int, int], None]) -> None:
    with contextlib.closing(apsw.Connection(str(copy))) as target:
        with target.backup("main", source, "main") as copying:
            while not copying.done:
                copying.step(PAGES_PER_STEP)
                on_progress(copying.page_count - copying.remaining, copying.page_count)
        # Without a log beside it the copy is one file.
        target.pragma("journal_mode", "delete")
        verdict = target.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != ("ok",):
        raise LedgerNotUsable(
            "The copy is damaged, and so is the ledger.", hint="Run: mcpmeter ledger verify, then ledger recover."
        )
    sync(copy)


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
