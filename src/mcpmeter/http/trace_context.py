"""W3C Trace Context, https://www.w3.org/TR/trace-context/#traceparent-header."""

from __future__ import annotations

import re
from typing import Final

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def trace_id_of(traceparent: str) -> str:
    """Return the trace id of a `traceparent`, 32 hex digits, or an empty string if it is invalid."""
    found = _TRACEPARENT.match(traceparent)
    return found[1] if found else ""
