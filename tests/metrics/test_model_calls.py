"""Cached cells must count a call exactly as a fresh look-up would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpmeter.catalog import ALL, OTHER
from mcpmeter.metrics import recorder as recorder_module
from mcpmeter.metrics.family import Labels
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.records import ChargeLine, Settlement, UsageItem

Make = Callable[..., Settlement]
Counts = Callable[[Recorder, str], Mapping[Labels, int]]

# fmt: off
CHANGES = st.fixed_dictionaries({}, optional={
    "llm_model": st.sampled_from(["gpt-4.1", "deepseek-v3.2", "unknown"]),
    "call_team": st.sampled_from(["search", "support", "strangers"]),
    "call_endpoint": st.sampled_from(["/v1/chat/completions", "/mcp", "/elsewhere"]),
    "status": st.sampled_from(["200", "500", "299"]),
    "outcome": st.sampled_from(["ok", "error", "partial", "recovered"]),
    "usage_source": st.sampled_from(["reported", "estimated", "missing", "guessed"]),
    "usage_completion_tokens": st.integers(0, 3),
    "usage_unknown": st.sampled_from([(), (UsageItem("invented", 1),)]),
    "charge_lines": st.sampled_from([(), (ChargeLine("web_search", 1, 97_500), ChargeLine("image", 1, None))]),
    "usage_reasoning_tokens": st.integers(0, 2),
    "charge_source": st.sampled_from(["listed", "reported", "unpriced", "invented"]),
    "charge_reported_nanousd": st.none() | st.integers(0, 9),
    "charge_listed_nanousd": st.none() | st.integers(0, 9),
    "finish_reason": st.sampled_from(["", "stop", "length", "bored", OTHER]),
    "missing_reason": st.sampled_from(["", "no_usage", "none"]),
    "is_empty": st.booleans(),
    "chunks": st.integers(0, 3),
    "call_trace_id": st.sampled_from(["", "a" * 32]),
})
# fmt: on


def totals(recorders: list[Recorder]) -> dict[tuple[str, Labels], Any]:
    """Every child of all recorders, including zeros, summed."""
    found: dict[tuple[str, Labels], Any] = {}
    for recorder in recorders:
        for family in recorder.snapshot():
            if family.metric.type == "gauge":  # a ratio, which does not add up
                continue
            for labels, value, _ in family.values:
                key = family.metric.name, labels
                found[key] = found.get(key, 0) + value
            for labels, counts, total, _ in family.histograms:
                key = family.metric.name, labels
                before = found.get(key, ([0] * len(counts), 0))
                found[key] = [a + b for a, b in zip(before[0], counts, strict=True)], before[1] + total
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(CHANGES, min_size=1, max_size=6))
def test_cached_cells_count_like_fresh_ones(
    make_recorder: Callable[[], Recorder], make_settlement: Make, changes: list[dict[str, Any]]
) -> None:
    calls = [make_settlement(**change) for change in [*changes, *changes]]
    together = make_recorder()
    for call in calls:
        together.settle(call)
    alone = []
    for call in calls:
        alone.append(make_recorder())
        alone[-1].settle(call)
    assert totals([together]) == totals(alone)


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"finish_reason": "bored"}, "reason"),
        ({"usage_source": "guessed"}, "source"),
        ({"charge_source": "invented"}, "source"),
        ({"call_team": "strangers"}, "team"),
        ({"status": "299"}, "status"),
    ],
)
def test_every_occurrence_of_other_is_an_overflow(
    recorder: Recorder, make_settlement: Make, counts: Counts, changes: dict[str, Any], label: str
) -> None:
    recorder.settle(make_settlement(**changes))
    once = counts(recorder, "mcp_label_overflow_total")[label,]
    recorder.settle(make_settlement(**changes))
    recorder.settle(make_settlement(**changes))
    assert counts(recorder, "mcp_label_overflow_total") == {(label,): 3 * once}


def test_a_child_appears_with_its_first_value(recorder: Recorder, make_settlement: Make) -> None:
    def families() -> set[str]:
        labelled = {row.name for row in ALL if row.labels} - {"mcp_label_overflow_total"}
        return {f.metric.name for f in recorder.snapshot() if f.metric.name in labelled and (f.values or f.histograms)}

    recorder.settle(make_settlement(outcome="recovered", usage=None, charge=None))
    assert families() == {"mcp_requests_total"}
    recorder.settle(make_settlement(outcome="error", usage=None, charge=None, chunks=0))
    duration = "gen_ai_client_operation_duration_seconds"
    assert families() == {"mcp_requests_total", "mcp_request_duration_seconds", duration}


def test_the_number_of_cached_label_combinations_is_bounded(
    recorder: Recorder, make_settlement: Make, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "MAX_CALL_LABELS", 2)
    recorder.known_as = lambda provider, model: "gpt-4.1"
    for number in range(7):
        recorder.settle(make_settlement(llm_model=f"gpt-4.1-{number}"))
        assert len(recorder._model_calls) <= 2  # the bound is not visible from outside
    assert sum(counts(recorder, "mcp_requests_total").values()) == 7
    assert counts(recorder, "mcp_cost_usd_total") == {("gpt-4.1", "search", "holysheep", "listed"): 7 * 97_500}


LINES = (
    ChargeLine("prompt", 100, 250, source="listed"),
    ChargeLine("prompt_audio", 5, 40, source="listed"),
    ChargeLine("cache_write_1h", 10, 75, source="listed"),
    ChargeLine("reasoning", 7, 70, source="listed"),
    ChargeLine("web_search", 2, 20_000_000, source="listed", model="gpt-4.1-search"),
    ChargeLine("file_search", 1, None),
)


@pytest.mark.parametrize(
    ("changes", "components"),
    [
        ({"charge_completion_nanousd": 40_000}, {"prompt": 57_500, "completion": 40_000}),
        ({"charge_source": "reported"}, {"other": 97_500}),
        (
            {"charge_lines": LINES, "charge_nanousd": 20_000_435},
            {"prompt": 290, "cache_write": 75, "completion": 70, "tool_fee": 20_000_000},
        ),
        (
            {"charge_lines": LINES[:2], "charge_source": "reported", "charge_nanousd": 300},
            {"prompt": 290, "other": 10},
        ),
        ({"charge_lines": LINES[:2], "charge_source": "reported", "charge_nanousd": 200}, {"other": 200}),
        ({"charge_lines": LINES, "charge_source": "unpriced", "charge_nanousd": 0}, {}),
    ],
)
def test_components_add_up_to_the_cost(
    recorder: Recorder, make_settlement: Make, counts: Counts, changes: dict[str, Any], components: dict[str, int]
) -> None:
    for _ in range(2):
        recorder.settle(make_settlement(**changes))
    found = counts(recorder, "mcp_cost_component_usd_total")
    assert found == {("gpt-4.1", "holysheep", name): 2 * nanousd for name, nanousd in components.items()}
    assert sum(found.values()) == sum(counts(recorder, "mcp_cost_usd_total").values())


def test_invented_items_get_series_up_to_a_bound(recorder: Recorder, make_settlement: Make, counts: Counts) -> None:
    items = [f"usage.invented_{number}" for number in range(recorder_module.MAX_INVENTED_ITEMS + 5)]
    for item in (*items, *items[:3]):
        unknown = (UsageItem(item, 3),)
        recorder.settle(make_settlement(usage_unknown=unknown, charge_lines=LINES, charge_nanousd=20_000_435))
    found = counts(recorder, "mcp_unpriced_items_total")
    assert found.pop(("holysheep", "file_search")) == len(items) + 3
    assert found.pop(("holysheep", OTHER)) == 5
    assert found == {("holysheep", item): 2 if item in items[:3] else 1 for item in items[:-5]}
    assert counts(recorder, "mcp_label_overflow_total") == {("item",): 5}
