import pytest

from mcpmeter.simulator import Quota
from mcpmeter.simulator.vendors.openai import OPENAI, go_duration


class Clock:
    now_ns = 5_000_000_000

    def __call__(self):
        return self.now_ns


def test_headers_count_down_and_restart_with_the_window():
    clock = Clock()
    quota = Quota(requests=3, tokens=100, window_seconds=60, clock_ns=clock)
    quota.admit()
    quota.spend(30)
    clock.now_ns += 20_500_000_000
    headers = OPENAI.headers(quota)
    assert headers["x-ratelimit-limit-requests"] == "3"
    assert headers["x-ratelimit-remaining-requests"] == "2"
    assert headers["x-ratelimit-limit-tokens"] == "100"
    assert headers["x-ratelimit-remaining-tokens"] == "70"
    assert headers["x-ratelimit-reset-requests"] == headers["x-ratelimit-reset-tokens"] == "39.5s"
    clock.now_ns += 60_000_000_000 * 7
    assert OPENAI.headers(quota)["x-ratelimit-remaining-requests"] == "3"
    assert quota.reset_seconds == 39.5


def test_an_enforced_quota_refuses_until_the_window_ends():
    clock = Clock()
    lenient = Quota(requests=1, clock_ns=clock)
    strict = Quota(requests=1, enforce=True, clock_ns=clock)
    assert [lenient.admit(), lenient.admit()] == [True, True]
    assert [strict.admit(), strict.admit()] == [True, False]
    clock.now_ns += 60_000_000_000
    assert strict.admit()


@pytest.mark.parametrize("limits", [{"input_tokens": 5}, {"output_tokens": 5}, {"tokens": 5}])
def test_each_token_limit_can_be_exhausted(limits):
    quota = Quota(**limits, enforce=True, clock_ns=Clock())
    assert quota.admit()
    quota.spend(4, 4)
    assert quota.admit() == ("tokens" not in limits)
    quota.spend(4, 4)
    assert not quota.admit()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.017, "17ms"), (8.64, "8.64s"), (60, "1m0s"), (3723, "1h2m3s"), (-1, "0ms")]
)
def test_durations_have_openais_format(seconds, text):
    assert go_duration(seconds) == text
