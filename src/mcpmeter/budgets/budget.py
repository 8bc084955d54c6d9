"""Budgets: which of them cover a call, what it reserves of each, and the error of a refusal.

The ledger knows what is spent: it takes the reservations with the call's row, or raises `InsufficientBudget`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from functools import cached_property
from operator import attrgetter
from typing import Final
from urllib.parse import urlencode

from mcpmeter.budgets.period import Period
from mcpmeter.errors import BudgetExhausted, ConfigInvalid
from mcpmeter.money import format_usd
from mcpmeter.records import Reservation, Scope

PARTS: Final = ("team", "project", "key_id", "model")
SOFT_SHARES: Final = (Decimal("0.8"),)


@dataclass(frozen=True)
class Budget:
    """How much the calls of a scope may cost per period."""

    name: str
    scope: Scope
    limit_nanousd: int
    period: Period
    soft_shares: tuple[Decimal, ...] = SOFT_SHARES
    """Shares of the limit at which the budget counts as low."""
    refuses: bool = True
    """False: calls continue beyond the limit, which only warns."""

    @cached_property
    def balance(self) -> str:
        """Id of the ledger's balance. A new name or limit keeps the balance, a new scope or period starts another.

        A prepaid budget's balance includes its name, since top-ups belong to the name.
        """
        scope = {part: value for part in PARTS if (value := getattr(self.scope, part))}
        period = self.period
        cycle = f"once|{self.name}" if period.kind == "once" else f"{period.kind}-{period.start_day}@{period.time_zone}"
        return f"usd|{urlencode(scope)}|{cycle}"

    def soft_limits(self, credit_nanousd: int = 0) -> list[int]:
        """The amounts at which the budget counts as low, ascending; the whole limit if no share is set."""
        whole = max(self.limit_nanousd + credit_nanousd, 0)
        shares = sorted(self.soft_shares) or [Decimal(1)]
        return [int((share * whole).to_integral_value(ROUND_FLOOR)) for share in shares]

    def reservation(self, amount_nanousd: int, at_ns: int) -> Reservation:
        """The reservation of a call that starts at an instant and costs at most `amount_nanousd`."""
        return self._reservation(amount_nanousd, *self.period.bounds(at_ns))

    def _reservation(self, amount_nanousd: int, start_ns: int, end_ns: int) -> Reservation:
        return Reservation(
            balance=self.balance,
            period_start_ns=start_ns,
            period_end_ns=end_ns,
            amount=amount_nanousd,
            limit=self.limit_nanousd,
            refuses=self.refuses,
            scope=self.scope,
        )


class Budgets:
    """All budgets of a configuration. Raises `ConfigInvalid` if two have the same name or the same balance."""

    def __init__(self, budgets: Iterable[Budget] = ()) -> None:
        self._budgets = tuple(budgets)
        self._by_balance: dict[str, Budget] = {}
        self._by_shape: dict[tuple[str, ...], dict[tuple[str, ...], list[Budget]]] = {}
        """By the parts that scopes set, then by their values: a call looks up one entry per shape."""
        self._bounds: dict[str, tuple[int, int]] = {}
        """The present period of each balance, cached: computing bounds costs more than a call's whole lookup."""
        for budget in self._budgets:
            self._add(budget)

    def _add(self, budget: Budget) -> None:
        same_name = next(known for known in self._budgets if known.name == budget.name)
        for other in (self._by_balance.setdefault(budget.balance, budget), same_name):
            if other is budget:
                continue
            raise ConfigInvalid(
                f"The budgets '{other.name}' and '{budget.name}' have the same name, or the same scope and period.",
                hint="Keep one of them; it may have several shares in 'soft'.",
            )
        shape = tuple(part for part in PARTS if getattr(budget.scope, part))
        values = tuple(getattr(budget.scope, part) for part in shape)
        self._by_shape.setdefault(shape, {}).setdefault(values, []).append(budget)

    def __iter__(self) -> Iterator[Budget]:
        return iter(self._budgets)

    def __len__(self) -> int:
        return len(self._budgets)

    def reservations(
        self,
        *,
        max_cost_nanousd: int,
        at_ns: int,
        team: str = "",
        project: str = "",
        key_id: str = "",
        model: str = "",
    ) -> tuple[Reservation, ...]:
        """Reservations on every budget that covers the call, ordered by balance so that replicas lock in one order."""
        call = {"team": team, "project": project, "key_id": key_id, "model": model}
        found: list[Budget] = []
        for shape, by_values in self._by_shape.items():
            found += by_values.get(tuple(call[part] for part in shape), ())
        found.sort(key=attrgetter("balance"))
        reservations = (budget._reservation(max_cost_nanousd, *self._bounds_of(budget, at_ns)) for budget in found)
        # Only a prepaid budget can begin after the call does.
        return tuple(one for one in reservations if one.period_start_ns <= at_ns)

    def current(self, at_ns: int) -> list[tuple[Budget, Reservation]]:
        """Every budget in the configuration's order, with an empty reservation on its present period."""
        return [(budget, budget._reservation(0, *self._bounds_of(budget, at_ns))) for budget in self._budgets]

    def _bounds_of(self, budget: Budget, at_ns: int) -> tuple[int, int]:
        start_ns, end_ns = self._bounds.get(budget.balance, (1, 0))
        if not start_ns <= at_ns < end_ns:
            self._bounds[budget.balance] = start_ns, end_ns = budget.period.bounds(at_ns)
        return start_ns, end_ns

    def of(self, reservation: Reservation) -> Budget | None:
        """The budget of a reservation; None for other limits, and for a budget that a reload removed."""
        return self._by_balance.get(reservation.balance)

    def refusal(self, reservation: Reservation, left: int, references: Sequence[str] = ()) -> BudgetExhausted:
        """The error for a refused reservation. `left` comes from the ledger; negative if the budget is overspent.

        `references` are the fields for which a context window was reserved.
        """
        budget = self.of(reservation)
        name = f"The budget '{budget.name}'" if budget else "A budget"
        message = f"{name} {_status(reservation, left)}; this call could cost up to {format_usd(reservation.amount)}."
        if references:
            message += f" '{references[0]}' can stand for as long a prompt as the model reads."
        if budget is None:
            return BudgetExhausted(message, hint="Ask the operator.")
        if not reservation.period_end_ns:
            advice = f"mcpmeter budgets top-up {budget.name} --usd AMOUNT"
            advice += " or a lower relay.assumed_prompt_tokens" if references else ""
            return BudgetExhausted(f"{message} It is prepaid and does not reset.", hint=f"Ask the operator: {advice}.")
        resets_at = budget.period.local_time(reservation.period_end_ns).isoformat()
        fewer = "set relay.assumed_prompt_tokens" if references else f"raise 'limit_usd' of '{budget.name}'"
        return BudgetExhausted(
            f"{message} It resets at {resets_at}.",
            hint=f"Wait until then, ask for fewer tokens, or ask the operator to {fewer}.",
        )


def _status(reservation: Reservation, left: int) -> str:
    # For prepaid budgets, limit and credit are separate; the original total would mislead.
    whole = f" of {format_usd(reservation.limit)}" if reservation.period_end_ns else ""
    if left < 0:
        return f"{whole.lstrip()} is overspent by {format_usd(-left)}".lstrip()
    amount = format_usd(left) if left else "nothing"
    return f"has {amount} left{whole}, after reserving for open calls"
