"""Usage objects read by a table: what each value counts as, and what is unknown."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from mcpmeter.dialects.tokens import MAX_TOKENS
from mcpmeter.dialects.usage_fields import (
    FREE,
    MAX_LEAVES,
    MAX_PATH_LENGTH,
    MAX_UNKNOWN,
    MORE,
    PART,
    count,
    parsed,
    read,
    text,
    with_aliases,
)
from mcpmeter.records import UsageItem

TABLE = {
    "prompt_tokens": count("prompt_tokens"),
    "details.cached": count("cached_read"),
    "cached": count("cached_read"),
    "details.words": PART,
    "parts[AUDIO].n": count("prompt_audio"),
    "seconds": count("prompt_audio_ms", 1000),
    "times": FREE,
    "tier": text("tier"),
}


def unknown(usage: Any) -> dict[str, int]:
    return {item.item: item.quantity for item in read(usage, TABLE).unknown}


@pytest.mark.parametrize(
    ("written", "counted"),
    [("7", 7), ("0", 0), ("1200.0", 1200), ("1.2e3", 1200), (str(MAX_TOKENS), MAX_TOKENS)],
)
def test_a_whole_number_is_a_count_however_it_is_written(written, counted):
    reading = read(parsed(f'{{"prompt_tokens":{written}}}'.encode()), TABLE)
    assert (reading.counts, reading.unknown, reading.invalid) == ({"prompt_tokens": counted}, (), frozenset())


@pytest.mark.parametrize(
    "written", ["-1", "0.5", "NaN", "Infinity", "1e400", '"7"', "true", str(MAX_TOKENS + 1), "9" * 5000]
)
def test_any_other_value_of_a_count_is_invalid_and_unknown(written):
    reading = read(parsed(f'{{"prompt_tokens":{written}}}'.encode()), TABLE)
    assert (reading.counts, reading.invalid) == ({}, {"prompt_tokens"})
    assert [item.item for item in reading.unknown] == ["prompt_tokens"]


def test_fields_with_one_name_count_once_and_entries_add_up():
    usage = {
        "cached": 6,
        "details": {"cached": 5},
        "parts": [{"modality": "AUDIO", "n": 3}, {"modality": "AUDIO", "n": 4}],
    }
    reading = read(usage, TABLE)
    assert reading.counts == {"cached_read": 6, "prompt_audio": 7}
    assert reading.paths == {"cached_read": "cached", "prompt_audio": "parts[AUDIO].n"}
    assert reading.unknown == ()


def test_a_scaled_count_may_be_fractional():
    assert read({"seconds": 7.5}, TABLE).counts == {"prompt_audio_ms": 7500}


def test_what_no_table_names_is_unknown_under_its_path():
    usage = {"details": {"words": 9, "smell": 4}, "parts": [{"modality": "SMELL", "n": 2}], "tier": 3, "fee": 0.01}
    assert unknown(usage) == {"details.smell": 4, "parts[SMELL].n": 2, "tier": 3, "fee": 1}
    assert read(usage, TABLE).unknown_below("details.") == 4


@pytest.mark.parametrize("empty", [0, 0.0, None, False, "", [], {}, {"a": [None, {"b": 0}]}])
def test_nothing_is_not_unknown(empty):
    assert unknown({"new": empty}) == {}


@pytest.mark.parametrize(
    ("value", "quantity"), [(True, 1), ("text", 1), (-3, 3), (2.5, 3), (10**30, MAX_TOKENS), ([1, 2], 3)]
)
def test_an_unknown_quantity_is_a_whole_number(value, quantity):
    assert sum(unknown({"new": value}).values()) == quantity


def test_known_objects_are_not_entered():
    assert unknown({"times": {"queue": 0.1, "deep": [{"er": 5}]}}) == {}


def test_the_number_of_unknown_items_and_their_names_are_bounded():
    found = read({f"field{n}\n" + "x" * 100: 1 for n in range(MAX_UNKNOWN + 5)}, TABLE).unknown
    assert found[-1] == UsageItem(MORE, 5)
    assert len(found) == MAX_UNKNOWN + 1
    assert all(len(item.item) <= MAX_PATH_LENGTH and item.item.isprintable() for item in found)


@pytest.mark.parametrize(
    "usage",
    [
        {"a": list(range(10 * MAX_LEAVES))},
        json.loads('{"a":' * 50 + "1" + "}" * 50),
        {"x" * 10**6: {str(n): 1 for n in range(MAX_LEAVES)}},
    ],
)
def test_what_lies_beyond_the_bounds_is_noticed(usage):
    assert MORE in unknown(usage) or len(unknown(usage)) == MAX_UNKNOWN


@pytest.mark.parametrize("usage", [None, 7, "x", True, [], [[]], {"": {"": 1}}])
def test_any_value_can_be_read(usage):
    assert read(usage, TABLE).counts == {}


def test_an_alias_adds_a_name_to_a_table():
    table = with_aliases(TABLE, {"usage.mine.cached": "cached_read", "rate": "free"})
    reading = read({"mine": {"cached": 5}, "rate": 0.5}, table)
    assert (reading.counts, reading.unknown) == ({"cached_read": 5}, ())


def test_an_alias_must_name_an_item():
    with pytest.raises(ValueError, match="'cashed_read' is no billable item"):
        with_aliases(TABLE, {"mine": "cashed_read"})


@pytest.mark.parametrize(
    "number", ["1e99999999999999999999", "-1e9999999999", "1e-99999999999999999999", "1e-999999999", "0e99"]
)
def test_a_number_of_any_size_is_read_without_a_fault(number):
    value = parsed(msgspec.Raw(f'{{"odd": {number}, "prompt_tokens": 3, "big": {10**30}}}'.encode()))
    assert value["prompt_tokens"] == 3
