"""Sums over the items of one bill, and whether bill and ledger agree within the tolerance. Pure."""

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
    """The difference allowed between bill and ledger: the larger of a share of the bill and an amount."""

    share: Decimal = Decimal("0.01")
    """0.01 for one per cent."""
    floor_nanousd: int = 10_000_000


@dataclass
class VerdictTotal:
    """Sums of both sides for one verdict. The fields are those of the JSON report."""

    findings: int = 0
    """Number of items."""
    billed_calls: int = 0
    billed_tokens: int = 0
    billed_nanousd: int = 0
    ledger_calls: int = 0
    ledger_tokens: int = 0
    ledger_nanousd: int = 0

    def add(self, item: ReconcileItem) -> None:
        self.findings += 1
        if (billed := item.billed) is not None:
            self.billed_calls += billed.calls
            self.billed_tokens += _tokens(billed)
            self.billed_nanousd += billed.nanousd or 0
        if (recorded := item.ledger) is not None:
            self.ledger_calls += recorded.calls
            self.ledger_tokens += _tokens(recorded)
            self.ledger_nanousd += recorded.nanousd or 0


@dataclass
class ReconcileTotals:
    """The totals of one bill. Every item is added once."""

    max_largest: int = 20
    """How many of the largest differences are kept."""
    by_verdict: dict[Verdict, VerdictTotal] = field(default_factory=lambda: {name: VerdictTotal() for name in VERDICTS})
    has_cost: bool = False
    has_tokens: bool = False
    drift_nanousd: int = 0
    """Billed minus recorded, over all items."""
    off_nanousd: int = 0
    """Sum of the absolute differences, so that opposite ones do not cancel out."""
    off_tokens: int = 0
    base_nanousd: int = 0
    """The billed amount, with credits counted as charges."""
    _largest: list[_Ranked] = field(default_factory=list)

    def add(self, item: ReconcileItem) -> None:
        """Adds an item and keeps the largest differences."""
        self.by_verdict[item.verdict].add(item)
        if item.billed is not None:
            self.has_cost |= item.billed.nanousd is not None
            self.has_tokens |= item.billed.prompt_tokens is not None
        if item.verdict in {"free", "unlisted"}:
            return
        if item.billed is not None:
            self.base_nanousd += abs(item.billed.nanousd or 0)
        nanousd = item.nanousd
        self.drift_nanousd += nanousd
        if item.verdict in DIFFERENCES:
            tokens = sum(map(abs, item.tokens))
            self.off_nanousd += abs(nanousd)
            self.off_tokens += tokens
            self._keep(abs(nanousd), tokens, item)

    def _keep(self, nanousd: int, tokens: int, item: ReconcileItem) -> None:
        name = (item.day, item.model, item.request_id, item.call_id, item.verdict)
        # The running number comes last because items have no order of their own if all else is equal.
        ranked = ((nanousd, tokens, *name, item.file, item.line, self.differences), item)
        if len(self._largest) < self.max_largest:
            heappush(self._largest, ranked)
        elif self._largest and ranked[0] > self._largest[0][0]:
            heapreplace(self._largest, ranked)

    @property
    def largest(self) -> list[ReconcileItem]:
        """The largest differences, the largest first."""
        return [item for _, item in sorted(self._largest, key=lambda ranked: ranked[0], reverse=True)]

    @property
    def differences(self) -> int:
        """The number of items that are differences."""
        return sum(self.by_verdict[verdict].findings for verdict in DIFFERENCES)

    @property
    def compared(self) -> VerdictTotal:
        """Sums over all verdicts except `free` and `unlisted`."""
        result = VerdictTotal()
        for verdict, total in self.by_verdict.items():
            if verdict not in {"free", "unlisted"}:
                for name in vars(result):
                    setattr(result, name, getattr(result, name) + getattr(total, name))
        return result

    def is_beyond(self, tolerance: Tolerance) -> bool:
        """Whether bill and ledger differ by more than the tolerance, in dollars or in tokens.

        An empty bill has no amount for a share: any call missing in it is beyond the tolerance.
        """
        if not (self.has_cost or self.has_tokens):
            return self.differences > 0
        allowed = max(tolerance.share * self.base_nanousd, Decimal(tolerance.floor_nanousd))
        if self.has_cost and self.off_nanousd > allowed:
            return True
        return self.has_tokens and self.off_tokens > tolerance.share * self.compared.billed_tokens


def _tokens(amount: Amount) -> int:
    return (amount.prompt_tokens or 0) + (amount.completion_tokens or 0)
