"""Settled calls as reconciliation compares them with a bill, in the order of the provider's request ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from mcpmeter.ledger.location import Location
from mcpmeter.ledger.queries.reader import open_reader
from mcpmeter.ledger.sums import halves, whole


class SettledCall(msgspec.Struct, frozen=True, gc=False):
    """One call as a bill is compared with it. The fields are columns of the ledger, in this order."""

    id: str
    started_at_ns: int
    provider: str
    model: str
    response_model: str
    status: str
    prompt_tokens: int
    completion_tokens: int
    cached_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    audio_tokens: int
    token_source: str
    cost_nanousd: int
    cost_source: str
    reported_cost_nanousd: int | None
    upstream_request_id: str
    listed_nanousd: int | None = None
    """The cost by the price list of a call with lines; its counts alone do not say it."""
    unpriced_items: int | None = None


_COLUMNS: Final = ", ".join(SettledCall.__struct_fields__)
# In byte order, in which the lines of a bill are sorted too; the call's own id makes the order unique.
_SQL: Final = (
    f"SELECT {_COLUMNS} FROM calls LEFT JOIN charges ON call_id = calls.id WHERE state = 'settled' "  # noqa: S608
    "AND started_at_ns >= ?1 AND started_at_ns < ?2 AND (?3 IS NULL OR provider = ?3) AND provider <> '' "
    "AND (NOT ?4 OR reported_cost_nanousd IS NOT NULL) ORDER BY upstream_request_id, id"
)
_OUTSIDE_SQL: Final = (
    f"SELECT count(*), {halves('cost_nanousd')} FROM calls "  # noqa: S608 (constants only)
    "WHERE state = 'settled' AND (started_at_ns < ?1 OR started_at_ns >= ?2) AND provider = ?3 "
    "AND (cost_nanousd <> 0 OR prompt_tokens <> 0 OR completion_tokens <> 0)"
)


def calls_outside(ledger: Location, *, since_ns: int, until_ns: int, provider: str) -> tuple[int, int]:
    """Number and cost in nano-dollars of a provider's calls outside [since, until) that have tokens or a cost.

    Raises `LedgerNotUsable`.
    """
    with open_reader(ledger) as reader:
        ((calls, *cost),) = reader.rows(_OUTSIDE_SQL, (since_ns, until_ns, provider))
    return calls, whole(cost)


def settled_calls(
    ledger: Location, *, since_ns: int, until_ns: int, provider: str | None = None, with_reported_cost: bool = False
) -> Iterator[SettledCall]:
    """Model calls started in [since, until), ordered by the bytes of `upstream_request_id`, read one by one.

    `provider` is its name in the configuration; `with_reported_cost` leaves out calls without a cost reported by it.
    Raises `LedgerNotUsable`.
    """
    with open_reader(ledger) as reader:
        for row in reader.rows(_SQL, (since_ns, until_ns, provider, with_reported_cost)):
            yield SettledCall(*row)
