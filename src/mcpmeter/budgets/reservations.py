"""What a call reserves: of its budgets, and of its key's requests and tokens per minute.

Per-minute limits are balances like budgets, so they are exact over replicas. Minutes are those of the clock: up to
twice the limit can pass around the turn of a minute, never more than the limit within one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from mcpmeter.access.callers import Caller
from mcpmeter.budgets.budget import Budgets
from mcpmeter.errors import MeterError, RateLimited
from mcpmeter.ledger.store import InsufficientBudget
from mcpmeter.records import Reservation, Scope, Unit

ASSUMED_COMPLETION_TOKENS: Final = 4096
NS_PER_S: Final = 10**9
MINUTE_NS: Final = 60 * NS_PER_S


class MaxCost(Protocol):
    """Upper bound of a call's cost, in nano-dollars."""

    def __call__(self, provider: str, model: str, at_ns: int, *, prompt_tokens: int, completion_tokens: int) -> int: ...


def _free(provider: str, model: str, at_ns: int, *, prompt_tokens: int, completion_tokens: int) -> int:
    return 0


def _ignore(reservation: Reservation) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a configuration. A call keeps those it began with."""

    budgets: Budgets = field(default_factory=Budgets)
    max_cost_nanousd: MaxCost = _free
    assumed_completion_tokens: int = ASSUMED_COMPLETION_TOKENS
    """Completion tokens reserved for a request that sets no limit of its own."""
    on_refusal: Callable[[Reservation], None] = _ignore
    """Called with each reservation that its balance had no room for."""
    _has_budgets: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_has_budgets", bool(self.budgets))

    def apply_to(self, caller: Caller) -> bool:
        """Whether the caller's calls reserve anything, so that their upper bounds are needed."""
        return self._has_budgets or caller.requests_per_minute is not None or caller.tokens_per_minute is not None

    def reserve(
        self,
        caller: Caller,
        targets: Sequence[tuple[str, str]],
        *,
        max_prompt_tokens: int,
        max_completion_tokens: int | None,
        at_ns: int,
    ) -> tuple[tuple[Reservation, ...], int]:
        """The call's reservations, and its upper bound in nano-dollars at the most expensive of its targets.

        `targets` are (provider, model) pairs, the preferred one first. `max_completion_tokens` is None if the request
        sets no limit.
        """
        completion = self.assumed_completion_tokens if max_completion_tokens is None else max_completion_tokens
        max_cost_nanousd = max(
            self.max_cost_nanousd(
                provider,
                model,
                at_ns,
                prompt_tokens=max_prompt_tokens,
                completion_tokens=completion,
            )
            for provider, model in targets
        )
        money = self.budgets.reservations(
            team=caller.team,
            project=caller.project,
            key_id=caller.key_id,
            model=targets[0][1],
            max_cost_nanousd=max_cost_nanousd,
            at_ns=at_ns,
        )
        return (*_of_minute(caller, max_prompt_tokens + completion, at_ns), *money), max_cost_nanousd

    def refusal(self, refused: InsufficientBudget, now_ns: int) -> MeterError:
        """The error for a refused reservation: RateLimited, or BudgetExhausted."""
        reservation = refused.reservation
        self.on_refusal(reservation)
        if reservation.unit == "nanousd":
            return self.budgets.refusal(reservation, refused.left)
        return _rate_limited(reservation, refused.left, now_ns)


def _of_minute(caller: Caller, max_tokens: int, at_ns: int) -> list[Reservation]:
    reservations = []
    if caller.requests_per_minute is not None:
        reservations.append(_in_minute(caller, "requests", caller.requests_per_minute, 1, at_ns))
    if caller.tokens_per_minute is not None:
        # A call whose upper bound exceeds the whole minute may run alone: most calls take far less than their bound.
        amount = min(max_tokens, caller.tokens_per_minute)
        reservations.append(_in_minute(caller, "tokens", caller.tokens_per_minute, amount, at_ns))
    return reservations


def _in_minute(caller: Caller, unit: Unit, limit: int, amount: int, at_ns: int) -> Reservation:
    start_ns = at_ns - at_ns % MINUTE_NS
    return Reservation(
        balance=f"key={caller.key_id}|{unit}|minute",
        unit=unit,
        period_start_ns=start_ns,
        period_end_ns=start_ns + MINUTE_NS,
        amount=amount,
        limit=limit,
        scope=Scope(key_id=caller.key_id),
    )


def _rate_limited(reservation: Reservation, left: int, now_ns: int) -> RateLimited:
    seconds = max(1, -(-(reservation.period_end_ns - now_ns) // NS_PER_S))
    unit = reservation.unit
    return RateLimited(
        f"This API key is limited to {reservation.limit} {unit} a minute; {max(left, 0)} are left, and this call may "
        f"take {reservation.amount}.",
        hint=f"Retry in {seconds} s, or ask the operator for a higher limit.",
        retry_after=str(seconds),
    )
