"""Converts accumulators to prometheus_client families; the library renders them and negotiates the format."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as PrometheusFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from mcpmeter.metrics.family import FamilySnapshot
from mcpmeter.metrics.recorder import Recorder

FORMATS: Final = ("version=0.0.4;", "version=1.0.0;")
"""Versions of the text and OpenMetrics formats that are actually produced."""

_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


class MeterCollector(Collector):
    """Exposes a recorder's families to any prometheus_client registry."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def collect(self) -> Iterable[PrometheusFamily]:
        """All families, from a snapshot taken now."""
        return map(to_family, self._recorder.snapshot())

    def describe(self) -> Iterable[PrometheusFamily]:
        """The families without samples, from which a registry detects name clashes with a second meter."""
        return [to_family(FamilySnapshot(f.metric, [], [])) for f in self._recorder.families.values()]


def to_family(snapshot: FamilySnapshot, *, with_created: bool = True) -> PrometheusFamily:
    """A prometheus_client family, in the units of its name."""
    metric = snapshot.metric
    if metric.type == "histogram":
        return _histogram(snapshot)
    if metric.type == "counter":
        counter = CounterMetricFamily(metric.name, metric.help, labels=metric.label_names)
        for labels, value, created in snapshot.values:
            counter.add_metric(labels, _scaled(value, metric.scale), created=created if with_created else None)
        return counter
    gauge = GaugeMetricFamily(metric.name, metric.help, labels=metric.label_names)
    for labels, value, _ in snapshot.values:
        gauge.add_metric(labels, _scaled(value, metric.scale))
    return gauge


def _histogram(snapshot: FamilySnapshot) -> PrometheusFamily:
    metric = snapshot.metric
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.label_names)
    bounds = [*(str(bound) for bound in metric.buckets), "+Inf"]
    for labels, counts, total, exemplars in snapshot.histograms:
        buckets = [
            (bound, count, _exemplar(exemplars.get(index), metric.scale))
            for index, (bound, count) in enumerate(zip(bounds, accumulate(counts), strict=True))
        ]
        family.add_metric(labels, buckets, sum_value=_scaled(total, metric.scale))  # type: ignore[arg-type]
    return family


def _exemplar(stored: tuple[str, int, float] | None, scale: int) -> Exemplar | None:
    if stored is None:
        return None
    trace_id, value, timestamp = stored
    if not _TRACE_ID.fullmatch(trace_id):
        # OpenMetrics limits an exemplar's length; exceeding it fails the whole scrape.
        return None
    return Exemplar({"trace_id": trace_id}, _scaled(value, scale), timestamp)


def _scaled(value: int, scale: int) -> float:
    return value / scale if scale != 1 else value


class Exposition:
    """Renders scrapes. The snapshot is taken in the caller's thread; rendering may run in another thread."""

    def __init__(self, recorder: Recorder, others: CollectorRegistry | None = None) -> None:
        self._recorder = recorder
        self._others = others

    def prepare(self, accept: str) -> Callable[[], tuple[bytes, str]]:
        """Take a snapshot; the returned function renders it to (body, content type) in any thread."""
        snapshot = self._recorder.snapshot()
        encode, content_type = _encoder(accept)
        # In the text format each creation time is a family of its own, which would double the scrape.
        families = _Families(snapshot, self._others, with_created="openmetrics" in content_type)

        def render() -> tuple[bytes, str]:
            return encode(families), content_type

        return render


def _encoder(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """The library's choice, or the text format if the header requests an unknown version."""
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):
        # It parses version numbers part by part and raises for `version=1.x`.
        return choose_encoder("")
    return (encode, content_type) if any(map(content_type.__contains__, FORMATS)) else choose_encoder("")


class _Families(Collector):
    """The part of a registry that encoders use, for a snapshot."""

    def __init__(self, snapshot: list[FamilySnapshot], others: CollectorRegistry | None, *, with_created: bool) -> None:
        self._snapshot = snapshot
        self._others = others
        self._with_created = with_created

    def collect(self) -> Iterator[PrometheusFamily]:
        for family in self._snapshot:
            yield to_family(family, with_created=self._with_created)
        if self._others is not None:
            yield from self._others.collect()
