import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.simulator.billing_log import BillingLog
from mcpmeter.simulator.generation import BilledTokens


def bill(log, model="m", outcome="complete", billed=BilledTokens(3, 5, 1, 2), delivered=3, fault="", at_ns=0):  # noqa: B008
    call = log.open(model, stream=True, fault=fault)
    call.bill(outcome, billed, delivered=delivered, cancelled_at_ns=at_ns)
    return call


def test_a_record_has_the_billed_values():
    log = BillingLog(seed=9)
    call = bill(log, outcome="cancelled", fault="stall", at_ns=17)
    (record,) = log.calls()
    assert record.request_id == call.request_id
    assert (record.model, record.stream, record.outcome, record.fault) == ("m", True, "cancelled", "stall")
    assert (record.prompt_tokens, record.completion_tokens) == (3, 5)
    assert (record.cached_tokens, record.reasoning_tokens, record.delivered_tokens) == (1, 2, 3)
    assert record.cancelled_at_ns == 17


def test_a_call_is_billed_once():
    log = BillingLog()
    call = bill(log)
    call.bill("cancelled", BilledTokens(100, 100), delivered=0)
    assert log.totals.calls == log.totals.complete == 1
    assert log.open_calls == 0


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["complete", "cancelled", "fault"]), st.integers(0, 99))
    ),
    st.integers(0, 5),
)
def test_totals_are_exact_with_few_kept_records(calls, keep):
    log = BillingLog(keep_calls=keep)
    for model, outcome, tokens in calls:
        bill(log, model, outcome, BilledTokens(tokens, tokens))
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
        bill(log, f"model-{number}")
    assert len(log.totals_by_model) == 1000
    assert log.totals_by_model["other"].calls == 101


def test_clear_drops_ended_calls_and_keeps_ids_unique():
    log = BillingLog()
    before = bill(log).request_id
    still_open = log.open("m", stream=False, fault="")
    log.clear()
    assert log.totals.calls == 0
    assert list(log.calls()) == []
    still_open.bill("complete", BilledTokens(1, 1), delivered=1)
    assert log.totals.calls == 1
    assert before != still_open.request_id


def test_totals_per_dialect():
    log = BillingLog()
    for dialect, tokens in [("openai_chat", 1), ("gemini_generate", 10), ("openai_chat", 100)]:
        billed = BilledTokens(tokens, tokens, cache_write=tokens)
        log.open("m", stream=False, fault="", dialect=dialect).bill("complete", billed, delivered=tokens)
    assert [record.dialect for record in log.calls()] == ["openai_chat", "gemini_generate", "openai_chat"]
    assert [record.cache_write_tokens for record in log.calls()] == [1, 10, 100]
    by_dialect = log.totals_by_dialect
    assert {name: (totals.dialect, totals.calls, totals.cache_write_tokens) for name, totals in by_dialect.items()} == {
        "openai_chat": ("openai_chat", 2, 101),
        "gemini_generate": ("gemini_generate", 1, 10),
    }
    assert (log.totals.dialect, log.totals.prompt_tokens) == ("", 111)
    assert log.totals_by_model["m"].calls == 3


async def test_wait_until_returns_when_the_condition_holds():
    log = BillingLog()
    waiting = asyncio.create_task(log.wait_until(lambda log: log.totals.calls == 2))
    await asyncio.sleep(0)
    bill(log)
    await asyncio.sleep(0)
    assert not waiting.done()
    bill(log)
    await waiting


async def test_wait_until_times_out():
    with pytest.raises(TimeoutError):
        await BillingLog().wait_until(lambda log: False, timeout_seconds=0.01)
