"""The file of pending settlements: what was flushed is read again, whatever a crash or another program did to it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from tests.disks import small_disk

from mcpmeter.errors import LedgerNotUsable
from mcpmeter.ledger.pending_file import PendingFiles, PendingPlace

SIZE = 64 * 1024
Open = Callable[..., tuple[PendingFiles, list[bytes]]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def open_files(folder: Path) -> Iterator[Open]:
    opened: list[PendingFiles] = []

    def make(ledger_id: str = "one", size: int = SIZE) -> tuple[PendingFiles, list[bytes]]:
        files = PendingFiles(PendingPlace(folder, "ledger.db"), size)
        opened.append(files)
        return files, files.open(ledger_id)

    yield make
    for files in opened:
        files.close(is_empty=False)


def test_what_was_appended_is_read_by_the_next_process(open_files, folder):
    files, before = open_files()
    files.append([b"first", b"second"], [])
    files.append([b"third"], [])
    files.close(is_empty=False)
    assert before == []
    assert open_files()[1] == [b"first", b"second", b"third"]
    assert [path.name for path in folder.iterdir()] == ["ledger.db.pending"]
    assert (folder / "ledger.db.pending").stat().st_mode & 0o777 == 0o600


def test_records_are_appended_after_those_of_the_previous_process(open_files):
    files, _ = open_files()
    files.append([b"old"], [])
    files.close(is_empty=False)
    files, _ = open_files()
    files.append([b"new"], [])
    files.close(is_empty=False)
    assert open_files()[1] == [b"old", b"new"]


def test_a_reset_file_is_empty_and_its_old_records_stay_away(open_files):
    files, _ = open_files()
    files.append([b"a" * 9, b"b" * 9, b"c" * 9], [])
    files.reset()
    files.close(is_empty=True)
    files, before = open_files()
    assert before == []
    files.append([b"d" * 9], [])  # as long as the first one, so that the second one is where the next would be
    files.close(is_empty=False)
    assert open_files()[1] == [b"d" * 9]


@pytest.mark.parametrize("seed", range(20))
def test_a_torn_tail_hides_no_earlier_record(open_files, folder, seed):
    random = Random(seed)
    whole = [random.randbytes(random.randrange(1, 900)) for _ in range(random.randrange(5))]
    files, _ = open_files()
    files.append(whole, [])
    path = folder / "ledger.db.pending"
    before = path.read_bytes()
    files.append([random.randbytes(700), random.randbytes(700)], [])
    files.close(is_empty=False)
    after = bytearray(path.read_bytes())
    changed = [at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    cut = random.randrange(changed[0], changed[-1])
    after[cut:] = before[cut:]  # the rest never reached the disk
    path.write_bytes(after)
    read = open_files()[1]
    assert read[: len(whole)] == whole
    assert len(read) <= len(whole) + 1


def test_a_damaged_record_does_not_hide_those_behind_it(open_files, folder):
    files, _ = open_files()
    files.append([b"first", b"second", b"third"], [])
    files.close(is_empty=False)
    path = folder / "ledger.db.pending"
    path.write_bytes(path.read_bytes().replace(b"second", b"sec0nd"))
    assert open_files()[1] == [b"first", b"third"]


def test_two_services_in_one_folder_have_a_file_each(open_files, folder):
    (first, _), (second, _) = open_files(), open_files()
    first.append([b"of the first"], [])
    second.append([b"of the second"], [])
    assert {path.name for path in folder.iterdir()} == {"ledger.db.pending", "ledger.db.2.pending"}
    second.close(is_empty=False)
    third, left = open_files()
    assert left == [b"of the second"]
    third.close(is_empty=False)
    first.close(is_empty=False)
    fourth, left = open_files()
    assert sorted(left) == [b"of the first", b"of the second"]
    fourth.reset()
    assert [path.name for path in folder.iterdir()] == ["ledger.db.pending"]


def test_a_file_of_another_ledger_is_left_as_it_is(open_files, folder):
    files, _ = open_files("one")
    files.append([b"for one"], [])
    files.close(is_empty=False)
    kept = (folder / "ledger.db.pending").read_bytes()
    other, left = open_files("two")
    other.append([b"for two"], [])
    assert (left, other.of_others) == ([], [folder / "ledger.db.pending"])
    assert (folder / "ledger.db.pending").read_bytes() == kept
    assert open_files("one")[1] == [b"for one"]


@pytest.mark.parametrize("content", [b"notes of mine" * 999, b"\x00", b""])
def test_only_a_file_without_content_is_taken(open_files, folder, content):
    folder.mkdir()
    (folder / "ledger.db.pending").write_bytes(content)
    files, left = open_files()
    files.append([b"kept"], [])
    assert left == []
    foreign = bool(content.strip(b"\0"))
    assert ((folder / "ledger.db.pending").read_bytes() == content) is foreign
    assert (folder / "ledger.db.2.pending").exists() is foreign


def test_a_link_is_not_followed(open_files, folder, tmp_path):
    folder.mkdir()
    (tmp_path / "target").write_bytes(b"")
    (folder / "ledger.db.pending").symlink_to(tmp_path / "target")
    open_files()[0].append([b"kept"], [])
    assert (tmp_path / "target").read_bytes() == b""


def test_a_full_file_takes_nothing_and_keeps_what_it_has(open_files):
    files, _ = open_files()
    files.append([bytes(40_000)], [])
    with pytest.raises(OSError, match="full") as fault:
        files.append([bytes(10), bytes(40_000)], [])
    assert fault.value.errno == errno.ENOSPC
    files.append([b"small"], [])
    files.close(is_empty=False)
    assert open_files()[1] == [bytes(40_000), b"small"]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_removed_file_is_made_again_with_all_that_it_held(open_files, folder, replaced):
    files, _ = open_files()
    files.append([b"kept"], [])
    (folder / "ledger.db.pending").unlink()
    if replaced:
        (folder / "ledger.db.pending").write_bytes(b"something else")
    files.append([], [b"kept"])
    files.close(is_empty=False)
    assert open_files()[1] == [b"kept"]


def test_a_full_disk_takes_records_and_no_new_file(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        files = PendingFiles(PendingPlace(disk, "ledger.db"), SIZE)
        files.open("one")
        with pytest.raises(OSError, match="No space"):
            (disk / "ballast").write_bytes(bytes(2**20))
        files.append([bytes(1000)] * 50, [])
        files.close(is_empty=False)
        other = PendingFiles(PendingPlace(disk, "other.db"), SIZE)
        with pytest.raises(LedgerNotUsable, match="cannot be made: No space left") as refused:
            other.open("two")
        assert "ledger.pending_path" in refused.value.hint
        assert not (disk / "other.db.pending").exists()
        again = PendingFiles(PendingPlace(disk, "ledger.db"), SIZE)
        assert again.open("one") == [bytes(1000)] * 50
        again.close(is_empty=False)


def test_the_whole_file_is_written_when_it_is_made(open_files, folder):
    open_files()
    made = os.stat(folder / "ledger.db.pending")
    assert (made.st_size, made.st_blocks * 512 >= SIZE) == (SIZE, True)
