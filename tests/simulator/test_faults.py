from collections import Counter
from contextlib import suppress
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.errors import ConfigInvalid
from mcpmeter.simulator import Fault, Simulator
from mcpmeter.simulator.faults import FAULT_NAMES, NO_FAULT, choose
from mcpmeter.simulator.plan import Plan, PlanText


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("status=429,retry_after=2", Fault(status=429, retry_after=2)),
        ("status=503:0.02", Fault(status=503, probability=0.02)),
        (" reset=body , after_tokens=5 ", Fault(reset="body", after_tokens=5)),
        ("latency_ms=uniform:10-50", Fault(latency_ms="uniform:10-50")),
        ("latency_ms=lognormal:200,0.5", Fault(latency_ms="lognormal:200,0.5")),
        ("latency_ms=lognormal:200,0.5:0.1", Fault(latency_ms="lognormal:200,0.5", probability=0.1)),
        ("tool_calls=true,completion_tokens=7", Fault(tool_calls=True, completion_tokens=7)),
    ],
)
def test_valid_texts_are_parsed(text, fault):
    assert Fault.parse(text) == fault


@pytest.mark.parametrize(
    "text",
    [
        "", "status", "status=", "status=99", "status=600", "reset=yes", "no_such=1", "status=503:2", "status=503:nan",
        "retry_after=inf", "huge_mb=100000", "latency_ms=soon", "chunks_per_second=0", "first=0", "stall_seconds=-1",
    ],
)  # fmt: skip
def test_invalid_faults_are_refused(text):
    with pytest.raises(ConfigInvalid):
        Fault.parse(text)


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text):
    with suppress(ConfigInvalid):
        assert Fault.parse(text).name in FAULT_NAMES


def test_frequencies_equal_probabilities():
    faults = [Fault(status=503, probability=0.2), Fault(status=429, probability=0.1)]
    random = Random(3)
    seen = Counter(choose(faults, random, 0).status for _ in range(10_000))
    assert seen[503] == pytest.approx(2000, rel=0.1)
    assert seen[429] == pytest.approx(1000, rel=0.1)
    assert seen[None] == pytest.approx(7000, rel=0.1)


def test_first_counts_repetitions_of_a_body():
    fault = Fault(status=503, first=2)
    assert [choose([fault], Random(0), repetition) for repetition in range(3)] == [fault, fault, NO_FAULT]


def test_probabilities_with_a_sum_above_1_are_refused():
    with pytest.raises(ConfigInvalid, match="add up to"):
        Simulator(faults=[Fault(status=503, probability=0.6), Fault(status=500, probability=0.6)])


def test_a_plan_equals_its_json():
    plan = PlanText.decode(
        b'{"faults":["status=503,retry_after=2:0.02",{"reset":"body","probability":0.01}],"latency_ms":"uniform:1-2",'
        b'"chunks_per_second":"lognormal:40,0.3","completion_tokens":"9","tool_calls":true,"dated_models":true}'
    ).plan()
    assert PlanText.of(plan).plan() == plan
    assert plan.faults[1] == Fault(reset="body", probability=0.01)
    assert PlanText.of(Plan()).plan() == Plan()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"fault":[]}', b'{"faults":[{"x":1}]}', b'{"faults":[1]}', b"[" * 100_000]
)
def test_invalid_plans_are_refused(body):
    with pytest.raises(ConfigInvalid):
        PlanText.decode(body).plan()
