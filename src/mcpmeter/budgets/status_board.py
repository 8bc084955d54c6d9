"""The status of every budget, refreshed from the ledger: one list for gauges, API, log and alerts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from decimal import Decimal

from mcpmeter.budgets.budget import Budget, Budgets
from mcpmeter.budgets.forecast import BudgetStatus, Burn, burn_since_ns, status_of
from mcpmeter.catalog import budget as rows
from mcpmeter.ledger.store import Store
from mcpmeter.metrics.recorder import Recorder
from mcpmeter.money import format_usd
from mcpmeter.records import Balance, Reservation

log = logging.getLogger("mcpmeter")

NS_PER_S = 1_000_000_000


class BudgetStatusBoard:
    """The latest status of each budget. `configure` it at start and reload, `refresh` it every second."""

    def __init__(self, store: Store, recorder: Recorder, now: Callable[[], int] = time.time_ns) -> None:
        self._store = store
        self._recorder = recorder
        self._now = now
        self._budgets = Budgets()
        self._statuses: list[BudgetStatus] = []
        self._burns: dict[str, Burn] = {}
        self._exported: dict[str, dict[str, str]] = {}
        """Labels of each budget's gauges."""
        self._warned: dict[str, tuple[int, Decimal]] = {}
        """By balance: the period, and the highest soft share that was logged in it."""

    def configure(self, budgets: Budgets) -> None:
        """Use these budgets from now on, and register their labels and counters."""
        self._budgets = budgets
        allowlist = self._recorder.label_allowlist
        allowlist.register(rows.TEAM.allowlist, {budget.scope.team for budget in budgets})
        allowlist.register(rows.BUDGET.allowlist, {budget.name for budget in budgets})
        for budget in budgets:
            self._recorder.register_children(rows.REFUSALS, team=[budget.scope.team], budget=[budget.name])
        names = {budget.name: self._labels_of(budget) for budget in budgets}
        for name in [name for name, labels in self._exported.items() if names.get(name) != labels]:
            self._remove_gauges(self._exported.pop(name))
        balances = {budget.balance for budget in budgets}
        self._burns = {balance: burn for balance, burn in self._burns.items() if balance in balances}
        self._warned = {balance: warned for balance, warned in self._warned.items() if balance in balances}

    async def refresh(self) -> None:
        """Read the balances and set the gauges. If the ledger raises, the last status stays."""
        now_ns, budgets = self._now(), self._budgets
        current = budgets.current(now_ns)
        # Without budgets too: it removes the past minutes of keys' limits, and notices a ledger that is locked.
        balances = await self._store.balances([reservation for _, reservation in current])
        await self._begin_one_burn(current, balances, now_ns)
        statuses = [
            self._status(budget, balance, now_ns) for (budget, _), balance in zip(current, balances, strict=True)
        ]
        if budgets is not self._budgets:  # a reload happened meanwhile; the next refresh uses its budgets
            return
        self._statuses = statuses
        for (budget, _), status in zip(current, statuses, strict=True):
            self._export(budget, status)
            self._warn(budget, status)

    def status(self) -> list[BudgetStatus]:
        """The last status of every budget, in the configuration's order."""
        return list(self._statuses)

    def note_refusal(self, reservation: Reservation) -> None:
        """Count a refused reservation of a budget; those of other limits are ignored."""
        budget = self._budgets.of(reservation)
        if budget is not None:
            self._recorder.add(rows.REFUSALS, **self._labels_of(budget))

    def _status(self, budget: Budget, balance: Balance, now_ns: int) -> BudgetStatus:
        burn = self._burns.setdefault(budget.balance, Burn())
        burn.knows(balance.period_start_ns, now_ns)
        return status_of(budget, balance, burn.take(now_ns, balance.spent), now_ns)

    async def _begin_one_burn(
        self, current: list[tuple[Budget, Reservation]], balances: Sequence[Balance], now_ns: int
    ) -> None:
        """Sum up the ledger for a period that began before the service did. One per refresh: the sum over six hours of
        calls delays the calls that wait to be written.
        """
        for (budget, reservation), balance in zip(current, balances, strict=True):
            burn = self._burns.setdefault(budget.balance, Burn())
            if not burn.knows(balance.period_start_ns, now_ns):
                since_ns = burn_since_ns(balance.period_start_ns, now_ns)
                burned = await self._store.burn_nanousd(reservation, since_ns, now_ns)
                burn.begin(since_ns, max(balance.spent - burned, 0))
                return

    def _export(self, budget: Budget, status: BudgetStatus) -> None:
        labels = self._exported[budget.name] = self._labels_of(budget)
        values = {
            rows.SPENT: status.spent_nanousd,
            rows.RESERVED: status.reserved_nanousd,
            rows.LIMIT: status.limit_nanousd + status.credit_nanousd,
            rows.SOFT_LIMIT: status.soft_limit_nanousd,
            rows.PERIOD_END: status.period_end_ns // NS_PER_S,
            rows.EXHAUSTION: (status.exhausted_at_ns or 0) // NS_PER_S,
        }
        for row, value in values.items():
            self._recorder.set(row, value, **labels)

    def _labels_of(self, budget: Budget) -> dict[str, str]:
        return {"team": budget.scope.team, "budget": budget.name}

    def _remove_gauges(self, labels: dict[str, str]) -> None:
        for row in rows.ROWS:
            if row.type == "gauge":  # the last value of a removed budget would keep an alert firing
                self._recorder.families[row.name].remove(**labels)

    def _warn(self, budget: Budget, status: BudgetStatus) -> None:
        """Log each soft share that is passed, once per period."""
        shares_and_limits = zip(sorted(budget.soft_shares), budget.soft_limits(status.credit_nanousd), strict=False)
        passed = [share for share, limit in shares_and_limits if 0 < status.spent_nanousd >= limit]
        period_start_ns, logged = self._warned.get(budget.balance, (0, Decimal(0)))
        if period_start_ns != status.period_start_ns:
            logged = Decimal(0)
        if passed and passed[-1] > logged:
            percent = f"{(passed[-1] * 100).normalize():f}"
            whole = format_usd(status.limit_nanousd + status.credit_nanousd)
            spent = format_usd(status.spent_nanousd)
            log.warning("budget '%s' has passed %s %% of %s: %s is spent", budget.name, percent, whole, spent)
            logged = passed[-1]
        self._warned[budget.balance] = (status.period_start_ns, logged)
