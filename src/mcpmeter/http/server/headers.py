"""Headers as bytes: the size of a request's, a request's without `Upgrade`, a response's.

httptools takes a request with `Connection: Upgrade` and `Upgrade` for the last HTTP message of its connection: it skips
the body, whose bytes are then parsed as the next request (request smuggling), and has no switch against it. RFC 9110,
7.8, lets a server ignore the field; the body stays. So the parser reads the headers a second time without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Final

from mcpmeter.http.asgi import Header

_STATUS_LINES: Final[Mapping[int, bytes]] = {
    status.value: b"HTTP/1.1 %d %b" % (status.value, status.phrase.encode()) for status in HTTPStatus
}


def size_of(headers: Iterable[Header], url: bytes = b"") -> int:
    """The bytes that headers, and a request's target, take on the connection."""
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)


def without_upgrade(method: bytes, url: bytes, version: str, headers: Iterable[Header]) -> bytes:
    """The same request without its `Upgrade`; header names are in lower case."""
    kept = (header for header in headers if header[0] != b"upgrade")
    lines = [b"%b %b HTTP/%b" % (method, url, version.encode()), *map(b": ".join, kept)]
    return b"\r\n".join([*lines, b"\r\n"])


def response_headers(status: int, headers: list[Header]) -> bytes:
    """A response up to its body. Raises RuntimeError for a header that would be more than one."""
    status_line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status
    written = b"\r\n".join([status_line, *map(b": ".join, headers), b"\r\n"])
    breaks = len(headers) + 2
    if written.count(b"\r") != breaks or written.count(b"\n") != breaks or b"\0" in written:
        raise RuntimeError("a header holds a line break")
    return written
