"""The sums of a report by every grouping are the same, and those of plain Python; in full over 20,000 ledgers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcpmeter.ledger.maintenance.prune import COLUMNS, QUARTER_NS, sums
from mcpmeter.ledger.queries.totals import GROUPINGS, Selection, select_in
from mcpmeter.ledger.sqlite.migrations import migrate
from mcpmeter.ledger.sqlite.reader import SqliteReader

EXAMPLES = 20_000 if os.environ.get("MCPMETER_TRIALS") == "full" else 60
HOUR_NS = 3600 * 10**9
START_NS = 1_792_800_000_000_000_000  # 2026-10-24T00:00:00Z, a day before Berlin's clocks go back
ZONES = ["UTC", "Europe/Berlin", "Asia/Kathmandu", "America/St_Johns", "Pacific/Apia"]
AMOUNTS = st.integers(0, 10**9) | st.sampled_from([2**32 - 1, 2**32, 2**63 - 1])
NAMES = ("started_at_ns", "team", "project", "key_id", "provider", "model", "outcome", "token_source", "cost_source")
CALLS = st.lists(
    st.tuples(
        st.integers(START_NS, START_NS + 72 * HOUR_NS),
        *(st.sampled_from(["a", "b", ""]) for _ in range(5)),
        st.sampled_from(["ok", "error", "partial", "recovered"]),
        st.sampled_from(["reported", "estimated", "partial", "missing", ""]),
        st.sampled_from(["listed", "reported"]),
        AMOUNTS,
        AMOUNTS,
        st.none() | AMOUNTS,
        st.booleans(),
    ),
    max_size=12,
)
INSERT = (
    f"INSERT INTO calls (id, state, ended_at_ns, endpoint, method, parent_id, trace_id, operation, stream,"
    f" prompt_tokens_estimate, {', '.join(NAMES)}, cost_nanousd, prompt_tokens, reported_cost_nanousd)"
    f" VALUES (?, 'settled', 1, '', '', '', '', '', 0, 0, {', '.join('?' * 12)})"
)
INSERT_PRUNED = f"INSERT INTO pruned_calls ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"


@pytest.fixture(scope="module")
def db() -> Iterator[apsw.Connection]:
    """A ledger in memory, emptied by each example."""
    db = apsw.Connection(":memory:")
    migrate(db, Path(":memory:"))
    yield db
    db.close()


def write(db: apsw.Connection, calls: list[tuple[Any, ...]]) -> None:
    db.execute("DELETE FROM calls; DELETE FROM pruned_calls")
    for place, (*names, cost, tokens, reported, pruned) in enumerate(calls):
        if pruned:
            kept = ("", reported, names[0], *names[1:], tokens, 0, 0, 0, 0, 0, cost, 0)
            db.executemany(INSERT_PRUNED, list(sums([kept])))
        else:
            db.execute(INSERT, (f"call_{place}", *names, cost, tokens, reported))


@pytest.fixture(scope="module")
def tried(trials) -> Iterator[Counter[str]]:
    counts: Counter[str] = Counter()
    yield counts
    what = (
        "Ledgers that Hypothesis makes, with calls pruned and not, in zones from Apia to Kiritimati: the sums by team, "
        "project, model, provider, key, day, outcome and by all of them are the same whole numbers, and two periods "
        "that touch sum up to the whole."
    )
    differ = counts["ledgers"] - counts.pop("held", 0)
    trials.record("Totals by every grouping", what, {**counts, "ledgers whose sums differ": differ})


@pytest.mark.trial
@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(calls=CALLS, zone=st.sampled_from(ZONES), cut=st.integers(0, 72 * 4))
def test_sums_by_every_grouping_are_equal_exact_and_whole_numbers(db, tried, calls, zone, cut):
    tried["ledgers"] += 1
    tried["calls in them"] += len(calls)
    write(db, calls)
    reader = SqliteReader(db, Path(":memory:"))
    expected = (len(calls), sum(call[9] for call in calls), sum(call[10] for call in calls))
    for by in [*((name,) for name in GROUPINGS), GROUPINGS]:
        found = select_in(reader, Selection(by=by, zone=ZoneInfo(zone)))
        figures = [(total.calls, total.cost_nanousd, total.prompt_tokens) for total in found]
        assert tuple(map(sum, zip(*figures, strict=True))) == (expected if calls else ())
        assert all(type(figure) is int for row in figures for figure in row)
    # What was pruned is of the quarter of an hour in which it started, which no zone's midnight cuts.
    days = Counter(
        datetime.fromtimestamp(call[0] // QUARTER_NS * 900, ZoneInfo(zone)).date().isoformat() for call in calls
    )
    by_day = select_in(reader, Selection(by=("day",), zone=ZoneInfo(zone)))
    assert {total.group[0]: total.calls for total in by_day} == days
    edge = START_NS + cut * QUARTER_NS
    halves = [Selection(until_ns=edge), Selection(since_ns=edge)]
    assert sum(total.cost_nanousd for half in halves for total in select_in(reader, half)) == expected[1]
    tried["held"] += 1
