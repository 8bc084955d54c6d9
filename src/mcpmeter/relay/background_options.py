"""How background responses are followed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BackgroundOptions:
    """The settings of `relay.background`."""

    first_poll_seconds: float = 1.0
    max_poll_seconds: float = 30.0
    give_up_seconds: float = 86_400.0
    max_calls: int = 10_000
