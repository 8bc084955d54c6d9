"""Makes keys, reads them from configuration, identifies them. No input or output.

A key is looked up by the SHA-256 of all of it, never by a part, and compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterable
from typing import Final

import msgspec

from mcpmeter.access.callers import Caller
from mcpmeter.errors import ConfigInvalid, NotAuthenticated
from mcpmeter.records import Key, Role

SECRET_PREFIX: Final = "mk_"  # noqa: S105 (not a secret: the prefix of all of them)
SECRET_BYTES: Final = 36
"""288 random bits: the shown prefix reveals 36, which leaves about 256, enough for an unsalted hash."""

SHOWN_CHARACTERS: Final = len(SECRET_PREFIX) + 6
MIN_SECRET_LENGTH: Final = 32
MAX_PER_MINUTE: Final = 10**12
MIN_DIFFERENT_CHARACTERS: Final = 10

_EXAMPLE_PARTS: Final = (
    "changeme", "change-me", "change_me", "placeholder", "yourkey", "your-key", "your_key", "your-api", "your_api",
    "your-secret", "your_secret", "example", "password", "passw0rd", "insert-", "replace-me", "replaceme",
    "defaultkey", "default-key", "default_key", "mastersecret", "master-key", "0123456789", "1234567890",
    "abcdefghij", "qwertyuiop", "dontusethis", "do-not-use", "sk-1234", "letmein", "deadbeef",
)  # fmt: skip
"""Parts of keys printed in documentation or typed by hand; a random key practically never contains one."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@+/:-]{0,63}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a key may do."""

    project: str = ""
    role: Role = "caller"
    models: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    expires_at_ns: int | None = None


NO_LIMITS: Final = KeyLimits()


def new_key(name: str, team: str, now_ns: int, limits: KeyLimits = NO_LIMITS) -> tuple[str, Key]:
    """A new secret, to be shown once, and its record. Raises `ConfigInvalid` for invalid names or limits."""
    _require_names(name, team, limits.project)
    _require_limits(name, limits, now_ns)
    secret = _new_secret()
    return secret, Key(
        id=f"key_{secrets.token_hex(6)}",
        name=name,
        team=team,
        prefix=secret[:SHOWN_CHARACTERS],
        sha256=_hash(secret),
        created_at_ns=now_ns,
        **msgspec.structs.asdict(limits),
    )


def rotated(key: Key, now_ns: int, grace_ns: int = 0) -> tuple[str, Key]:
    """A new secret for a key that keeps its id; the previous secret stays valid for `grace_ns`.

    Raises `ConfigInvalid` for a key that was revoked.
    """
    if key.revoked_at_ns is not None:
        raise ConfigInvalid(f"The key {key.id} was revoked.", hint="Create another one: mcpmeter keys create.")
    secret = _new_secret()
    return secret, msgspec.structs.replace(
        key,
        prefix=secret[:SHOWN_CHARACTERS],
        sha256=_hash(secret),
        previous_sha256=key.sha256 if grace_ns > 0 else "",
        previous_until_ns=now_ns + grace_ns if grace_ns > 0 else None,
    )


def _new_secret() -> str:
    return SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def key_from_config(
    *,
    name: str,
    team: str,
    secret: str | None = None,
    sha256: str | None = None,
    limits: KeyLimits = NO_LIMITS,
) -> Key:
    """A key that configuration gives by secret or by hex SHA-256. Its id survives a change of the secret.

    Raises `ConfigInvalid`, which never quotes the secret, for a weak or well-known one.
    """
    _require_names(name, team, limits.project)
    if (secret is None) == (sha256 is None):
        raise ConfigInvalid(f"The key '{name}' needs either a secret or its SHA-256.", hint="Give exactly one of them.")
    if secret is not None:
        _require_strong(name, secret)
    hashed = _hash(secret) if secret is not None else (sha256 or "").lower()
    if not _SHA256.fullmatch(hashed):
        raise ConfigInvalid(
            f"The SHA-256 of the key '{name}' is not 64 hex digits.", hint="Run: printf %s KEY | sha256sum"
        )
    return Key(
        # From the names, not the secret: the public id must not reveal anything about it.
        id=f"key_{_hash(f'configured key of mcpmeter|{team}|{name}')[:12]}",
        name=name,
        team=team,
        prefix=secret[:SHOWN_CHARACTERS] if secret is not None else "",
        sha256=hashed,
        created_at_ns=0,
        **msgspec.structs.asdict(limits),
    )


class KeyRing:
    """All keys; immutable, a change makes another. Raises `ConfigInvalid` for two keys of one secret or one id."""

    __slots__ = ("_by_hash", "_by_id", "_by_previous", "_callers", "empty")

    def __init__(self, keys: Iterable[Key]) -> None:
        self._by_hash: dict[str, Key] = {}
        self._by_previous: dict[str, Key] = {}
        self._by_id = ids = dict[str, Key]()
        for key in keys:
            clash = self._by_hash.get(key.sha256) or ids.get(key.id)
            if clash is not None and clash != key:
                raise ConfigInvalid(
                    f"The keys '{clash.name}' (team {clash.team}) and '{key.name}' (team {key.team}) are the same.",
                    hint="Give each its own secret and its own name: mcpmeter keys create --name N --team T",
                )
            self._by_hash[key.sha256] = ids[key.id] = key
            if key.previous_sha256:
                self._by_previous[key.previous_sha256] = key
        self._callers = {key.id: Caller.of(key) for key in self._by_hash.values()}
        self.empty = not self._by_hash
        """True if there is no key at all. Revoked keys count: revoking the last key must not allow anonymous calls."""

    @property
    def teams(self) -> frozenset[str]:
        """The teams that have a key, including revoked keys."""
        return frozenset(key.team for key in self._by_hash.values())

    @property
    def keys(self) -> tuple[Key, ...]:
        """All keys in order, including revoked ones."""
        return tuple(self._by_hash.values())

    def is_valid(self, key_id: str, now_ns: int) -> bool:
        """Whether a key of this id exists and has neither been revoked nor expired."""
        key = self._by_id.get(key_id)
        if key is None or key.revoked_at_ns is not None:
            return False
        return key.expires_at_ns is None or key.expires_at_ns > now_ns

    def caller(self, secret: str | None) -> Caller:
        """The caller of a key. Raises `NotAuthenticated` like `identify`."""
        return self._callers[self.identify(secret).id]

    def identify(self, secret: str | None, now_ns: int | None = None) -> Key:
        """The key of a secret. Raises `NotAuthenticated` if it is missing, unknown, revoked or expired.

        `now_ns` is Unix nanoseconds; the present unless given.
        """
        if not secret:
            raise NotAuthenticated("No API key was sent.", hint="Send it as 'Authorization: Bearer mk_…'.")
        hashed = _hash(secret)
        key = self._by_hash.get(hashed)
        if key is None and self._by_previous:
            key = self._before_rotation(hashed, time.time_ns() if now_ns is None else now_ns)
        elif key is not None and not hmac.compare_digest(key.sha256, hashed):
            key = None
        if key is None:
            raise NotAuthenticated("This API key is not known here.", hint="Ask the operator: mcpmeter keys create.")
        if key.revoked_at_ns is not None:
            raise NotAuthenticated("This API key was revoked.", hint="Ask the operator: mcpmeter keys create.")
        if key.expires_at_ns is not None and key.expires_at_ns <= (time.time_ns() if now_ns is None else now_ns):
            raise NotAuthenticated("This API key has expired.", hint="Ask the operator: mcpmeter keys create.")
        return key

    def _before_rotation(self, hashed: str, now_ns: int) -> Key | None:
        key = self._by_previous.get(hashed)
        if key is None or key.previous_until_ns is None or key.previous_until_ns <= now_ns:
            return None
        return key if hmac.compare_digest(key.previous_sha256, hashed) else None


def _hash(secret: str) -> str:
    # A header may contain anything; a lone surrogate is not an error, only an unknown key.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _require_names(name: str, team: str, project: str = "") -> None:
    for role, text in (("name of a key", name), ("team", team), ("project", project or team)):
        if not _NAME.fullmatch(text):
            raise ConfigInvalid(
                f"{text[:64]!a} cannot be the {role}.",
                hint="Use 1 to 64 of: letters, digits, space and . _ @ + / : -, beginning with a letter or digit.",
            )


def _require_limits(name: str, limits: KeyLimits, now_ns: int) -> None:
    for unit, limit in (("requests", limits.requests_per_minute), ("tokens", limits.tokens_per_minute)):
        if limit is not None and not 0 < limit <= MAX_PER_MINUTE:
            raise ConfigInvalid(
                f"The key '{name}' cannot be limited to {limit} {unit} a minute.",
                hint=f"Give 1 to {MAX_PER_MINUTE}, or none.",
            )
    if limits.expires_at_ns is not None and limits.expires_at_ns <= now_ns:
        raise ConfigInvalid(f"The key '{name}' would have expired before it is made.", hint="Give a later instant.")


def weakness_of(secret: str) -> str:
    """Why a secret is easy to guess or cannot be sent, as the end of a sentence; empty for a good one."""
    lowered = secret.lower()
    if len(secret) < MIN_SECRET_LENGTH:
        return f"is shorter than {MIN_SECRET_LENGTH} characters"
    if any(part in lowered for part in _EXAMPLE_PARTS):
        return "looks like one from an example"
    if len(set(secret)) < MIN_DIFFERENT_CHARACTERS:
        return "has too few different characters"
    if not (secret.isascii() and secret.isprintable()) or " " in secret:
        return "contains characters that a header cannot carry"
    return ""


def _require_strong(name: str, secret: str) -> None:
    if weakness := weakness_of(secret):
        raise ConfigInvalid(
            f"The secret of the key '{name}' {weakness}.",
            hint="""Make one: python3 -c "import secrets; print('mk_' + secrets.token_urlsafe(36))\"""",
        )
