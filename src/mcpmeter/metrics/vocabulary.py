"""Closed label sets: what configuration or a server's own tool list announced, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable


class Vocabulary:
    """The announced values of each open-ended label (`model`, `team`, `tool`, …).

    Announcing is for start, reload and tool lists; no caller of a service can reach it.
    """

    def __init__(self) -> None:
        self._sets: dict[str, frozenset[str]] = {}

    def announce(self, name: str, values: Iterable[str]) -> None:
        """Add values to a set. They stay: a counter that was shown must not vanish at a reload."""
        clean = {printable(value) for value in values}
        self._sets[name] = self._sets.get(name, frozenset()) | clean

    def of(self, name: str) -> frozenset[str]:
        """The announced values of a set."""
        return self._sets.get(name, frozenset())


def printable(text: str) -> str:
    """Replace what cannot be written as UTF-8 or breaks a line-based format: one lone surrogate fails every scrape."""
    encoded = text.encode("utf-8", "replace").decode("utf-8")
    return "".join("?" if ch < " " or ch == "\x7f" else ch for ch in encoded)
