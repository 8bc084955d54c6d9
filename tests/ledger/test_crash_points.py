"""A crash or power loss before any operation on the ledger's files: promised rows are there, and balances add up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("crashing.py")
STEP = {"kill": 17, "power": 17, "normal": 29}
WHAT = {
    "kill": "A crash before every operation on the ledger's files",
    "power": "Power loss before every operation on the ledger's files",
    "normal": "The control: the same power loss on synchronous=NORMAL",
}
HOW = (
    "A process creates a ledger, runs its migrations, opens and settles eight calls, the last four under a budget, and "
    "closes it. It ends before the numbered write, sync, truncation or deletion; the ledger is reopened and verified."
)
LOSS = (
    " Writes since a file's last sync are lost; at every second point a random part of them is kept, some torn at a "
    "sector."
)


def crashes(mode: str, folder: Path, step: int) -> list[dict]:
    done = subprocess.run(
        [sys.executable, WORKER, folder, mode, str(step)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.trial
@pytest.mark.parametrize("mode", list(WHAT))
def test_promised_rows_are_there_after_a_crash_at_any_point(mode, tmp_path, trials):
    found = crashes(mode, tmp_path, 1 if trials.full else STEP[mode])
    wrong = [fault for point in found for fault in point["wrong"]]
    lost = sum(point["lost"] for point in found)
    trials.record(
        WHAT[mode],
        HOW + (LOSS if mode != "kill" else ""),
        {
            "points": len(found) - 1,
            "promises made before them": sum(point["promised"] for point in found),
            "of them lost": lost,
            "points after which the ledger does not verify": sum(bool(point["wrong"]) for point in found),
        },
    )
    assert found[-1]["ended"]
    assert len(found) > 3
    assert wrong == []
    if mode == "normal":
        assert lost > 0, "the control lost nothing: the trial cannot see a loss"
    else:
        assert lost == 0
