"""File systems for tests: one that fills up, one that turns read-only, one whose power is cut.

If one cannot be made on this machine, its tests fail: what was not tried must not look tried.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

FS_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32) in linux/fs.h; file systems' own test suites use it
WITHOUT_THE_LOG = 2  # buffers of the journal are lost too
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of this size, in memory."""
    with _mounted(folder, "tmpfs", "-t", "tmpfs", "-o", f"size={size}"):
        yield folder


def make_image(image: Path, size_bytes: int) -> Path:
    """Create a file with an empty ext4."""
    image.touch()
    os.truncate(image, size_bytes)
    _tool("mkfs.ext4", "-q", "-F", image)
    return image


@contextlib.contextmanager
def loop_mounted(image: Path, folder: Path) -> Iterator[Path]:
    """Mount the ext4 in a file. It writes unsynced data after a minute only, and turns read-only after a fault."""
    with _mounted(folder, str(image), "-t", "ext4", "-o", "loop,commit=60,errors=remount-ro"):
        yield folder


def cut_the_power(folder: Path) -> None:
    """Shut the file system down: nothing more reaches the disk, and what is only in memory is lost."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", WITHOUT_THE_LOG))
    finally:
        os.close(fd)


def needs_replay(image: Path) -> bool:
    """Whether the next mount has to replay the journal, because the file system was not unmounted cleanly."""
    return "needs_recovery" in _tool("dumpe2fs", "-h", image)


def break_file_system(folder: Path) -> None:
    """Trigger a fault, as of a failing disk: the file system turns read-only while it is written to."""
    device = _tool("findmnt", "--noheadings", "--output", "SOURCE", folder).strip()
    (Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error").write_text("1")


@contextlib.contextmanager
def immutable(*files: Path) -> Iterator[None]:
    """Make files unchangeable, also through descriptors that are open already."""
    _tool("chattr", "+i", *files)
    try:
        yield
    finally:
        _tool("chattr", "-i", *files)


@contextlib.contextmanager
def _mounted(folder: Path, source: str, *options: str) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.fail("only root may mount a disk for tests; run as root: make test")
    folder.mkdir(parents=True, exist_ok=True)
    _tool("mount", *options, source, folder)
    try:
        yield
    finally:
        _unmount(folder)


def _unmount(folder: Path) -> None:
    try:
        _tool("umount", folder)
    except BaseException:
        # A failed test may still have files open there; its disk must not stay mounted.
        _tool("umount", "--lazy", folder)
        raise


def _tool(name: str, *arguments: object) -> str:
    program = shutil.which(name, path=PATH)
    if program is None:
        pytest.fail(f"no {name} here; on Debian: apt-get install e2fsprogs mount, or run: make test")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{name} failed: {done.stderr.strip()}")
    return done.stdout
