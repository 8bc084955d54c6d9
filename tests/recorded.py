"""What an earlier version printed, held against what is printed now."""

from __future__ import annotations

from typing import Any


def as_recorded(now: Any, then: Any) -> Any:
    """`now` without the fields that were added since `then` was recorded."""
    if isinstance(then, dict) and isinstance(now, dict):
        return {name: as_recorded(now.get(name), value) for name, value in then.items()}
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [as_recorded(*pair) for pair in zip(now, then, strict=True)]
    return now
