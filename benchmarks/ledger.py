"""Calls per second that the ledger settles durably (`synchronous=FULL`), compared with raw SQLite in the same run.

`python -m benchmarks.ledger` prints them; `--write` writes docs/performance-ledger.md. A call is two durable writes:
the open row and its settlement.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import apsw

from mcpmeter.ledger.rows import OPEN_SQL, SETTLE_SQL, open_values, settled_values
from mcpmeter.ledger.sqlite.connection import open_for_writing
from mcpmeter.ledger.sqlite.migrations import transaction
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.records import Call, Charge, LlmTarget, Reservation, Settlement, Usage

AIM_PER_SECOND: Final = 15_000
PAGE: Final = Path("docs/performance-ledger.md")
WRITERS: Final = 1_000
BUDGET: Final = Reservation(balance="b", period_start_ns=1, period_end_ns=10**18, amount=100, limit=10**18)


class Figure(NamedTuple):
    """Calls per second in each round."""

    name: str
    per_second: list[float]


def calls(count: int, claims: tuple[Reservation, ...] = ()) -> list[Settlement]:
    """Settlements as the relay writes them."""
    return [_call(number, claims) for number in range(count)]


def _call(number: int, claims: tuple[Reservation, ...]) -> Settlement:
    call = Call(
        id=f"call_{number:016x}",
        started_at_ns=1_793_534_400_000_000_000 + number,
        endpoint="/v1/chat/completions",
        method="POST",
        team="search",
        key_id="key_0123456789ab",
        reservations=claims,
        llm=LlmTarget(provider="openai", model="gpt-4.1", prompt_tokens_estimate=120),
    )
    return Settlement(
        call=call,
        ended_at_ns=call.started_at_ns + 10**9,
        duration_ns=10**9,
        status="200",
        usage=Usage(prompt_tokens=120, completion_tokens=80, source="reported"),
        charge=Charge(nanousd=880_000, source="listed", price_list="openai 2026-11-01"),
        response_model="gpt-4.1",
        finish_reason="stop",
        upstream_status=200,
        upstream_request_id=f"req_{number:016x}",
    )


async def settled_by_the_ledger(path: Path, settlements: Sequence[Settlement]) -> float:
    """Seconds until every call is opened and settled; each waits for its two commits."""
    store = SqliteStore(path)
    await store.start()
    pending = iter(settlements)

    async def write() -> None:
        for settlement in pending:
            await store.open(settlement.call)
            await store.settle(settlement)

    started = time.perf_counter()
    await asyncio.gather(*(write() for _ in range(WRITERS)))
    seconds = time.perf_counter() - started
    await store.close()
    return seconds


def written_by_raw_sqlite(path: Path, settlements: Sequence[Settlement]) -> float:
    """Seconds for the same rows with the same statements, without thread, queue and event loop."""
    with contextlib.closing(open_for_writing(path)) as db:
        started = time.perf_counter()
        for batch in _batches(settlements, WRITERS):
            _write(db, OPEN_SQL, [open_values(settlement.call) for settlement in batch])
            _write(db, SETTLE_SQL, [settled_values(settlement) for settlement in batch])
        return time.perf_counter() - started


def _write(db: apsw.Connection, sql: str, values: Sequence[tuple[object, ...]]) -> None:
    with transaction(db):
        db.executemany(sql, values)


def _batches(settlements: Sequence[Settlement], size: int) -> Iterator[Sequence[Settlement]]:
    yield from (settlements[start : start + size] for start in range(0, len(settlements), size))


def measured(count: int, rounds: int) -> list[Figure]:
    """Measure each variant per round, each in a new ledger."""
    plain, budgeted = calls(count), calls(count, (BUDGET,))
    figures = [Figure("the ledger", []), Figure("the ledger, each call under a budget", []), Figure("raw SQLite", [])]
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=".") as folder:
            seconds = [
                asyncio.run(settled_by_the_ledger(Path(folder) / "plain.db", plain)),
                asyncio.run(settled_by_the_ledger(Path(folder) / "budget.db", budgeted)),
                written_by_raw_sqlite(Path(folder) / "raw.db", plain),
            ]
        for figure, duration in zip(figures, seconds, strict=True):
            figure.per_second.append(count / duration)
    return figures


def page(figures: Sequence[Figure], count: int) -> str:
    """The figures as a page."""
    ledger, raw = median(figures[0].per_second), median(figures[-1].per_second)
    rows = [_row(figure) for figure in figures]
    verdict = "held" if ledger >= AIM_PER_SECOND else "MISSED"
    return "\n".join(
        [
            "# Performance of the ledger",
            "",
            f"`python -m benchmarks.ledger --write` wrote this page on {datetime.now(UTC):%Y-%m-%d}: "
            f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, "
            f"SQLite {apsw.sqlite_lib_version()}.",
            "",
            f"{count:,} calls, {WRITERS:,} at a time. Each is opened and then settled; both writes are durable "
            "(`synchronous=FULL`) before they return. Raw SQLite writes the same rows with the same statements, "
            f"{WRITERS:,} per transaction, without thread, queue or event loop. Rounds alternate; each has a new file.",
            "",
            "| variant | calls/s, median | lowest–highest |",
            "| --- | ---: | ---: |",
            *rows,
            "",
            f"The ledger settles {ledger:,.0f} calls per second (aim: at least {AIM_PER_SECOND:,}; {verdict}), "
            f"{ledger / raw:.2f} times raw SQLite's rate in the same run.",
        ]
    )


def _row(figure: Figure) -> str:
    low, high = min(figure.per_second), max(figure.per_second)
    return f"| {figure.name} | {median(figure.per_second):,.0f} | {low:,.0f}–{high:,.0f} |"


def main() -> None:
    """Measure, print, and with `--write` write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE}")
    options = parser.parse_args()
    text = page(measured(options.calls, options.rounds), options.calls)
    print(text)
    if options.write:
        PAGE.write_text(text + "\n")


if __name__ == "__main__":
    main()
