"""Pruned calls leave exact sums: reports, budgets and credits are the same as before."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC
from itertools import combinations
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.acting import BY
from tests.ledger.raw_rows import OPEN, write_rows

from mcpmeter.errors import LedgerNotUsable, SetupError
from mcpmeter.ledger.maintenance import prune as pruning
from mcpmeter.ledger.maintenance.prune import KEPT_NS, QUARTER_NS, prunable, prune, sums
from mcpmeter.ledger.maintenance.verify import verify
from mcpmeter.ledger.queries.reader import open_reader
from mcpmeter.ledger.queries.selection import GROUPINGS, Selection
from mcpmeter.ledger.queries.totals import find_call, select_in, totals
from mcpmeter.ledger.sqlite.connection import open_for_reading
from mcpmeter.records import Reservation, Scope

START_NS = 1_793_534_400_000_000_000  # 2026-11-01T12:00:00Z
LATER_NS = START_NS + 30 * 86_400 * 10**9
HOUR_NS = 3600 * 10**9
ZONES = [UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kathmandu"), ZoneInfo("America/St_Johns")]

ROWS = st.lists(
    st.builds(
        lambda *parts: {name: value for part in parts for name, value in part.items()},
        st.fixed_dictionaries(
            {
                "started_at_ns": st.integers(START_NS - 40 * HOUR_NS, START_NS + 40 * HOUR_NS),
                "team": st.sampled_from(["a", "b"]),
                "project": st.sampled_from(["", "p"]),
                "model": st.sampled_from(["m", "n"]),
                "outcome": st.sampled_from(["ok", "error"]),
                "token_source": st.sampled_from(["reported", "missing"]),
                "prompt_tokens": st.integers(0, 9),
            }
        ),
        st.sampled_from(
            [
                {"cost_nanousd": 2**62, "cost_source": "listed"},
                {"cost_nanousd": 3, "cost_source": "reported", "reported_cost_nanousd": 3},
                {"fallback_cost_nanousd": 5, "cost_source": "unpriced"},
                {"cost_source": "unpriced"},
            ]
        ),
    ),
    max_size=25,
)
OPEN_CALL = OPEN | {"started_at_ns": START_NS - 39 * HOUR_NS}


def everything(path) -> list[object]:
    """Reports by every grouping, over all time and over periods."""
    with open_reader(path) as reader:
        days = [select_in(reader, Selection(by=("day", "team"), zone=zone)) for zone in ZONES]
        by = [(), *combinations(GROUPINGS, 1), GROUPINGS]
        groups = [select_in(reader, Selection(by=names)) for names in by]
        starts = [START_NS - n * QUARTER_NS for n in range(5)]
        cuts = [select_in(reader, Selection(("team",), since_ns, START_NS)) for since_ns in starts]
    return [days, groups, cuts]


@pytest.fixture(scope="module")
def shared_ledger(new_ledger):
    """One ledger for all examples, each of which empties it."""
    return new_ledger()


@settings(deadline=None, max_examples=8)
@given(rows=ROWS, quarters=st.integers(-170, 170))
def test_pruning_changes_no_report(shared_ledger, rows, quarters):
    path = shared_ledger
    write_rows(path, [*rows, OPEN_CALL])
    before = everything(path)
    cut_ns = START_NS + quarters * QUARTER_NS
    old = sum(row["started_at_ns"] < cut_ns for row in rows)
    assert prunable(path, cut_ns).calls == old
    assert prune(path, cut_ns, LATER_NS, BY) == old
    assert everything(path) == before
    assert prune(path, cut_ns, LATER_NS, BY) == 0
    prune(path, START_NS + 60 * HOUR_NS, LATER_NS, BY)
    assert everything(path) == before
    verdict = verify(path)
    assert (verdict.calls, verdict.pruned_calls, verdict.open_calls) == (len(rows), len(rows), 1)
    assert len(verdict.wrong) == 1, "the call that is open"


def test_settled_calls_before_the_instant_are_deleted(path, fill, monkeypatch):
    monkeypatch.setattr(pruning, "BATCH_CALLS", 7)
    calls = fill(50, left_open=1)
    progress: list[int] = []
    assert prune(path, START_NS + 30 * 60 * 10**9, LATER_NS, BY, progress.append) == 30
    assert progress == [7, 14, 21, 28, 30]
    assert [find_call(path, call.id) is None for call in calls] == [True] * 30 + [False] * 21
    with contextlib.closing(open_for_reading(path)) as db:
        ((rows, count),) = db.execute("SELECT count(*), sum(calls) FROM pruned_calls")
    assert count == 30
    assert rows < 30


def test_balances_stay_equal_to_their_calls(path, fill):
    fill(20)
    prune(path, START_NS + QUARTER_NS, LATER_NS, BY)
    verdict = verify(path)
    assert (verdict.wrong, verdict.calls, verdict.pruned_calls) == ([], 20, 15)


@pytest.mark.parametrize("unit", ["nanousd", "requests", "tokens"])
async def test_a_limit_made_later_counts_pruned_calls(ledger, engine_store, make_call, make_settlement, unit):
    for place in range(4):
        call = make_call(started_at_ns=START_NS + place * QUARTER_NS)
        await engine_store.open(call)
        await engine_store.settle(make_settlement(call))
    await asyncio.to_thread(prune, ledger, START_NS + 3 * QUARTER_NS, LATER_NS, BY)

    reservation = Reservation(balance="once", period_start_ns=0, amount=0, unit=unit, scope=Scope(team="research"))
    (balance,) = await engine_store.balances([reservation])
    assert balance.carried == {"nanousd": 4 * 1_890, "requests": 4, "tokens": 4 * 21}[unit]
    assert await engine_store.burn_nanousd(reservation, START_NS, START_NS + 2 * QUARTER_NS) == 2 * 1_890
    assert (await asyncio.to_thread(verify, ledger)).wrong == []


async def test_a_service_may_write_meanwhile(path, store, make_call, make_settlement):
    for _ in range(300):
        call = make_call()
        await asyncio.gather(store.open(call))
        await store.settle(make_settlement(call))
    pruning_it = asyncio.create_task(asyncio.to_thread(prune, path, START_NS + QUARTER_NS, LATER_NS, BY))
    written = 0
    while not pruning_it.done():
        await store.open(make_call(started_at_ns=LATER_NS))
        written += 1
    assert await pruning_it == 300
    assert (await asyncio.to_thread(totals, path, by=[]))[0].open_calls == written


def test_recent_calls_and_parts_of_quarters_are_not_pruned(path, fill):
    fill(1)
    with pytest.raises(SetupError, match="last two days"):
        prune(path, LATER_NS - KEPT_NS + QUARTER_NS, LATER_NS, BY)
    with pytest.raises(SetupError, match="quarter of an hour"):
        prune(path, START_NS + 1, LATER_NS, BY)
    assert totals(path, by=[])[0].calls == 1


def test_pruning_creates_no_ledger(tmp_path):
    with pytest.raises(LedgerNotUsable, match="no ledger at"):
        prune(tmp_path / "absent.db", START_NS, LATER_NS, BY)
    assert not (tmp_path / "absent.db").exists()


def test_sums_beyond_64_bits_get_another_row():
    row = ("", 0, None, START_NS, *["x"] * 8, 1, 1, 0, 0, 0, 0, 2**62, 0)
    found = list(sums([row] * 5))
    assert [(kept[9], kept[16]) for kept in found] == [(1, 2**62), (1, 2**62), (1, 2**62), (1, 2**62), (1, 2**62)]
    assert [kept[9] for kept in sums([(*row[:-2], 2**61, 0)] * 5)] == [3, 2]
