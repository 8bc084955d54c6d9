"""The type of a catalog row. Code emits from the rows; rules, dashboards and docs are generated from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

MetricType = Literal["counter", "gauge", "histogram", "info"]

OTHER: Final = "other"
"""The value shown for every value outside a closed set."""


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
    """One row of the catalog. `name` is the family's name as queries use it: a counter's ends in `_total`."""

    name: str
    type: MetricType
    help: str
    labels: tuple[Label, ...] = ()
    unit: str = ""
    buckets: tuple[float, ...] = ()
    scale: int = 1
    """Values are stored as integers, this many times larger than shown: nano-dollars, nanoseconds."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels, in the order of the row."""
        return tuple(label.name for label in self.labels)


NANO: Final = 1_000_000_000
