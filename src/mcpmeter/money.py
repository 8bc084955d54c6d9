"""US dollars as text, as Decimal and as integer nano-dollars (1e-9 USD). Functions that round say how."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final

NANO: Final = 10**9
MAX_NANOUSD: Final = 2**63 - 1
"""About 9.2 billion dollars: the largest value of a signed 64-bit column."""

_AMOUNT: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{0,30})?(?:[eE][+-]?[0-9]{1,2})?")
_MAX_DIGITS: Final = 60
# Wide enough for every amount that passes the checks below, so that only the quantisation rounds.
_CONTEXT: Final = Context(prec=200, rounding=ROUND_HALF_EVEN)
_WHOLE: Final = Decimal(1)


def usd_to_nanousd(amount: str | Decimal) -> int | None:
    """A dollar amount as providers write it (`0.0042`, `1.4e-05`) in nano-dollars, rounded half to even.

    None for anything but a plain amount: signed, not finite, over `MAX_NANOUSD`, or too long. Never raises.
    """
    if isinstance(amount, str):
        text = amount.strip(" \t")
        if _AMOUNT.fullmatch(text) is None:
            return None
        amount = Decimal(text)
    if not amount.is_finite() or amount.is_signed() or len(amount.as_tuple().digits) > _MAX_DIGITS:
        return None
    if not amount:
        return 0
    if amount.adjusted() > 10:
        return None
    if amount.adjusted() < -30:
        return 0
    nanousd = int(amount.scaleb(9, _CONTEXT).quantize(_WHOLE, context=_CONTEXT))
    return nanousd if nanousd <= MAX_NANOUSD else None


def nanousd_to_usd(nanousd: int) -> Decimal:
    """The same amount in dollars, exactly, with nine decimals."""
    return Decimal(nanousd).scaleb(-9, _CONTEXT)


def plain_usd(amount: Decimal) -> str:
    """An amount without exponent or trailing zeros, with at least two decimals: `2.50`, `0.2288`."""
    whole, _, decimals = f"{amount:f}".partition(".")
    return f"{whole}.{decimals.rstrip('0'):0<2}"


def usd_text(nanousd: int) -> str:
    """Nano-dollars as dollars, exact, with at least two decimals: `0.00225`, `-12.00`."""
    return plain_usd(nanousd_to_usd(nanousd))


def format_usd(nanousd: int) -> str:
    """An amount for display: `$1,234.50` from one dollar up, rounded half to even; below, all decimals: `$0.0027`."""
    sign, amount = ("-", -nanousd) if nanousd < 0 else ("", nanousd)
    dollars = nanousd_to_usd(amount)
    if amount < NANO:
        return f"{sign}${plain_usd(dollars)}"
    return f"{sign}${dollars.quantize(Decimal('0.01'), context=_CONTEXT):,}"
