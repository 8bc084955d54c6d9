"""Durations as Prometheus writes them."""

from __future__ import annotations

import re
from typing import Final

UNITS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
PART: Final = re.compile(r"(\d+)(ms|[smhdw])")


def milliseconds(text: str) -> int:
    """`1h30m` -> 5400000. Raises ValueError if the text is not a duration."""
    if not re.fullmatch(rf"({PART.pattern})+", text):
        raise ValueError(f"{text!r} is not a Prometheus duration")
    return sum(int(count) * UNITS_MS[unit] for count, unit in PART.findall(text))


def span(ms: int) -> str:
    """The shortest form with one unit: 300000 -> `5m`."""
    unit = max((unit for unit, size in UNITS_MS.items() if ms % size == 0 and unit != "w"), key=UNITS_MS.__getitem__)
    return f"{ms // UNITS_MS[unit]}{unit}"
