"""The address of a request: where it connects to, and the headers that are written once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit

from mcpmeter.errors import ServiceFault

MAX_CACHED_HEADERS_LENGTH: Final = 4096
"""They can hold what clients sent, and must not fill our memory."""


class Origin(NamedTuple):
    """Connections of one origin serve each other's requests."""

    host: str
    port: int
    is_tls: bool


@dataclass(slots=True)
class Target:
    """A URL, parsed once: parsing takes longer than any other step of a request."""

    origin: Origin
    first_lines: str
    """The request line and `host`."""
    _headers: Mapping[str, str] | None = field(default=None, repr=False)
    _written: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, url: str, method: str = "POST") -> Target:
        """Parse an `http(s)://` address that configuration has checked. Raises ServiceFault for an ambiguous host."""
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        host = _ascii_host(parts.hostname or "")
        bracketed = f"[{host}]" if ":" in host else host
        authority = f"{bracketed}:{parts.port}" if parts.port else bracketed
        path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        path = quote(path, safe="/?%:@!$&'()*+,;=~")
        origin = Origin(host, parts.port or (443 if is_tls else 80), is_tls)
        return cls(origin, f"{method} {path} HTTP/1.1\r\nhost: {authority}\r\n")

    def request_headers(self, headers: Mapping[str, str], body_bytes: int) -> bytes:
        """Everything before the body. Raises ServiceFault for a header that would be more than one."""
        # Most requests to an address differ from the one before in their length only.
        written = self._written if headers == self._headers else self._write(headers)
        return b"%bcontent-length: %d\r\n\r\n" % (written, body_bytes)

    def _write(self, headers: Mapping[str, str]) -> bytes:
        written = _write_lines(self.first_lines, headers)
        if len(written) <= MAX_CACHED_HEADERS_LENGTH:
            self._headers, self._written = dict(headers), written
        return written


def _ascii_host(host: str) -> str:
    """A host name as DNS has it. Raises ServiceFault for a name that encodes in two ways (`ß`, or `ss`?)."""
    if host.isascii():
        return host
    try:
        encoded = host.encode("idna")
        if encoded.decode("idna") == host:
            return encoded.decode()
    except UnicodeError:
        pass
    raise ServiceFault("The host of a provider's base_url is no clear name.", hint="Write it in its xn-- form.")


def _write_lines(first_lines: str, headers: Mapping[str, str]) -> bytes:
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\r") != len(headers) or lines.count("\n") != len(headers) or "\0" in lines:
        raise _bad_header("a line break")
    try:
        return f"{first_lines}{lines}".encode("latin-1")
    except UnicodeEncodeError:
        raise _bad_header("a character that no header can hold") from None


def _bad_header(what: str) -> ServiceFault:
    return ServiceFault(f"A header for the provider holds {what}.", hint="Check its key in the configuration.")
