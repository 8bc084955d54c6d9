"""Allowlists of label values, filled from configuration and from a server's own tool list."""

from __future__ import annotations

from collections.abc import Iterable, Set


class LabelAllowlist:
    """The allowed values of each open-ended label (`model`, `team`, `tool`, …).

    Values are registered at startup, at a reload and from tool lists; no caller of a service can add one.
    """

    def __init__(self) -> None:
        self._sets: dict[str, set[str]] = {}
        self.version = 0
        """Grows with each registration, so that caches of looked-up values can be dropped."""

    def register(self, name: str, values: Iterable[str]) -> None:
        """Add values to a set. They are never removed: a counter must not vanish at a reload."""
        self._set(name).update(map(printable, values))
        self.version += 1

    def of(self, name: str) -> Set[str]:
        """The allowed values of a set, as a live view."""
        return self._set(name)

    def _set(self, name: str) -> set[str]:
        return self._sets.setdefault(name, set())


def printable(text: str) -> str:
    """Replace what is not valid UTF-8 or breaks a line-based format: one lone surrogate fails every scrape."""
    encoded = text.encode("utf-8", "replace").decode("utf-8")
    return "".join("?" if ch < " " or ch == "\x7f" else ch for ch in encoded)
