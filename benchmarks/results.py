"""The results of one peer over all rounds of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.load import Load
from benchmarks.peers import Peer


@dataclass
class Results:
    """The loads of one peer: name of the burst → one Load per round; and its failures."""

    peer: Peer
    loads: dict[str, list[Load]] = field(default_factory=dict)
    rss_bytes: list[int] = field(default_factory=list)
    two_flushes_ms: list[float] = field(default_factory=list)
    """The duration of two successive durable writes on the disk of its ledger, if it has one."""
    cold_factors: list[float] = field(default_factory=list)
    """How many times as long the same work takes on its core after a pause as without one."""
    absent: str = ""
    """Why the peer does not take part, or no longer does."""
    failures: dict[str, str] = field(default_factory=dict)
    """Name of the burst → its error."""

    def add(self, load: Load) -> None:
        """Add the load of one burst."""
        self.loads.setdefault(load.burst, []).append(load)
