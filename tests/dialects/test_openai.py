"""Usage and cost in OpenAI's shape, and our errors in it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpmeter.dialects.json_body import fields_of, strict_json
from mcpmeter.dialects.openai import MAX_AMOUNT_LENGTH, error_body, read_usage, reported_cost
from mcpmeter.dialects.openai_chat import OpenAiChat
from mcpmeter.dialects.openai_responses import OpenAiResponses
from mcpmeter.errors import LedgerUnavailable, UpstreamDisconnected
from mcpmeter.pricing import usd_to_nanousd
from mcpmeter.records import Usage, UsageItem


def usage(text: str) -> tuple[Usage | None, bool]:
    return read_usage(msgspec.Raw(text.encode()))


def reported(prompt: int, completion: int, unknown: dict[str, int] | None = None, **details: Any) -> tuple[Usage, bool]:
    items = tuple(UsageItem(path, quantity) for path, quantity in (unknown or {}).items())
    return Usage(prompt_tokens=prompt, completion_tokens=completion, source="reported", unknown=items, **details), False


def items(**quantities: int) -> tuple[UsageItem, ...]:
    return tuple(UsageItem(name, quantity) for name, quantity in quantities.items())


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
        # Thoughts, which Google and xAI count only in the total.
        ('{"prompt_tokens":9,"completion_tokens":1,"total_tokens":103}', reported(9, 94)),
        ('{"prompt_tokens":9,"completion_tokens":0,"total_tokens":9}', reported(9, 0)),
        ('{"prompt_tokens":9,"completion_tokens":5,"total_tokens":9}', reported(9, 5)),
        (
            '{"prompt_tokens":9,"completion_tokens":1,"total_tokens":30,"completion_tokens_details":'
            '{"reasoning_tokens":20}}',
            reported(9, 21, reasoning_tokens=20),
        ),
        # The difference can be something else.
        (
            '{"prompt_tokens":9,"completion_tokens":8,"total_tokens":30,"completion_tokens_details":'
            '{"reasoning_tokens":6}}',
            reported(9, 8, {"total_tokens": 13}, reasoning_tokens=6),
        ),
        (
            '{"prompt_tokens":9,"completion_tokens":1,"total_tokens":103,"prompt_audio_seconds":7}',
            reported(9, 1, items=items(prompt=9, completion=1, prompt_audio_ms=7000)),
        ),
        (
            '{"prompt_tokens":9,"completion_tokens":1,"total_tokens":74,"prompt_tokens_details":'
            '{"cached_tokens":60,"cache_write_tokens":4}}',
            reported(73, 1, cached_read_tokens=60, cache_write_tokens=4),
        ),
        (
            '{"prompt_tokens":9,"completion_tokens":1,"total_tokens":70,"prompt_tokens_details":{"cached_tokens":60}}',
            reported(69, 1, cached_read_tokens=60),
        ),
        ('{"prompt_tokens":9,"completion_tokens":1,"total_tokens":20,"prompt_audio_seconds":null}', reported(9, 11)),
        ('{"prompt_tokens":5}', BAD),
        ('{"completion_tokens":5}', BAD),
        ('{"total_tokens":5}', BAD),
        ('{"prompt_tokens":null,"completion_tokens":5}', BAD),
        ('{"prompt_tokens":1,', BAD),
    ],
)
def test_totals_are_read_as_reported_or_not_at_all(text, expected):
    assert usage(text) == expected


@pytest.mark.parametrize(
    ("details", "counts", "unknown"),
    [
        ('"prompt_tokens_details":{"cached_tokens":4}', {"cached_read_tokens": 4}, {}),
        ('"prompt_tokens_details":{"cached_tokens":0}', {}, {}),
        (
            '"prompt_tokens_details":{"cached_tokens":99}',
            {"cached_read_tokens": 10},
            {"prompt_tokens_details.cached_tokens": 89},
        ),
        (
            '"prompt_tokens_details":{"cached_tokens":8,"cache_write_tokens":9}',
            {"cached_read_tokens": 8, "cache_write_tokens": 2},
            {"prompt_tokens_details.cache_write_tokens": 7},
        ),
        ('"prompt_cache_hit_tokens":6,"prompt_cache_miss_tokens":4', {"cached_read_tokens": 6}, {}),
        ('"num_cached_tokens":6', {"cached_read_tokens": 6}, {}),
        ('"cached_tokens":6', {"cached_read_tokens": 6}, {}),
        ('"cached_tokens":99', {"cached_read_tokens": 10}, {"cached_tokens": 89}),
        ('"cached_tokens":-1,"num_cached_tokens":"many"', {}, {"cached_tokens": 1, "num_cached_tokens": 1}),
        ('"prompt_tokens_details":{"cached_tokens":0},"cached_tokens":6', {"cached_read_tokens": 6}, {}),
        (
            '"completion_tokens_details":{"reasoning_tokens":99}',
            {"reasoning_tokens": 5},
            {"completion_tokens_details.reasoning_tokens": 94},
        ),
        (
            '"prompt_tokens_details":{"audio_tokens":19},"completion_tokens_details":{"audio_tokens":5}',
            {"audio_tokens": 15, "items": items(prompt_audio=10, completion_audio=5)},
            {"prompt_tokens_details.audio_tokens": 9},
        ),
        ('"prompt_tokens_details":null,"completion_tokens_details":null', {}, {}),
        ('"prompt_tokens_details":{"cached_tokens":-1}', {}, {"prompt_tokens_details.cached_tokens": 1}),
        ('"prompt_tokens_details":{"cached_tokens":"4"}', {}, {"prompt_tokens_details.cached_tokens": 1}),
        ('"prompt_tokens_details":[],"completion_tokens_details":7', {}, {"completion_tokens_details": 7}),
        (
            '"completion_tokens_details":{"reasoning_tokens":1.5}',
            {},
            {"completion_tokens_details.reasoning_tokens": 2},
        ),
    ],
)
def test_details_stay_within_the_totals_and_never_spoil_them(details, counts, unknown):
    assert usage(f'{{"prompt_tokens":10,"completion_tokens":5,{details}}}') == reported(10, 5, unknown, **counts)


# Cost ----------------------------------------------------------------------------------------------------------------


def cost(text: str) -> str:
    return reported_cost(msgspec.Raw(f'{{"prompt_tokens":1,"cost":{text}}}'.encode()))[0]


@pytest.mark.parametrize(
    ("written", "reported"),
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
def test_a_cost_keeps_its_digits_or_is_left_out(written, reported):
    assert cost(written) == reported


@pytest.mark.parametrize("text", [b"", b"null", b"{}", b"[]", b'"cost"', b'{"cost"', b'["cost"]', b'{"cost":"\xff"}'])
def test_usage_without_a_readable_cost_reports_none(text):
    assert reported_cost(msgspec.Raw(text)) == ("", False)


@given(st.decimals(min_value=0, max_value=10**6, places=12))
def test_a_cost_reaches_the_ledger_without_a_float(amount):
    text = f"{amount:f}"
    response = strict_json(f'{{"x":NaN,"usage":{{"cost":{text}}}}}'.encode())
    assert cost(text) == text
    assert usd_to_nanousd(reported_cost(fields_of(response)["usage"])[0]) == usd_to_nanousd(amount)
    assert usd_to_nanousd(text) == usd_to_nanousd(amount)


# Errors --------------------------------------------------------------------------------------------------------------


def test_an_error_has_openais_shape_an_id_and_a_sentence():
    error = json.loads(error_body(LedgerUnavailable("The disk is full.", hint="Make room."), "call_1"))["error"]
    assert error == {
        "message": "The disk is full. Make room.",
        "type": "api_error",
        "param": None,
        "code": "ledger_unavailable",
        "call_id": "call_1",
    }


def test_an_error_event_of_responses_has_a_type():
    error = UpstreamDisconnected("It ended.")
    assert OpenAiChat().error_event(error, "call_1") == b"data: " + error_body(error, "call_1") + b"\n\n"
    name, data, *rest = OpenAiResponses().error_event(error, "call_1").split(b"\n")
    assert (name, rest) == (b"event: error", [b"", b""])
    event = json.loads(data.removeprefix(b"data: "))
    assert (event.pop("type"), event) == ("error", json.loads(error_body(error, "call_1")))
