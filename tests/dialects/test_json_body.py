"""Rewriting bodies without touching other bytes, and reading what only a lenient parser accepts."""

from __future__ import annotations

import pytest

from mcpmeter.dialects.base import UnreadableResponse
from mcpmeter.dialects.json_body import refuse_repeated, strict_json, with_fields
from mcpmeter.errors import InvalidRequest

LONG_NUMBER = b"1." + b"2" * 5000
"""JSON allows it, Python's int does not."""


@pytest.mark.parametrize(
    ("body", "additions", "sent"),
    [
        (b'{ "a":1.50}', {}, b'{ "a":1.50}'),
        (b'{ "a":1.50}', {"model": "m"}, b'{"model":"m", "a":1.50}'),
        (b'{"a":1.50,"model":"x"}', {"model": "m"}, b'{"a":1.50,"model":"m"}'),
        (b'{"o":{"b":1},"a":1.50}', {"o": {"c": True}}, b'{"o":{"b":1,"c":true},"a":1.50}'),
        (b'{"o":null}', {"o": {"c": True}, "model": "m"}, b'{"o":{"c":true},"model":"m"}'),
        (b'{"o":{"b":%b}}' % LONG_NUMBER, {"o": {"c": True}}, b'{"o":{"b":%b,"c":true}}' % LONG_NUMBER),
    ],
)
def test_setting_fields_keeps_every_other_value_as_written(body, additions, sent):
    assert with_fields(body, additions) == sent


@pytest.mark.parametrize("number", [LONG_NUMBER, b"3" * 5000])
def test_a_name_is_counted_beside_a_number_of_any_length(number):
    refuse_repeated(b'{"a":1,"b":{"a":%b}}' % number, [b'"a"'])
    with pytest.raises(InvalidRequest, match="'a' twice"):
        refuse_repeated(b'{"a":1,"a":%b}' % number, [b'"a"'])


def test_a_body_too_deep_for_counting_names_is_invalid():
    with pytest.raises(InvalidRequest, match="too deep"):
        refuse_repeated(b'{"a":1,"b":{"a":%b}}' % (b"[" * 100_000 + b"]" * 100_000), [b'"a"'])


@pytest.mark.parametrize(
    ("body", "strict"),
    [
        (b'{"a":NaN,"b":[Infinity,-Infinity]}', b'{"a": "NaN", "b": ["Infinity", "-Infinity"]}'),
        (b'{"a":"\\ud83d"}', b'{"a": "?"}'),
        (b'{"a":1e400,"b":0.10,"c":12}', b'{"a": "1e400", "b": "0.10", "c": 12}'),
        (b'{"a":%b}' % (b"9" * 5000), b'{"a": "%b"}' % (b"9" * 5000)),
    ],
)
def test_lenient_json_becomes_strict_and_loses_no_digit(body, strict):
    assert strict_json(body) == strict


@pytest.mark.parametrize("body", [b"", b"{", b"<html>", b"[" * 100_000, b"\xff"])
def test_bytes_that_no_parser_accepts_are_unreadable(body):
    with pytest.raises(UnreadableResponse):
        strict_json(body)
