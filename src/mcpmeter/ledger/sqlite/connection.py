"""Connections to a ledger's file: checks before, settings after, and a one-line error with a hint for every fault."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, Literal

import apsw

from mcpmeter.errors import LedgerNotUsable
from mcpmeter.ledger.sqlite.migrations import migrate, require_current

MIN_SQLITE_VERSION: Final = (3, 51, 3)
"""Earlier versions can lose committed rows when two connections reset the WAL at once."""

BUSY_TIMEOUT_MS: Final = 5_000
CHECK_TIMEOUT_S: Final = 2.0
MAX_WAL_BYTES: Final = 64 * 2**20

Synchronous = Literal["full", "normal"]
"""When a commit is flushed to disk: before it returns, or at the next checkpoint of the log."""

_ANOTHER_FILE: Final = "set MCPMETER_LEDGER or the setting `ledger.path` to another file"
_HEADER: Final = b"SQLite format 3\x00"


def open_for_writing(path: Path, synchronous: Synchronous = "full") -> apsw.Connection:
    """Open or create the ledger, check it and migrate it. Raises `LedgerNotUsable`."""
    _require_sqlite(apsw.sqlite_lib_version())
    _make_file(path)
    _require_header(path)
    return _connect(path, apsw.SQLITE_OPEN_READWRITE, partial(_prepare, synchronous=synchronous))


def open_for_reading(path: Path) -> apsw.Connection:
    """Open a ledger read-only; a service may be using it. Raises `LedgerNotUsable`."""
    if not path.exists():
        raise LedgerNotUsable(
            f"There is no ledger at {path}.", hint="Start `mcpmeter serve`, or name the ledger with --ledger."
        )
    _require_header(path)
    return _connect(path, apsw.SQLITE_OPEN_READONLY, require_current)


@contextlib.contextmanager
def explain(path: Path) -> Iterator[None]:
    """Turn errors of SQLite into `LedgerNotUsable`."""
    try:
        yield
    except apsw.Error as error:
        raise _not_usable(path, error) from error


class FileLock:
    """An exclusive `flock` on `<path>.lock`; the kernel releases it when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".lock")
        self._ledger = path
        self._fd: int | None = None

    def take(self) -> None:
        """Take the lock. Raises `LedgerNotUsable` with the process that holds it."""
        _make_folder(self._path.parent)
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _not_writable(self._path, error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise LedgerNotUsable(
                f"The ledger {self._ledger} is in use by process {holder}.",
                hint=f"Stop that process (kill {holder}), or {_ANOTHER_FILE}.",
            ) from error
        self._fd = fd
        try:
            os.truncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            self.release()
            raise _not_writable(self._path, error) from error

    def release(self) -> None:
        """Release the lock. The file stays: removing it would let two processes lock two files of one name."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def lock_holder(path: Path) -> tuple[str, int]:
    """The process that holds the ledger's lock and since when (Unix nanoseconds); empty and 0 if there is none."""
    try:
        fd = os.open(path.with_name(path.name + ".lock"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return "", 0
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        return holder, os.fstat(fd).st_mtime_ns
    finally:
        os.close(fd)
    return "", 0


def _prepare(db: apsw.Connection, path: Path, *, synchronous: Synchronous) -> None:
    mode = db.pragma("journal_mode", "wal")
    if mode != "wal":
        raise LedgerNotUsable(
            f"The folder of {path} cannot hold a write-ahead log (a network file system?).",
            hint=f"Please {_ANOTHER_FILE}.",
        )
    db.pragma("synchronous", synchronous)
    db.pragma("foreign_keys", "on")
    db.pragma("journal_size_limit", MAX_WAL_BYTES)
    _quick_check(db, path)
    migrate(db, path)


def _connect(path: Path, flags: int, prepare: Callable[[apsw.Connection, Path], None]) -> apsw.Connection:
    with explain(path):
        db = apsw.Connection(str(path), flags=flags)
        try:
            db.set_busy_timeout(BUSY_TIMEOUT_MS)
            db.pragma("trusted_schema", "off")
            prepare(db, path)
        except BaseException:
            db.close()
            raise
    return db


def _quick_check(db: apsw.Connection, path: Path) -> None:
    # Bounded, because a large ledger takes minutes. Damage beyond what two seconds find surfaces at a later write.
    deadline = time.monotonic() + CHECK_TIMEOUT_S
    db.set_progress_handler(lambda: time.monotonic() > deadline, 20_000)
    try:
        verdict = db.execute("PRAGMA quick_check(1)").fetchone()
    except apsw.InterruptError:
        return
    finally:
        db.set_progress_handler(None)
    if verdict != ("ok",):
        raise _damaged(path)


def _require_sqlite(version: str) -> None:
    if tuple(int(part) for part in version.split(".")[:3]) < MIN_SQLITE_VERSION:
        raise LedgerNotUsable(
            f"The SQLite in use is {version}; before 3.51.3 it can lose committed rows.",
            hint="Run: pip install --upgrade --force-reinstall --only-binary apsw 'apsw>=3.51.3'",
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerNotUsable(
            f"The ledger's folder {folder} cannot be made: {error.strerror}.",
            hint=f"Run: mkdir -p {folder} && chown $(id -un) {folder} (as an administrator), or {_ANOTHER_FILE}.",
        ) from error


def _make_file(path: Path) -> None:
    # Created here and not by SQLite: the mode must be 0600 from the start, and the log files inherit it.
    _make_folder(path.parent)
    if path.is_dir():
        raise LedgerNotUsable(
            f"The ledger {path} is a folder.", hint=f"Name a file in it: MCPMETER_LEDGER={path}/ledger.db"
        )
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise _not_writable(path, error) from error
    # Another user's file that we may write keeps the mode its owner gave it.
    with contextlib.suppress(PermissionError):
        path.chmod(0o600)


def _require_header(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(len(_HEADER))
    except OSError as error:
        raise LedgerNotUsable(
            f"The ledger {path} cannot be read: {error.strerror}.", hint=f"Run: ls -l {path}, or {_ANOTHER_FILE}."
        ) from error
    if start not in (b"", _HEADER):
        raise LedgerNotUsable(
            f"{path} is not a ledger (not an SQLite database).",
            hint=f"Run: mv {path} {path}.other, or {_ANOTHER_FILE}.",
        )


def _not_writable(path: Path, error: OSError) -> LedgerNotUsable:
    return LedgerNotUsable(
        f"{path} cannot be written: {error.strerror}.",
        hint=f"Run: chown $(id -un) {path.parent} {path} (as an administrator), or {_ANOTHER_FILE}.",
    )


def _damaged(path: Path) -> LedgerNotUsable:
    return LedgerNotUsable(
        f"The ledger {path} is damaged.",
        hint=f"Run: mcpmeter ledger recover {path} {path}.new (keeps all intact rows), or restore it from a backup.",
    )


def _not_usable(path: Path, error: apsw.Error) -> LedgerNotUsable:
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError)):
        return _damaged(path)
    if isinstance(error, apsw.BusyError):
        return LedgerNotUsable(
            f"The ledger {path} is held by another program.", hint=f"Run: fuser -v {path}, stop it and try again."
        )
    if isinstance(error, apsw.FullError):
        return LedgerNotUsable(f"The disk of {path} is full.", hint=f"Make room (df -h {path.parent}) and try again.")
    if isinstance(error, (apsw.ReadOnlyError, apsw.PermissionsError, apsw.CantOpenError)):
        return LedgerNotUsable(
            f"The ledger {path} cannot be written: {error}.",
            hint=f"Run: ls -ld {path.parent} {path}* and give this user the right to write, or {_ANOTHER_FILE}.",
        )
    return LedgerNotUsable(
        f"The ledger {path} cannot be used: {error}.", hint=f"Check the disk (dmesg | tail), or {_ANOTHER_FILE}."
    )
