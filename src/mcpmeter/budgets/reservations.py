"""What a call reserves: of its budgets, and of its key's requests and tokens per minute.

Per-minute limits are balances like budgets, so they are exact over replicas. Minutes are those of the clock: up to
twice the limit can pass around the turn of a minute, never more than the limit within one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from msgspec.structs import replace

from mcpmeter.access.callers import Caller
from mcpmeter.budgets.budget import Budgets
from mcpmeter.errors import MeterError, RateLimited
from mcpmeter.items import ITEMS
from mcpmeter.ledger.store import InsufficientBudget
from mcpmeter.records import STANDARD, AddedCall, Call, Charge, Conditions, Reservation, Scope, Unit, UsageItem

ASSUMED_COMPLETION_TOKENS: Final = 4096
ASSUMED_PROMPT_TOKENS: Final = 200_000
"""For a prompt by reference to a model whose context window is not known."""
ASSUMED_TOOL_USES: Final = 10
NS_PER_S: Final = 10**9
MINUTE_NS: Final = 60 * NS_PER_S


class MaxCost(Protocol):
    """Upper bound of a call's cost, in nano-dollars."""

    def __call__(
        self,
        provider: str,
        model: str,
        at_ns: int,
        *,
        prompt_tokens: int,
        completion_tokens: int,
        conditions: Conditions = STANDARD,
        max_items: Sequence[UsageItem] = (),
    ) -> int: ...


def _free(
    provider: str,
    model: str,
    at_ns: int,
    *,
    prompt_tokens: int,
    completion_tokens: int,
    conditions: Conditions = STANDARD,
    max_items: Sequence[UsageItem] = (),
) -> int:
    return 0


def _ignore(reservation: Reservation) -> None:
    pass


def _unknown_window(provider: str, model: str) -> int | None:
    return None


class Demand(Protocol):
    """What bounds the cost of a request; `dialects.base.RequestInfo` is one."""

    @property
    def max_prompt_tokens(self) -> int | None:
        """Of the prompt that its body holds; None if the body's size is the bound."""

    @property
    def max_completion_tokens(self) -> int | None:
        """Of all choices together. None if the request sets no limit."""

    @property
    def choices(self) -> int:
        """Responses that it asks for at once."""

    @property
    def references(self) -> tuple[str, ...]:
        """Fields that stand for a prompt that the body does not hold."""

    @property
    def conditions(self) -> Conditions:
        """What it asks to be served by."""

    @property
    def max_items(self) -> tuple[UsageItem, ...]:
        """The most that hosted tools can bill. A quantity of 0: the request sets no bound."""

    @property
    def added_calls(self) -> tuple[AddedCall, ...]:
        """Model calls that the provider may make beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a configuration. A call keeps those it began with."""

    budgets: Budgets = field(default_factory=Budgets)
    max_cost_nanousd: MaxCost = _free
    assumed_completion_tokens: int = ASSUMED_COMPLETION_TOKENS
    """Completion tokens reserved for each choice of a request that sets no limit of its own."""
    assumed_prompt_tokens: int | None = None
    """Prompt tokens reserved for a prompt by reference; None for the model's context window."""
    assumed_tool_uses: int = ASSUMED_TOOL_USES
    """Uses reserved of each hosted tool whose uses the request does not limit."""
    context_window: Callable[[str, str], int | None] = _unknown_window
    """The most tokens that a provider's model reads; None if that is not known."""
    on_refusal: Callable[[Reservation], None] = _ignore
    """Called with each reservation that its balance had no room for."""
    _has_budgets: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_has_budgets", bool(self.budgets))

    def apply_to(self, caller: Caller) -> bool:
        """Whether the caller's calls reserve anything, so that their upper bounds are needed."""
        return self._has_budgets or caller.requests_per_minute is not None or caller.tokens_per_minute is not None

    def reserve(
        self, caller: Caller, targets: Sequence[tuple[str, str]], demand: Demand, *, size: int, at_ns: int
    ) -> tuple[tuple[Reservation, ...], int]:
        """The call's reservations, and its upper bound in nano-dollars at the most expensive of its targets.

        `targets` are (provider, model) pairs, the preferred one first. The budgets of every model among them reserve.
        `size` is that of the body: no token is shorter than a byte.
        """
        held = size if demand.max_prompt_tokens is None else demand.max_prompt_tokens
        max_completion_tokens = demand.max_completion_tokens
        completion = (
            self.assumed_completion_tokens * demand.choices if max_completion_tokens is None else max_completion_tokens
        )
        costs: dict[str, int] = {}
        prompt = 0
        for provider, model in targets:
            tokens, cost = self._bound((provider, model), demand, held, completion, at_ns)
            costs[model] = max(cost, costs.get(model, 0))
            prompt = max(tokens, prompt)
        max_cost_nanousd = max(costs.values())
        if len(costs) == 1:
            money = self.budgets.reservations(
                team=caller.team,
                project=caller.project,
                key_id=caller.key_id,
                model=targets[0][1],
                max_cost_nanousd=max_cost_nanousd,
                at_ns=at_ns,
            )
        else:
            money = self._of_models(caller, costs, max_cost_nanousd, at_ns)
        return (*_of_minute(caller, prompt + completion, at_ns), *money), max_cost_nanousd

    def _bound(
        self, target: tuple[str, str], demand: Demand, held: int, completion: int, at_ns: int
    ) -> tuple[int, int]:
        """The most prompt tokens of a call at one target, and the most that it can cost there."""
        provider, model = target
        if not demand.references and not demand.max_items and not demand.added_calls:
            cost = self.max_cost_nanousd(
                provider,
                model,
                at_ns,
                prompt_tokens=held,
                completion_tokens=completion,
                conditions=demand.conditions,
            )
            return held, cost
        prompt = self._by_reference(provider, model, held) if demand.references else held
        items = tuple(
            UsageItem(item.item, item.quantity or self._assumed(item.item, prompt), item.model)
            for item in demand.max_items
        )

        def cost_of(model: str, prompt_tokens: int, completion_tokens: int, items: tuple[UsageItem, ...] = ()) -> int:
            return self.max_cost_nanousd(
                provider,
                model,
                at_ns,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                conditions=demand.conditions,
                max_items=items,
            )

        cost, added = cost_of(model, prompt, completion, items), 0
        for call in demand.added_calls:
            limit = call.max_completion_tokens
            written = completion if call.is_instead else self.assumed_completion_tokens if limit is None else limit
            other = call.model or model
            read = self._by_reference(provider, other, prompt) if call.by_reference else prompt
            if call.is_instead:
                cost = max(cost, cost_of(other, read, written, items))
            else:
                added += (call.times or self.assumed_tool_uses) * cost_of(other, read, written)
        return prompt, cost + added

    def _assumed(self, item: str, prompt_tokens: int) -> int:
        """The quantity of an item that the request does not limit."""
        known = ITEMS.get(item)
        return prompt_tokens if known and known.side == "prompt" else self.assumed_tool_uses

    def _by_reference(self, provider: str, model: str, held: int) -> int:
        """The most prompt tokens of a request that names a prompt and holds another part of it."""
        if self.assumed_prompt_tokens is not None:
            return held + self.assumed_prompt_tokens
        return self.context_window(provider, model) or held + ASSUMED_PROMPT_TOKENS

    def _of_models(
        self, caller: Caller, costs: Mapping[str, int], max_cost_nanousd: int, at_ns: int
    ) -> tuple[Reservation, ...]:
        """Reservations of a call that one of several models answers: each model's budgets at its own maximum."""
        found: dict[str, Reservation] = {}
        for model, cost in costs.items():
            for one in self.budgets.reservations(
                team=caller.team,
                project=caller.project,
                key_id=caller.key_id,
                model=model,
                max_cost_nanousd=max_cost_nanousd,
                at_ns=at_ns,
            ):
                found[one.balance] = replace(one, amount=cost, answered_by=model) if one.scope.model else one
        return tuple(found[balance] for balance in sorted(found))

    def postings(self, call: Call, charge: Charge) -> tuple[Reservation, ...]:
        """What the budgets of single models get of a call whose charge has lines of several models."""
        if call.llm is None:
            return ()
        costs: dict[str, int] = {}
        for line in charge.lines:
            if line.model and line.model != call.llm.model:
                costs[line.model] = costs.get(line.model, 0) + (line.nanousd or 0)
        if not costs:
            return ()
        costs[call.llm.model] = charge.nanousd + charge.fallback_nanousd - sum(costs.values())
        found: list[Reservation] = []
        for model, cost in costs.items():
            found += self.budgets.reservations(
                team=call.team,
                project=call.project,
                key_id=call.key_id,
                model=model,
                max_cost_nanousd=max(cost, 0),
                at_ns=call.started_at_ns,
            )
        return tuple(one for one in found if one.scope.model)

    def refusal(self, refused: InsufficientBudget, now_ns: int, demand: Demand) -> MeterError:
        """The error for a refused reservation: RateLimited, or BudgetExhausted."""
        reservation = refused.reservation
        self.on_refusal(reservation)
        if reservation.unit == "nanousd":
            return self.budgets.refusal(reservation, refused.left, demand.references)
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
