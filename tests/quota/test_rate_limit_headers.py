"""Providers' rate-limit headers, valid and malformed."""

from __future__ import annotations

from datetime import UTC, datetime

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.catalog.quota import RESOURCES
from mcpmeter.quota.rate_limit_headers import (
    MAX_COUNT,
    MAX_LIST_LENGTH,
    MAX_RESET_NS,
    MAX_VALUE_LENGTH,
    STYLES,
    Sample,
    count,
    read,
    reset_at,
)
from mcpmeter.simulator import Quota, Simulator

S = 1_000_000_000
NOW = int(datetime(2026, 11, 22, 11, 0, 0, tzinfo=UTC).timestamp()) * S
NONSENSE = (
    "", " ", "-1", "-0", "+5", "NaN", "nan", "inf", "Infinity", "1e3", "1e400", "9.22e18", "9223372036854775807",
    "18446744073709551615", "0x10", "1_000", "٣", "²", "five", "null", "None", "true", "[]", "1.2.3", "1,000,000", "x",
    "9" * 5000, "1" + "0" * 13, "\x00", "5\x00", "\ud800", ";", ",", "unlimited",
)  # fmt: skip


def by_resource(
    headers: dict[str, str], style: str = "generic"
) -> dict[str, tuple[int | None, int | None, float | None]]:
    """resource -> (limit, remaining, seconds until the reset)."""
    return {
        s.resource: (s.limit, s.remaining, None if s.reset_at_ns is None else (s.reset_at_ns - NOW) / S)
        for s in read(headers, style, NOW)
    }


OPENAI = {
    "x-ratelimit-limit-requests": "10000",
    "x-ratelimit-limit-tokens": "2000000",
    "x-ratelimit-remaining-requests": "9999",
    "x-ratelimit-remaining-tokens": "1998976",
    "x-ratelimit-reset-requests": "6ms",
    "x-ratelimit-reset-tokens": "1m30.951s",
}
PROVIDERS = {
    "openai": (OPENAI, {"requests": (10_000, 9_999, 0.006), "tokens": (2_000_000, 1_998_976, 90.951)}),
    "azure-openai": (
        {
            "x-ratelimit-remaining-requests": "119",
            "x-ratelimit-reset-requests": "10",
            "x-ratelimit-remaining-tokens": "119000",
        },
        {"requests": (None, 119, 10.0), "tokens": (None, 119_000, None)},
    ),
    "groq": (
        {
            "x-ratelimit-limit-requests": "14400",
            "x-ratelimit-remaining-requests": "14370",
            "x-ratelimit-reset-requests": "2m59.56s",
            "x-ratelimit-limit-tokens": "18000",
            "x-ratelimit-remaining-tokens": "17997",
            "x-ratelimit-reset-tokens": "7.66s",
        },
        {"requests": (14_400, 14_370, 179.56), "tokens": (18_000, 17_997, 7.66)},
    ),
    "anthropic": (
        {
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "49",
            "anthropic-ratelimit-requests-reset": "2026-11-22T11:00:01Z",
            "anthropic-ratelimit-tokens-limit": "58000",
            "anthropic-ratelimit-tokens-remaining": "57000",
            "anthropic-ratelimit-tokens-reset": "2026-11-22T11:00:02Z",
            "anthropic-ratelimit-input-tokens-limit": "50000",
            "anthropic-ratelimit-input-tokens-remaining": "49000",
            "anthropic-ratelimit-input-tokens-reset": "2026-11-22T12:00:03+01:00",
            "anthropic-ratelimit-output-tokens-limit": "8000",
            "anthropic-ratelimit-output-tokens-remaining": "8000",
            "anthropic-ratelimit-output-tokens-reset": "2026-11-22T11:00:00.5Z",
            "anthropic-priority-input-tokens-limit": "10000",
            "anthropic-priority-input-tokens-remaining": "9618",
            "anthropic-priority-input-tokens-reset": "2026-11-22T11:01:00Z",
        },
        {
            "requests": (50, 49, 1.0),
            "tokens": (58_000, 57_000, 2.0),
            "input_tokens": (50_000, 49_000, 3.0),
            "output_tokens": (8_000, 8_000, 0.5),
            "priority_input_tokens": (10_000, 9_618, 60.0),
        },
    ),
    "mistral": (
        {
            "x-ratelimit-limit-req-minute": "720",
            "x-ratelimit-remaining-req-minute": "717",
            "x-ratelimit-limit-tokens-minute": "5000000",
            "x-ratelimit-remaining-tokens-minute": "4999911",
            "x-ratelimit-limit-tokens-month": "10000000000",
            "x-ratelimit-remaining-tokens-month": "9999999000",
            "x-ratelimit-tokens-query-cost": "52",
        },
        {
            "requests_per_minute": (720, 717, None),
            "tokens_per_minute": (5_000_000, 4_999_911, None),
            "tokens_per_month": (10_000_000_000, 9_999_999_000, None),
        },
    ),
    "openrouter": (
        {"x-ratelimit-limit": "20", "x-ratelimit-remaining": "0", "x-ratelimit-reset": str(NOW // 10**6 + 42_000)},
        {"requests": (20, 0, 42.0)},
    ),
    "together": (
        {
            "x-ratelimit-limit": "10",
            "x-ratelimit-remaining": "9",
            "x-ratelimit-reset": "1",
            "x-tokenlimit-limit": "3000",
            "x-tokenlimit-remaining": "2900",
        },
        {"requests": (10, 9, 1.0), "tokens": (3_000, 2_900, None)},
    ),
}  # fmt: skip


class TestProviders:
    @pytest.mark.parametrize("style", PROVIDERS)
    def test_each_provider_is_read_in_its_own_style(self, style: str) -> None:
        headers, expected = PROVIDERS[style]
        assert by_resource(headers, style) == expected

    @pytest.mark.parametrize("style", PROVIDERS)
    def test_an_unknown_style_reads_all_headers(self, style: str) -> None:
        headers, expected = PROVIDERS[style]
        assert by_resource(headers, "generic") == expected

    def test_every_style_is_covered_here(self) -> None:
        assert set(STYLES) == set(PROVIDERS)

    def test_project_tokens_are_separate_from_tokens(self) -> None:
        project = {name.replace("-tokens", "-project-tokens"): "7" for name in OPENAI if name.endswith("tokens")}
        found = by_resource(OPENAI | project, "openai")
        assert found["project_tokens"] == (7, 7, 7.0)
        assert found["tokens"][0] == 2_000_000

    def test_without_counts_there_is_no_sample(self) -> None:
        assert read({"content-type": "application/json", "x-request-id": "req_1"}, "generic", NOW) == []
        assert read({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset": "5"}, "generic", NOW) == []

    async def test_the_simulators_headers_are_read(self) -> None:
        async with (
            Simulator(quota=Quota(requests=5, tokens=1000)) as upstream,
            httpx2.AsyncClient(verify=False) as client,
        ):
            body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}]}
            answer = await client.post(f"{upstream.base_url}/chat/completions", json=body)
            headers = dict(answer.headers)
        samples = {sample.resource: sample for sample in read(headers, "openai", NOW)}
        assert set(samples) == {"requests", "tokens"}
        assert (samples["requests"].limit, samples["requests"].remaining) == (5, 4)
        assert samples["tokens"].limit == 1000
        assert all(sample.reset_at_ns is not None for sample in samples.values())

    def test_an_explicit_zero_is_kept(self) -> None:
        zero = {"x-ratelimit-limit-req-minute": "0", "x-ratelimit-remaining-req-minute": "0"}
        assert by_resource(zero, "mistral") == {"requests_per_minute": (0, 0, None)}

    def test_the_window_in_a_headers_name_is_kept(self) -> None:
        headers, _ = PROVIDERS["mistral"]
        windows = {s.resource: s.window_ns // S for s in read(headers, "mistral", NOW)}
        assert windows == {"requests_per_minute": 60, "tokens_per_minute": 60, "tokens_per_month": 31 * 86_400}


class TestStructuredFields:
    @pytest.mark.parametrize(
        ("ratelimit", "policy", "expected"),
        [
            ('"default";r=50;t=30', '"default";q=100;w=60', {"requests_per_minute": (100, 50, 30.0)}),
            ('"default";r=50;t=30', "", {"requests": (None, 50, 30.0)}),
            ('"default"; r=50; t=30', '"default"; q=100; w=7', {"requests": (100, 50, 30.0)}),
            ("", '"daily";q=1000;w=86400', {"requests_per_day": (1000, None, None)}),
            ('"input-tokens";r=5;t=9', '"input-tokens";q=9;qu="tokens";w=60', {"input_tokens": (9, 5, 9.0)}),
            ('"p";r=5;t=9', '"p";q=9;qu="tokens";w=3600', {"tokens_per_hour": (9, 5, 9.0)}),
            ('"p";r=5;t=9', '"p";q=9;qu="content-bytes"', {}),
            ('"p";r=5;pk=:dGVuYW50:;t=9', '"p";q=9;w=1', {"requests_per_second": (9, 5, 9.0)}),
            (
                '"burst";r=9;t=1, "day";r=3;t=900',
                '"burst";q=10;w=1, "day";q=100;w=86400',
                {"requests_per_second": (10, 9, 1.0), "requests_per_day": (100, 3, 900.0)},
            ),
            ('"a";r=9;t=1, "b";r=3;t=2', "", {"requests": (None, 3, 2.0)}),
            ("limit=100, remaining=50, reset=5", "100;w=60", {"requests": (100, 50, 5.0)}),
            ("retry_after;r=1", "", {"requests": (None, 1, None)}),
            ('"default";r=-5;t=30', '"default";q=-1;w=60', {}),
            ('"default";r=9223372036854775807', "", {}),
            ('"default";r=50;t=30, "broken', '"default";q=100', {"requests": (100, None, None)}),
            ('"default";r=50 t=30', "", {}),
            ('"' + "a" * MAX_LIST_LENGTH + '";r=1', "", {}),
            ("\x00", '"\\', {}),
        ],
    )
    def test_the_ietf_drafts_fields(self, ratelimit: str, policy: str, expected: object) -> None:
        headers = {"ratelimit": ratelimit, "ratelimit-policy": policy}
        assert by_resource({name: text for name, text in headers.items() if text}) == expected

    def test_the_three_headers_of_older_drafts(self) -> None:
        headers = {"ratelimit-limit": "100, 100;w=60", "ratelimit-remaining": "99", "ratelimit-reset": "17"}
        assert by_resource(headers) == {"requests": (100, 99, 17.0)}


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({"retry-after": "0"}, 0.0),
            ({"retry-after": "2"}, 2.0),
            ({"retry-after": "1.5"}, 1.5),
            ({"retry-after": "Sun, 22 Nov 2026 11:00:30 GMT"}, 30.0),
            ({"retry-after": "Sunday, 22-Nov-26 11:00:30 GMT"}, 30.0),
            ({"retry-after": "Sun Nov 22 11:00:30 2026"}, 30.0),
            ({"retry-after": "Fri, 20 Nov 2026 11:00:30 GMT"}, 0.0),
            ({"retry-after": "3", "retry-after-ms": "2500"}, 2.5),
            ({"retry-after": "3", "retry-after-ms": "soon"}, 3.0),
        ],
    )
    def test_it_is_an_instant_without_counts(self, headers: dict[str, str], seconds: float) -> None:
        assert by_resource(headers, "openai") == {"retry_after": (None, None, seconds)}

    def test_a_malformed_one_is_dropped(self) -> None:
        for text in (*NONSENSE, "99999999999999", "Sun, 99 Nov 2026 11:00:30 GMT", "tomorrow"):
            assert read({"retry-after": text}, "openai", NOW) == [], text


class TestValues:
    @pytest.mark.parametrize("text", NONSENSE)
    def test_a_malformed_value_is_none(self, text: str) -> None:
        assert count(text) is None
        assert reset_at(text, NOW) is None

    @pytest.mark.parametrize("style", STYLES)
    def test_a_malformed_value_is_dropped_and_the_rest_kept(self, style: str) -> None:
        headers, expected = PROVIDERS[style]
        kept = {name: (limit, None, reset) for name, (limit, _, reset) in expected.items() if limit is not None}
        for text in NONSENSE:
            wrong = {name: text if "remaining" in name else value for name, value in headers.items()}
            assert by_resource(wrong, style) == kept, text

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("0", 0),
            ("5000", 5000),
            (" 7 ", 7),
            ("99.5", 99),
            ("5000.0", 5000),
            ("100, 100;w=60", 100),
            (str(MAX_COUNT), MAX_COUNT),
        ],
    )
    def test_counts_in_every_form(self, text: str, value: int) -> None:
        assert count(text) == value

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("0", 0.0), ("60", 60.0), ("0.5", 0.5), ("33011.382867", 33011.382867), ("0s", 0.0), ("6ms", 0.006),
            ("8.64s", 8.64), ("1h2m3s", 3723.0), ("1d1h", 90_000.0), ("120us", 0.00012), ("120\xb5s", 0.00012),
            ("120\xc2\xb5s", 0.00012), ("5ns", 5e-9), (str(NOW // S + 9), 9.0), (str(NOW // 10**6 + 1500), 1.5),
            ("2026-11-22T11:00:09Z", 9.0), ("2026-11-22t11:00:09.25z", 9.25), ("2026-11-22T06:00:09-05:00", 9.0),
            # in the past: now
            (str(NOW // S - 9), 0.0), ("2020-01-01T00:00:00Z", 0.0), ("0001-01-01T00:00:00+23:59", 0.0),
        ],
    )  # fmt: skip
    def test_resets_in_every_form(self, text: str, seconds: float) -> None:
        found = reset_at(text, NOW)
        assert found is not None
        assert (found - NOW) / S == seconds

    @pytest.mark.parametrize(
        "text",
        [
            "2026-11-22T11:00:09", "2026-13-22T11:00:09Z", "2026-11-22T25:00:09Z", "9999-12-31T23:59:59-23:59",
            "2026-W47-7T11:00:00Z", "40000000", "1s2", "s", "1h-2m", "99999999h", "1w", "1s" * MAX_VALUE_LENGTH,
        ],
    )  # fmt: skip
    def test_a_reset_malformed_or_too_far_away_is_dropped(self, text: str) -> None:
        assert reset_at(text, NOW) is None


NAMES = sorted({name for names in STYLES.values() for row in names for name in row[1:4]})
HEADER_NAMES = [*NAMES, "ratelimit", "ratelimit-policy", "ratelimit-limit", "ratelimit-remaining", "retry-after"]
VALUES = st.one_of(
    st.text(max_size=200),
    st.text(alphabet='"\\;=,abqrtwu0123456789 .-', max_size=80),
    st.integers().map(str),
    st.floats().map(str),
    st.from_regex(r'("[a-z]{1,9}"(;[rqtw]=[0-9]{1,5}){0,4}, ?){0,4}', fullmatch=True),
    st.datetimes().map(lambda d: d.isoformat() + "Z"),
)


@given(headers=st.dictionaries(st.sampled_from(HEADER_NAMES), VALUES), style=st.sampled_from([*STYLES, "generic"]))
def test_no_header_raises_or_leaves_the_bounds(headers: dict[str, str], style: str) -> None:
    samples = read(headers, style, NOW)
    assert len({s.resource for s in samples}) == len(samples)
    for sample in samples:
        assert sample.resource in RESOURCES
        assert sample != Sample(resource=sample.resource, window_ns=sample.window_ns)
        assert all(value is None or 0 <= value <= MAX_COUNT for value in (sample.limit, sample.remaining))
        assert sample.reset_at_ns is None or NOW <= sample.reset_at_ns <= NOW + MAX_RESET_NS
        assert 0 <= sample.window_ns <= MAX_RESET_NS
