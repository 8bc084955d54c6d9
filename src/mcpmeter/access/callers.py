"""Who calls, as the relay and the management API know it, and what a caller may do: pure decisions."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import msgspec

from mcpmeter.errors import NotAllowed
from mcpmeter.records import Key, Role


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """A caller, by its key."""

    team: str
    project: str = ""
    key_id: str = ""
    role: Role = "caller"
    models: tuple[str, ...] = ()
    """Names or globs; empty: all."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    @classmethod
    def of(cls, key: Key) -> Caller:
        """The caller that a key belongs to."""
        return cls(
            team=key.team,
            project=key.project,
            key_id=key.id,
            role=key.role,
            models=key.models,
            requests_per_minute=key.requests_per_minute,
            tokens_per_minute=key.tokens_per_minute,
        )

    @property
    def is_admin(self) -> bool:
        """Whether it may use all of the management API."""
        return self.role == "admin"

    def require_model(self, *names: str) -> None:
        """Raises NotAllowed unless one of a model's names, as asked for and as it is known, is on the caller's list."""
        if not self.models or any(fnmatchcase(name, pattern) for name in names for pattern in self.models):
            return
        raise NotAllowed(
            "This API key may not call this model.", hint=f"It may call: {', '.join(self.models)}. Or ask the operator."
        )

    def require_admin(self) -> None:
        """Raises NotAllowed for anybody but an admin."""
        if not self.is_admin:
            raise NotAllowed(
                "This needs an admin's API key.", hint="Make one: mcpmeter keys create --name N --team T --role admin."
            )

    def refined(self, attribution: Attribution | None, told: str | None) -> Caller:
        """The caller with the project that its request names. Raises NotAllowed for one that is not configured."""
        if attribution is None or told is None:
            return self
        if told not in attribution.values:
            raise NotAllowed(
                f"The header {attribution.header} names a project that is not configured.",
                hint=f"Send one of: {', '.join(attribution.values)}. Or add it to attribution.values.",
            )
        return msgspec.structs.replace(self, project=told)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """A request header that names the project a call is for, and the values that it may have."""

    header: str
    """Lower case."""
    values: tuple[str, ...]
