"""Charges line by line, in a row of their own beside the call's: columns, SQL, records to rows and back.

Only a call that is billed by more than plain prompt and completion has one, so that rows of plain calls stay as small
as they are. SQL here runs on both engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from mcpmeter.errors import LedgerNotUsable
from mcpmeter.records import (
    STANDARD,
    Charge,
    ChargeLine,
    Conditions,
    LlmTarget,
    Settlement,
    Usage,
    UsageItem,
    lines_that_add_up,
    unknown_items,
)

_Value = TypeVar("_Value")

MAX_LINES: Final = 100
"""Of one call. A provider decides how many steps and models a response names, so the rest become sums."""

CHARGE_COLUMNS: Final = (
    "call_id",
    "call_started_at_ns",
    "lines",
    "unknown",
    "conditions",
    "unpriced_items",
    "other_models",
    "fallback_nanousd",
    "listed_nanousd",
)
INSERT_CHARGE_SQL: Final = (
    f"INSERT INTO charges ({', '.join(CHARGE_COLUMNS)}) VALUES ({', '.join('?' * len(CHARGE_COLUMNS))})"  # noqa: S608
)
DELETE_CHARGE_SQL: Final = "DELETE FROM charges WHERE call_id = ?1"
SELECT_CHARGE_SQL: Final = f"SELECT {', '.join(CHARGE_COLUMNS)} FROM charges WHERE call_id = ?1"  # noqa: S608

_NO_USAGE: Final = Usage()
_NO_CHARGE: Final = Charge()
_NO_MODEL: Final = LlmTarget(provider="", model="")

_lines = msgspec.json.Decoder(tuple[ChargeLine, ...])
_unknown = msgspec.json.Decoder(tuple[UsageItem, ...])
_conditions = msgspec.json.Decoder(Conditions)


class KeptCharge(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger keeps of a charge beside the call's row."""

    lines: tuple[ChargeLine, ...] = ()
    unknown: tuple[UsageItem, ...] = ()
    conditions: Conditions = STANDARD
    fallback_nanousd: int = 0
    """The unpriced lines of a priced call at the fallback price; an unpriced call's is in its own row."""


def charge_values(settlement: Settlement) -> tuple[Any, ...]:
    """The parameters of `INSERT_CHARGE_SQL`, for a settlement that `rows.has_charge_row`."""
    usage = settlement.usage or _NO_USAGE
    charge = settlement.charge or _NO_CHARGE
    target = settlement.call.llm or _NO_MODEL
    lines = compact(lines_that_add_up(charge), target.model)
    unknown = unknown_items(usage, charge)
    is_priced = charge.source != "unpriced"
    return (
        settlement.call.id,
        settlement.call.started_at_ns,
        msgspec.json.encode(lines).decode(),
        msgspec.json.encode(unknown).decode(),
        msgspec.json.encode(usage.conditions).decode(),
        len(unknown) + sum(is_priced and line.nanousd is None for line in lines),
        int(any(line.model for line in lines)),
        charge.fallback_nanousd if is_priced else 0,
        charge.listed_nanousd,
    )


def compact(lines: Iterable[ChargeLine], own_model: str) -> list[ChargeLine]:
    """The lines with equal ones summed; the call's own model has no name in them.

    Lines after `MAX_LINES` become one per source, which holds their amount and not their items.
    """
    kept: dict[tuple[Any, ...], ChargeLine] = {}
    for line in lines:
        model = "" if line.model == own_model else line.model
        key: tuple[Any, ...] = (line.item, line.unit_price, line.price_list, line.source, model, line.nanousd is None)
        if key not in kept and len(kept) >= MAX_LINES:
            key = ("more", line.source, line.nanousd is None)
            line, model = ChargeLine("more", 0, line.nanousd, source=line.source), ""  # noqa: PLW2901
        before = kept.get(key)
        kept[key] = msgspec.structs.replace(
            line,
            model=model,
            quantity=line.quantity + (before.quantity if before else 0),
            nanousd=None if line.nanousd is None else line.nanousd + (before.nanousd or 0 if before else 0),
        )
    return list(kept.values())


def charge_of(row: Sequence[Any]) -> KeptCharge:
    """A charge from its columns, in the order of `CHARGE_COLUMNS`. Raises `LedgerNotUsable` if it cannot be read."""
    _, _, lines, unknown, conditions, _, _, fallback_nanousd, _ = row
    return KeptCharge(
        lines=lines_of(lines),
        unknown=unknown_of(unknown),
        conditions=_decoded(_conditions, conditions),
        fallback_nanousd=fallback_nanousd,
    )


def lines_of(text: str) -> tuple[ChargeLine, ...]:
    """The lines from their column. Raises `LedgerNotUsable`."""
    return _decoded(_lines, text)


def unknown_of(text: str) -> tuple[UsageItem, ...]:
    """The unknown items from their column. Raises `LedgerNotUsable`."""
    return _decoded(_unknown, text)


def _decoded(decoder: msgspec.json.Decoder[_Value], text: str) -> _Value:
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeError):
        raise LedgerNotUsable(
            "A charge in the ledger cannot be read.", hint="Run: mcpmeter ledger verify, then ledger recover."
        ) from None
