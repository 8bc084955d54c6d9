"""What a call claims of the limits it is under, budgets and its key's rates, and how a refusal is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from mcpmeter.access.callers import Caller
from mcpmeter.budgets.budget import Budgets
from mcpmeter.budgets.rates import rate_claims, rate_refusal
from mcpmeter.errors import MeterError
from mcpmeter.ledger.store import ClaimRefused
from mcpmeter.records import Claim

ASSUMED_COMPLETION_TOKENS: Final = 4096


class MostOf(Protocol):
    """The most that a call can cost, in nano-dollars."""

    def __call__(self, provider: str, model: str, at_ns: int, *, prompt_tokens: int, completion_tokens: int) -> int: ...


def _free(provider: str, model: str, at_ns: int, *, prompt_tokens: int, completion_tokens: int) -> int:
    return 0


def _nobody_told(claim: Claim) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a configuration. A call keeps those that it began with."""

    budgets: Budgets = field(default_factory=Budgets)
    most_nanousd: MostOf = _free
    assumed_completion_tokens: int = ASSUMED_COMPLETION_TOKENS
    """What a call that sets no limit of its answer is taken to produce at the most."""
    on_refusal: Callable[[Claim], None] = _nobody_told
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
        most_prompt_tokens: int,
        most_completion_tokens: int | None,
        at_ns: int,
    ) -> tuple[tuple[Claim, ...], int]:
        """What a call claims, and the most that it can cost in nano-dollars at any of its targets.

        `targets` are (provider, model) pairs, the preferred one first. `most_completion_tokens` is None if the request
        sets no limit.
        """
        completion = self.assumed_completion_tokens if most_completion_tokens is None else most_completion_tokens
        most_nanousd = max(
            self.most_nanousd(
                provider,
                model,
                at_ns,
                prompt_tokens=most_prompt_tokens,
                completion_tokens=completion,
            )
            for provider, model in targets
        )
        money = self.budgets.claims(
            team=caller.team,
            project=caller.project,
            key_id=caller.key_id,
            model=targets[0][1],
            most_nanousd=most_nanousd,
            at_ns=at_ns,
        )
        return (*rate_claims(caller, most_prompt_tokens + completion, at_ns), *money), most_nanousd

    def refusal(self, refused: ClaimRefused, now_ns: int) -> MeterError:
        """A refused claim in words: RateLimited, or BudgetExhausted."""
        self.on_refusal(refused.claim)
        if refused.claim.unit == "nanousd":
            return self.budgets.refusal(refused.claim, refused.left)
        return rate_refusal(refused.claim, refused.left, now_ns)
