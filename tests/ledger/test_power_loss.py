"""Power loss under a file system that is written to: promised rows are there after the journal's replay."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from tests.disks import cut_the_power, loop_mounted, make_image, needs_replay

from mcpmeter.ledger.maintenance.verify import verify
from mcpmeter.ledger.sqlite.connection import open_for_writing

WRITER = Path(__file__).with_name("writing.py")
CLIENTS = "8"
IMAGE_BYTES = 32 * 2**20
ROUNDS = {"full": (2, 100), "normal": (2, 20)}
MAX_PROMISES = 2_000
WHAT = {
    "full": "Power loss on a loop-mounted disk",
    "normal": "The control: power loss on the same disk, with synchronous=NORMAL",
}
HOW = (
    "A process settles calls, eight at a time and half of them under a budget, in a ledger on its own ext4. After "
    "a random number of promises the file system is shut down as by a power cut: nothing more reaches its image, and "
    "what was only in memory is lost. Promises made before that count. The process is killed, the image mounted again, "
    "which replays its journal, and the ledger opened and verified. Not tried: a disk that loses what it was ordered "
    "to flush."
)


@contextmanager
def writer(path: Path, synchronous: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, WRITER, path, synchronous, CLIENTS], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def promises_before_the_cut(image: Path, folder: Path, synchronous: str, after: int) -> list[str]:
    """Run the writer into the power cut; returns every promise that was read before it.

    A promise made later does not count: at a real power cut no process is left to make it, and an fsync of ext4 that
    races with its own shutdown may report success.
    """
    printed = b""
    with loop_mounted(image, folder), writer(folder / "state" / "ledger.db", synchronous) as process:
        while printed.count(b"\n") < after:
            part = process.stdout.read1()
            assert part, f"the writer ended by itself: {process.communicate()[1].decode()}"
            printed += part
        cut_the_power(folder)
        process.kill()
        process.communicate()
    return printed.decode().splitlines()[: printed.count(b"\n")]


def power_lost(folder: Path, synchronous: str, after: int) -> dict[str, object]:
    """What one power cut left."""
    folder.mkdir()
    image = make_image(folder / "image", IMAGE_BYTES)
    promised = promises_before_the_cut(image, folder / "disk", synchronous, after)
    replayed = needs_replay(image)
    with loop_mounted(image, folder / "disk") as disk:
        path = disk / "state" / "ledger.db"
        db = open_for_writing(path)
        states = {str(call): str(state) for call, state in db.execute("SELECT id, state FROM calls")}
        (integrity,) = db.execute("PRAGMA integrity_check").fetchone()
        db.close()
        wrong = [fault for fault in verify(path).wrong if "no service runs" not in fault]
    image.unlink()
    kept = {f"open {call}" for call in states} | {f"settled {c}" for c, state in states.items() if state == "settled"}
    lost = [promise for promise in promised if promise not in kept]
    return {"promised": len(promised), "lost": len(lost), "wrong": [*wrong, integrity], "replayed": replayed}


@pytest.mark.trial
@pytest.mark.parametrize("synchronous", list(ROUNDS))
def test_promised_rows_are_there_after_a_power_cut(synchronous, tmp_path, trials):
    random = Random(synchronous)
    rounds = ROUNDS[synchronous][trials.full]
    found = [
        power_lost(tmp_path / str(number), synchronous, random.randint(1, MAX_PROMISES)) for number in range(rounds)
    ]
    lost = sum(cut["lost"] for cut in found)
    trials.record(
        WHAT[synchronous],
        HOW,
        {
            "power cuts": len(found),
            "promises made before them": sum(cut["promised"] for cut in found),
            "of them lost": lost,
            "power cuts after which the journal had to be replayed": sum(cut["replayed"] for cut in found),
            "power cuts after which the ledger does not verify": sum(cut["wrong"] != ["ok"] for cut in found),
        },
    )
    assert all(cut["replayed"] for cut in found), "the file system was unmounted cleanly: no power was cut"
    assert all(cut["wrong"] == ["ok"] for cut in found), found
    if synchronous == "normal":
        assert lost > 0, "the control lost nothing: the trial cannot see a loss"
    else:
        assert lost == 0
