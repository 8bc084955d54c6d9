"""What a row keeps of a call's claims, and what a settled call took of a limit: the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mcpmeter.records import Call, Settlement, Unit

KeptReservation = tuple[str, int, Unit, int]
"""A claim as a row keeps it: balance, period's start, unit, amount."""

_decoder = msgspec.json.Decoder(list[KeptReservation])


def kept_claims(call: Call) -> str:
    """The claims of a call as its row keeps them: a JSON array, or empty."""
    if not call.reservations:
        return ""
    return write_claims(
        [(claim.balance, claim.period_start_ns, claim.unit, claim.amount) for claim in call.reservations]
    )


def write_claims(claims: Sequence[KeptReservation]) -> str:
    """Claims as a row keeps them."""
    return msgspec.json.encode(claims).decode()


def read_claims(kept: str) -> list[KeptReservation]:
    """Claims from a row."""
    return _decoder.decode(kept) if kept else []


def amount_taken(unit: Unit, settlement: Settlement) -> int:
    """What a settled call took of a limit that counts in `unit`."""
    usage, charge = settlement.usage, settlement.charge
    return taken_by_row(
        unit,
        charge.nanousd + charge.fallback_nanousd if charge else 0,
        usage.prompt_tokens + usage.completion_tokens if usage else 0,
    )


def taken_by_row(unit: Unit, nanousd: int, tokens: int) -> int:
    """The same from the sums of a settled row: its cost and fallback cost, its tokens."""
    return 1 if unit == "requests" else tokens if unit == "tokens" else nanousd
