"""A key's public form: without its secret and hashes."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from mcpmeter.records import Key


class ShownKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key in API and command line. Instants are RFC 3339, UTC."""

    id: str
    name: str
    team: str
    project: str
    role: str
    prefix: str
    """The first characters, to recognise the key."""
    models: tuple[str, ...]
    """Names or globs of models it may call; empty: all."""
    requests_per_minute: int | None
    tokens_per_minute: int | None
    created_at: str | None
    """None for a configured key."""
    expires_at: str | None
    revoked_at: str | None
    previous_until: str | None
    """After a rotation: when the previous secret stops working."""


def shown_key(key: Key) -> ShownKey:
    """The public form of a key."""
    return ShownKey(
        id=key.id,
        name=key.name,
        team=key.team,
        project=key.project,
        role=key.role,
        prefix=key.prefix,
        models=key.models,
        requests_per_minute=key.requests_per_minute,
        tokens_per_minute=key.tokens_per_minute,
        created_at=instant(key.created_at_ns or None),
        expires_at=instant(key.expires_at_ns),
        revoked_at=instant(key.revoked_at_ns),
        previous_until=instant(key.previous_until_ns),
    )


def shown(key: Key) -> dict[str, object]:
    """The same as a dictionary of plain values."""
    values: dict[str, object] = msgspec.to_builtins(shown_key(key))
    return values


def instant(unix_ns: int | None) -> str | None:
    """Unix nanoseconds as RFC 3339 in UTC, to the second."""
    if unix_ns is None:
        return None
    return datetime.fromtimestamp(unix_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
