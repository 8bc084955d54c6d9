"""Small files that keep settlements while the ledger cannot take them. Synchronous: `pending.py` uses a thread.

The file is written with zeros and flushed when it is made, so that a record needs no space on a full disk. A header
names the ledger. Records follow it: length, CRC-32, sequence number, payload. Sequence numbers rise from record to
record, also after a reset, which begins again at the first record's place, and from process to process, as the first
one is the time. So a record that is left from before a reset ends the file: its number is too small.

A file belongs to the process that holds its `flock`. Several services may keep theirs in one folder: each takes the
next free name. A service that starts also takes the files of its ledger that a dead process left there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from mcpmeter.errors import LedgerNotUsable

SIZE_BYTES: Final = 4 * 2**20
"""Room for about 4,000 settlements: calls that are in flight when the ledger fails, as new ones are refused."""

MAX_FILES: Final = 64
"""Names tried in one folder."""

_MAGIC: Final = b"mcpmeter-pending"
_HEADER: Final = struct.Struct("<16s64sI")
_RECORD: Final = struct.Struct("<IIQ")
_FIRST_RECORD_AT: Final = 4096
"""A page of its own for the header, so that no write of a record can tear it."""


class PendingPlace(NamedTuple):
    """Where the files of a service are: a folder, and how their names begin."""

    folder: Path
    stem: str


class PendingFile:
    """One locked file. Made by `PendingFiles`."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._end = _FIRST_RECORD_AT
        self._sequence = time.time_ns()
        self._size = os.fstat(fd).st_size

    def read(self) -> list[bytes]:
        """The payloads in the file, oldest first. Later ones are appended after them."""
        data = os.pread(self._fd, self._size, 0)
        payloads: list[bytes] = []
        at, last = _FIRST_RECORD_AT, 0
        while at + _RECORD.size < len(data):
            length, crc, sequence = _RECORD.unpack_from(data, at)
            end = at + _RECORD.size + length
            if not length or end > len(data):
                break
            payload = data[at + _RECORD.size : end]
            if _crc(sequence, payload) == crc:
                if sequence <= last:
                    break  # from before a reset
                payloads.append(payload)
                last, self._end = sequence, end
            at = end  # a damaged record does not hide those behind it
        self._sequence = max(self._sequence, last + 1)
        return payloads

    def append(self, payloads: Sequence[bytes]) -> None:
        """Write records and flush them. Raises OSError, with ENOSPC if the file is full; then none counts as kept."""
        parts = []
        for sequence, payload in enumerate(payloads, start=self._sequence):
            parts += [_RECORD.pack(len(payload), _crc(sequence, payload), sequence), payload]
        block = b"".join(parts)
        if self._end + len(block) > self._size:
            raise OSError(errno.ENOSPC, "the file of pending settlements is full")
        _write(self._fd, block, self._end)
        os.fdatasync(self._fd)
        self._end += len(block)
        self._sequence += len(payloads)

    def reset(self) -> None:
        """Forget all records. Not flushed at once: a record that returns after a crash is settled again, unchanged."""
        _write(self._fd, bytes(_RECORD.size), _FIRST_RECORD_AT)
        self._end = _FIRST_RECORD_AT

    def is_in_place(self) -> bool:
        """Whether the file still has its name: a removed one would be lost with the process."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        return False

    def close(self) -> None:
        """Release the lock. The file stays."""
        with contextlib.suppress(OSError):
            os.fdatasync(self._fd)
        os.close(self._fd)

    def discard(self) -> None:
        """Remove the file and release its lock."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self._fd)


class PendingFiles:
    """The files of one service: its own, and those that dead processes left."""

    def __init__(self, place: PendingPlace, size_bytes: int) -> None:
        self._place = place
        self._size_bytes = size_bytes
        self._ledger_id = ""
        self._own: PendingFile | None = None
        self._left: list[PendingFile] = []
        """Files of dead processes, until their settlements are in the ledger."""
        self.of_others: list[Path] = []
        """Files with settlements for another ledger: they are left as they are."""

    @property
    def is_lost(self) -> bool:
        """Whether the file was removed, and none could be made in its place."""
        return self._own is None

    @property
    def path(self) -> Path:
        """The file, or where it would be."""
        return self._own.path if self._own else self._place.folder / f"{self._place.stem}.pending"

    def open(self, ledger_id: str) -> list[bytes]:
        """Take the files and return their records. Raises `LedgerNotUsable`."""
        self._ledger_id = ledger_id
        payloads: list[bytes] = []
        try:
            self._place.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for file, owner in _left_behind(*self._place):
                records = file.read()
                if owner == ledger_id and records:
                    self._left.append(file)
                    payloads += records
                    continue
                if records:
                    self.of_others.append(file.path)
                file.close()
            self._own = self._left.pop(0) if self._left else self._claim()
        except OSError as error:
            raise LedgerNotUsable(
                f"The file of pending settlements {self.path} cannot be made: {error.strerror}.",
                hint="Give this user a folder with 4 MiB of room: the setting `ledger.pending_path`.",
            ) from error
        return payloads

    def append(self, new: Sequence[bytes], kept: Sequence[bytes]) -> None:
        """Write records; those that were kept, too, if the file has lost its name since."""
        if self._own is not None and self._own.is_in_place():
            if new:
                self._own.append(new)
            return
        if self._own is not None:
            self._own.close()
            self._own = None
        file = self._claim()
        try:
            file.append([*kept, *new])
        except OSError:
            file.discard()
            raise
        self._own = file

    def reset(self) -> None:
        """Forget all records: the ledger has them."""
        for file in self._left:
            file.discard()
        self._left.clear()
        if self._own is not None:
            self._own.reset()

    def keep_aside(self, line: bytes) -> None:
        """Append to the file of refused settlements."""
        _keep_aside(self.path, line)

    def close(self, *, is_empty: bool) -> None:
        """Release the files."""
        if is_empty:
            with contextlib.suppress(OSError):  # the next start settles its records again, which changes nothing
                self.reset()
        for file in [*self._left, *([self._own] if self._own else [])]:
            file.close()
        self._own = None

    def _claim(self) -> PendingFile:
        return _claim(*self._place, self._ledger_id, self._size_bytes)


def _claim(folder: Path, stem: str, ledger_id: str, size_bytes: int = SIZE_BYTES) -> PendingFile:
    """Take the first free name for a new file, or an unused file of the same ledger. Raises OSError."""
    for path in _names(folder, stem):
        file = _lock(path, create=True)
        if file is None:
            continue
        try:
            if _prepare(file, ledger_id, size_bytes):
                return file
        except OSError:
            file.discard()  # half made: it has no header and holds nothing
            raise
        file.close()
    raise OSError(errno.EMFILE, f"{MAX_FILES} files of pending settlements are in use", str(folder))


def _left_behind(folder: Path, stem: str) -> Iterator[tuple[PendingFile, str]]:
    """The files that no live process holds, each with the id of its ledger. Raises OSError."""
    for path in _names(folder, stem):
        if path.exists() and (file := _lock(path, create=False)) is not None:
            if (owner := _ledger_of(file)) is not None:
                yield file, owner
            else:
                file.close()


def _keep_aside(path: Path, line: bytes, max_bytes: int = SIZE_BYTES) -> None:
    """Append a line to the file beside `path` for settlements that the ledger refuses for good. Raises OSError."""
    fd = os.open(f"{path}.rejected", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.fstat(fd).st_size + len(line) > max_bytes:
            raise OSError(errno.EFBIG, "the file of rejected settlements is full")
        os.write(fd, line)
        os.fsync(fd)
    finally:
        os.close(fd)


def _names(folder: Path, stem: str) -> Iterator[Path]:
    yield folder / f"{stem}.pending"
    yield from (folder / f"{stem}.{number}.pending" for number in range(2, MAX_FILES + 1))


def _lock(path: Path, *, create: bool) -> PendingFile | None:
    """Open and lock a file; None if another process holds it."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    try:
        fd = os.open(path, flags, 0o600)
    except OSError:
        if create and not path.exists():
            raise
        return None
    file = PendingFile(path, fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    if not file.is_in_place() or os.fstat(fd).st_uid != os.geteuid():  # removed by its last holder; another user's
        os.close(fd)
        return None
    return file


def _prepare(file: PendingFile, ledger_id: str, size_bytes: int) -> bool:
    """Make a file ready for records of this ledger. False if it holds records, or something else."""
    start = os.pread(file._fd, _FIRST_RECORD_AT, 0)
    if start.strip(b"\0"):
        known = _ledger_of(file)
        if known is None or file.read():
            return False
        if known == ledger_id and file._size >= size_bytes:
            return True
    _fill(file._fd, size_bytes)
    header = _HEADER.pack(_MAGIC, ledger_id.encode(), 0)
    header = _HEADER.pack(_MAGIC, ledger_id.encode(), zlib.crc32(header))
    _write(file._fd, header, 0)
    os.fsync(file._fd)
    _flush_folder(file.path.parent)
    file._size = size_bytes
    return True


def _ledger_of(file: PendingFile) -> str | None:
    header = os.pread(file._fd, _HEADER.size, 0)
    if len(header) < _HEADER.size:
        return None
    magic, ledger_id, crc = _HEADER.unpack(header)
    if magic != _MAGIC or zlib.crc32(_HEADER.pack(magic, ledger_id, 0)) != crc:
        return None
    return bytes(ledger_id).rstrip(b"\0").decode("utf-8", "replace")


def _fill(fd: int, size_bytes: int) -> None:
    # Zeros and not fallocate: a block that is only reserved has to be marked as written later, in the journal.
    os.ftruncate(fd, 0)
    block = bytes(2**18)
    for at in range(0, size_bytes, len(block)):
        _write(fd, block[: size_bytes - at], at)
    os.fsync(fd)


def _flush_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written


def _crc(sequence: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(sequence.to_bytes(8, "little")))
