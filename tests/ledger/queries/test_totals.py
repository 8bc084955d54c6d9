"""Sums are exact, equal by every grouping, and readable while a service writes."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime
from itertools import combinations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmeter.errors import LedgerNotUsable
from mcpmeter.ledger.queries import totals as reports
from mcpmeter.ledger.queries.reader import open_writer
from mcpmeter.ledger.queries.totals import GROUPINGS, Total, find_call, totals
from mcpmeter.ledger.rows import ROW_COLUMNS
from mcpmeter.ledger.sqlite.store import OPEN_ROWS_SQL, SqliteStore
from mcpmeter.records import Charge, LedgerRow, Usage

DAY_NS = 86_400 * 10**9
SUMS = tuple(name for name in Total.__struct_fields__ if name != "group")

COUNTS = st.integers(0, 10**6) | st.sampled_from([0, 2**32 - 1, 2**32, 2**63 - 1])
SETTLED_ROWS = st.fixed_dictionaries(
    {
        "state": st.just("settled"),
        "ended_at_ns": st.just(1),
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
OPEN_ROWS = st.just({"state": "open", "ended_at_ns": None, "outcome": ""})
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


def write(ledger, rows) -> list[LedgerRow]:
    """Rows put into the ledger as they are, past the store."""
    numbers = {name for name, kind in LedgerRow.__annotations__.items() if kind in ("int", "bool", "int | None")}
    defaults = {name: 0 if name in numbers else "" for name in ROW_COLUMNS} | {"reported_cost_nanousd": None}
    records = [{**defaults, "id": f"call_{place}", **a, **b} for place, (a, b) in enumerate(rows)]
    insert = f"INSERT INTO calls ({', '.join(ROW_COLUMNS)}) VALUES ({', '.join('?' * len(ROW_COLUMNS))})"
    with open_writer(ledger) as writer:
        writer.execute("DELETE FROM calls")
        for record in records:
            writer.execute(insert, [record[name] for name in ROW_COLUMNS])
    return [msgspec.convert(record, LedgerRow, strict=False) for record in records]


def summed(rows: list[LedgerRow]) -> dict[str, int]:
    """The same sums by plain Python."""
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
        **{f"{source}_calls": sources[source] for source in ("reported", "estimated", "partial", "missing")},
    }


@pytest.fixture(scope="module")
def shared_ledger(new_ledger):
    """One for all examples of a property, which empty it."""
    return new_ledger()


@settings(deadline=None, max_examples=20)
@given(rows=st.lists(ROWS, min_size=1, max_size=30))
def test_the_totals_by_every_grouping_are_equal_and_exact(shared_ledger, rows):
    path = shared_ledger
    expected = summed(write(path, rows))
    for by in [(), *combinations(GROUPINGS, 1), *combinations(GROUPINGS, 2), GROUPINGS]:
        found = totals(path, by=by)
        assert {name: sum(getattr(total, name) for total in found) for name in SUMS} == expected
        assert len({total.group for total in found}) == len(found)


@settings(deadline=None, max_examples=20)
@given(rows=st.lists(ROWS, min_size=1, max_size=20), cut=st.integers(0, 4 * DAY_NS))
def test_two_periods_that_touch_sum_up_to_the_whole(shared_ledger, rows, cut):
    path = shared_ledger
    expected = summed(write(path, rows))
    parts = [*totals(path, by=["team"], until_ns=cut), *totals(path, by=["team"], since_ns=cut)]
    assert {name: sum(getattr(total, name) for total in parts) for name in SUMS} == expected


async def test_groups_are_named_in_the_order_asked_for_and_days_are_utc(store, path, make_call, make_settlement):
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


async def test_an_unpriced_call_is_counted_as_such_and_an_open_one_adds_no_cost(
    store, path, make_call, make_settlement
):
    unpriced, unfinished = make_call(), make_call()
    await asyncio.gather(store.open(unpriced), store.open(unfinished))
    await store.settle(make_settlement(unpriced, charge=Charge(), usage=Usage(prompt_tokens=5, source="estimated")))
    [total] = totals(path, by=[])
    assert (total.calls, total.open_calls, total.unpriced_calls, total.estimated_calls) == (1, 1, 1, 1)
    assert (total.prompt_tokens, total.cost_nanousd) == (5, 0)


async def test_a_report_can_be_read_while_rows_are_being_written(path, make_call, make_settlement):
    store = SqliteStore(path)
    await store.start()

    async def write_some() -> None:
        for _ in range(50):
            call = make_call()
            await store.open(call)
            await store.settle(make_settlement(call))

    writing = asyncio.gather(*(write_some() for _ in range(8)))
    seen = [0]
    while not writing.done():
        [total] = await asyncio.to_thread(totals, path, by=[]) or [None]
        if total is not None:
            assert total.cost_nanousd == total.calls * 1_890
            seen.append(total.calls)
    await writing
    assert seen == sorted(seen)
    assert totals(path, by=[])[0].calls == 400
    await store.close()


def test_an_empty_ledger_has_no_totals(ledger):
    write(ledger, [])
    assert totals(ledger, by=[]) == []
    assert totals(ledger, by=["team"]) == []
    assert find_call(ledger, "call_1") is None


def test_a_grouping_that_does_not_exist_is_refused(ledger):
    write(ledger, [])
    with pytest.raises(ValueError, match="no grouping"):
        totals(ledger, by=["team; DROP TABLE calls"])


def test_a_missing_ledger_is_named_with_what_to_do(path):
    with pytest.raises(LedgerNotUsable, match=r"no ledger at .* --ledger"):
        totals(path, by=["team"])


async def test_a_period_and_open_rows_are_found_by_index_and_not_by_reading_all_rows(store):
    def plan(db, sql: str, values: tuple[object, ...]) -> list[str]:
        return [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", values)]

    selection = reports.Selection(by=("team",), since_ns=1)
    sql, values = reports._statement(selection, reports.stretches(UTC, 1, 2**63 - 1))
    period = await store._run(lambda db: plan(db, sql, values))
    assert "SEARCH calls USING INDEX calls_by_start (started_at_ns>? AND started_at_ns<?)" in period
    assert "SEARCH pruned_calls USING INDEX pruned_calls_by_start (started_at_ns>? AND started_at_ns<?)" in period
    left = await store._run(lambda db: plan(db, OPEN_ROWS_SQL, ()))
    assert left == ["SCAN calls USING INDEX calls_open"]
