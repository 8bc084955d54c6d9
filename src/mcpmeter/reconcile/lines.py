"""What flows through a reconciliation: a line of a bill, an amount of either side, and what was found about them."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Verdict = Literal["matched", "price", "tokens", "missing_in_ledger", "missing_in_bill", "duplicate", "unlisted", "free"]
"""`price`: the tokens agree (or the bill tells none) and the cost does not. `tokens`: the tokens differ.
`duplicate`: billed once more. `unlisted`: the answer told its cost and no price list knows the model.
`free`: a call of no tokens and no cost that no bill has to name."""

DIFFERENCES: Final[tuple[Verdict, ...]] = ("price", "tokens", "missing_in_ledger", "missing_in_bill", "duplicate")
"""What is wrong, as against what only is so."""


class BillLine(msgspec.Struct, frozen=True, gc=False):
    """One line of a provider's bill. None stands for what this bill does not tell."""

    line: int
    """Its place in the file: the line of a CSV file, the number of the result in a JSON page."""
    at_ns: int
    """The instant of the request, or the start of the day or hour that the line sums up; Unix ns."""
    request_id: str = ""
    """Empty for a line that sums up several requests."""
    model: str = ""
    part: str = ""
    """What tells a summed line from the others of its time and model: project, tier, kind of token."""
    requests: int | None = None
    prompt_tokens: int | None = None
    """All of them, cached ones too, as the ledger counts."""
    completion_tokens: int | None = None
    nanousd: int | None = None
    """Negative for a credit."""
    file: int = 0
    """Which of the files it is from."""


class Period(msgspec.Struct, frozen=True, gc=False):
    """A bucket or a day that the bill names, even if nothing is billed in it."""

    since_ns: int
    until_ns: int = 0
    """0 if the bill names only the start: then it is a day, and days without use may be absent."""


class Amount(msgspec.Struct, frozen=True, gc=False):
    """What one side says about a call, or about a model on a day."""

    calls: int
    """Requests; for a bill that does not count them, its lines."""
    prompt_tokens: int | None
    completion_tokens: int | None
    nanousd: int | None
    roundings: int = 1
    """How many amounts were rounded to whole nano-dollars to get this one; each may be off by half of one."""


class ReconcileItem(msgspec.Struct, frozen=True, gc=False):
    """What became of a line, of a call, or of a model's day; every one of them is in exactly one finding."""

    verdict: Verdict
    day: str
    """YYYY-MM-DD in the bill's time zone."""
    model: str
    request_id: str = ""
    """Empty where a model's day was compared."""
    call_id: str = ""
    billed: Amount | None = None
    ledger: Amount | None = None
    file: int = 0
    line: int = 0
    """Where the bill says so; 0 for a sum of lines and for what is not in the bill."""
    note: str = ""
    """What the ledger itself said about the weakness of its figures."""
    is_outside: bool = False
    """The call started outside the period; its request id is in a line within it."""

    @property
    def nanousd(self) -> int:
        """Billed less kept; 0 where the bill tells no cost."""
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
