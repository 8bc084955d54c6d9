"""`/api/keys`: an admin lists, makes, rotates and revokes keys while the service runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Final, TypeVar

import msgspec

from mcpmeter.access.callers import Caller
from mcpmeter.access.key_view import ShownKey, shown_key
from mcpmeter.access.keys import MAX_PER_MINUTE, KeyLimits, KeyRing, new_key, rotated
from mcpmeter.errors import ConfigInvalid, InvalidRequest, KeyConfigured, KeyNotFound, NotAllowed
from mcpmeter.http.exchange import Header, HttpExchange
from mcpmeter.ledger.store import Store
from mcpmeter.pricing.rates import unix_ns
from mcpmeter.records import Key, Role
from mcpmeter.service.app import Page

log = logging.getLogger("mcpmeter")

MAX_BODY_BYTES: Final = 64 * 1024
MAX_GRACE_S: Final = 366 * 86_400
LATEST_YEAR: Final = 2200
"""Nanoseconds in 64 bits end in 2262."""
HEADERS: Final[tuple[Header, ...]] = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
DESCRIBED: Final = "/api/openapi.json describes the body."

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
PerMinute = Annotated[int, msgspec.Meta(ge=1, le=MAX_PER_MINUTE)]
KeyId = Annotated[str, msgspec.Meta(pattern=r"^key_[0-9a-f]{12}$")]
Models = Annotated[tuple[Annotated[str, msgspec.Meta(pattern=r"^[!-~]{1,200}$")], ...], msgspec.Meta(max_length=1000)]


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What can be said of a key that is to be made; all else about it is the service's to say."""

    name: Name
    team: Name
    project: Annotated[str, msgspec.Meta(max_length=64)] = ""
    role: Role = "caller"
    models: Models = ()
    """Names or globs of the models it may call; empty: all."""
    requests_per_minute: PerMinute | None = None
    tokens_per_minute: PerMinute | None = None
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None


class KeyRotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which key gets another secret."""

    id: KeyId
    grace_seconds: Annotated[int, msgspec.Meta(ge=0, le=MAX_GRACE_S)] = 0
    """How long the secret before stays good beside the new one."""


class KeyRevocation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which key ends."""

    id: KeyId


class KeyWithSecret(ShownKey, frozen=True, kw_only=True):
    """A key and its secret, which is told this once."""

    key: str
    """The secret, to be sent as `Authorization: Bearer …`."""


class KeyList(msgspec.Struct, frozen=True, kw_only=True):
    """All keys, those of the configuration first."""

    keys: list[ShownKey]


_Body = TypeVar("_Body", bound=msgspec.Struct)


class KeyPages:
    """The answers at `/api/keys`. Each asks for an admin's key, as soon as there is any key."""

    def __init__(
        self,
        store: Store,
        ring: Callable[[], KeyRing],
        take_up: Callable[[], Awaitable[None]],
        is_local: Callable[[HttpExchange], bool],
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._store = store
        self._ring = ring
        self._take_up = take_up
        """Makes a change count in this process."""
        self._is_local = is_local
        self._now = now

    def routes(self) -> list[tuple[str, str, Callable[[HttpExchange], Awaitable[Page]]]]:
        """(verb, path, what answers it)."""
        return [
            ("GET", "/api/keys", self.all_keys),
            ("POST", "/api/keys", self.create),
            ("POST", "/api/keys/rotate", self.rotate),
            ("POST", "/api/keys/revoke", self.revoke),
        ]

    async def all_keys(self, exchange: HttpExchange) -> Page:
        """`GET /api/keys`: a KeyList."""
        self._admin(exchange)
        return _page(KeyList(keys=[shown_key(key) for key in self._ring().keys]))

    async def create(self, exchange: HttpExchange) -> Page:
        """`POST /api/keys`, a NewKey: a KeyWithSecret."""
        admin, asked = await self._asked(exchange, NewKey)
        if self._ring().empty and asked.role != "admin":
            raise InvalidRequest(
                "The first key has to be an admin's: from then on only an admin makes others.",
                hint='Add "role": "admin".',
            )
        secret, key = _made(asked, self._now())
        await self._store.add_key(key)
        return await self._told(f"created for team {key.team}", admin, key, secret)

    async def rotate(self, exchange: HttpExchange) -> Page:
        """`POST /api/keys/rotate`, a KeyRotation: a KeyWithSecret."""
        admin, asked = await self._asked(exchange, KeyRotation)
        secrets: list[str] = []

        def turn(key: Key) -> Key:
            try:
                secret, turned = rotated(key, self._now(), asked.grace_seconds * 10**9)
            except ConfigInvalid as error:
                raise InvalidRequest(error.message, hint="Make another one: POST /api/keys.") from None
            secrets.append(secret)
            return turned

        key = await self._changed(asked.id, turn)
        return await self._told("rotated", admin, key, secrets[-1])

    async def revoke(self, exchange: HttpExchange) -> Page:
        """`POST /api/keys/revoke`, a KeyRevocation: a ShownKey. Revoking twice keeps the first time."""
        admin, asked = await self._asked(exchange, KeyRevocation)
        now_ns = self._now()

        def end(key: Key) -> Key:
            return key if key.revoked_at_ns is not None else msgspec.structs.replace(key, revoked_at_ns=now_ns)

        return await self._told("revoked", admin, await self._changed(asked.id, end))

    async def _asked(self, exchange: HttpExchange, kind: type[_Body]) -> tuple[str, _Body]:
        """Who asks for what. Who it is is looked at last: keys may be made while a body is on its way."""
        content = await exchange.read_body(MAX_BODY_BYTES)
        return self._admin(exchange), _decoded(content, kind)

    def _admin(self, exchange: HttpExchange) -> str:
        """Who asks, for the log. Where keys exist, nobody is an admin for want of a key, not in the demo either."""
        ring = self._ring()
        if not ring.empty:
            caller = Caller.of(ring.identify(exchange.secret))
            caller.require_admin()
            return caller.key_id
        if not self._is_local(exchange):
            raise NotAllowed(
                "While there is no key, only this machine may make the first.",
                hint="On the service's machine: mcpmeter keys create --name N --team T --role admin.",
            )
        return "this machine"

    async def _changed(self, key_id: str, change: Callable[[Key], Key]) -> Key:
        """Raises KeyNotFound, KeyConfigured."""
        key = await self._store.change_key(key_id, change)
        if key is not None:
            return key
        if any(known.id == key_id for known in self._ring().keys):
            raise KeyConfigured(
                f"The key {key_id} is configured in the file, which no request changes.",
                hint="Change it there, and reload the service.",
            )
        raise KeyNotFound(f"There is no key {key_id}.", hint="GET /api/keys lists them.")

    async def _told(self, done: str, admin: str, key: Key, secret: str | None = None) -> Page:
        await self._take_up()
        log.info("key %s was %s by %s, over the API", key.id, done, admin)
        seen = shown_key(key)
        return _page(seen if secret is None else KeyWithSecret(key=secret, **msgspec.structs.asdict(seen)))


def _made(asked: NewKey, now_ns: int) -> tuple[str, Key]:
    """Raises InvalidRequest for names that cannot be, and for an end that is past."""
    if asked.expires is not None and asked.expires.year > LATEST_YEAR:
        raise InvalidRequest(f"A key cannot end after the year {LATEST_YEAR}.", hint="Leave 'expires' out.")
    limits = KeyLimits(
        project=asked.project,
        role=asked.role,
        models=asked.models,
        requests_per_minute=asked.requests_per_minute,
        tokens_per_minute=asked.tokens_per_minute,
        expires_at_ns=None if asked.expires is None else unix_ns(asked.expires),
    )
    try:
        return new_key(asked.name, asked.team, now_ns, limits)
    except ConfigInvalid as error:
        raise InvalidRequest(error.message, hint=error.hint) from None


def _decoded(content: bytes, kind: type[_Body]) -> _Body:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        # Its own text may quote what was sent; where it is wrong is enough.
        _, at, path = str(error).rpartition(" - at ")
        where = f" at {path}" if at else ""
        fields = ", ".join(kind.__struct_fields__)
        raise InvalidRequest(
            f"The body is not what is taken here{where}.", hint=f"It has {fields}; {DESCRIBED}"
        ) from None
    except msgspec.DecodeError:
        raise InvalidRequest("The body is not JSON.", hint=DESCRIBED) from None


def _page(answer: msgspec.Struct) -> Page:
    return Page(msgspec.json.encode(answer), headers=HEADERS)
