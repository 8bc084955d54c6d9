"""Calls that are pruned leave exact sums: no report, budget or credit can tell."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC
from itertools import combinations
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmeter.errors import LedgerNotUsable, SetupError
from mcpmeter.ledger import pruning
from mcpmeter.ledger.connection import open_for_reading
from mcpmeter.ledger.pruning import KEPT_NS, QUARTER_NS, prunable, prune, sums
from mcpmeter.ledger.reports import GROUPINGS, Selection, find_call, select, totals
from mcpmeter.ledger.sqlite import SqliteStore
from mcpmeter.ledger.verify import verify
from mcpmeter.records import Charge, Claim, Scope, Usage

START_NS = 1_793_534_400_000_000_000  # 2026-11-01T12:00:00Z
LATER_NS = START_NS + 30 * 86_400 * 10**9
HOUR_NS = 3600 * 10**9
ZONES = [UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kathmandu"), ZoneInfo("America/St_Johns")]

CALLS = st.lists(
    st.tuples(
        st.fixed_dictionaries(
            {
                "started_at_ns": st.integers(START_NS - 40 * HOUR_NS, START_NS + 40 * HOUR_NS),
                "team": st.sampled_from(["a", "b"]),
                "project": st.sampled_from(["", "p"]),
                "model": st.sampled_from(["m", "n"]),
            }
        ),
        st.sampled_from(
            [
                Charge(nanousd=2**62, source="listed"),
                Charge(nanousd=3, source="reported", reported_nanousd=3),
                Charge(fallback_nanousd=5),
                Charge(),
            ]
        ),
        st.sampled_from([Usage(prompt_tokens=4, cached_read_tokens=1, source="reported"), Usage(), None]),
    ),
    max_size=25,
)


def everything(path) -> list[object]:
    """Each report that there can be, over all and over cut periods."""
    days = [select(path, Selection(by=("day", "team"), zone=zone)) for zone in ZONES]
    groups = [totals(path, by=by) for by in [(), *combinations(GROUPINGS, 1), *combinations(GROUPINGS, 2)]]
    cuts = [totals(path, by=["team"], since_ns=START_NS - n * QUARTER_NS, until_ns=START_NS) for n in range(9)]
    return [days, groups, cuts]


@settings(deadline=None, max_examples=15)
@given(calls=CALLS, quarters=st.integers(-170, 170))
def test_no_report_can_tell_what_was_pruned(calls, quarters, make_call, make_settlement, tmp_path_factory):
    path = tmp_path_factory.mktemp("pruned") / "ledger.db"

    async def write() -> None:
        store = SqliteStore(path)
        await store.start()
        for values, charge, usage in calls:
            call = make_call(**values)
            await store.open(call)
            await store.settle(make_settlement(call, charge=charge, usage=usage))
        await store.open(make_call(started_at_ns=START_NS - 39 * HOUR_NS))
        await store.close()

    asyncio.run(write())
    before = everything(path)
    cut_ns = START_NS + quarters * QUARTER_NS
    old = sum(values["started_at_ns"] < cut_ns for values, _, _ in calls)
    assert prunable(path, cut_ns).calls == old
    assert prune(path, cut_ns, LATER_NS) == old
    assert everything(path) == before
    assert prune(path, cut_ns, LATER_NS) == 0
    prune(path, START_NS + 60 * HOUR_NS, LATER_NS)
    assert everything(path) == before


def test_calls_are_gone_and_open_and_later_ones_are_not(path, fill, monkeypatch):
    monkeypatch.setattr(pruning, "AT_ONCE", 7)
    calls = fill(50, left_open=1)
    told: list[int] = []
    assert prune(path, START_NS + 30 * 60 * 10**9, LATER_NS, told.append) == 30
    assert told == [7, 14, 21, 28, 30]
    assert [find_call(path, call.id) is None for call in calls] == [True] * 30 + [False] * 21
    with contextlib.closing(open_for_reading(path)) as db:
        ((rows, count),) = db.execute("SELECT count(*), sum(calls) FROM pruned_calls")
    assert count == 30
    assert rows < 30


def test_the_balances_stay_and_are_the_sum_of_what_is_kept(path, fill):
    fill(20)
    prune(path, START_NS + QUARTER_NS, LATER_NS)
    verdict = verify(path)
    assert (verdict.wrong, verdict.calls, verdict.pruned_calls) == ([], 20, 15)


@pytest.mark.parametrize("unit", ["nanousd", "requests", "tokens"])
async def test_a_limit_that_comes_after_counts_what_was_pruned(path, make_call, make_settlement, unit):
    store = SqliteStore(path)
    await store.start()
    for place in range(4):
        call = make_call(started_at_ns=START_NS + place * QUARTER_NS)
        await store.open(call)
        await store.settle(make_settlement(call))
    await store.close()
    await asyncio.to_thread(prune, path, START_NS + 3 * QUARTER_NS, LATER_NS)

    again = SqliteStore(path)
    await again.start()
    claim = Claim(balance="once", period_start_ns=0, amount=0, unit=unit, scope=Scope(team="research"))
    (balance,) = await again.balances([claim])
    assert balance.carried == {"nanousd": 4 * 1_890, "requests": 4, "tokens": 4 * 21}[unit]
    assert await again.burn_nanousd(claim, START_NS, START_NS + 2 * QUARTER_NS) == 2 * 1_890
    await again.close()


async def test_a_service_goes_on_writing_meanwhile(path, store, make_call, make_settlement):
    for _ in range(300):
        call = make_call()
        await asyncio.gather(store.open(call))
        await store.settle(make_settlement(call))
    pruning_it = asyncio.create_task(asyncio.to_thread(prune, path, START_NS + QUARTER_NS, LATER_NS))
    written = 0
    while not pruning_it.done():
        await store.open(make_call(started_at_ns=LATER_NS))
        written += 1
    assert await pruning_it == 300
    assert (await asyncio.to_thread(totals, path, by=[]))[0].open_calls == written


def test_what_budgets_look_at_is_not_pruned(path, fill):
    fill(1)
    with pytest.raises(SetupError, match="last two days"):
        prune(path, LATER_NS - KEPT_NS + QUARTER_NS, LATER_NS)
    with pytest.raises(SetupError, match="quarter of an hour"):
        prune(path, START_NS + 1, LATER_NS)
    assert totals(path, by=[])[0].calls == 1


def test_it_never_makes_a_ledger(tmp_path):
    with pytest.raises(LedgerNotUsable, match="no ledger at"):
        prune(tmp_path / "absent.db", START_NS, LATER_NS)
    assert not (tmp_path / "absent.db").exists()


def test_sums_beyond_64_bits_are_kept_as_two_rows():
    row = ("", None, START_NS, *["x"] * 8, 1, 1, 0, 0, 0, 0, 2**62, 0)
    found = list(sums([row] * 5))
    assert [(kept[9], kept[16]) for kept in found] == [(1, 2**62), (1, 2**62), (1, 2**62), (1, 2**62), (1, 2**62)]
    assert [kept[9] for kept in sums([(*row[:-2], 2**61, 0)] * 5)] == [3, 2]
