"""The type of an alert: its rules, texts, runbook, and the series on which it must or must not fire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mcpmeter.monitoring.queries import Parameter

Severity = Literal["critical", "warning", "info", "none"]
"""critical pages, warning is a ticket for the day, info is for review, none is the dead man's switch."""

Area = Literal["slo", "upstreams", "money", "quality", "meter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One alerting rule. An alert has several if its severity depends on the extent."""

    expr: str
    hold: str = ""
    """Prometheus's `for`."""
    severity: Severity = "warning"
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """A step of a runbook: what to check, and the query that shows it."""

    what: str
    query: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Runbook:
    """Instructions for the person on call. `check` holds queries to paste."""

    means: str
    check: Sequence[Check]
    do: Sequence[str]
    fault: str
    """Where the fault usually is."""


@dataclass(frozen=True, slots=True)
class Firing:
    """An alert that a case expects: its labels except `job`, and its value as the description shows it."""

    labels: Mapping[str, str] = field(default_factory=dict)
    shown: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """Series, and the alerts that fire at one instant. Series use promtool's notation; job and instance are added."""

    title: str
    at: str
    series: Mapping[str, str]
    firing: Sequence[Firing] = ()


def fires(title: str, at: str, series: Mapping[str, str], *firing: Firing) -> Case:
    """A case in which exactly these alerts must fire."""
    return Case(title, at, series, firing or (Firing(),))


def quiet(title: str, at: str, series: Mapping[str, str]) -> Case:
    """A case in which the alert must not fire."""
    return Case(title, at, series)


def on(replica: str, series: str) -> str:
    """The series as another replica exports it."""
    name, _, labels = series.partition("{")
    return f'{name}{{instance="{replica}:8000"{"," if labels else ""}{labels or "}"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Everything about one alert. Renderers generate its rule, its unit tests and its runbook page from it."""

    name: str
    area: Area
    rules: Sequence[Rule]
    summary: str
    description: str
    """May name labels (`{{ $labels.team }}`) and, once, the value (`{{ $value | humanizePercentage }}`)."""
    runbook: Runbook
    cases: Sequence[Case]
    parameters: Sequence[Parameter] = ()
    step: str = "1m"
    """Interval of the cases' series and of their evaluation; less than Prometheus's look-back of 5 minutes."""
