"""The records of a reconciliation: a bill's line and period, an amount of either side, and the compared item."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Verdict = Literal["matched", "price", "tokens", "missing_in_ledger", "missing_in_bill", "duplicate", "unlisted", "free"]
"""`price`: the tokens agree (or the bill has none) and the costs differ. `tokens`: the tokens differ.
`duplicate`: billed again. `unlisted`: the response reported its cost and no price list has the model.
`free`: a call without tokens and cost, which no bill has to contain."""

DIFFERENCES: Final[tuple[Verdict, ...]] = ("price", "tokens", "missing_in_ledger", "missing_in_bill", "duplicate")
"""The verdicts that count as a difference."""


class BillLine(msgspec.Struct, frozen=True, gc=False):
    """One line of a provider's bill. None stands for a figure that the bill does not have."""

    line: int
    """The line of a CSV file, or the number of the result in a JSON page."""
    at_ns: int
    """The instant of the request, or the start of the day or hour that the line sums up; Unix ns."""
    request_id: str = ""
    """Empty for a line that sums up several requests."""
    model: str = ""
    part: str = ""
    """Distinguishes summed lines of one time and model: project, tier, kind of token."""
    requests: int | None = None
    prompt_tokens: int | None = None
    """Including cached tokens, as in the ledger."""
    completion_tokens: int | None = None
    nanousd: int | None = None
    """Negative for a credit."""
    file: int = 0
    """Index of its file."""


class Period(msgspec.Struct, frozen=True, gc=False):
    """A bucket or day that the bill names, even if nothing is billed in it."""

    since_ns: int
    until_ns: int = 0
    """0 if the bill names only the start: then it is a day, and days without use may be absent."""


class Amount(msgspec.Struct, frozen=True, gc=False):
    """The figures of one side, for a call or for a model on a day."""

    calls: int
    """Requests; the number of lines for a bill that does not count requests."""
    prompt_tokens: int | None
    completion_tokens: int | None
    nanousd: int | None
    roundings: int = 1
    """Number of amounts rounded to whole nano-dollars in this one; each may be off by half a nano-dollar."""


class ReconcileItem(msgspec.Struct, frozen=True, gc=False):
    """The verdict on a line, a call or a model's day; each of them is in exactly one item."""

    verdict: Verdict
    day: str
    """YYYY-MM-DD in the bill's time zone."""
    model: str
    request_id: str = ""
    """Empty if a model's day is compared."""
    call_id: str = ""
    billed: Amount | None = None
    ledger: Amount | None = None
    file: int = 0
    line: int = 0
    """The bill's line; 0 for a sum of lines and for what is not in the bill."""
    note: str = ""
    """Why the ledger's own figures may be wrong."""
    is_outside: bool = False
    """The call started outside the period, but a line within it has its request id."""

    @property
    def nanousd(self) -> int:
        """Billed minus recorded; 0 if the bill has no cost."""
        if self.billed is not None and self.billed.nanousd is None:
            return 0
        return _of(self.billed, "nanousd") - _of(self.ledger, "nanousd")

    @property
    def tokens(self) -> tuple[int, int]:
        """The same for prompt and completion tokens."""
        if self.billed is not None and self.billed.prompt_tokens is None:
            return 0, 0
        prompt = _of(self.billed, "prompt_tokens") - _of(self.ledger, "prompt_tokens")
        return prompt, _of(self.billed, "completion_tokens") - _of(self.ledger, "completion_tokens")


def _of(side: Amount | None, field: str) -> int:
    return 0 if side is None else getattr(side, field) or 0
