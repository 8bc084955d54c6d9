"""What a call claims of the limits it is under, budgets and its key's rates, and how a refusal is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from mcpmeter.access.callers import Caller
from mcpmeter.budgets.budget import Budgets
from mcpmeter.budgets.rates import rate_claims, rate_refusal
from mcpmeter.errors import MeterError
from mcpmeter.ledger.store import InsufficientBudget
from mcpmeter.records import Reservation

ASSUMED_COMPLETION_TOKENS: Final = 4096


class MaxCost(Protocol):
    """The most that a call can cost, in nano-dollars."""

    def __call__(self, provider: str, model: str, at_ns: int, *, prompt_tokens: int, completion_tokens: int) -> int: ...


def _free(provider: str, model: str, at_ns: int, *, prompt_tokens: int, completion_tokens: int) -> int:
    return 0


def _nobody_told(claim: Reservation) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a configuration. A call keeps those that it began with."""

    budgets: Budgets = field(default_factory=Budgets)
    max_cost_nanousd: MaxCost = _free
    assumed_completion_tokens: int = ASSUMED_COMPLETION_TOKENS
    """What a call that sets no limit of its answer is taken to produce at the most."""
    on_refusal: Callable[[Reservation], None] = _nobody_told
    """Told of each claim that a balance had no room for."""
    _has_budgets: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_has_budgets", bool(self.budgets))

    def concern(self, caller: Caller) -> bool:
        """Whether a caller's calls claim anything, so that the most they can take has to be known."""
        return self._has_budgets or caller.requests_per_minute is not None or caller.tokens_per_minute is not None

    def claims(
        self,
        caller: Caller,
        targets: Sequence[tuple[str, str]],
        *,
        max_prompt_tokens: int,
        max_completion_tokens: int | None,
        at_ns: int,
    ) -> tuple[tuple[Reservation, ...], int]:
        """What a call claims, and the most that it can cost in nano-dollars at any of its targets.

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
        money = self.budgets.claims(
            team=caller.team,
            project=caller.project,
            key_id=caller.key_id,
            model=targets[0][1],
            max_cost_nanousd=max_cost_nanousd,
            at_ns=at_ns,
        )
        return (*rate_claims(caller, max_prompt_tokens + completion, at_ns), *money), max_cost_nanousd

    def refusal(self, refused: InsufficientBudget, now_ns: int) -> MeterError:
        """A refused claim in words: RateLimited, or BudgetExhausted."""
        self.on_refusal(refused.reservation)
        if refused.reservation.unit == "nanousd":
            return self.budgets.refusal(refused.reservation, refused.left)
        return rate_refusal(refused.reservation, refused.left, now_ns)
