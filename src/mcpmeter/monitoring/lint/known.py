"""What can be asked for: the catalog's metrics, those of a scrape, and what recording rules make."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from mcpmeter.catalog import ALL, OTHER, Label, Metric
from mcpmeter.monitoring.lint.reading import Asked
from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.monitoring.recording import recording_groups

OURS: Final = re.compile(r"(mcp|gen_ai|mcpmeter)_\w+")
LEVELED: Final = re.compile(r"job\w*:(mcp|gen_ai)_\w+:\w+")
TARGET_LABELS: Final = ("job", "instance")
"""Every scraped series has these."""

PLACES: Final = ("cluster", "region", "zone", "namespace", "pod", "container", "service", "node", "env", "environment")
SCRAPED: Final = frozenset((*TARGET_LABELS, *PLACES))
"""Labels that a scrape's target may have. Others have more, which are then told by --prometheus."""

PERHAPS: Final = frozenset(("tool", "server", "team"))
"""Allowlists whose label may be empty, which PromQL treats as absent."""


@dataclass(frozen=True, slots=True)
class Series:
    """One name that can be asked for."""

    name: str
    family: str
    type: str
    """counter, gauge, bucket, sum or count."""
    labels: Mapping[str, frozenset[str] | None]
    """Label -> its closed set, or None where any value may come."""
    perhaps: frozenset[str] = frozenset()
    """Labels that may be empty."""
    top: float | None = None
    """A histogram's highest bucket but the last."""
    unit: str = ""

    @property
    def is_counter(self) -> bool:
        return self.type != "gauge"


@dataclass(slots=True)
class Known:
    """All names, by name."""

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
        """What a `/metrics` page shows now. Raises ValueError: this is no such page."""
        known = cls(source=source)
        for family in text_string_to_metric_families(text):
            known.series |= {series.name: series for series in _of_samples(family.name, family.type, family.samples)}
        known.recorded = cls.from_catalog().recorded
        return known

    def learn(self, asked: Iterable[Asked]) -> None:
        """Take in what the rules of a file record."""
        self.recorded |= {a.name: a.expr for a in asked if a.kind == "record"}

    def should_be_known(self, name: str) -> bool:
        """Whether a name is one that only we could make: others' metrics are none of our business."""
        return bool(OURS.fullmatch(name) or LEVELED.fullmatch(name))

    def nearest(self, name: str) -> str:
        """The name that was probably meant, or nothing."""
        for ending in ("_total", "_bucket", "_count"):
            if name + ending in self.series:
                return name + ending
        if name.endswith("_total") and name.removesuffix("_total") in self.series:
            return name.removesuffix("_total")
        return next(iter(get_close_matches(name, [*self.series, *self.recorded], n=1, cutoff=0.75)), "")


def _of_row(row: Metric) -> Iterable[Series]:
    labels = {label.name: _values(label) for label in row.labels}
    perhaps = frozenset(label.name for label in row.labels if "" in (label.values or ()) or label.allowlist in PERHAPS)
    if row.type != "histogram":
        kind = "counter" if row.type == "counter" else "gauge"
        yield Series(row.name, row.name, kind, labels, perhaps, unit=row.unit)
        return
    for part in ("bucket", "sum", "count"):
        own = {**labels, "le": None} if part == "bucket" else labels
        yield Series(f"{row.name}_{part}", row.name, part, own, perhaps, top=row.buckets[-1], unit=row.unit)


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
        perhaps = frozenset(label for label, held in values.items() if "" in held)
        labels = {label: None if label == "le" else held for label, held in values.items()}
        unit = "usd" if "_usd" in name else ""
        kept = part if part in ("counter", "bucket", "sum", "count") else "gauge"
        yield Series(name, family, kept, labels, perhaps, max(bounds, default=None), unit)
