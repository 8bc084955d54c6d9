"""The `keys:` section: callers' keys in the configuration."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import model_validator

from mcpmeter.access.keys import KeyLimits
from mcpmeter.config.fields import Instant, ModelName, PerMinute, Secret, Section, Sha256, TeamName, must, setting
from mcpmeter.pricing.calendars import unix_ns


class KeySettings(Section):
    """A caller's key: the secret by `${VARIABLE}`, or its SHA-256. `mcpmeter keys create` adds keys to the ledger."""

    name: TeamName = setting(help="The key's name in lists and logs.", example="search-backend")
    team: TeamName = setting(help="The team that its calls are charged to.", example="search")
    secret: Secret | None = setting(None, help="The key, at least 32 characters.", example="${SEARCH_KEY}")
    sha256: Sha256 | None = setting(
        None,
        help="Or its SHA-256 in hex, to keep the secret out of the file.",
        example=hashlib.sha256(b"").hexdigest(),
    )
    project: TeamName | None = setting(None, help="The team's project that its calls are for.", example="web")
    role: Literal["caller", "admin"] = setting(
        "caller", help="An admin may also use the whole management API.", example="admin"
    )
    models: tuple[ModelName, ...] = setting(
        (), help="Models that it may call, names or globs; default: all.", example=["gpt-4.1*", "deepseek-*"]
    )
    requests_per_minute: PerMinute | None = setting(None, help="Maximum calls per clock minute.", example=600)
    tokens_per_minute: PerMinute | None = setting(
        None, help="Maximum prompt and completion tokens per clock minute.", example=200_000
    )
    expires: Instant | None = setting(
        None, help="When it expires: a date (its start in UTC), or an RFC 3339 instant.", example="2027-01-01"
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> KeySettings:
        if (self.secret is None) == (self.sha256 is None):
            raise must("needs either 'secret' or 'sha256'")
        return self

    def limits(self) -> KeyLimits:
        """What the key may do, as `access` takes it."""
        return KeyLimits(
            project=self.project or "",
            role=self.role,
            models=self.models,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            expires_at_ns=None if self.expires is None else unix_ns(self.expires),
        )

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the key."""
        if self.secret is None:
            return self.sha256 or ""
        return hashlib.sha256(self.secret.get_secret_value().encode()).hexdigest()
