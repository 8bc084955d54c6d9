"""Closed label sets: what configuration or a server's own tool list announced, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Set


class LabelAllowlist:
    """The announced values of each open-ended label (`model`, `team`, `tool`, …).

    Announcing is for start, reload and tool lists; no caller of a service can reach it.
    """

    def __init__(self) -> None:
        self._sets: dict[str, set[str]] = {}
        self.version = 0
        """Grows with each announcement, for whoever keeps what he has looked up."""

    def register(self, name: str, values: Iterable[str]) -> None:
        """Add values to a set. They stay: a counter that was shown must not vanish at a reload."""
        self._set(name).update(map(printable, values))
        self.version += 1

    def of(self, name: str) -> Set[str]:
        """The announced values of a set; a view that later announcements show in."""
        return self._set(name)

    def _set(self, name: str) -> set[str]:
        return self._sets.setdefault(name, set())


def printable(text: str) -> str:
    """Replace what cannot be written as UTF-8 or breaks a line-based format: one lone surrogate fails every scrape."""
    encoded = text.encode("utf-8", "replace").decode("utf-8")
    return "".join("?" if ch < " " or ch == "\x7f" else ch for ch in encoded)
