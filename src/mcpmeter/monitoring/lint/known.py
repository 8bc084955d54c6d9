"""The series that exist: metrics of the catalog or of a scrape, and recorded series."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from mcpmeter.catalog import ALL, OTHER, Label, Metric
from mcpmeter.monitoring.lint.expressions import Expression
from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.monitoring.recording import recording_groups

OURS: Final = re.compile(r"(mcp|gen_ai|mcpmeter)_\w+")
LEVELED: Final = re.compile(r"job\w*:(mcp|gen_ai)_\w+:\w+")
TARGET_LABELS: Final = ("job", "instance")
"""Labels of every scraped series."""

PLACES: Final = ("cluster", "region", "zone", "namespace", "pod", "container", "service", "node", "env", "environment")
SCRAPED: Final = frozenset((*TARGET_LABELS, *PLACES))
"""Labels that a target may add. Use --prometheus for targets that add others."""

OPTIONAL: Final = frozenset(("tool", "server", "team"))
"""Allowlists whose label may be empty, which PromQL treats as absent."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series name that exists."""

    name: str
    family: str
    type: str
    """counter, gauge, bucket, sum or count."""
    labels: Mapping[str, frozenset[str] | None]
    """Label -> its closed set, or None if its values are open."""
    optional: frozenset[str] = frozenset()
    """Labels that may be empty."""
    top: float | None = None
    """A histogram's highest bound below +Inf."""
    unit: str = ""

    @property
    def is_counter(self) -> bool:
        return self.type != "gauge"


@dataclass(slots=True)
class Known:
    """All series that exist, by name."""

    series: dict[str, Series] = field(default_factory=dict)
    recorded: dict[str, str] = field(default_factory=dict)
    """Recorded name -> its expression."""
    source: str = "the catalog"

    @classmethod
    def from_catalog(cls) -> Known:
        """The catalog's rows and the recording rules of `mcpmeter monitoring write`."""
        known = cls({series.name: series for row in ALL for series in _of_row(row)})
        for group in recording_groups(MonitoringOptions()):
            known.recorded |= {rule.record: rule.expr for rule in group.rules if ":" in rule.record}
        return known

    @classmethod
    def from_scrape(cls, text: str, source: str) -> Known:
        """The series of a `/metrics` page. Raises ValueError if the text is not such a page."""
        known = cls(source=source)
        for family in text_string_to_metric_families(text):
            known.series |= {series.name: series for series in _of_samples(family.name, family.type, family.samples)}
        known.recorded = cls.from_catalog().recorded
        return known

    def learn(self, expressions: Iterable[Expression]) -> None:
        """Add the recorded series of a file's rules."""
        self.recorded |= {e.name: e.expr for e in expressions if e.kind == "record"}

    def should_be_known(self, name: str) -> bool:
        """Whether the name is in our namespace. Metrics of other programs are not checked."""
        return bool(OURS.fullmatch(name) or LEVELED.fullmatch(name))

    def nearest(self, name: str) -> str:
        """The most similar name, or an empty string."""
        for ending in ("_total", "_bucket", "_count"):
            if name + ending in self.series:
                return name + ending
        if name.endswith("_total") and name.removesuffix("_total") in self.series:
            return name.removesuffix("_total")
        return next(iter(get_close_matches(name, [*self.series, *self.recorded], n=1, cutoff=0.75)), "")


def _of_row(row: Metric) -> Iterable[Series]:
    labels = {label.name: _values(label) for label in row.labels}
    optional = frozenset(
        label.name for label in row.labels if "" in (label.values or ()) or label.allowlist in OPTIONAL
    )
    if row.type != "histogram":
        kind = "counter" if row.type == "counter" else "gauge"
        yield Series(row.name, row.name, kind, labels, optional, unit=row.unit)
        return
    for part in ("bucket", "sum", "count"):
        own = {**labels, "le": None} if part == "bucket" else labels
        yield Series(f"{row.name}_{part}", row.name, part, own, optional, top=row.buckets[-1], unit=row.unit)


def _values(label: Label) -> frozenset[str] | None:
    return None if label.values is None else frozenset({*label.values, OTHER})


def _of_samples(family: str, kind: str, samples: Iterable[object]) -> Iterable[Series]:
    by_name: dict[str, list[Mapping[str, str]]] = {}
    for sample in samples:
        by_name.setdefault(sample.name, []).append(sample.labels)  # type: ignore[attr-defined]
    for name, found in by_name.items():
        part = name.removeprefix(family + "_") if kind == "histogram" else kind
        values = {label: frozenset(labels.get(label, "") for labels in found) for labels in found for label in labels}
        bounds = [float(bound) for bound in values.get("le", ()) if bound != "+Inf"]
        optional = frozenset(label for label, held in values.items() if "" in held)
        labels = {label: None if label == "le" else held for label, held in values.items()}
        unit = "usd" if "_usd" in name else ""
        kept = part if part in ("counter", "bucket", "sum", "count") else "gauge"
        yield Series(name, family, kept, labels, optional, max(bounds, default=None), unit)
