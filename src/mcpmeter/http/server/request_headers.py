"""A request's headers as bytes: their size, and the same request without its `Upgrade`.

httptools takes a request with `Connection: Upgrade` and `Upgrade` for the last HTTP message of its connection: it skips
the body, whose bytes are then parsed as the next request (request smuggling), and has no switch against it. RFC 9110,
7.8, lets a server ignore the field; the body stays. So the parser reads the headers a second time without it.
"""

from __future__ import annotations

from collections.abc import Iterable

from mcpmeter.http.asgi import Header


def size_of(headers: Iterable[Header], url: bytes = b"") -> int:
    """The bytes that headers, and a request's target, take on the connection."""
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)


def without_upgrade(method: bytes, url: bytes, version: str, headers: Iterable[Header]) -> bytes:
    """The same request without its `Upgrade`; header names are in lower case."""
    kept = (header for header in headers if header[0] != b"upgrade")
    lines = [b"%b %b HTTP/%b" % (method, url, version.encode()), *map(b": ".join, kept)]
    return b"\r\n".join([*lines, b"\r\n"])
