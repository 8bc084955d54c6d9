"""What an alert is: the rule, the words, the runbook, and the series on which it must fire and must not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mcpmeter.monitoring.queries import Parameter

Severity = Literal["critical", "warning", "info", "none"]
"""critical wakes somebody, warning is a ticket for the day, info is looked at, none is the dead man's switch."""

Area = Literal["slo", "upstreams", "money", "quality", "meter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One alerting rule. An alert has several where the severity depends on how bad it is."""

    expr: str
    hold: str = ""
    """Prometheus's `for`."""
    severity: Severity = "warning"
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """A step of a runbook: what to look at, and the query that shows it."""

    what: str
    query: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Runbook:
    """What whoever is woken reads. Plain sentences; `check` holds queries to paste."""

    means: str
    check: Sequence[Check]
    do: Sequence[str]
    fault: str
    """Whose it mostly is."""


@dataclass(frozen=True, slots=True)
class Firing:
    """An alert that a case expects: its labels without the job's, and its value as the description shows it."""

    labels: Mapping[str, str] = field(default_factory=dict)
    shown: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """Series, and what is on at an instant. Series are written in promtool's notation; job and instance are added."""

    title: str
    at: str
    series: Mapping[str, str]
    firing: Sequence[Firing] = ()


def fires(title: str, at: str, series: Mapping[str, str], *firing: Firing) -> Case:
    """A case on which the alert must fire, exactly so."""
    return Case(title, at, series, firing or (Firing(),))


def quiet(title: str, at: str, series: Mapping[str, str]) -> Case:
    """A case on which the alert must not fire."""
    return Case(title, at, series)


def on(replica: str, series: str) -> str:
    """The series as another replica exports it."""
    name, _, labels = series.partition("{")
    return f'{name}{{instance="{replica}:8000"{"," if labels else ""}{labels or "}"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Everything about one alert. Renderers make the rule, its unit tests and its page of it."""

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
    """Interval of the cases' series and of their evaluation; under Prometheus's look-back of five minutes."""
