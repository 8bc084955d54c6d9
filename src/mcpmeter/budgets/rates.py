"""A key's requests and tokens a minute, as claims on balances like budgets: exact over replicas, gone with the minute.

Minutes are those of the clock: up to twice the limit can pass around the turn of one, never more within it.
"""

from __future__ import annotations

from typing import Final

from mcpmeter.access.callers import Caller
from mcpmeter.errors import RateLimited
from mcpmeter.records import Reservation, Scope, Unit

MINUTE_NS: Final = 60 * 10**9


def rate_claims(caller: Caller, max_tokens: int, at_ns: int) -> tuple[Reservation, ...]:
    """What a call claims of its key's minute; nothing where the key has no such limits."""
    if caller.requests_per_minute is None and caller.tokens_per_minute is None:
        return ()
    claims = []
    if caller.requests_per_minute is not None:
        claims.append(_claim(caller, "requests", caller.requests_per_minute, 1, at_ns))
    if caller.tokens_per_minute is not None:
        # A call that may take more than the whole minute is let in alone: its most is seldom what it takes.
        amount = min(max_tokens, caller.tokens_per_minute)
        claims.append(_claim(caller, "tokens", caller.tokens_per_minute, amount, at_ns))
    return tuple(claims)


def _claim(caller: Caller, unit: Unit, limit: int, amount: int, at_ns: int) -> Reservation:
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


def rate_refusal(claim: Reservation, left: int, now_ns: int) -> RateLimited:
    """The refusal of a call for which the key's minute has no room."""
    seconds = max(1, -(-(claim.period_end_ns - now_ns) // 10**9))
    return RateLimited(
        f"This API key may take {claim.limit} {claim.unit} a minute; {max(left, 0)} are left, and this call may take "
        f"{claim.amount}.",
        hint=f"Retry in {seconds} s, or ask the operator for a higher limit.",
        retry_after=str(seconds),
    )
