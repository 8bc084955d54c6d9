"""Combines the reports of one usage object in a stream, where providers define counts as cumulative."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mcpmeter.dialects.usage_fields import MAX_DEPTH

MAX_FIELDS: Final = 256
"""Fields kept of one object: each event can bring others."""


def greatest(before: Mapping[str, Any], now: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """The greater of each count. Of lists the last one that is not empty, of other values the last one that is set."""
    combined = dict(before)
    for name, value in now.items():
        if name in combined:
            combined[name] = _combined(combined[name], value, depth)
        elif len(combined) < MAX_FIELDS:
            combined[name] = value
    return combined


def _combined(before: Any, now: Any, depth: int) -> Any:
    if isinstance(before, dict) and isinstance(now, dict) and depth < MAX_DEPTH:
        return greatest(before, now, depth + 1)
    try:
        return max(before, now) if isinstance(before, int | float) else now or before
    except TypeError:
        return now or before
