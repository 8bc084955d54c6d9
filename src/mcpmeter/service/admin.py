"""What may administer the service: an admin's key once any key exists, before that this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mcpmeter.access.keys import KeyRing
from mcpmeter.config import is_loopback
from mcpmeter.errors import NotAllowed
from mcpmeter.http.exchange import HttpExchange
from mcpmeter.http.origins import authority_of
from mcpmeter.records import Actor
from mcpmeter.service.audit_trail import actor_of

# fmt: off
FORWARDED: Final = frozenset((
    b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip", b"x-original-forwarded-for",
    b"true-client-ip", b"cf-connecting-ip", b"cf-ray", b"fastly-client-ip", b"fly-client-ip",
    b"x-envoy-external-address", b"x-original-host", b"x-appengine-user-ip", b"x-azure-clientip",
))
# fmt: on
"""What reverse proxies, tunnels and CDNs add to a request that they pass on."""

RequireAdmin = Callable[[HttpExchange], Actor]
"""Returns the caller. Raises NotAuthenticated, NotAllowed."""


def require_admin(ring: Callable[[], KeyRing]) -> RequireAdmin:
    """The check of a ring's admins. Once a key exists, a caller without one is no admin, in the demo neither."""

    def check(exchange: HttpExchange) -> Actor:
        keys = ring()
        if not keys.empty:
            keys.caller(exchange.secret).require_admin()
        elif not is_local(exchange):
            raise NotAllowed(
                "Until a key exists, only programs on this machine may administer the service, and no web page.",
                hint="On the service's machine: mcpmeter keys create --name N --team T --role admin.",
            )
        return actor_of(exchange, keys)

    return check


def is_local(exchange: HttpExchange) -> bool:
    """Whether a program on this machine sends the request, as opposed to a web page or a local reverse proxy."""
    if not exchange.peer or not is_loopback(exchange.peer) or b"origin" in exchange.headers:
        return False
    if any(name in FORWARDED or name.startswith(b"x-forwarded-") for name in exchange.headers):
        return False
    host = authority_of(exchange.headers.get(b"host", b"").decode("latin-1"))
    return host is not None and is_loopback(host.host)
