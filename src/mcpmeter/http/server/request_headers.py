"""A request's headers at their end: what they must be, their repeats joined, and the request without its `Upgrade`.

httptools checks each line by itself and, strictly, line ends, folded lines, Content-Length, and that with it there is
no Transfer-Encoding. The rules here need all headers at once, or are stricter than httptools: RFC 9112, 3.2 and 6.1;
RFC 9110, 5.3 and 7.2. Behind a proxy that follows them as well, both see the same requests.

httptools takes a request with `Connection: Upgrade` and `Upgrade` for the last HTTP message of its connection: it skips
the body, whose bytes are then parsed as the next request (request smuggling), and has no switch against it. RFC 9110,
7.8, lets a server ignore the field; the body stays. So the parser reads the headers a second time without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from mcpmeter.errors import InvalidRequest, MeterError, UnsupportedTransferEncoding
from mcpmeter.http.asgi import Header

# One host with or without a port: a name, an IPv4 address, or an IPv6 address in brackets.
_is_host: Final = re.compile(rb"(?:[\w.~%-]+|\[[\da-fA-F:.]+\])(?::\d{0,5})?", re.ASCII).fullmatch
_ABSOLUTE_FORM: Final = re.compile(rb"([a-z][a-z0-9+.-]*)://([^/?]*)", re.IGNORECASE).match

SINGLE_VALUED: Final = frozenset(
    (
        *(b"authorization", b"proxy-authorization", b"x-api-key", b"api-key", b"x-goog-api-key"),
        *(b"content-type", b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"),
        *(b"idempotency-key", b"last-event-id", b"anthropic-version", b"x-server-timeout"),
    )
)
"""Headers that decide something by their one value. Two of them are a mistake, or an attempt to be read as either."""

SINGLE_VALUED_PREFIX: Final = b"mcp-"


def joined(received: Iterable[Header]) -> dict[bytes, bytes]:
    """Headers by name, without blanks around their values. Those of one name are one list, in order (RFC 9110, 5.3)."""
    values: dict[bytes, list[bytes]] = {}
    for name, value in received:
        values.setdefault(name, []).append(value.rstrip())
    return {name: b", ".join(filter(None, found)) for name, found in values.items()}


def repeated(received: Iterable[Header]) -> MeterError | None:
    """The error for a header that may be there once only and is there more often."""
    seen = set()
    for name, _ in received:
        if name in seen and (name in SINGLE_VALUED or name.startswith(SINGLE_VALUED_PREFIX)):
            return InvalidRequest(f"The header {name.decode('latin-1')} is repeated.", hint="Send it once.")
        seen.add(name)
    return None


def check_framing(received: Sequence[Header], version: str, url: bytes) -> None:
    """Raise the error for a request whose end, host or version is in doubt; nothing behind it may be parsed."""
    if version not in ("1.1", "1.0"):
        raise InvalidRequest("This is not a request of HTTP/1.1 or HTTP/1.0.", hint="Send one.")
    hosts = [value.rstrip() for name, value in received if name == b"host"]
    if len(hosts) > 1 or (version == "1.1" and not hosts):
        raise InvalidRequest("A request of HTTP/1.1 names exactly one Host.", hint="Send one Host header.")
    if hosts and not _is_host(hosts[0]):
        raise InvalidRequest("The Host header is no host name or address.", hint="Send HOST or HOST:PORT.")
    absolute = _ABSOLUTE_FORM(url)
    if absolute and absolute[1].lower() not in (b"http", b"https"):
        raise InvalidRequest("The request's target is of another scheme than http.", hint="Send its path alone.")
    if absolute and hosts and absolute[2].lower() != hosts[0].lower():
        raise InvalidRequest("The request's target and its Host header differ.", hint="Send the same host in both.")
    codings = [value for name, value in received if name == b"transfer-encoding"]
    if codings:
        _check_codings(codings, version)


def _check_codings(codings: Sequence[bytes], version: str) -> None:
    if version == "1.0":
        raise InvalidRequest("HTTP/1.0 has no Transfer-Encoding.", hint="Send a Content-Length.")
    # httptools takes a tab behind the word for a part of it.
    if len(codings) > 1 or codings[0].rstrip(b" ").lower() != b"chunked":
        raise unsupported_coding()


def unsupported_coding() -> UnsupportedTransferEncoding:
    """The error for a Transfer-Encoding other than `chunked`."""
    return UnsupportedTransferEncoding(
        "The request's Transfer-Encoding is not 'chunked'.", hint="Send that one alone, or a Content-Length."
    )


def expects_100_continue(headers: Mapping[bytes, bytes], version: str) -> bool:
    """Whether a client waits for `100 Continue` before it sends its body (RFC 9110, 10.1.1: not in HTTP/1.0)."""
    return version != "1.0" and headers[b"expect"].lower() == b"100-continue"


def size_of(headers: Iterable[Header], url: bytes = b"") -> int:
    """The bytes that headers, and a request's target, take on the connection."""
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)


def without_upgrade(method: bytes, url: bytes, version: str, headers: Iterable[Header]) -> bytes:
    """The same request without its `Upgrade`; header names are in lower case."""
    kept = (header for header in headers if header[0] != b"upgrade")
    lines = [b"%b %b HTTP/%b" % (method, url, version.encode()), *map(b": ".join, kept)]
    return b"\r\n".join([*lines, b"\r\n"])
