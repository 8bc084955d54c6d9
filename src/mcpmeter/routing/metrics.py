"""What failover counts, as rows of the catalog."""

from __future__ import annotations

from collections.abc import Iterable

from mcpmeter.catalog import upstream as rows
from mcpmeter.metrics.family import Cell
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.routing.outcomes import Outcome


class FailoverMetrics:
    """The `FailoverObserver` that feeds a recorder. Call `announce` before the first call and after each reload."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._attempts: dict[tuple[str, str], Cell] = {}

    def register(self, providers: Iterable[str]) -> None:
        """Make every series exist: counters at 0, and nothing held against anybody yet."""
        for name in providers:
            self._recorder.register_children(rows.RETRIES, provider=[name])
            is_new = (name, rows.OUTCOMES[0]) not in self._attempts
            attempts = self._recorder.families[rows.ATTEMPTS.name]
            self._attempts |= {
                (name, outcome): attempts.cell(provider=name, outcome=outcome) for outcome in rows.OUTCOMES
            }
            if is_new:
                self.standing(name, is_up=True, is_circuit_open=False)

    def attempted(self, provider: str, outcome: Outcome) -> None:
        """An attempt came to its answer's head, or to an end before that."""
        cell = self._attempts.get((provider, outcome))
        if cell is not None:
            cell.value += 1
        else:
            self._recorder.add(rows.ATTEMPTS, provider=provider, outcome=outcome)

    def retried(self, provider: str, reason: Outcome) -> None:
        """A further attempt is sent, because of what came of the one at `provider`."""
        self._recorder.add(rows.RETRIES, provider=provider, reason=reason)

    def standing(self, provider: str, *, is_up: bool, is_circuit_open: bool) -> None:
        """How an upstream stands now."""
        self._recorder.set(rows.UP, int(is_up), provider=provider)
        self._recorder.set(rows.CIRCUIT_OPEN, int(is_circuit_open), provider=provider)
