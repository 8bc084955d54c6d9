"""Host and Origin headers, read strictly and brought to one form, so that they can be compared."""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Final, NamedTuple

_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,254})(?::([0-9]{1,5}))?")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}")
DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Authority(NamedTuple):
    """A host in lower case, and the port if there is one."""

    host: str
    port: int | None


class Origin(NamedTuple):
    """Scheme and host in lower case. The port is None only for schemes without a default port."""

    scheme: str
    host: str
    port: int | None


def authority_of(text: str) -> Authority | None:
    """Parse `host[:port]`, an IPv6 address in brackets; None for anything else, such as user names and blanks."""
    if (match := _AUTHORITY.fullmatch(text)) is None:
        return None
    host, port = match[1].lower(), int(match[2]) if match[2] else None
    if port is not None and port > 65535:
        return None
    if not host.startswith("["):
        return Authority(host.removesuffix("."), port)
    try:
        return Authority(f"[{IPv6Address(host[1:-1])}]", port)
    except ValueError:
        return None


def origin_of(text: str) -> Origin | None:
    """Parse `scheme://host[:port]`; None for anything else, such as `null`."""
    scheme, separator, rest = text.partition("://")
    authority = authority_of(rest)
    if not separator or _SCHEME.fullmatch(scheme) is None or authority is None:
        return None
    scheme = scheme.lower()
    return Origin(scheme, authority.host, authority.port or DEFAULT_PORTS.get(scheme))
