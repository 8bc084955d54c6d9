"""Reservations as a call's row stores them, and what a settled call took of a limit; the same on every engine.

The column and its JSON are called `claims`: the ledger's format is older than the word reservation.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from mcpmeter.records import Call, Settlement, Unit

KeptReservation = tuple[str, int, Unit, int]
"""A reservation in a row: balance, start of the period, unit, amount."""

_decoder = msgspec.json.Decoder(list[KeptReservation])


def encode_call_reservations(call: Call) -> str:
    """The reservations of a call as its row stores them: a JSON array, or empty."""
    if not call.reservations:
        return ""
    return encode_reservations([(r.balance, r.period_start_ns, r.unit, r.amount) for r in call.reservations])


def encode_reservations(reservations: Sequence[KeptReservation]) -> str:
    """Reservations as a row stores them."""
    return msgspec.json.encode(reservations).decode()


def decode_reservations(claims: str) -> list[KeptReservation]:
    """Reservations from a row's column `claims`."""
    return _decoder.decode(claims) if claims else []


def amount_taken(unit: Unit, settlement: Settlement) -> int:
    """What a settled call took of a limit that counts in `unit`."""
    usage, charge = settlement.usage, settlement.charge
    return taken_by_row(
        unit,
        charge.nanousd + charge.fallback_nanousd if charge else 0,
        usage.prompt_tokens + usage.completion_tokens if usage else 0,
    )


def taken_by_row(unit: Unit, nanousd: int, tokens: int) -> int:
    """The same from a settled row: its cost plus fallback cost, and its tokens."""
    return 1 if unit == "requests" else tokens if unit == "tokens" else nanousd
