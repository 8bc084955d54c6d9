"""`/api/keys`: an admin lists, creates, rotates and revokes keys of the running service."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Final, TypeVar

import msgspec

from mcpmeter.access.key_view import ShownKey, shown_key
from mcpmeter.access.keys import MAX_PER_MINUTE, KeyLimits, KeyRing, new_key, rotated
from mcpmeter.errors import ConfigInvalid, InvalidRequest, KeyConfigured, KeyNotFound
from mcpmeter.http.asgi import Header
from mcpmeter.http.exchange import HttpExchange
from mcpmeter.ledger.queries.keys import revoked
from mcpmeter.ledger.store import Store
from mcpmeter.pricing.calendars import unix_ns
from mcpmeter.records import Actor, AuditAction, Key, Role
from mcpmeter.service.admin import RequireAdmin
from mcpmeter.service.app import Page
from mcpmeter.service.audit_trail import AuditTrail

log = logging.getLogger("mcpmeter")

MAX_BODY_BYTES: Final = 64 * 1024
MAX_GRACE_S: Final = 366 * 86_400
MAX_YEAR: Final = 2200
"""Nanoseconds in 64 bits end in 2262."""
HEADERS: Final[tuple[Header, ...]] = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
DESCRIBED: Final = "/api/openapi.json describes the body."

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
PerMinute = Annotated[int, msgspec.Meta(ge=1, le=MAX_PER_MINUTE)]
KeyId = Annotated[str, msgspec.Meta(pattern=r"^key_[0-9a-f]{12}$")]
Models = Annotated[tuple[Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,200}$")], ...], msgspec.Meta(max_length=1000)]


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of a new key that a request may set. The service sets the others."""

    name: Name
    team: Name
    project: Annotated[str, msgspec.Meta(max_length=64)] = ""
    role: Role = "caller"
    models: Models = ()
    """Names or globs of allowed models; empty: all."""
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class KeyRotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The key that gets a new secret."""

    id: KeyId
    grace_seconds: Annotated[int, msgspec.Meta(ge=0, le=MAX_GRACE_S)] = 0
    """How long the previous secret stays valid beside the new one."""


class KeyRevocation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The key to revoke."""

    id: KeyId


class KeyWithSecret(ShownKey, frozen=True, kw_only=True):
    """A key and its secret. No other response holds the secret."""

    key: str
    """The secret, sent as `Authorization: Bearer …`."""


class KeyList(msgspec.Struct, frozen=True, kw_only=True):
    """All keys, those of the configuration first."""

    keys: list[ShownKey]


_Body = TypeVar("_Body", bound=msgspec.Struct)


class KeyPages:
    """Pages at `/api/keys`. Each requires an admin's key once any key exists."""

    def __init__(
        self,
        store: Store,
        ring: Callable[[], KeyRing],
        reload_keys: Callable[[], Awaitable[None]],
        admin: RequireAdmin,
        *,
        audit: AuditTrail,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._store = store
        self._ring = ring
        self._reload_keys = reload_keys
        """Applies a change to this process."""
        self._admin = admin
        self._audit = audit
        self._now = now

    def routes(self) -> list[tuple[str, str, Callable[[HttpExchange], Awaitable[Page]]]]:
        """Return (verb, path, handler) triples."""
        return [
            ("GET", "/api/keys", self.all_keys),
            ("POST", "/api/keys", self._audit.noting_refusals("key.create", self.create)),
            ("POST", "/api/keys/rotate", self._audit.noting_refusals("key.rotate", self.rotate)),
            ("POST", "/api/keys/revoke", self._audit.noting_refusals("key.revoke", self.revoke)),
        ]

    async def all_keys(self, exchange: HttpExchange) -> Page:
        """`GET /api/keys` → KeyList."""
        self._admin(exchange)
        return _page(KeyList(keys=[shown_key(key) for key in self._ring().keys]))

    async def create(self, exchange: HttpExchange) -> Page:
        """`POST /api/keys`: NewKey → KeyWithSecret."""
        admin, given = await self._read(exchange, NewKey)
        if self._ring().empty and given.role != "admin":
            raise InvalidRequest(
                "The first key must be an admin's: only an admin creates further keys.",
                hint='Add "role": "admin".',
            )
        secret, key = _created(given, self._now())
        await self._store.add_key(key, admin)
        return await self._respond(f"created for team {key.team}", admin, key, secret)

    async def rotate(self, exchange: HttpExchange) -> Page:
        """`POST /api/keys/rotate`: KeyRotation → KeyWithSecret."""
        admin, given = await self._read(exchange, KeyRotation)
        secrets: list[str] = []

        def rotate_secret(key: Key) -> Key:
            try:
                secret, turned = rotated(key, self._now(), given.grace_seconds * 10**9)
            except ConfigInvalid as error:
                raise InvalidRequest(error.message, hint="Create another one: POST /api/keys.") from None
            secrets.append(secret)
            return turned

        key = await self._changed(given.id, rotate_secret, "key.rotate", admin)
        return await self._respond("rotated", admin, key, secrets[-1])

    async def revoke(self, exchange: HttpExchange) -> Page:
        """`POST /api/keys/revoke`: KeyRevocation → ShownKey. Revoking twice keeps the first time."""
        admin, given = await self._read(exchange, KeyRevocation)
        now_ns = self._now()
        key = await self._changed(given.id, lambda key: revoked(key, now_ns), "key.revoke", admin)
        return await self._respond("revoked", admin, key)

    async def _read(self, exchange: HttpExchange, kind: type[_Body]) -> tuple[Actor, _Body]:
        """Return the caller and the body. The caller is checked last: keys may change while a body arrives."""
        content = await exchange.read_body(MAX_BODY_BYTES)
        return self._admin(exchange), _decoded(content, kind)

    async def _changed(self, key_id: str, change: Callable[[Key], Key], action: AuditAction, admin: Actor) -> Key:
        """Raises KeyNotFound, KeyConfigured."""
        key = await self._store.change_key(key_id, change, action=action, by=admin)
        if key is not None:
            return key
        if any(known.id == key_id for known in self._ring().keys):
            raise KeyConfigured(
                f"The key {key_id} is configured in the file, which requests cannot change.",
                hint="Change it there and reload the service.",
            )
        raise KeyNotFound(f"There is no key {key_id}.", hint="GET /api/keys lists them.")

    async def _respond(self, done: str, admin: Actor, key: Key, secret: str | None = None) -> Page:
        await self._reload_keys()
        log.info("key %s was %s by %s, over the API", key.id, done, admin.name)
        seen = shown_key(key)
        return _page(seen if secret is None else KeyWithSecret(key=secret, **msgspec.structs.asdict(seen)))


def _created(given: NewKey, now_ns: int) -> tuple[str, Key]:
    """Raises InvalidRequest for invalid names, and for an expiry in the past."""
    if given.expires is not None and given.expires.year > MAX_YEAR:
        raise InvalidRequest(f"A key cannot expire after the year {MAX_YEAR}.", hint="Leave 'expires' out.")
    limits = KeyLimits(
        project=given.project,
        role=given.role,
        models=given.models,
        requests_per_minute=given.requests_per_minute,
        tokens_per_minute=given.tokens_per_minute,
        expires_at_ns=None if given.expires is None else unix_ns(given.expires),
    )
    try:
        return new_key(given.name, given.team, now_ns, limits)
    except ConfigInvalid as error:
        raise InvalidRequest(error.message, hint=error.hint) from None


def _decoded(content: bytes, kind: type[_Body]) -> _Body:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        # msgspec's message may quote the body; the path of the fault is enough.
        _, at, path = str(error).rpartition(" - at ")
        where = f" at {path}" if at else ""
        fields = ", ".join(kind.__struct_fields__)
        raise InvalidRequest(f"Invalid body{where}.", hint=f"Fields: {fields}; {DESCRIBED}") from None
    except msgspec.DecodeError:
        raise InvalidRequest("The body is not JSON.", hint=DESCRIBED) from None


def _page(response: msgspec.Struct) -> Page:
    return Page(msgspec.json.encode(response), headers=HEADERS)
