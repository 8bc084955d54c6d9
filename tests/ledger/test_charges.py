"""Charges line by line, on both engines: kept once, only for calls that have lines, and equal in every view."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.acting import BY
from tests.ledger.conftest import BUDGET, STARTED_AT_NS
from tests.ledger.raw_rows import write_rows

from mcpmeter.items import ITEMS
from mcpmeter.ledger.charges import MAX_LINES, charge_values, compact
from mcpmeter.ledger.maintenance.prune import prune
from mcpmeter.ledger.maintenance.verify import verify
from mcpmeter.ledger.queries.charge_lines import sums_by_item
from mcpmeter.ledger.queries.reader import open_reader, open_writer
from mcpmeter.ledger.queries.selection import GROUPINGS, Selection
from mcpmeter.ledger.queries.totals import find_call, find_charge, select_in
from mcpmeter.ledger.rows import has_charge_row
from mcpmeter.ledger.store import SettlementConflict
from mcpmeter.records import Charge, ChargeLine, Conditions, Settlement, Usage, UsageItem
from mcpmeter.usage import Span
from mcpmeter.usage.items import item_report, unpriced_in

LIST = "anthropic 2026-11-30"
LINES = (
    ChargeLine("prompt", 1_000, 3_000_000, "3.00/Mtok", LIST, "listed"),
    ChargeLine("cache_write_1h", 500, 3_000_000, "6.00/Mtok", LIST, "listed"),
    ChargeLine("completion", 40, 600_000, "15.00/Mtok", LIST, "listed"),
    ChargeLine("web_search", 2, 20_000_000, "10/1000", LIST, "listed"),
    ChargeLine("prompt", 300, 1_500_000, "5.00/Mtok", LIST, "listed", "advisor-1"),
    ChargeLine("completion", 10, 250_000, "25.00/Mtok", LIST, "listed", "advisor-1"),
    ChargeLine("code_session", 1, None),
    ChargeLine("usage.smell_tokens", 3, None),
)
COST = sum(line.nanousd or 0 for line in LINES)
UNKNOWN = (UsageItem("usage.smell_tokens", 3),)
USAGE = Usage(
    prompt_tokens=1_800,
    completion_tokens=50,
    cache_write_tokens=500,
    source="reported",
    items=tuple(UsageItem(line.item, line.quantity, line.model) for line in LINES[:7]),
    unknown=UNKNOWN,
    conditions=Conditions(tier="priority", region="us"),
)
CHARGE = Charge(
    nanousd=COST, source="listed", price_list=LIST, listed_nanousd=COST, fallback_nanousd=77, lines=LINES
)  # fmt: skip


@pytest.fixture
async def store(engine_store):
    return engine_store


async def settled(store, call, settlement):
    await store.open(call)
    await store.settle(settlement)


def charges(ledger) -> int:
    with open_reader(ledger) as reader:
        ((number,),) = reader.rows("SELECT count(*) FROM charges")
    return int(number)


async def test_a_charge_keeps_its_lines_unknown_items_and_conditions(store, ledger, make_call, make_settlement):
    call = make_call(model="opus", reservations=(BUDGET,), reserved_nanousd=5_000)
    settlement = make_settlement(call, usage=USAGE, charge=CHARGE, response_model="opus-2026")
    await store.open(call)
    for _ in range(3):
        await store.settle(settlement)
    kept = find_charge(ledger, call.id)
    assert (kept.lines, kept.unknown, kept.conditions, kept.fallback_nanousd) == (
        LINES[:7], UNKNOWN, USAGE.conditions, 77
    )  # fmt: skip
    row = find_call(ledger, call.id)
    assert (row.cost_nanousd, row.fallback_cost_nanousd) == (COST, 0)
    [balance] = await store.balances([BUDGET])
    assert (balance.spent, balance.reserved) == (COST + 77, 0)
    assert await store.burn_nanousd(BUDGET, BUDGET.period_start_ns, BUDGET.period_end_ns) == COST + 77


@pytest.mark.parametrize(
    "charge",
    [
        Charge(nanousd=9, source="listed", completion_nanousd=4),
        Charge(nanousd=9, source="reported", lines=(ChargeLine("reported_cost", 1, 9, source="reported"),)),
        Charge(fallback_nanousd=5, unpriced_reason="unknown_model"),
        None,
    ],
)
async def test_a_plain_call_has_no_row_beside_its_own(store, ledger, make_call, make_settlement, charge):
    call = make_call()
    await settled(store, call, make_settlement(call, charge=charge, usage=Usage(prompt_tokens=5, source="reported")))
    assert charges(ledger) == 0
    assert find_charge(ledger, call.id) is None


async def test_other_lines_of_the_same_cost_are_a_conflict(store, ledger, make_call, make_settlement):
    call = make_call()
    await settled(store, call, make_settlement(call, usage=USAGE, charge=CHARGE))
    moved = (ChargeLine("prompt", 1, COST, source="listed"), *LINES[6:])
    for other in (msgspec.structs.replace(CHARGE, lines=moved), msgspec.structs.replace(CHARGE, lines=())):
        with pytest.raises(SettlementConflict, match="with other figures"):
            await store.settle(make_settlement(call, usage=USAGE, charge=other))
    assert find_charge(ledger, call.id).lines == LINES[:7]


@pytest.mark.parametrize("estimate", [(), (ChargeLine("prompt", 1, 90, source="listed"), ChargeLine("request", 1, 10))])
async def test_true_lines_replace_those_of_recovery(store, ledger, make_call, make_settlement, estimate):
    call = make_call(reservations=(BUDGET,), reserved_nanousd=5_000)
    recovered = Charge(nanousd=100, source="listed", lines=estimate)
    await settled(store, call, make_settlement(call, outcome="recovered", charge=recovered))
    await store.settle(make_settlement(call, usage=USAGE, charge=CHARGE))
    assert find_charge(ledger, call.id).lines == LINES[:7]
    [balance] = await store.balances([BUDGET])
    assert balance.spent == COST + 77
    assert verify(ledger).wrong == []


async def test_a_batch_of_plain_and_itemised_calls_is_written_together(store, ledger, make_call, make_settlement):
    calls = [make_call() for _ in range(20)]
    await asyncio.gather(*map(store.open, calls))
    itemised = {"usage": USAGE, "charge": CHARGE}
    await asyncio.gather(
        *(store.settle(make_settlement(call, **(itemised if n % 4 == 0 else {}))) for n, call in enumerate(calls))
    )
    assert charges(ledger) == 5
    assert verify(ledger).wrong == []


def test_a_settlement_keeps_its_lines_while_it_waits_for_the_ledger(make_call, make_settlement):
    settlement = make_settlement(make_call(), usage=USAGE, charge=CHARGE)
    waiting = msgspec.msgpack.decode(msgspec.msgpack.encode(settlement), type=Settlement)
    assert waiting == settlement
    assert charge_values(waiting) == charge_values(settlement)
    plain = make_settlement(make_call())
    assert not has_charge_row(msgspec.msgpack.decode(msgspec.msgpack.encode(plain), type=Settlement))


def test_many_lines_become_a_bounded_number_that_adds_up():
    lines = [ChargeLine("prompt", 1, n, source="listed", model=f"m{n % 300}") for n in range(1, 1_001)]
    kept = compact([*lines, ChargeLine("image", 1, None), ChargeLine("page", 1, None)], "m0")
    assert len(kept) == MAX_LINES + 2
    assert sum(line.nanousd or 0 for line in kept) == sum(range(1, 1_001))
    assert [(line.item, line.nanousd is None) for line in kept[-2:]] == [("more", False), ("more", True)]
    assert "m0" not in {line.model for line in kept}


# Every view adds up --------------------------------------------------------------------------------------------------

AMOUNTS = st.none() | st.integers(0, 10**9)
MODELS = st.sampled_from(["", "m", "n", "advisor"])
ITEM_NAMES = st.sampled_from([*ITEMS, "usage.invented", "tier:odd"])


@st.composite
def calls_and_charges(draw):
    """The changes of a call, its usage and its charge."""
    lines = draw(st.lists(st.builds(ChargeLine, ITEM_NAMES, st.integers(0, 10**6), AMOUNTS, model=MODELS), max_size=7))
    unknown = draw(st.lists(st.builds(UsageItem, st.sampled_from(["a.b", "usage.invented"]), st.integers(1, 9))))
    source = draw(st.sampled_from(["listed", "reported", "unpriced"]))
    if source == "unpriced":  # then no line has a price
        lines = [msgspec.structs.replace(line, nanousd=None) for line in lines]
    added = sum(line.nanousd or 0 for line in lines)
    cost = 0 if source == "unpriced" else added + (draw(st.integers(0, 99)) if source == "reported" or not lines else 0)
    tokens = {"prompt": 0, "completion": 0, "beside": 0}
    for line in lines:
        tokens[ITEMS[line.item].side if line.item in ITEMS else "beside"] += line.quantity
    return (
        {"model": draw(st.sampled_from(["m", "n"])), "team": draw(st.sampled_from(["a", "b"])),
         "started_at_ns": STARTED_AT_NS + draw(st.integers(0, 90)) * 3600 * 10**9},
        Usage(prompt_tokens=tokens["prompt"], completion_tokens=tokens["completion"], source="reported",
              cached_read_tokens=tokens["prompt"], cache_write_tokens=tokens["prompt"],
              audio_tokens=sum(tokens.values()), reasoning_tokens=tokens["completion"], unknown=tuple(unknown)),
        Charge(nanousd=cost, source=source, lines=tuple(lines), fallback_nanousd=draw(st.sampled_from([0, 7]))),
    )  # fmt: skip


def views(ledger) -> list[object]:
    with open_reader(ledger) as reader:
        by = [(), *((name,) for name in GROUPINGS), ("team", "model", "day")]
        totals = [select_in(reader, Selection(by=names)) for names in by]
        items = [sums_by_item(reader, Selection(by=names)) for names in by]
        return [totals, items, unpriced_in(reader, Selection())]


@pytest.fixture(scope="module")
def shared_ledger(new_ledger):
    """One ledger for all examples, each of which empties it."""
    return new_ledger()


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(made=st.lists(calls_and_charges(), min_size=1, max_size=8))
def test_every_view_adds_up_also_after_a_prune(shared_ledger, make_store, make_call, make_settlement, made):
    async def write() -> None:
        store = make_store(shared_ledger)
        await store.start()
        for changes, usage, charge in made:
            call = make_call(**changes)
            await settled(store, call, make_settlement(call, usage=usage, charge=charge))
        await store.close()

    write_rows(shared_ledger, [])
    asyncio.run(write())
    before = views(shared_ledger)
    cost = sum(charge.nanousd for _, _, charge in made)
    for totals in before[0]:
        assert sum(total.cost_nanousd for total in totals) == cost
        assert all(getattr(total, name) >= 0 for total in totals for name in total.__struct_fields__ if name != "group")
    for names in ((), ("model",), ("team", "day")):
        report = item_report(shared_ledger, by=names, span=Span(None, None))
        assert sum(row.cost_nanousd for row in report.rows) == report.total_nanousd == cost
    [total] = before[0][0]
    assert sum(item.occurrences for item in before[2]) == total.unpriced_items
    assert total.fallback_cost_nanousd == sum(charge.fallback_nanousd for _, _, charge in made)
    assert verify(shared_ledger).wrong == []
    prune(shared_ledger, STARTED_AT_NS + 40 * 3600 * 10**9, STARTED_AT_NS + 900 * 3600 * 10**9, BY)
    assert views(shared_ledger) == before
    assert verify(shared_ledger).wrong == []
    prune(shared_ledger, STARTED_AT_NS + 100 * 3600 * 10**9, STARTED_AT_NS + 900 * 3600 * 10**9, BY)
    assert views(shared_ledger) == before
    assert charges(shared_ledger) == 0


async def test_what_a_call_used_of_another_model_counts_as_that_models(store, ledger, make_call, make_settlement):
    call = make_call(model="opus")
    await settled(store, call, make_settlement(call, usage=USAGE, charge=CHARGE))
    with open_reader(ledger) as reader:
        by_model = {total.group: total for total in select_in(reader, Selection(by=("model",)))}
    own, other = by_model["opus",], by_model["advisor-1",]
    assert (own.calls, own.prompt_tokens, own.completion_tokens, own.cost_nanousd) == (1, 1_500, 40, COST - 1_750_000)
    assert (other.calls, other.prompt_tokens, other.completion_tokens, other.cost_nanousd) == (0, 300, 10, 1_750_000)
    assert (own.unpriced_item_calls, own.unpriced_items, own.fallback_cost_nanousd) == (1, 2, 77)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("lines = '[[\"prompt\",1,5]]'", "have lines that do not add up"),
        ("lines = '[['", "cannot be read"),
        ("unpriced_items = 9", "count other unpriced items"),
        ("call_id = 'call_0'", "are of calls that are not settled or do not exist"),
    ],
)
async def test_verify_finds_faulty_charges(store, ledger, make_call, make_settlement, change, fault):
    call = make_call()
    await settled(store, call, make_settlement(call, usage=USAGE, charge=CHARGE))
    assert verify(ledger).wrong == []
    with open_writer(ledger) as writer:
        writer.execute(f"UPDATE charges SET {change}")
    assert any(fault in wrong for wrong in verify(ledger).wrong)
