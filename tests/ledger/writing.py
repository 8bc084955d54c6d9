"""Run as a program: open and settle calls in a ledger until it cannot be written, and say each promise as it is made.

`python writing.py LEDGER SYNCHRONOUS` prints `open ID` and `settled ID`, each once the store has promised it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from pathlib import Path

from mcpmeter.errors import LedgerUnavailable
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.records import Call, Charge, LlmTarget, Reservation, Scope, Settlement, Usage

AT_ONCE = 8
BUDGET = Reservation(
    balance="b", period_start_ns=1, period_end_ns=10**18, amount=100, limit=10**15, scope=Scope(team="research")
)


def promised(what: str, call: Call) -> None:
    os.write(1, f"{what} {call.id}\n".encode())


async def calls(store: SqliteStore, who: int) -> None:
    for number in itertools.count():
        call = Call(
            id=f"call_{who}_{number}",
            started_at_ns=10 + number,
            endpoint="/mcp",
            method="POST",
            team="research",
            llm=LlmTarget(provider="p", model="m"),
            reservations=(BUDGET,),
        )
        await store.open(call)
        promised("open", call)
        usage, charge = Usage(prompt_tokens=1, source="reported"), Charge(nanousd=7, source="listed")
        settlement = Settlement(call=call, ended_at_ns=20, duration_ns=1, status="200", usage=usage, charge=charge)
        await store.settle(settlement)
        promised("settled", call)


async def write(path: Path, synchronous: str) -> None:
    store = SqliteStore(path)
    await store.start()
    await store._run(lambda db: db.pragma("synchronous", synchronous))
    try:
        await asyncio.gather(*(calls(store, who) for who in range(AT_ONCE)))
    except LedgerUnavailable as fault:
        print(fault, file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1]), sys.argv[2]))
