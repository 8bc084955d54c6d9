"""File systems of the tests' own: one that fills up, one that turns read-only, one whose power is cut.

A machine where they cannot be made fails the test that asks for one: what was not tried must not look like tried.
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

FS_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), linux/fs.h; the test suites of file systems cut the power by it
WITHOUT_THE_LOG = 2  # not even what is in the journal's buffers goes out
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of this size and no more, in memory."""
    with _mounted(folder, "tmpfs", "-t", "tmpfs", "-o", f"size={size}"):
        yield folder


def make_image(image: Path, size_bytes: int) -> Path:
    """A file that holds an empty ext4."""
    image.touch()
    os.truncate(image, size_bytes)
    _tool("mkfs.ext4", "-q", "-F", image)
    return image


@contextlib.contextmanager
def loop_mounted(image: Path, folder: Path) -> Iterator[Path]:
    """The ext4 in a file. What nobody synced it writes after a minute only, and after a fault it is read-only."""
    with _mounted(folder, str(image), "-t", "ext4", "-o", "loop,commit=60,errors=remount-ro"):
        yield folder


def cut_the_power(folder: Path) -> None:
    """From now on nothing reaches the disk any more, and what is in memory alone is lost."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", WITHOUT_THE_LOG))
    finally:
        os.close(fd)


def needs_replay(image: Path) -> bool:
    """Whether the journal holds what the next mount has to replay: nobody unmounted it in order."""
    return "needs_recovery" in _tool("dumpe2fs", "-h", image)


def break_file_system(folder: Path) -> None:
    """Let the kernel find a fault in it, as on a dying disk: it turns read-only under whoever writes."""
    device = _tool("findmnt", "--noheadings", "--output", "SOURCE", folder).strip()
    (Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error").write_text("1")


@contextlib.contextmanager
def immutable(*files: Path) -> Iterator[None]:
    """Files that nobody may change, not even through what was opened before."""
    _tool("chattr", "+i", *files)
    try:
        yield
    finally:
        _tool("chattr", "-i", *files)


@contextlib.contextmanager
def _mounted(folder: Path, source: str, *options: str) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.fail("only root may mount a disk of the tests' own; run as root: make test")
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
        # A test that failed may still hold files there; what it held up must not stay mounted for ever.
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
