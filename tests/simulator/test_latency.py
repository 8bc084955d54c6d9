from contextlib import suppress
from random import Random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.errors import ConfigInvalid
from mcpmeter.simulator import Latency, Spread

FORMS = ("20", "0.5", "uniform:10-50", "lognormal:200,0.5")


@pytest.mark.parametrize("text", FORMS)
def test_a_distribution_prints_as_it_was_parsed(text):
    assert str(Spread.parse(text)) == text


@pytest.mark.parametrize("text", FORMS)
def test_the_same_seed_gives_the_same_samples(text):
    spread = Spread.parse(text)
    assert [spread.sample(Random(7)) for _ in range(3)] == [spread.sample(Random(7)) for _ in range(3)]


def test_samples_follow_the_distribution():
    random = Random(1)
    uniform = [Latency.uniform(10, 50).sample(random) for _ in range(2000)]
    lognormal = [Latency.lognormal(200, 0.5).sample(random) for _ in range(2000)]
    assert min(uniform) >= 10
    assert max(uniform) <= 50
    assert 185 < median(lognormal) < 215
    assert max(lognormal) > 500


def test_milliseconds_become_nanoseconds():
    assert Latency.fixed(1.5).sample_ns(Random(0)) == 1_500_000


@pytest.mark.parametrize(
    ("rate", "gaps"),
    [
        ("40", Latency.fixed(25)),
        ("uniform:20-50", Latency.uniform(20, 50)),
        ("lognormal:40,0.3", Latency.lognormal(25, 0.3)),
    ],
)
def test_a_rate_per_second_becomes_gaps_in_milliseconds_and_back(rate, gaps):
    assert Latency.from_rate(rate) == gaps
    assert gaps.as_rate() == rate


@pytest.mark.parametrize("text", ["", "x", "-1", "nan", "inf", "uniform:5", "uniform:9-2", "lognormal:3", "gauss:1,2"])
def test_invalid_distributions_are_refused_with_the_forms(text):
    with pytest.raises(ConfigInvalid, match="lognormal:MEDIAN,SIGMA"):
        Spread.parse(text)


@pytest.mark.parametrize("text", ["0", "uniform:0-5"])
def test_a_rate_of_zero_is_refused(text):
    with pytest.raises(ConfigInvalid):
        Latency.from_rate(text)


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text):
    with suppress(ConfigInvalid):
        assert Latency.parse(text).sample_ns(Random(0)) >= 0


@given(st.floats(), st.floats())
def test_any_numbers_give_finite_samples_or_are_refused(a, b):
    for kind in ("fixed", "uniform", "lognormal"):
        with suppress(ConfigInvalid):
            assert 0 <= Latency(kind, a, b).sample(Random(0)) <= 1e9
