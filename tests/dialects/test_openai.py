"""Usage as a provider should and should not report it."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.dialects.base import UnreadableResponse
from mcpmeter.dialects.json_body import strict_json, with_fields
from mcpmeter.dialects.openai import MAX_AMOUNT_LENGTH, read_usage, reported_usd
from mcpmeter.dialects.sse import payloads as events_of
from mcpmeter.dialects.tokens import MAX_TOKENS
from mcpmeter.pricing import usd_to_nanousd
from mcpmeter.records import Usage


def read(text: str) -> tuple[Usage | None, bool]:
    return read_usage(msgspec.Raw(text.encode()))


def reported(prompt: int, completion: int, **details: int) -> tuple[Usage, bool]:
    return Usage(prompt_tokens=prompt, completion_tokens=completion, source="reported", **details), False


NONE = (None, False)
BAD = (None, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", NONE),
        ("null", NONE),
        ("{}", NONE),
        ('{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}', reported(0, 0)),
        ('{"prompt_tokens":5,"completion_tokens":0}', reported(5, 0)),
        ('{"prompt_tokens":5,"total_tokens":7}', reported(5, 2)),
        ('{"prompt_tokens":5,"total_tokens":3}', reported(5, 0)),
        # What a model thought, which Google and xAI count in the total alone.
        ('{"prompt_tokens":9,"completion_tokens":1,"total_tokens":103}', reported(9, 94)),
        ('{"prompt_tokens":9,"completion_tokens":0,"total_tokens":9}', reported(9, 0)),
        ('{"prompt_tokens":9,"completion_tokens":5,"total_tokens":9}', reported(9, 5)),
        (
            '{"prompt_tokens":9,"completion_tokens":1,"total_tokens":30,"completion_tokens_details":'
            '{"reasoning_tokens":20}}',
            reported(9, 21, reasoning_tokens=20),
        ),
        # Here it can be something else.
        (
            '{"prompt_tokens":9,"completion_tokens":8,"total_tokens":30,"completion_tokens_details":'
            '{"reasoning_tokens":6}}',
            reported(9, 8, reasoning_tokens=6),
        ),
        ('{"prompt_tokens":9,"completion_tokens":1,"total_tokens":103,"prompt_audio_seconds":7}', reported(9, 1)),
        (
            '{"prompt_tokens":9,"completion_tokens":1,"total_tokens":74,"prompt_tokens_details":'
            '{"cached_tokens":60,"cache_write_tokens":4}}',
            reported(9, 1, cached_read_tokens=9),
        ),
        (
            '{"prompt_tokens":9,"completion_tokens":1,"total_tokens":70,"prompt_tokens_details":{"cached_tokens":60}}',
            reported(9, 1, cached_read_tokens=9),
        ),
        ('{"prompt_tokens":9,"completion_tokens":1,"total_tokens":20,"prompt_audio_seconds":null}', reported(9, 11)),
        ('{"prompt_tokens":5}', BAD),
        ('{"completion_tokens":5}', BAD),
        ('{"total_tokens":5}', BAD),
        ('{"prompt_tokens":null,"completion_tokens":5}', BAD),
        ('{"prompt_tokens":-1,"completion_tokens":5}', BAD),
        ('{"prompt_tokens":1,"completion_tokens":-5}', BAD),
        ('{"prompt_tokens":1.5,"completion_tokens":5}', BAD),
        ('{"prompt_tokens":1.0,"completion_tokens":5}', BAD),
        ('{"prompt_tokens":1e400,"completion_tokens":5}', BAD),
        ('{"prompt_tokens":NaN,"completion_tokens":5}', BAD),
        ('{"prompt_tokens":Infinity,"completion_tokens":5}', BAD),
        ('{"prompt_tokens":"12","completion_tokens":5}', BAD),
        ('{"prompt_tokens":true,"completion_tokens":5}', BAD),
        ('{"prompt_tokens":[],"completion_tokens":5}', BAD),
        (f'{{"prompt_tokens":{MAX_TOKENS + 1},"completion_tokens":5}}', BAD),
        (f'{{"prompt_tokens":{10**30},"completion_tokens":5}}', BAD),
        (f'{{"prompt_tokens":{"9" * 5000},"completion_tokens":5}}', BAD),
        ("[]", BAD),
        ("7", BAD),
        ('"many"', BAD),
        ("true", BAD),
        ('{"prompt_tokens":1,', BAD),
    ],
)
def test_totals_are_taken_as_they_are_or_not_at_all(text, expected):
    assert read(text) == expected


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ('"prompt_tokens_details":{"cached_tokens":4}', {"cached_read_tokens": 4}),
        ('"prompt_tokens_details":{"cached_tokens":0}', {}),
        ('"prompt_tokens_details":{"cached_tokens":99}', {"cached_read_tokens": 10}),
        (
            '"prompt_tokens_details":{"cached_tokens":8,"cache_write_tokens":9}',
            {"cached_read_tokens": 8, "cache_write_tokens": 2},
        ),
        ('"prompt_cache_hit_tokens":6', {"cached_read_tokens": 6}),
        ('"num_cached_tokens":6', {"cached_read_tokens": 6}),
        ('"cached_tokens":6', {"cached_read_tokens": 6}),
        ('"cached_tokens":99', {"cached_read_tokens": 10}),
        ('"cached_tokens":-1,"num_cached_tokens":"many"', {}),
        ('"prompt_tokens_details":{"cached_tokens":0},"cached_tokens":6', {}),
        ('"completion_tokens_details":{"reasoning_tokens":99}', {"reasoning_tokens": 5}),
        (
            '"prompt_tokens_details":{"audio_tokens":9},"completion_tokens_details":{"audio_tokens":9}',
            {"audio_tokens": 15},
        ),
        ('"prompt_tokens_details":null,"completion_tokens_details":null', {}),
        ('"prompt_tokens_details":{"cached_tokens":-1}', {}),
        ('"prompt_tokens_details":{"cached_tokens":"4"}', {}),
        ('"prompt_tokens_details":[],"completion_tokens_details":7', {}),
        ('"completion_tokens_details":{"reasoning_tokens":1.5}', {}),
    ],
)
def test_details_never_pass_the_totals_nor_spoil_them(details, expected):
    assert read(f'{{"prompt_tokens":10,"completion_tokens":5,{details}}}') == reported(10, 5, **expected)


numbers = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=1)
)
details = st.dictionaries(
    st.sampled_from(["cached_tokens", "cache_write_tokens", "audio_tokens", "reasoning_tokens"]), numbers, max_size=4
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "prompt_tokens",
                "completion_tokens",
                "total_tokens",
                "prompt_cache_hit_tokens",
                "num_cached_tokens",
                "cached_tokens",
                "prompt_audio_seconds",
                "prompt_tokens_details",
                "completion_tokens_details",
            ]
        ),
        numbers | details,
    )
)
def test_whatever_is_reported_fits_a_row_and_its_parts_fit_their_totals(value):
    usage, _bad = read(json.dumps(value))
    if usage is None:
        return
    assert 0 <= usage.prompt_tokens <= MAX_TOKENS
    assert 0 <= usage.completion_tokens <= MAX_TOKENS
    assert 0 <= usage.cached_read_tokens + usage.cache_write_tokens <= usage.prompt_tokens
    assert 0 <= usage.reasoning_tokens <= usage.completion_tokens
    assert 0 <= usage.audio_tokens <= usage.prompt_tokens + usage.completion_tokens


@pytest.mark.parametrize(
    ("block", "payloads"),
    [
        (b"data: a\n\ndata:b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data: {\ndata: }\n\n", [b"{\n}"]),
        (b": comment\nevent: x\ndata: a\nid: 1\n\n", [b"a"]),
        (b"retry: 5\n\n", []),
        (b"\xff\n\n\n", []),
    ],
)
def test_events_are_read_as_the_standard_says(block, payloads):
    assert events_of(block) == payloads


# Cost ----------------------------------------------------------------------------------------------------------------


def cost(text: str) -> str:
    return reported_usd(msgspec.Raw(f'{{"prompt_tokens":1,"cost":{text}}}'.encode()))


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("0.00014", "0.00014"),
        ("0.95", "0.95"),
        ("0", "0"),
        ("1.4e-05", "1.4e-05"),
        ("0.10000000000000000555", "0.10000000000000000555"),
        ('"0.0042"', "0.0042"),
        ('{"total_cost":0.005017,"request_cost":0.005}', "0.005017"),
        ('{"total_cost":null}', ""),
        ("{}", ""),
        ("null", ""),
        ("true", ""),
        ("-0.1", ""),
        ("NaN", ""),
        ("Infinity", ""),
        ('""', ""),
        ('"free"', ""),
        ("[1]", ""),
        ("9" * (MAX_AMOUNT_LENGTH + 1), ""),
        ("0.1,", ""),
    ],
)
def test_a_cost_is_kept_as_it_was_written_or_not_at_all(written, told):
    assert cost(written) == told


@pytest.mark.parametrize("usage", [b"", b"null", b"{}", b"[]", b'"cost"', b'{"cost"', b'["cost"]', b'{"cost":"\xff"}'])
def test_usage_without_a_readable_cost_tells_none(usage):
    assert reported_usd(msgspec.Raw(usage)) == ""


@given(st.decimals(min_value=0, max_value=10**6, places=12))
def test_a_cost_reaches_the_ledger_without_a_float(amount):
    text = f"{amount:f}"
    answer = strict_json(f'{{"x":NaN,"usage":{{"cost":{text}}}}}'.encode())
    usage = msgspec.json.decode(answer, type=dict[str, msgspec.Raw])["usage"]
    assert cost(text) == reported_usd(usage) == text
    assert usd_to_nanousd(text) == usd_to_nanousd(amount)


# Bodies --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "additions", "sent"),
    [
        (b'{ "a":1.50}', {}, b'{ "a":1.50}'),
        (b'{ "a":1.50}', {"model": "m"}, b'{"model":"m", "a":1.50}'),
        (b'{"a":1.50,"model":"x"}', {"model": "m"}, b'{"a":1.50,"model":"m"}'),
        (b'{"o":{"b":1},"a":1.50}', {"o": {"c": True}}, b'{"o":{"b":1,"c":true},"a":1.50}'),
        (b'{"o":null}', {"o": {"c": True}, "model": "m"}, b'{"o":{"c":true},"model":"m"}'),
    ],
)
def test_fields_are_set_and_every_other_value_stays_as_it_was_written(body, additions, sent):
    assert with_fields(body, additions) == sent


@pytest.mark.parametrize(
    ("body", "strict"),
    [
        (b'{"a":NaN,"b":[Infinity,-Infinity]}', b'{"a": "NaN", "b": ["Infinity", "-Infinity"]}'),
        (b'{"a":"\\ud83d"}', b'{"a": "?"}'),
        (b'{"a":1e400,"b":0.10,"c":12}', b'{"a": "1e400", "b": "0.10", "c": 12}'),
    ],
)
def test_what_only_a_lenient_parser_takes_becomes_strict_and_loses_no_digit(body, strict):
    assert strict_json(body) == strict


@pytest.mark.parametrize("body", [b"", b"{", b"<html>", b"[" * 100_000, b"\xff"])
def test_what_no_parser_takes_is_no_answer(body):
    with pytest.raises(UnreadableResponse):
        strict_json(body)
