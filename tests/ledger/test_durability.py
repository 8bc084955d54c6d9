"""kill -9 at any moment: promised rows are there, once, and open ones are found at the next start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from mcpmeter.ledger.sqlite.store import SqliteStore

WRITER = Path(__file__).with_name("writing.py")


def run_and_kill(path: Path, clients: int, promises: int, synchronous: str) -> tuple[set[str], set[str]]:
    """Ids whose opening and whose settling the store promised before the process was killed."""
    command = [sys.executable, WRITER, path, synchronous, str(clients)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        try:
            received = b""
            while received.count(b"\n") < promises:
                chunk = os.read(process.stdout.fileno(), 65536)
                assert chunk, "the writer ended by itself"
                received += chunk
        finally:
            process.kill()
        received += process.stdout.read()
    assert process.returncode == -signal.SIGKILL
    lines = [line.split() for line in received.decode().splitlines(keepends=True) if line.endswith("\n")]
    return {call for what, call in lines if what == "open"}, {call for what, call in lines if what == "settled"}


@pytest.mark.parametrize(
    ("clients", "promises", "synchronous"),
    [(1, 20, "full"), (4, 301, "full"), (64, 3_333, "full"), (200, 2_000, "full"), (64, 3_333, "normal")],
)
async def test_no_promised_row_is_lost_or_doubled_by_kill_9(
    path, clients, promises, synchronous, make_settlement, make_call
):
    opened, settled = run_and_kill(path, clients, promises, synchronous)
    store = SqliteStore(path)
    await store.start()
    left = {row.id for row in await store.left_open()}

    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    states = list(db.execute("SELECT id, state FROM calls"))
    db.close()
    assert len(states) == len(dict(states))
    assert opened <= {call for call, _ in states}
    assert settled <= {call for call, state in states if state == "settled"}
    assert left == {call for call, state in states if state == "open"}
    # Each client has at most one call that was written but not yet promised.
    assert len(states) - len(opened) <= clients

    for call in left:
        await store.settle(make_settlement(make_call(id=call), outcome="recovered"))
    assert await store.left_open() == []
    await store.close()
