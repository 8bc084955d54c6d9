"""Settled calls for reconciliation, on both engines."""

from __future__ import annotations

import pytest

from mcpmeter.ledger.queries.reader import open_writer
from mcpmeter.ledger.queries.settled_calls import SettledCall, calls_outside, settled_calls
from mcpmeter.ledger.rows import OPEN_SQL, SETTLE_SQL, open_values, settled_values
from mcpmeter.records import Charge, Usage

AT = 1_793_534_400_000_000_000
EVER = {"since_ns": 0, "until_ns": 2**63 - 1}


@pytest.fixture
def put(ledger, make_call, make_settlement):
    """Writes a settled call, or an open one if `settled` is false."""

    def write(id_: str, *, settled: bool = True, provider: str = "openai", at_ns: int = AT, **ending) -> None:
        call = make_call(id=id_, started_at_ns=at_ns, provider=provider, model="gpt-4.1")
        with open_writer(ledger) as writer:
            writer.execute(OPEN_SQL, [int(v) if isinstance(v, bool) else v for v in open_values(call)])
            if settled:
                writer.execute(SETTLE_SQL, settled_values(make_settlement(call, **ending)))

    return write


def ids(ledger, **options) -> list[str]:
    return [call.id for call in settled_calls(ledger, **{**EVER, **options})]


def test_a_call_has_every_figure_of_a_bill(ledger, put):
    usage = Usage(
        prompt_tokens=9, completion_tokens=8, cached_read_tokens=7, cache_write_tokens=6, reasoning_tokens=5,
        audio_tokens=4, source="partial",
    )  # fmt: skip
    charge = Charge(nanousd=2**62, source="reported", reported_nanousd=2**62)
    put("a", usage=usage, charge=charge, response_model="gpt-4.1-2025-04-14", upstream_request_id="req_1")
    assert list(settled_calls(ledger, **EVER)) == [
        SettledCall(
            "a", AT, "openai", "gpt-4.1", "gpt-4.1-2025-04-14", "200", 9, 8, 7, 6, 5, 4, "partial", 2**62, "reported",
            2**62, "req_1",
        )
    ]  # fmt: skip


def test_calls_are_in_byte_order_of_their_request_ids(ledger, put):
    # A language's collation would ignore punctuation and sort b before B.
    request_ids = ["", "b", "B", "_", "-b", "é", "zz", "a-c", "ab", "\U0001f600", "\uffff"]
    for place, request_id in enumerate(request_ids):
        put(f"call_{place:02}", upstream_request_id=request_id)
    found = [call.upstream_request_id for call in settled_calls(ledger, **EVER)]
    assert found == sorted(request_ids)


def test_calls_outside_a_period_are_summed_beyond_64_bits(ledger, put):
    most = Charge(nanousd=2**62, source="listed")
    for place, at_ns in enumerate((AT - 1, AT, AT + 9, AT + 10, AT + 11)):
        put(f"call_{place}", at_ns=at_ns, usage=Usage(), charge=most)
    put("unpriced", at_ns=AT - 1, usage=Usage(prompt_tokens=1, source="reported"), charge=Charge())
    put("free", at_ns=AT - 1, usage=Usage(), charge=Charge())
    put("another", at_ns=AT - 1, provider="anthropic", charge=most)
    put("open", at_ns=AT - 1, settled=False)
    assert calls_outside(ledger, since_ns=AT, until_ns=AT + 10, provider="openai") == (4, 3 * 2**62)
    assert calls_outside(ledger, since_ns=0, until_ns=2**63 - 1, provider="openai") == (0, 0)


def test_open_calls_and_calls_without_a_provider_are_excluded(ledger, put):
    put("open", settled=False)
    put("nowhere", provider="")
    put("settled")
    assert ids(ledger) == ["settled"]


def test_a_period_includes_its_start_and_excludes_its_end(ledger, put):
    for offset in range(4):
        put(f"c{offset}", at_ns=AT + offset)
    assert ids(ledger, since_ns=AT + 1, until_ns=AT + 3) == ["c1", "c2"]


def test_calls_can_be_selected_by_provider_and_reported_cost(ledger, put):
    put("a", provider="openai")
    put("b", provider="openrouter", charge=Charge(nanousd=1, source="reported", reported_nanousd=0))
    assert ids(ledger, provider="openai") == ["a"]
    assert ids(ledger, with_reported_cost=True) == ["b"]
