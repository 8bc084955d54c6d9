"""What a metric is: one data row. The code emits from these rows, and rules, dashboards and docs are made from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

MetricType = Literal["counter", "gauge", "histogram", "info"]

OTHER: Final = "other"
"""The value that stands for everything a closed set does not hold."""


@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """A label and the closed set of its values. Compared by identity, since it is looked up on the hot path.

    `values` are fixed here. If they are None, the set is the allowlist of that name, which is filled at startup from
    configuration or from a server's own tool list. A value outside the set becomes `other` and is counted.
    """

    name: str
    values: tuple[str, ...] | None = None
    allowlist: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the catalog. `name` is the family's name as queries use it, counters with their `_total`."""

    name: str
    type: MetricType
    help: str
    labels: tuple[Label, ...] = ()
    unit: str = ""
    buckets: tuple[float, ...] = ()
    scale: int = 1
    """Kept as an integer this many times larger than shown: nano-dollars and nanoseconds are kept whole."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels, in the order of the row."""
        return tuple(label.name for label in self.labels)


NANO: Final = 1_000_000_000
