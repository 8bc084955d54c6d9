"""A caller of the relay or the management API, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import msgspec

from mcpmeter.errors import NotAllowed
from mcpmeter.records import Key, Role


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """A caller, identified by its key."""

    team: str
    project: str = ""
    key_id: str = ""
    role: Role = "caller"
    models: tuple[str, ...] = ()
    """Names or globs of models it may call; empty: all."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    @classmethod
    def of(cls, key: Key) -> Caller:
        """The caller of a key."""
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
        """Whether it may use the whole management API."""
        return self.role == "admin"

    def require_model(self, *names: str) -> None:
        """Raises NotAllowed unless one of the model's names, requested or resolved, is on the caller's list."""
        if not self.models or any(fnmatchcase(name, pattern) for name in names for pattern in self.models):
            return
        raise NotAllowed(
            "This API key may not call this model.", hint=f"It may call: {', '.join(self.models)}. Or ask the operator."
        )

    def require_admin(self) -> None:
        """Raises NotAllowed unless the caller is an admin."""
        if not self.is_admin:
            raise NotAllowed(
                "This needs an admin's API key.",
                hint="Create one: mcpmeter keys create --name N --team T --role admin.",
            )

    def refined(self, attribution: Attribution | None, project: str | None) -> Caller:
        """The caller with the project that its request names. Raises NotAllowed if it is not configured."""
        if attribution is None or project is None:
            return self
        if project not in attribution.values:
            raise NotAllowed(
                f"The header {attribution.header} names a project that is not configured.",
                hint=f"Send one of: {', '.join(attribution.values)}. Or add it to attribution.values.",
            )
        return msgspec.structs.replace(self, project=project)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """A request header that names the project of a call, and its allowed values."""

    header: str
    """Lower case."""
    values: tuple[str, ...]
