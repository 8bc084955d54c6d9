"""Sums are exact and equal by every grouping."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from datetime import UTC, datetime
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.ledger.raw_rows import OPEN, write_rows

from mcpmeter.ledger.queries.selection import GROUPINGS, Selection
from mcpmeter.ledger.queries.totals import Total, find_call, select_in, totals
from mcpmeter.ledger.sqlite.connection import open_for_reading, open_for_writing
from mcpmeter.ledger.sqlite.store import OPEN_ROWS_SQL
from mcpmeter.records import Charge, LedgerRow, Usage

DAY_NS = 86_400 * 10**9
SUMS = tuple(name for name in Total.__struct_fields__ if name != "group")

COUNTS = st.integers(0, 10**6) | st.sampled_from([0, 2**32 - 1, 2**32, 2**63 - 1])
SETTLED_ROWS = st.fixed_dictionaries(
    {
        "outcome": st.sampled_from(["ok", "error", "partial", "recovered"]),
        "token_source": st.sampled_from(["", "reported", "estimated", "partial", "missing"]),
        "prompt_tokens": COUNTS,
        "completion_tokens": COUNTS,
        "cached_read_tokens": COUNTS,
        "reported_cost_nanousd": st.none() | COUNTS,
    }
)
CHARGES = st.fixed_dictionaries({"cost_nanousd": COUNTS, "cost_source": st.sampled_from(["reported", "listed"])})
UNPRICED = st.fixed_dictionaries({"fallback_cost_nanousd": COUNTS, "cost_source": st.just("unpriced")})
OPEN_ROWS = st.just(OPEN)
ROWS = st.tuples(
    st.builds(lambda row, charge: row | charge, SETTLED_ROWS, CHARGES | UNPRICED) | OPEN_ROWS,
    st.fixed_dictionaries(
        {
            "started_at_ns": st.integers(0, 4 * DAY_NS),
            "team": st.sampled_from(["research", "search", ""]),
            "project": st.sampled_from(["ranking", ""]),
            "model": st.sampled_from(["gpt-4.1", "deepseek-v3.2", "É", ""]),
            "provider": st.sampled_from(["holysheep", ""]),
            "key_id": st.sampled_from(["key_1", "key_2"]),
        }
    ),
)


def summed(rows: list[LedgerRow]) -> dict[str, int]:
    """The expected sums, in plain Python."""
    settled = [row for row in rows if row.state == "settled"]
    sources = Counter(row.token_source for row in settled)
    reported = [row.reported_cost_nanousd for row in settled if row.reported_cost_nanousd is not None]
    figures = {name: sum(getattr(row, name) for row in settled) for name in SUMS if name.endswith("_tokens")}
    return figures | {
        "calls": len(settled),
        "open_calls": len(rows) - len(settled),
        "cost_nanousd": sum(row.cost_nanousd for row in settled),
        "unpriced_calls": sum(row.cost_source == "unpriced" for row in settled),
        "reported_cost_nanousd": sum(reported),
        "reported_cost_calls": len(reported),
        "listed_cost_nanousd": sum(row.cost_nanousd for row in settled if row.cost_source == "listed"),
        "fallback_calls": sum(row.fallback_cost_nanousd > 0 for row in settled),
        "fallback_cost_nanousd": sum(row.fallback_cost_nanousd for row in settled),
        "unpriced_item_calls": 0,
        "unpriced_items": 0,
        **{f"{source}_calls": sources[source] for source in ("reported", "estimated", "partial", "missing")},
    }


@pytest.fixture(scope="module")
def shared_ledger(new_ledger):
    """One ledger for all examples, each of which empties it."""
    return new_ledger()


@settings(deadline=None, max_examples=20)
@given(rows=st.lists(ROWS, min_size=1, max_size=30))
def test_the_totals_by_every_grouping_are_equal_and_exact(shared_ledger, rows):
    path = shared_ledger
    expected = summed(write_rows(path, [a | b for a, b in rows]))
    for by in [(), *combinations(GROUPINGS, 1), *combinations(GROUPINGS, 2), GROUPINGS]:
        found = totals(path, by=by)
        assert {name: sum(getattr(total, name) for total in found) for name in SUMS} == expected
        assert len({total.group for total in found}) == len(found)


async def test_groups_have_the_given_order_and_days_are_utc(store, path, make_call, make_settlement):
    last_second = int(datetime(2026, 11, 1, 23, 59, 59, tzinfo=UTC).timestamp()) * 10**9
    for started_at_ns, team in ((last_second, "b"), (last_second + 10**9, "b"), (last_second, "a")):
        call = make_call(started_at_ns=started_at_ns, team=team)
        await store.open(call)
        await store.settle(make_settlement(call))
    assert [total.group for total in totals(path, by=["day", "team"])] == [
        ("2026-11-01", "a"),
        ("2026-11-01", "b"),
        ("2026-11-02", "b"),
    ]


async def test_unpriced_and_open_calls_are_counted_and_cost_nothing(store, path, make_call, make_settlement):
    unpriced, unfinished = make_call(), make_call()
    await asyncio.gather(store.open(unpriced), store.open(unfinished))
    await store.settle(make_settlement(unpriced, charge=Charge(), usage=Usage(prompt_tokens=5, source="estimated")))
    [total] = totals(path, by=[])
    assert (total.calls, total.open_calls, total.unpriced_calls, total.estimated_calls) == (1, 1, 1, 1)
    assert (total.prompt_tokens, total.cost_nanousd) == (5, 0)


def test_an_empty_ledger_has_no_totals(ledger):
    write_rows(ledger, [])
    assert totals(ledger, by=[]) == []
    assert totals(ledger, by=["team"]) == []
    assert find_call(ledger, "call_1") is None


def test_a_grouping_that_does_not_exist_is_refused(ledger):
    write_rows(ledger, [])
    with pytest.raises(ValueError, match="no grouping"):
        totals(ledger, by=["team; DROP TABLE calls"])


def test_a_period_is_read_by_index(path):
    open_for_writing(path).close()
    plans = []

    class Explaining:
        def rows(self, sql: str, values: tuple[object, ...]) -> list[tuple[object, ...]]:
            with contextlib.closing(open_for_reading(path)) as db:
                plans.extend(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", values))
            return []

    select_in(Explaining(), Selection(by=("team",), since_ns=1))
    assert "SEARCH calls USING INDEX calls_by_start (started_at_ns>? AND started_at_ns<?)" in plans
    assert "SEARCH pruned_calls USING INDEX pruned_calls_by_start (started_at_ns>? AND started_at_ns<?)" in plans


def test_open_rows_are_read_by_index(path):
    with contextlib.closing(open_for_writing(path)) as db:
        steps = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {OPEN_ROWS_SQL}")]
    assert "SCAN calls USING INDEX calls_open" in steps
    assert not [step for step in steps if step.startswith("SCAN") and "INDEX" not in step]
