"""The size of a request's headers or trailers."""

from __future__ import annotations

from collections.abc import Iterable

from mcpmeter.relay.exchange import Header


def size_of(headers: Iterable[Header], url: bytes = b"") -> int:
    """The bytes that headers, and a request's target, take on the wire."""
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)
