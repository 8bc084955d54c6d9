"""A budget's status and when it will be exhausted: one record for gauges, API, reports and alerts."""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from mcpmeter.budgets.budget import Budget
from mcpmeter.budgets.period import PeriodKind
from mcpmeter.records import Balance, Scope

NS_PER_HOUR: Final = 3600 * 1_000_000_000
WINDOW_NS: Final = 6 * NS_PER_HOUR
"""How far back the burn rate looks."""
MIN_WINDOW_NS: Final = NS_PER_HOUR // 4
"""The first minutes of a period are no basis for a rate over the rest of it."""
BETWEEN_POINTS_NS: Final = NS_PER_HOUR // 60
MAX_INSTANT_NS: Final = 2**63 - 1


class BudgetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A budget's status in its present period. Amounts in nano-dollars, instants in Unix nanoseconds."""

    name: str
    scope: Scope
    period: PeriodKind
    time_zone: str
    refuses: bool
    period_start_ns: int
    period_end_ns: int
    """0: prepaid, does not reset."""
    limit_nanousd: int
    credit_nanousd: int
    """Sum of top-ups, added to the limit."""
    soft_limit_nanousd: int
    """The lowest amount at which the budget counts as low."""
    spent_nanousd: int
    reserved_nanousd: int
    """Upper bound of the cost of open calls."""
    left_nanousd: int
    """Limit and credit minus spent and reserved; negative if overspent."""
    burn_nanousd_per_hour: int
    """Over the last six hours, or since the period began if that is later."""
    exhausted_at_ns: int | None
    """When the budget is exhausted at this burn rate, possibly after the period's end; None if nothing burns."""


def burn_since_ns(period_start_ns: int, now_ns: int) -> int:
    """Start of the burn window: six hours ago, but not before the period began."""
    return max(period_start_ns, now_ns - WINDOW_NS)


def status_of(budget: Budget, balance: Balance, burned_nanousd: int, now_ns: int) -> BudgetStatus:
    """A budget's status. `burned_nanousd` is what its scope spent since `burn_since_ns`."""
    window_ns = max(now_ns - burn_since_ns(balance.period_start_ns, now_ns), MIN_WINDOW_NS)
    whole = budget.limit_nanousd + balance.credit
    left = whole - balance.spent - balance.reserved
    return BudgetStatus(
        name=budget.name,
        scope=budget.scope,
        period=budget.period.kind,
        time_zone=budget.period.time_zone,
        refuses=budget.refuses,
        period_start_ns=balance.period_start_ns,
        period_end_ns=balance.period_end_ns,
        limit_nanousd=budget.limit_nanousd,
        credit_nanousd=balance.credit,
        soft_limit_nanousd=budget.soft_limits(balance.credit)[0],
        spent_nanousd=balance.spent,
        reserved_nanousd=balance.reserved,
        left_nanousd=left,
        burn_nanousd_per_hour=burned_nanousd * NS_PER_HOUR // window_ns,
        exhausted_at_ns=exhausted_at_ns(left, burned_nanousd, window_ns, now_ns),
    )


def exhausted_at_ns(left: int, burned: int, window_ns: int, now_ns: int) -> int | None:
    """When nothing is left at the window's burn rate; now if nothing is left already.

    None if nothing burns, or if the instant is beyond what a clock can represent.
    """
    if left <= 0:
        return now_ns
    if burned <= 0:
        return None
    at_ns = now_ns + left * window_ns // burned
    return at_ns if at_ns <= MAX_INSTANT_NS else None


class Burn:
    """Amounts that a balance had spent at instants of the last hours: its burn rate without adding up the ledger.

    It starts without points. A period younger than the window starts itself at zero; an older one needs `begin` with
    the ledger's sum once. `take` then adds a point per minute and drops those before the window. Another period, and a
    clock set back before the first point, return it to the start.
    """

    def __init__(self) -> None:
        self._period_start_ns = -1
        self._points: deque[tuple[int, int]] = deque(maxlen=WINDOW_NS // BETWEEN_POINTS_NS + 2)
        """(Unix ns, nano-dollars spent), the oldest first, at least `BETWEEN_POINTS_NS` apart."""

    def knows(self, period_start_ns: int, now_ns: int) -> bool:
        """Whether it reaches back to the window's start; if not, call `begin` with the ledger's sum."""
        self._forget_after(now_ns)
        if self._period_start_ns != period_start_ns:
            self._period_start_ns = period_start_ns
            self._points.clear()
        since_ns = burn_since_ns(period_start_ns, now_ns)
        if not self._points and since_ns == period_start_ns:
            self._points.append((since_ns, 0))  # everything in a young period was spent since its start
        return bool(self._points) and self._points[0][0] <= since_ns

    def begin(self, since_ns: int, spent_nanousd: int) -> None:
        """Start with the amount spent before an instant, from the ledger."""
        self._points.clear()
        self._points.append((since_ns, spent_nanousd))

    def take(self, now_ns: int, spent_nanousd: int) -> int:
        """Record the amount spent until now. Returns what of it was spent since the window's start."""
        since_ns = burn_since_ns(self._period_start_ns, now_ns)
        while len(self._points) > 1 and self._points[1][0] <= since_ns:
            self._points.popleft()
        if not self._points or now_ns - self._points[-1][0] >= BETWEEN_POINTS_NS:
            self._points.append((now_ns, spent_nanousd))
        return max(spent_nanousd - self._spent_by(since_ns, now_ns, spent_nanousd), 0)

    def _spent_by(self, at_ns: int, now_ns: int, spent_nanousd: int) -> int:
        """Amount spent before an instant, interpolated between two points."""
        after = next(((at, spent) for at, spent in self._points if at > at_ns), (now_ns, spent_nanousd))
        before = next(((at, spent) for at, spent in reversed(self._points) if at <= at_ns), self._points[0])
        span_ns = after[0] - before[0]
        if span_ns <= 0 or at_ns <= before[0]:
            return before[1]
        return before[1] + (after[1] - before[1]) * (at_ns - before[0]) // span_ns

    def _forget_after(self, now_ns: int) -> None:
        while self._points and self._points[-1][0] > now_ns:  # the clock was set back
            self._points.pop()
