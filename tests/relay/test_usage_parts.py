"""One usage of what a response reports in several places."""

from __future__ import annotations

import pytest

from mcpmeter.dialects.base import ResponseInfo
from mcpmeter.dialects.usage_fields import MAX_UNKNOWN, MORE
from mcpmeter.records import STANDARD, Conditions, Usage, UsageItem
from mcpmeter.relay.usage_parts import joined, with_completion

COUNTS = Usage(
    prompt_tokens=100,
    completion_tokens=40,
    cached_read_tokens=30,
    cache_write_tokens=20,
    reasoning_tokens=15,
    source="reported",
)


def parts(usage: Usage) -> dict[str, int]:
    return {item.item: item.quantity for item in usage.items}


def test_a_fee_beside_plain_counts_completes_them() -> None:
    usage = joined(COUNTS, ResponseInfo(items=(UsageItem("web_search", 2),)), STANDARD, STANDARD)
    assert parts(usage) == {
        "prompt": 50,
        "cached_read": 30,
        "cache_write": 20,
        "completion": 25,
        "reasoning": 15,
        "web_search": 2,
    }


def test_what_usage_and_output_both_show_counts_once() -> None:
    usage = Usage(prompt_tokens=5, items=(UsageItem("prompt", 5), UsageItem("web_search", 3)), source="reported")
    info = ResponseInfo(items=(UsageItem("web_search", 2), UsageItem("file_search", 1)))
    assert parts(joined(usage, info, STANDARD, STANDARD)) == {"prompt": 5, "web_search": 3, "file_search": 1}


def test_unknown_items_are_joined_and_bounded() -> None:
    usage = Usage(unknown=tuple(UsageItem(f"a{n}", 1) for n in range(20)), source="reported")
    info = ResponseInfo(unknown=tuple(UsageItem(f"b{n}", 1) for n in range(20)))
    unknown = joined(usage, info, STANDARD, STANDARD).unknown
    assert len(unknown) == MAX_UNKNOWN + 1
    assert unknown[-1] == UsageItem(MORE, 8)


def test_the_body_precedes_headers_and_the_request() -> None:
    asked = Conditions(tier="priority", completion_window="2h", batch=True)
    info = ResponseInfo(conditions=Conditions(tier="flex"))
    told = Conditions(tier="priority", region="us")
    expected = Conditions(tier="flex", region="us", completion_window="2h", batch=True)
    assert joined(COUNTS, info, asked, told).conditions == expected


def test_a_tier_that_was_only_requested_is_not_billed() -> None:
    asked = Conditions(tier="priority")
    assert joined(COUNTS, ResponseInfo(), asked, STANDARD).conditions == STANDARD


def test_a_response_without_a_tier_has_the_requested_one() -> None:
    asked = Conditions(tier="priority")
    assert joined(COUNTS, ResponseInfo(lacks_tier=True), asked, STANDARD).conditions == asked
    told = ResponseInfo(lacks_tier=True, conditions=Conditions(tier="flex"))
    assert joined(COUNTS, told, asked, STANDARD).conditions == Conditions(tier="flex")


@pytest.mark.parametrize("usage", [COUNTS, Usage(source="partial")])
@pytest.mark.parametrize("tier", ["flex", "scale"])
def test_a_cheaper_tier_that_was_only_requested_lowers_no_bill(tier: str, usage: Usage) -> None:
    asked = Conditions(tier=tier)
    assert joined(usage, ResponseInfo(lacks_tier=True), asked, STANDARD).conditions == STANDARD


def test_a_response_that_broke_off_has_the_requested_tier() -> None:
    asked = Conditions(tier="priority")
    assert joined(Usage(source="partial"), ResponseInfo(), asked, STANDARD).conditions == asked


def test_a_stream_that_broke_off_keeps_the_parts_of_its_prompt() -> None:
    counted = Usage(
        prompt_tokens=100,
        completion_tokens=1,
        cached_read_tokens=60,
        items=(UsageItem("prompt", 40), UsageItem("cached_read", 60), UsageItem("completion", 1)),
        conditions=Conditions(region="us"),
        source="partial",
    )
    delivered = with_completion(counted, 25, "partial")
    assert parts(delivered) == {"prompt": 40, "cached_read": 60, "completion": 25}
    assert (delivered.completion_tokens, delivered.conditions) == (25, Conditions(region="us"))
    assert parts(with_completion(counted, 0, "partial")) == {"prompt": 40, "cached_read": 60}


def test_plain_counts_of_a_broken_stream_keep_the_cached() -> None:
    delivered = with_completion(COUNTS, 10, "estimated")
    assert (delivered.cached_read_tokens, delivered.cache_write_tokens) == (30, 20)
    assert (delivered.completion_tokens, delivered.reasoning_tokens, delivered.source) == (10, 10, "estimated")
