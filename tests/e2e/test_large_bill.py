"""A bill of a million lines: every planted difference is found, in seconds, in memory that does not grow with it."""

from __future__ import annotations

import contextlib
import csv
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.conftest import COMMAND

from mcpmeter.ledger.rows import OPEN_SQL, SETTLE_SQL, open_values, settled_values
from mcpmeter.ledger.sqlite.connection import open_for_writing
from mcpmeter.ledger.sqlite.migrations import transaction
from mcpmeter.records import Call, Charge, LlmTarget, Settlement, Usage

LINES = 20_000
LINES_IN_FULL = 1_000_000
MAX_MEGABYTES = 200
"""The program itself, its prices and SQLite's caches are some 120."""
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
PLANTED_EVERY = 100
PLANTED = ("price", "tokens", "missing_in_ledger", "missing_in_bill", "duplicate")
HEADS = ("generation_id", "created_at", "cost_total", "tokens_prompt", "tokens_completion", "model_permaslug")
EXACT = ("--tolerance", "0", "--floor-usd", "0", "--json")


def planted(place: int) -> str:
    """What is wrong with this call: one in a hundred, each kind in turn."""
    return PLANTED[place // PLANTED_EVERY % len(PLANTED)] if place % PLANTED_EVERY == 0 else ""


def request_id(place: int) -> str:
    # Spread, so that neither side is in the order in which it has to be compared.
    return f"gen-{place * 2_654_435_761 % 2**32:08x}-{place:08x}"


def write_ledger(path: Path, count: int) -> None:
    with closing(open_for_writing(path)) as db, transaction(db):
        db.executemany(OPEN_SQL, (open_values(one.call) for one in settlements(count)))
        db.executemany(SETTLE_SQL, (settled_values(one) for one in settlements(count)))


def settlements(count: int) -> Iterator[Settlement]:
    begin_ns = int(BEGIN.timestamp()) * 10**9
    for place in range(count):
        if planted(place) == "missing_in_ledger":
            continue
        call = Call(
            id=f"call_{place:012x}", started_at_ns=begin_ns + place * 10**9, endpoint="/v1/chat/completions",
            method="POST", team="search", llm=LlmTarget(provider="openrouter", model=f"openai/model-{place % 7}"),
        )  # fmt: skip
        yield Settlement(
            call=call, ended_at_ns=begin_ns, duration_ns=1, status="200", upstream_request_id=request_id(place),
            usage=Usage(prompt_tokens=100 + place % 9, completion_tokens=20, source="reported"),
            charge=Charge(nanousd=250_000 + place % 1000, source="listed"),
        )  # fmt: skip


def write_bill(path: Path, count: int) -> None:
    with path.open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(HEADS)
        for place in range(count):
            wrong = planted(place)
            nanousd = 250_000 + place % 1000 + 77 * (wrong == "price")
            tokens = 100 + place % 9 + (wrong == "tokens")
            at = BEGIN + timedelta(seconds=place)
            line = (
                request_id(place),
                f"{at:%Y-%m-%d %H:%M:%S}.040",
                f"0.{nanousd:09d}",
                tokens,
                20,
                f"openai/model-{place % 7}",
            )
            lines.writerows([line] * {"missing_in_bill": 0, "duplicate": 2}.get(wrong, 1))


class Measured(NamedTuple):
    """One run of the command."""

    code: int
    report: dict[str, Any]
    progress: str
    seconds: float
    megabytes: float


def _max_resident(pid: int) -> float:
    """Megabytes of the program itself: `wait4` would include the memory of the forking process."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    return 0.0


def measured(folder: Path, *words: object) -> Measured:
    with (folder / "stdout").open("w+") as out, (folder / "stderr").open("w+") as err:
        began = time.monotonic()
        running = subprocess.Popen([COMMAND, "reconcile", *map(str, words)], stdout=out, stderr=err)
        megabytes = 0.0
        while running.poll() is None:
            megabytes = max(megabytes, _max_resident(running.pid))
            time.sleep(0.02)
        seconds = time.monotonic() - began
        out.seek(0)
        err.seek(0)
        return Measured(running.returncode, json.load(out), err.read(), seconds, megabytes)


@pytest.mark.trial
def test_a_million_lines_are_compared_in_bounded_memory(trials, tmp_path: Path) -> None:
    count = LINES_IN_FULL if trials.full else LINES
    ledger, bill, written = tmp_path / "ledger.db", tmp_path / "bill.csv", tmp_path / "differences.csv"
    write_ledger(ledger, count)
    write_bill(bill, count)
    by_id = measured(tmp_path, bill, "--ledger", ledger, "--csv", written, *EXACT)
    by_day = measured(tmp_path, bill, "--ledger", ledger, "--by", "day", *EXACT)
    found = by_id.report["bills"][0]["found"]
    with written.open(newline="") as file:
        named = {(row["verdict"], row["request_id"]) for row in csv.DictReader(file)}
    wanted = {(wrong, request_id(place)) for place in range(count) if (wrong := planted(place))}
    trials.record(
        "A bill of a million lines",
        "A ledger and a bill with one line per request, both unsorted; one call in a hundred has one of five planted "
        "differences. The bill is compared by request id, and then by model and day.",
        {
            "lines": by_id.report["bills"][0]["lines"],
            "seconds by request id": by_id.seconds,
            "seconds by model and day": by_day.seconds,
            "memory by request id, MB": by_id.megabytes,
            "memory by model and day, MB": by_day.megabytes,
            "differences planted": len(wanted),
            "of them not found": len(wanted - named),
            "found and not planted": len(named - wanted),
        },
    )  # fmt: skip

    assert named == wanted
    assert (by_id.code, by_day.code) == (1, 1)
    assert sum(total["findings"] for total in found.values()) == count + count // PLANTED_EVERY // len(PLANTED)
    assert by_id.report["bills"][0]["drift_usd"] == by_day.report["bills"][0]["drift_usd"]
    assert max(by_id.megabytes, by_day.megabytes) < MAX_MEGABYTES
    assert not trials.full or "bill.csv" in by_id.progress, "long work has to report progress"
