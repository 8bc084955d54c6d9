"""A program that writes a ledger and crashes at one numbered operation on its files, for one number after the other.

`python crashing.py FOLDER MODE STEP` prints one JSON object per line. Modes: `kill` ends the process before it;
`power` also reverts what was written since each file's last sync, except a random part of it, some of it torn;
`normal` is `power` on a ledger with `synchronous: normal`, which must lose rows.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from random import Random

import apsw

from mcpmeter.ledger.maintenance.verify import verify
from mcpmeter.ledger.sqlite.connection import open_for_writing
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.records import Call, Charge, LlmTarget, Reservation, Settlement, Usage

SECTOR = 512
CALLS = 8
BUDGET = Reservation(balance="b", period_start_ns=1, period_end_ns=10**18, amount=100, limit=10**9)


class Crash:
    """Counts operations, and ends the process before the one with its number."""

    def __init__(self, at: int, mode: str) -> None:
        self.at = at
        self.loses_power = mode != "kill"
        self.random = Random(at)
        self.count = 0
        self.files: list[File] = []

    def operation(self) -> None:
        self.count += 1
        if self.count == self.at:
            if self.loses_power:
                for file in self.files:
                    file.lose_what_is_not_synced(self.random)
            os._exit(9)


class File(apsw.VFSFile):
    def __init__(self, crash: Crash, name, flags) -> None:
        super().__init__("unix", name, flags)
        self.crash = crash
        self.synced_size = self.xFileSize()
        self.written: list[tuple[int, bytes, bytes]] = []
        crash.files.append(self)

    def xWrite(self, data, offset):
        self.crash.operation()
        size = self.xFileSize()
        before = bytes(self.xRead(min(len(data), size - offset), offset)) if offset < size else b""
        self.written.append((offset, before, bytes(data)))
        super().xWrite(data, offset)

    def xSync(self, flags):
        self.crash.operation()
        super().xSync(flags)
        self.written.clear()
        self.synced_size = self.xFileSize()

    def xTruncate(self, size):
        self.crash.operation()
        super().xTruncate(size)

    def xClose(self):
        if self in self.crash.files:
            self.crash.files.remove(self)
        super().xClose()

    def lose_what_is_not_synced(self, random: Random) -> None:
        for offset, before, _ in reversed(self.written):
            if before:
                super().xWrite(before, offset)
        if self.xFileSize() > self.synced_size:
            super().xTruncate(self.synced_size)
        for offset, _, data in self.written:
            outcome = random.choice(("lost", "kept", "torn")) if self.crash.at % 2 else "lost"
            kept = data if outcome == "kept" else data[: random.randrange(len(data)) // SECTOR * SECTOR]
            if outcome != "lost" and kept:
                super().xWrite(kept, offset)


class FaultyVfs(apsw.VFS):
    def __init__(self, crash: Crash) -> None:
        super().__init__("crashing", "unix", makedefault=True)
        self.crash = crash

    def xOpen(self, name, flags):
        return File(self.crash, name, flags)

    def xDelete(self, name, sync):
        self.crash.operation()
        super().xDelete(name, sync)


async def work(path: Path, promises: int, mode: str) -> None:
    store = SqliteStore(path, synchronous="normal" if mode == "normal" else "full")
    await store.start()
    for number in range(CALLS):
        call = Call(
            id=f"call_{number}",
            started_at_ns=10 + number,
            endpoint="/mcp",
            method="POST",
            llm=LlmTarget(provider="p", model="m"),
            # The first half has no budget, so that single rows are written without BEGIN and COMMIT.
            reservations=(BUDGET,) if number >= CALLS // 2 else (),
        )
        await store.open(call)
        os.write(promises, f"open {call.id}\n".encode())
        if number % 4 == 3:
            continue
        usage, charge = Usage(prompt_tokens=1, source="reported"), Charge(nanousd=7, source="listed")
        await store.settle(
            Settlement(call=call, ended_at_ns=20, duration_ns=1, status="200", usage=usage, charge=charge)
        )
        os.write(promises, f"settled {call.id}\n".encode())
    await store.close()


def crashed_at(number: int, mode: str, folder: Path) -> dict[str, object]:
    """What a process left behind that crashed there; `ended` if it had no operation of this number."""
    folder.mkdir()
    path, log = folder / "ledger.db", folder / "promises"
    promises = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    child = os.fork()
    if child == 0:
        crash = Crash(number, mode)
        vfs = FaultyVfs(crash)
        asyncio.run(work(path, promises, mode))
        os._exit(0 if vfs.crash.count else 1)
    os.close(promises)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), status
    db = open_for_writing(path)
    states = {str(call): str(state) for call, state in db.execute("SELECT id, state FROM calls")}
    db.close()
    promised = [line.split() for line in log.read_text().splitlines()]
    lost = [call for what, call in promised if call not in states or (what == "settled" and states[call] != "settled")]
    wrong = [fault for fault in verify(path).wrong if "no service runs" not in fault]
    shutil.rmtree(folder)
    return {"at": number, "ended": status == 0, "promised": len(promised), "lost": len(lost), "wrong": wrong}


def main(folder: str, mode: str, step: str) -> None:
    """Try every `step`-th number from 1 on, until the work ends before that operation."""
    number, ended = 1, False
    while not ended:
        found = crashed_at(number, mode, Path(folder) / f"{mode}-{number}")
        print(json.dumps(found), flush=True)
        ended = bool(found["ended"])
        number += int(step)


if __name__ == "__main__":
    main(*sys.argv[1:])
