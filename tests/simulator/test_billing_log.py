import asyncio
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.simulator.answers import Tally
from mcpmeter.simulator.billing_log import BillingLog


def book(log, model="m", outcome="complete", tally=Tally(3, 5, 1, 2), delivered=3, fault="", at_ns=0):  # noqa: B008
    call = log.open(model, stream=True, fault=fault)
    call.book(outcome, tally, delivered=delivered, cancelled_at_ns=at_ns)
    return call


def test_a_record_holds_what_was_booked():
    log = BillingLog(seed=9)
    call = book(log, outcome="cancelled", fault="stall", at_ns=17)
    (record,) = log.calls()
    assert record.request_id == call.request_id
    assert (record.model, record.stream, record.outcome, record.fault) == ("m", True, "cancelled", "stall")
    assert (record.prompt_tokens, record.completion_tokens) == (3, 5)
    assert (record.cached_tokens, record.reasoning_tokens, record.delivered_tokens) == (1, 2, 3)
    assert record.cancelled_at_ns == 17


def test_a_call_is_booked_once():
    log = BillingLog()
    call = book(log)
    call.book("cancelled", Tally(100, 100), delivered=0)
    assert log.totals.calls == log.totals.complete == 1
    assert log.open_calls == 0


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["complete", "cancelled", "fault"]), st.integers(0, 99))
    ),
    st.integers(0, 5),
)
def test_totals_are_right_however_few_records_are_kept(calls, keep):
    log = BillingLog(keep_calls=keep)
    for model, outcome, tokens in calls:
        book(log, model, outcome, Tally(tokens, tokens))
    assert log.totals.calls == len(calls)
    assert log.totals.prompt_tokens == sum(tokens for _, _, tokens in calls)
    for model, totals in log.totals_by_model.items():
        assert totals.completion_tokens == sum(tokens for name, _, tokens in calls if name == model)
    kept = list(log.calls())
    assert [record.ordinal for record in kept] == list(range(len(calls)))[len(calls) - min(keep, len(calls)) :]
    assert [record.model for record in kept] == [model for model, _, _ in calls][len(calls) - len(kept) :]


def test_model_names_beyond_a_thousand_become_other():
    log = BillingLog(keep_calls=10)
    for number in range(1100):
        book(log, f"model-{number}")
    assert len(log.totals_by_model) == 1000
    assert log.totals_by_model["other"].calls == 101


def test_clearing_forgets_ended_calls_and_keeps_ids_unique():
    log = BillingLog()
    before = book(log).request_id
    still_open = log.open("m", stream=False, fault="")
    log.clear()
    assert log.totals.calls == 0
    assert list(log.calls()) == []
    still_open.book("complete", Tally(1, 1), delivered=1)
    assert log.totals.calls == 1
    assert before != still_open.request_id


def test_dialects_are_summed_up_apart_and_written_into_records():
    log = BillingLog()
    for dialect, tokens in [("openai_chat", 1), ("gemini_generate", 10), ("openai_chat", 100)]:
        tally = Tally(tokens, tokens, cache_write=tokens)
        log.open("m", stream=False, fault="", dialect=dialect).book("complete", tally, delivered=tokens)
    assert [record.dialect for record in log.calls()] == ["openai_chat", "gemini_generate", "openai_chat"]
    assert [record.cache_write_tokens for record in log.calls()] == [1, 10, 100]
    by_dialect = log.totals_by_dialect
    assert {name: (totals.dialect, totals.calls, totals.cache_write_tokens) for name, totals in by_dialect.items()} == {
        "openai_chat": ("openai_chat", 2, 101),
        "gemini_generate": ("gemini_generate", 1, 10),
    }
    assert (log.totals.dialect, log.totals.prompt_tokens) == ("", 111)
    assert log.totals_by_model["m"].calls == 3


async def test_waiting_ends_with_the_booking_that_was_waited_for():
    log = BillingLog()
    waiting = asyncio.create_task(log.wait_until(lambda b: b.totals.calls == 2))
    await asyncio.sleep(0)
    book(log)
    await asyncio.sleep(0)
    assert not waiting.done()
    book(log)
    await waiting


async def test_waiting_in_vain_times_out():
    with pytest.raises(TimeoutError):
        await BillingLog().wait_until(lambda b: False, timeout_seconds=0.01)


def test_memory_of_records_does_not_grow_beyond_those_kept():
    log = BillingLog(keep_calls=1000)
    for _ in range(3000):
        book(log)
    assert sys.getsizeof(log._rows) < 100_000
