"""Histories of budgets, and top-ups beside a running service, on both engines."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from tests.acting import BY
from tests.ledger.raw_rows import OPEN, write_rows

from mcpmeter.budgets.budget import Budget
from mcpmeter.budgets.period import Period
from mcpmeter.errors import LedgerNotUsable, SetupError
from mcpmeter.ledger.balances import INSERT_BALANCE_SQL
from mcpmeter.ledger.queries.audit import AuditQuery, read_audit
from mcpmeter.ledger.queries.budget_history import BudgetHistory, add_top_up, read_histories
from mcpmeter.ledger.queries.reader import open_reader, open_writer
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.ledger.store import InsufficientBudget
from mcpmeter.records import Balance, Reservation, Scope, TopUp

NOW = 1_795_777_200_000_000_000  # 2026-11-27
MONTH = Period("month")
START, END = MONTH.bounds(NOW)
BUDGET = Budget("search", Scope(team="search"), 100, MONTH)
PREPAID = Budget("credit", Scope(team="search"), 10, Period("once", start_ns=START))
RESERVATION = BUDGET.reservation(0, NOW)


def write_calls(ledger, *calls: dict[str, object]) -> None:
    write_rows(ledger, [{"team": "search", "started_at_ns": NOW - 1, **call} for call in calls])


def write_balance(ledger, reservation: Reservation = RESERVATION, **changes: int) -> Balance:
    values = {"spent": 7, "reserved": 3, "credit": 0, "carried": 0, **changes}
    kept = Balance(
        balance=reservation.balance,
        unit="nanousd",
        **{"period_start_ns": reservation.period_start_ns, "period_end_ns": reservation.period_end_ns, **values},
    )
    with open_writer(ledger) as writer:
        writer.execute(INSERT_BALANCE_SQL, msgspec.structs.astuple(kept))
    return kept


def history(ledger, reservation: Reservation = RESERVATION, since_ns: int = START) -> BudgetHistory:
    (found,) = read_histories(ledger, [(reservation, since_ns)], NOW)
    return found


def top_up(amount: int, number: int = 1, budget: Budget = PREPAID) -> TopUp:
    return TopUp(id=f"top_{number}", balance=budget.balance, amount_nanousd=amount, at_ns=number, note=f"{number}")


def test_a_stored_balance_comes_with_the_periods_before_it(ledger):
    present = write_balance(ledger)
    before = write_balance(ledger, spent=50, period_start_ns=START - 10, period_end_ns=START)
    assert history(ledger).balance == present
    assert history(ledger).periods == [present, before]


def test_a_missing_balance_is_computed_from_its_scopes_calls(ledger):
    write_calls(
        ledger,
        {"cost_nanousd": 11, "started_at_ns": START},
        {"cost_nanousd": 13, "started_at_ns": START - 1},
        {"cost_nanousd": 17, "team": "support"},
        {"fallback_cost_nanousd": 19, "cost_source": "unpriced"},
        OPEN | {"reserved_nanousd": 40},
    )
    found = history(ledger)
    assert (found.balance.spent, found.balance.reserved, found.balance.credit) == (11 + 19, 40, 0)
    assert found.periods == []


def test_burn_is_what_the_scope_spent_since_an_instant(ledger):
    write_calls(ledger, {"cost_nanousd": 11, "started_at_ns": NOW - 100}, {"cost_nanousd": 2**62})
    assert history(ledger, since_ns=NOW - 99).burned_nanousd == 2**62
    assert history(ledger, since_ns=NOW - 100).burned_nanousd == 2**62 + 11


def test_every_top_up_is_a_record_and_changes_the_credit(ledger):
    reservation = PREPAID.reservation(0, NOW)
    write_balance(ledger, reservation)
    assert [
        add_top_up(ledger, top_up(amount, number), budget="b", by=BY) for number, amount in ((1, 50), (2, -20))
    ] == [50, 30]
    kept = read_audit(ledger, AuditQuery()).entries
    assert {(row.action, row.subject, row.actor) for row in kept} == {("budget.top_up", "b", BY.name)}
    credit = sorted(json.loads(row.change)["credit_usd"] for row in kept)
    assert credit == [["0.00", "0.00000005"], ["0.00000005", "0.00000003"]]
    found = history(ledger, reservation)
    assert found.balance.credit == 30
    assert found.top_ups == [top_up(50), top_up(-20, 2)]


def test_a_top_up_before_the_first_call_counts_too(ledger):
    write_calls(ledger)
    add_top_up(ledger, top_up(50), budget="b", by=BY)
    found = history(ledger, PREPAID.reservation(0, NOW))
    assert (found.balance.credit, found.balance.spent) == (50, 0)


def test_the_same_top_up_twice_is_refused_and_counts_once(ledger):
    reservation = PREPAID.reservation(0, NOW)
    write_balance(ledger, reservation)
    add_top_up(ledger, top_up(50), budget="b", by=BY)
    with pytest.raises(LedgerNotUsable):
        add_top_up(ledger, top_up(50), budget="b", by=BY)
    assert history(ledger, reservation).balance.credit == 50


def test_credit_beyond_64_bits_is_refused(ledger):
    write_calls(ledger)
    add_top_up(ledger, top_up(2**62), budget="b", by=BY)
    with pytest.raises(SetupError, match="9 billion"):
        add_top_up(ledger, top_up(2**62, 2), budget="b", by=BY)
    with open_reader(ledger) as reader:
        assert list(reader.rows("SELECT count(*) FROM top_ups")) == [(1,)]


def test_a_top_up_creates_no_ledger(tmp_path: Path):
    with pytest.raises(LedgerNotUsable):
        add_top_up(tmp_path / "slip.db", top_up(50), budget="b", by=BY)
    assert list(tmp_path.iterdir()) == []


async def test_a_running_service_counts_a_top_up_at_its_next_call(tmp_path: Path, make_call, make_settlement):
    path = tmp_path / "ledger.db"
    store = SqliteStore(path)
    await store.start()
    call = make_call(team="search", reservations=(PREPAID.reservation(40, NOW),))
    with pytest.raises(InsufficientBudget):
        await store.open(call)
    add_top_up(path, top_up(30), budget="b", by=BY)
    await store.open(call)
    await store.settle(make_settlement(call, nanousd=25))
    found = history(path, PREPAID.reservation(0, NOW))
    assert (found.balance.credit, found.balance.spent) == (30, 25)
    await store.close()
