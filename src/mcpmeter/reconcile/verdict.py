"""Sums over the findings of one bill, and whether bill and ledger agree within the tolerance. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from heapq import heappush, heapreplace
from typing import Final, get_args

from mcpmeter.reconcile.lines import DIFFERENCES, Amount, ReconcileItem, Verdict

VERDICTS: Final[tuple[Verdict, ...]] = get_args(Verdict)


_Ranked = tuple[tuple[int, int, str, str, str, str, str, int, int, int], ReconcileItem]


@dataclass(frozen=True)
class Tolerance:
    """How far apart bill and ledger may be: the larger of a share of the bill and an amount."""

    share: Decimal = Decimal("0.01")
    """0.01 for one per cent."""
    floor_nanousd: int = 10_000_000


@dataclass
class Total:
    """Sums of one verdict: what the bill says and what the ledger says."""

    findings: int = 0
    billed_calls: int = 0
    billed_tokens: int = 0
    billed_nanousd: int = 0
    ledger_calls: int = 0
    ledger_tokens: int = 0
    ledger_nanousd: int = 0

    def add(self, finding: ReconcileItem) -> None:
        self.findings += 1
        if (billed := finding.billed) is not None:
            self.billed_calls += billed.calls
            self.billed_tokens += _tokens(billed)
            self.billed_nanousd += billed.nanousd or 0
        if (kept := finding.ledger) is not None:
            self.ledger_calls += kept.calls
            self.ledger_tokens += _tokens(kept)
            self.ledger_nanousd += kept.nanousd or 0


@dataclass
class Tally:
    """What was found about one bill. Every finding is added once."""

    most: int = 20
    """How many of the largest differences are kept."""
    totals: dict[Verdict, Total] = field(default_factory=lambda: {verdict: Total() for verdict in VERDICTS})
    tells_cost: bool = False
    tells_tokens: bool = False
    drift_nanousd: int = 0
    """Billed less kept, over everything."""
    off_nanousd: int = 0
    """The sum of all differences without their signs: two that cancel out are still two."""
    off_tokens: int = 0
    base_nanousd: int = 0
    """What is billed, credits counted as if they were charges."""
    _largest: list[_Ranked] = field(default_factory=list)

    def add(self, finding: ReconcileItem) -> None:
        """Count a finding; the largest differences are kept."""
        self.totals[finding.verdict].add(finding)
        if finding.billed is not None:
            self.tells_cost |= finding.billed.nanousd is not None
            self.tells_tokens |= finding.billed.prompt_tokens is not None
        if finding.verdict in {"free", "unlisted"}:
            return
        if finding.billed is not None:
            self.base_nanousd += abs(finding.billed.nanousd or 0)
        nanousd = finding.nanousd
        self.drift_nanousd += nanousd
        if finding.verdict in DIFFERENCES:
            tokens = sum(map(abs, finding.tokens))
            self.off_nanousd += abs(nanousd)
            self.off_tokens += tokens
            self._keep(abs(nanousd), tokens, finding)

    def _keep(self, nanousd: int, tokens: int, finding: ReconcileItem) -> None:
        name = (finding.day, finding.model, finding.request_id, finding.call_id, finding.verdict)
        # Their number last: two findings that are alike in all of this cannot be put into an order by themselves.
        ranked = ((nanousd, tokens, *name, finding.file, finding.line, self.differences), finding)
        if len(self._largest) < self.most:
            heappush(self._largest, ranked)
        elif self._largest and ranked[0] > self._largest[0][0]:
            heapreplace(self._largest, ranked)

    @property
    def largest(self) -> list[ReconcileItem]:
        """The largest differences, the largest first."""
        return [finding for _, finding in sorted(self._largest, key=lambda ranked: ranked[0], reverse=True)]

    @property
    def differences(self) -> int:
        """How many findings are differences."""
        return sum(self.totals[verdict].findings for verdict in DIFFERENCES)

    @property
    def compared(self) -> Total:
        """Sums over everything that was compared: all but what no bill has to name and what has no price."""
        every = Total()
        for verdict, total in self.totals.items():
            if verdict not in {"free", "unlisted"}:
                for name in vars(every):
                    setattr(every, name, getattr(every, name) + getattr(total, name))
        return every

    def is_beyond(self, tolerance: Tolerance) -> bool:
        """Whether bill and ledger differ by more than the tolerance, in dollars or in tokens.

        A bill of nothing has no amount to tolerate a share of: any call it should hold is too much.
        """
        if not (self.tells_cost or self.tells_tokens):
            return self.differences > 0
        allowed = max(tolerance.share * self.base_nanousd, Decimal(tolerance.floor_nanousd))
        if self.tells_cost and self.off_nanousd > allowed:
            return True
        billed_tokens = self.compared.billed_tokens
        return self.tells_tokens and self.off_tokens > tolerance.share * billed_tokens


def _tokens(amount: Amount) -> int:
    return (amount.prompt_tokens or 0) + (amount.completion_tokens or 0)
