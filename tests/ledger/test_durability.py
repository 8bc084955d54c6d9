"""kill -9 at any moment: what was acknowledged is there, once; what was open is found at the next start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from mcpmeter.ledger.sqlite.store import SqliteStore

SERVICE = """
import asyncio, os, sys
from pathlib import Path
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.records import Call, Charge, LlmTarget, Settlement, Usage

async def client(store, name):
    for number in range(10**9):
        call = Call(id=f"call_{number:09d}_{name}", started_at_ns=1 + number, endpoint="/v1/chat/completions",
                    method="POST", llm=LlmTarget(provider="p", model="m"))
        await store.open(call)
        os.write(1, f"open {call.id}\\n".encode())
        await store.settle(Settlement(call=call, ended_at_ns=2 + number, duration_ns=1, status="200",
                                      usage=Usage(prompt_tokens=1, source="reported"), charge=Charge()))
        os.write(1, f"settled {call.id}\\n".encode())

async def main():
    store = SqliteStore(Path(sys.argv[1]), synchronous=sys.argv[3])
    await store.start()
    await asyncio.gather(*(client(store, name) for name in range(int(sys.argv[2]))))

asyncio.run(main())
"""


def run_and_kill(path: Path, clients: int, acknowledgements: int, synchronous: str) -> tuple[set[str], set[str]]:
    """Ids whose opening and whose settling were acknowledged before the process was killed."""
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(path), str(clients), synchronous], stdout=subprocess.PIPE, bufsize=0
    )
    assert service.stdout is not None
    try:
        received = b""
        while received.count(b"\n") < acknowledgements:
            chunk = os.read(service.stdout.fileno(), 65536)
            assert chunk, "the service ended by itself"
            received += chunk
    finally:
        service.send_signal(signal.SIGKILL)
    received += service.stdout.read()
    service.stdout.close()
    assert service.wait() == -signal.SIGKILL
    lines = [line.split() for line in received.decode().splitlines(keepends=True) if line.endswith("\n")]
    return {call for what, call in lines if what == "open"}, {call for what, call in lines if what == "settled"}


@pytest.mark.parametrize(
    ("clients", "acknowledgements", "synchronous"),
    [
        (1, 20, "full"),
        (4, 301, "full"),
        (64, 1_500, "full"),
        (64, 3_333, "full"),
        (200, 2_000, "full"),
        (1, 301, "normal"),
        (64, 3_333, "normal"),
    ],
)
async def test_no_acknowledged_row_is_lost_or_doubled_by_kill_9(
    path, clients, acknowledgements, synchronous, make_settlement, make_call
):
    opened, settled = run_and_kill(path, clients, acknowledgements, synchronous)
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
    # Nothing but what was under way: each client has at most one call whose answer the kill swallowed.
    assert len(states) - len(opened) <= clients

    for call in left:
        await store.settle(make_settlement(make_call(id=call), outcome="recovered"))
    assert await store.left_open() == []
    await store.close()
