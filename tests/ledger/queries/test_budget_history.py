"""What commands read of budgets, and top-ups beside a running service; on both engines."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mcpmeter.budgets.budget import Budget
from mcpmeter.budgets.period import Period
from mcpmeter.errors import LedgerNotUsable, SetupError
from mcpmeter.ledger.maintenance.prune import prune
from mcpmeter.ledger.queries.budget_history import BudgetHistory, add_top_up, read_histories
from mcpmeter.ledger.queries.reader import open_reader, open_writer
from mcpmeter.ledger.rows import ROW_COLUMNS
from mcpmeter.ledger.sqlite.store import SqliteStore
from mcpmeter.ledger.store import InsufficientBudget
from mcpmeter.records import Balance, LedgerRow, Reservation, Scope, TopUp

NOW = 1_795_777_200_000_000_000  # 2026-11-27
MONTH = Period("month")
START, END = MONTH.bounds(NOW)
BUDGET = Budget("search", Scope(team="search"), 100, MONTH)
PREPAID = Budget("credit", Scope(team="search"), 10, Period("once", start_ns=START))
CLAIM = BUDGET.claim(0, NOW)


def write_calls(ledger, *calls: dict[str, object]) -> None:
    numbers = {name for name, kind in LedgerRow.__annotations__.items() if kind in ("int", "bool", "int | None")}
    defaults = {name: 0 if name in numbers else "" for name in ROW_COLUMNS} | {"reported_cost_nanousd": None}
    settled = {"state": "settled", "ended_at_ns": 1, "outcome": "ok", "cost_source": "listed", "team": "search"}
    insert = f"INSERT INTO calls ({', '.join(ROW_COLUMNS)}) VALUES ({', '.join('?' * len(ROW_COLUMNS))})"
    with open_writer(ledger) as writer:
        for place, call in enumerate(calls):
            record = {**defaults, **settled, "id": f"call_{place}", "started_at_ns": NOW - 1, **call}
            writer.execute(insert, [record[name] for name in ROW_COLUMNS])


def write_balance(ledger, claim: Reservation = CLAIM, **changes: int) -> Balance:
    values = {"spent": 7, "reserved": 3, "credit": 0, "carried": 0, **changes}
    kept = Balance(
        balance=claim.balance,
        unit="nanousd",
        **{"period_start_ns": claim.period_start_ns, "period_end_ns": claim.period_end_ns, **values},
    )
    names = Balance.__struct_fields__
    with open_writer(ledger) as writer:
        writer.execute(
            f"INSERT INTO balances ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
            msgspec.structs.astuple(kept),
        )
    return kept


def standing(ledger, claim: Reservation = CLAIM, since_ns: int = START) -> BudgetHistory:
    (found,) = read_histories(ledger, [(claim, since_ns)], NOW)
    return found


def top_up(amount: int, number: int = 1, budget: Budget = PREPAID) -> TopUp:
    return TopUp(id=f"top_{number}", balance=budget.balance, amount_nanousd=amount, at_ns=number, note=f"{number}")


def test_a_balance_that_is_kept_is_told_with_the_periods_before_it(ledger):
    present = write_balance(ledger)
    before = write_balance(ledger, spent=50, period_start_ns=START - 10, period_end_ns=START)
    assert standing(ledger).balance == present
    assert standing(ledger).periods == [present, before]


def test_a_balance_that_no_call_has_touched_is_what_the_calls_of_its_scope_make_of_it(ledger):
    open_call = {"state": "open", "ended_at_ns": None, "outcome": "", "cost_source": "", "reserved_nanousd": 40}
    write_calls(
        ledger,
        {"cost_nanousd": 11, "started_at_ns": START},
        {"cost_nanousd": 13, "started_at_ns": START - 1},
        {"cost_nanousd": 17, "team": "support"},
        {"fallback_cost_nanousd": 19, "cost_source": "unpriced"},
        open_call,
    )
    found = standing(ledger)
    assert (found.balance.spent, found.balance.reserved, found.balance.credit) == (11 + 19, 40, 0)
    assert found.periods == []


def test_calls_that_were_pruned_count_as_before(ledger):
    write_calls(ledger, {"cost_nanousd": 11, "started_at_ns": START}, {"cost_nanousd": 13})
    before = standing(ledger)
    assert prune(ledger, START + 900 * 10**9, NOW) == 1
    with open_reader(ledger) as reader:
        assert list(reader.rows("SELECT count(*) FROM calls")) == [(1,)]
    assert standing(ledger) == before
    assert before.balance.spent == 24


def test_burn_is_what_the_scope_took_since_the_instant_asked_for(ledger):
    write_calls(ledger, {"cost_nanousd": 11, "started_at_ns": NOW - 100}, {"cost_nanousd": 2**62})
    assert standing(ledger, since_ns=NOW - 99).burned_nanousd == 2**62
    assert standing(ledger, since_ns=NOW - 100).burned_nanousd == 2**62 + 11


def test_every_top_up_is_a_record_and_raises_the_credit_of_a_balance_that_is_kept(ledger):
    claim = PREPAID.claim(0, NOW)
    write_balance(ledger, claim)
    assert [add_top_up(ledger, top_up(amount, number)) for number, amount in ((1, 50), (2, -20))] == [50, 30]
    found = standing(ledger, claim)
    assert found.balance.credit == 30
    assert found.top_ups == [top_up(50), top_up(-20, 2)]


def test_a_top_up_before_the_first_call_counts_too(ledger):
    write_calls(ledger)
    add_top_up(ledger, top_up(50))
    found = standing(ledger, PREPAID.claim(0, NOW))
    assert (found.balance.credit, found.balance.spent) == (50, 0)


def test_the_same_record_twice_is_refused_and_counts_once(ledger):
    claim = PREPAID.claim(0, NOW)
    write_balance(ledger, claim)
    add_top_up(ledger, top_up(50))
    with pytest.raises(LedgerNotUsable):
        add_top_up(ledger, top_up(50))
    assert standing(ledger, claim).balance.credit == 50


def test_credit_beyond_64_bits_is_refused_and_leaves_nothing(ledger):
    write_calls(ledger)
    add_top_up(ledger, top_up(2**62))
    with pytest.raises(SetupError, match="9 billion"):
        add_top_up(ledger, top_up(2**62, 2))
    with open_reader(ledger) as reader:
        assert list(reader.rows("SELECT count(*) FROM top_ups")) == [(1,)]


def test_no_ledger_is_made_for_a_top_up(tmp_path: Path):
    with pytest.raises(LedgerNotUsable):
        add_top_up(tmp_path / "slip.db", top_up(50))
    assert list(tmp_path.iterdir()) == []


async def test_a_running_service_takes_a_top_up_with_its_next_call(tmp_path: Path, make_call, make_settlement):
    path = tmp_path / "ledger.db"
    store = SqliteStore(path)
    await store.start()
    call = make_call(team="search", reservations=(PREPAID.claim(40, NOW),))
    with pytest.raises(InsufficientBudget):
        await store.open(call)
    add_top_up(path, top_up(30))
    await store.open(call)
    await store.settle(make_settlement(call, nanousd=25))
    found = standing(path, PREPAID.claim(0, NOW))
    assert (found.balance.credit, found.balance.spent) == (30, 25)
    await store.close()
