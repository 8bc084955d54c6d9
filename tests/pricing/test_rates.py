"""Rates that change by date or hour, their spans, and rounding of worst cases."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmeter.pricing.calendars import DAY_NS, Holidays, Validity
from mcpmeter.pricing.rates import RateBand, Rates, attousd_per_mtok
from mcpmeter.pricing.timelines import Dated, Timeline

HOUR_NS = DAY_NS // 24

INSTANTS = st.integers(-3 * DAY_NS, 6 * DAY_NS) | st.integers(-72, 144).map(lambda hour: hour * HOUR_NS)


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    hours = st.integers(0, 24).map(lambda hour: hour * HOUR_NS)
    entries = []
    for number in range(draw(st.integers(0, 4))):
        rates = Rates(list_name=str(number), bands=(RateBand(),))
        valid = Validity(
            from_ns=draw(st.none() | INSTANTS),
            until_ns=draw(st.none() | INSTANTS),
            daily=draw(st.lists(st.tuples(hours, hours), max_size=2).map(tuple)),
            weekdays=draw(st.frozensets(st.integers(0, 6), max_size=5)),
            holidays=draw(st.none() | st.builds(Holidays, name=st.just("h"), days=st.frozensets(st.integers(-3, 6)))),
        )
        entries.append(Dated(rates=rates, valid=valid))
    return Timeline(model="m", entries=tuple(entries), otherwise=Rates(list_name="otherwise", bands=(RateBand(),)))


@settings(max_examples=300)
@given(timelines(), INSTANTS, st.lists(INSTANTS, max_size=5))
def test_the_rates_of_a_span_are_valid_at_each_of_its_instants(
    timeline: Timeline, at_ns: int, others: list[int]
) -> None:
    span = timeline.span(at_ns)
    assert span.from_ns <= at_ns < span.until_ns
    ends = [span.from_ns, span.until_ns - 1]
    for instant in (*ends, *(min(max(other, span.from_ns), span.until_ns - 1) for other in others)):
        assert timeline.at(instant) is span.rates


def test_rates_that_never_change_have_an_endless_span() -> None:
    rates = Rates(list_name="l", bands=(RateBand(),))
    span = Timeline(model="m", entries=(Dated(rates=rates),)).span(0)
    assert span.rates is rates
    assert span.from_ns < -(10**18) < 10**18 < span.until_ns


def test_a_span_ends_when_the_next_rates_begin() -> None:
    old, new = (Rates(list_name=name, bands=(RateBand(),)) for name in ("old", "new"))
    timeline = Timeline(
        model="m",
        entries=(Dated(rates=old, valid=Validity(from_ns=0)), Dated(rates=new, valid=Validity(from_ns=2 * DAY_NS))),
    )
    before, after = timeline.span(DAY_NS), timeline.span(2 * DAY_NS)
    assert (before.rates, before.from_ns, before.until_ns) == (old, 0, 2 * DAY_NS)
    assert (after.rates, after.from_ns) == (new, 2 * DAY_NS)


def test_a_fraction_of_a_nano_dollar_is_rounded_up():
    rates = Rates(list_name="t", bands=(RateBand(prompt=attousd_per_mtok(Decimal("0.0001"))),))
    assert rates.max_cost_nanousd(1, 0) == 1
