"""Recorders with registered label values, and settlements to count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from mcpmeter.metrics.family import Labels
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.records import Call, Charge, LlmTarget, Settlement, Usage

REGISTERED = {
    "endpoint": ["/v1/chat/completions", "/mcp"],
    "model": ["gpt-4.1", "deepseek-v3.2"],
    "team": ["search", "support"],
    "provider": ["holysheep", "openai"],
    "tool": ["", "add"],
    "server": ["", "tried"],
    "build": ["0.1.0", "3.11.7"],
}


def registered_recorder() -> Recorder:
    recorder = Recorder()
    for name, values in REGISTERED.items():
        recorder.label_allowlist.register(name, values)
    return recorder


@pytest.fixture
def recorder() -> Recorder:
    return registered_recorder()


@pytest.fixture(scope="session")
def make_recorder() -> Callable[[], Recorder]:
    return registered_recorder


@pytest.fixture(scope="session")
def make_settlement() -> Callable[..., Settlement]:
    """A streamed and priced model call; fields of `Call`, `Usage`, `Charge` and `LlmTarget` by prefix."""

    def part(made: Any, prefix: str, changes: dict[str, Any], **defaults: Any) -> Any:
        given = {k.removeprefix(prefix): changes.pop(k) for k in list(changes) if k.startswith(prefix)}
        return made(**{**defaults, **given})

    def make(**changes: Any) -> Settlement:
        target = part(LlmTarget, "llm_", changes, provider="holysheep", model="gpt-4.1", stream=True)
        call = part(
            Call, "call_", changes, id="call_1", started_at_ns=10, endpoint="/v1/chat/completions", method="POST",
            team="search", llm=target,
        )  # fmt: skip
        usage = part(Usage, "usage_", changes, prompt_tokens=11, completion_tokens=7, source="reported")
        charge = part(Charge, "charge_", changes, nanousd=97_500, source="listed")
        defaults = {
            "ended_at_ns": 2_000_000_010,
            "duration_ns": 2_000_000_000,
            "status": "200",
            "usage": usage,
            "charge": charge,
            "time_to_first_chunk_ns": 500_000_000,
            "chunks": 4,
        }
        return Settlement(call=call, **{**defaults, **changes})

    return make


@pytest.fixture(scope="session")
def counts() -> Callable[[Recorder, str], Mapping[Labels, int]]:
    """(recorder, name) -> the non-zero children of a family; histograms by their count."""

    def of(recorder: Recorder, name: str) -> Mapping[Labels, int]:
        (family,) = (f for f in recorder.snapshot() if f.metric.name == name)
        values = {labels: value for labels, value, _ in family.values}
        values |= {labels: sum(buckets) for labels, buckets, _, _ in family.histograms}
        return {labels: value for labels, value in values.items() if value}

    return of
