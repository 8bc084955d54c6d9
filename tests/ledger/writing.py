"""A program that opens and settles calls in a ledger until it cannot be written, and prints each promise.

`python writing.py LEDGER SYNCHRONOUS CLIENTS` prints `open ID` and `settled ID` once the store has promised it. Every
second client is under a budget.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from pathlib import Path

from mcpmeter.errors import LedgerUnavailable
from mcpmeter.ledger.sqlite.connection import Synchronous
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.records import Call, Charge, LlmTarget, Reservation, Scope, Settlement, Usage

BUDGET = Reservation(
    balance="b", period_start_ns=1, period_end_ns=10**18, amount=100, limit=10**15, scope=Scope(team="research")
)


def print_promise(what: str, call: Call) -> None:
    os.write(1, f"{what} {call.id}\n".encode())


async def calls(store: SqliteStore, client: int) -> None:
    for number in itertools.count():
        call = Call(
            id=f"call_{client}_{number}",
            started_at_ns=10 + number,
            endpoint="/mcp",
            method="POST",
            team="research",
            llm=LlmTarget(provider="p", model="m"),
            reservations=(BUDGET,) if client % 2 else (),
        )
        await store.open(call)
        print_promise("open", call)
        usage, charge = Usage(prompt_tokens=1, source="reported"), Charge(nanousd=7, source="listed")
        settlement = Settlement(call=call, ended_at_ns=20, duration_ns=1, status="200", usage=usage, charge=charge)
        await store.settle(settlement)
        print_promise("settled", call)


async def write(path: Path, synchronous: Synchronous, clients: int) -> None:
    store = SqliteStore(path, synchronous=synchronous)
    await store.start()
    try:
        await asyncio.gather(*(calls(store, client) for client in range(clients)))
    except LedgerUnavailable as fault:
        print(fault, file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
