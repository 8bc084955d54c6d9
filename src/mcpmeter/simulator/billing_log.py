"""The simulator's billing log: the billed usage and outcome of each call, to compare a meter's numbers with."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal

import msgspec

from mcpmeter.simulator.faults import FAULT_NAMES
from mcpmeter.simulator.generation import BilledTokens

CallOutcome = Literal["complete", "cancelled", "fault"]
_OUTCOMES: tuple[CallOutcome, ...] = ("complete", "cancelled", "fault")
_ROW = struct.Struct("<QqIIIIIIHBBBB")
_MAX_MODELS = 1000
OTHER_MODEL = "other"
DIALECTS = (
    "openai_chat",
    "openai_embeddings",
    "openai_responses",
    "anthropic_messages",
    "anthropic_count_tokens",
    "gemini_generate",
    "gemini_count_tokens",
    "gemini_embeddings",
)
"""Names of the dialects in the log."""


class CallRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One call from the provider's side. Tokens are those *billed*.

    Cached, cache-write and reasoning tokens are parts of the totals, even if the dialect reports them separately.
    """

    ordinal: int
    request_id: str
    """The response's `x-request-id`, or Anthropic's `request-id`."""
    dialect: str
    """One of `DIALECTS`."""
    model: str
    stream: bool
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cache_write_tokens: int
    delivered_tokens: int
    """Completion tokens written to the connection, including visible reasoning."""
    outcome: CallOutcome
    """`cancelled`: the client disconnected. `fault`: a configured fault broke or refused the response."""
    fault: str
    """The requested fault (one of `faults.FAULT_NAMES`), even if the client got a whole response."""
    cancelled_at_ns: int | None
    """Monotonic time at which the disconnect was seen."""


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over calls."""

    dialect: str = ""
    """The dialect of these calls; empty for sums over all dialects."""
    calls: int = 0
    complete: int = 0
    cancelled: int = 0
    fault: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_tokens: int = 0
    delivered_tokens: int = 0


@dataclass(slots=True)
class _Sums:
    outcomes: list[int] = field(default_factory=lambda: [0, 0, 0])
    tokens: list[int] = field(default_factory=lambda: [0, 0, 0, 0, 0, 0])

    def add(self, other: _Sums) -> None:
        self.outcomes = [a + b for a, b in zip(self.outcomes, other.outcomes, strict=True)]
        self.tokens = [a + b for a, b in zip(self.tokens, other.tokens, strict=True)]

    def totals(self, dialect: str = "") -> Totals:
        complete, cancelled, fault = self.outcomes
        prompt, completion, cached, reasoning, written, delivered = self.tokens
        return Totals(
            dialect=dialect, calls=sum(self.outcomes), complete=complete, cancelled=cancelled, fault=fault,
            prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached, reasoning_tokens=reasoning,
            cache_write_tokens=written, delivered_tokens=delivered,
        )  # fmt: skip


class BillingLog:
    """Records of the last `keep_calls` calls (46 bytes each) and totals of all calls; 0 keeps totals only.

    A call is billed before its last byte is written: a client that has read a response finds its record here.
    """

    def __init__(self, *, seed: int = 0, keep_calls: int = 1_000_000) -> None:
        self._id_prefix = f"req_{blake2b(str(seed).encode(), digest_size=8).hexdigest()}"
        self._keep_calls = keep_calls
        self._next_ordinal = 0
        self._open = 0
        self.refused = 0
        """Requests that did not become a call: invalid, or without a valid key."""
        self._waiters: set[asyncio.Event] = set()
        self._models: list[str] = [OTHER_MODEL]
        self._model_index: dict[str, int] = {OTHER_MODEL: 0}
        self._sums: dict[tuple[int, int], _Sums] = {}
        """By the indices of model and dialect."""
        self._rows = bytearray()
        self._recorded = 0

    def open(self, model: str, *, stream: bool, fault: str, dialect: str = DIALECTS[0]) -> OpenRecord:
        """Begin a call; `OpenRecord.bill` ends it."""
        self._open += 1
        ordinal = self._next_ordinal
        self._next_ordinal += 1
        self._wake()
        indices = (self._index_of(model), DIALECTS.index(dialect))
        return OpenRecord(self, ordinal, indices, stream, FAULT_NAMES.index(fault))

    def request_id(self, ordinal: int) -> str:
        """The id in this call's response."""
        return f"{self._id_prefix}{ordinal:016x}"

    @property
    def open_calls(self) -> int:
        """Calls in progress."""
        return self._open

    @property
    def totals(self) -> Totals:
        """Sums over all ended calls."""
        all_calls = _Sums()
        for sums in self._sums.values():
            all_calls.add(sums)
        return all_calls.totals()

    @property
    def totals_by_model(self) -> dict[str, Totals]:
        """Sums per requested model; names beyond the first thousand are `other`."""
        by_model: dict[int, _Sums] = {}
        for (model, _), sums in self._sums.items():
            by_model.setdefault(model, _Sums()).add(sums)
        return {self._models[model]: by_model[model].totals() for model in sorted(by_model)}

    @property
    def totals_by_dialect(self) -> dict[str, Totals]:
        """Sums per dialect that had calls."""
        by_dialect: dict[int, _Sums] = {}
        for (_, dialect), sums in self._sums.items():
            by_dialect.setdefault(dialect, _Sums()).add(sums)
        return {DIALECTS[index]: by_dialect[index].totals(DIALECTS[index]) for index in sorted(by_dialect)}

    def calls(self) -> Iterator[CallRecord]:
        """The kept records, the oldest first."""
        return iter(self.latest(len(self._rows) // _ROW.size))

    def latest(self, count: int) -> list[CallRecord]:
        """The last `count` of the kept records, the oldest of them first."""
        rows = bytes(self._rows)
        kept = len(rows) // _ROW.size
        return [
            self._record(rows, number % kept) for number in range(self._recorded - min(count, kept), self._recorded)
        ]

    def clear(self) -> None:
        """Forget all ended calls. Ids keep counting; open calls are recorded when they end."""
        self._sums = {}
        self._rows = bytearray()
        self._recorded = 0
        self.refused = 0

    async def wait_until(self, holds: Callable[[BillingLog], bool], *, timeout_seconds: float = 60.0) -> None:
        """Wait until `holds` is true; checked when a call begins or ends. Raises `TimeoutError`."""
        changed = asyncio.Event()
        self._waiters.add(changed)
        try:
            async with asyncio.timeout(timeout_seconds):
                while not holds(self):
                    changed.clear()
                    await changed.wait()
        finally:
            self._waiters.discard(changed)

    def _index_of(self, model: str) -> int:
        index = self._model_index.get(model)
        if index is None:
            if len(self._models) >= _MAX_MODELS:
                return 0
            index = self._model_index[model] = len(self._models)
            self._models.append(model)
        return index

    def _record_call(
        self, call: OpenRecord, outcome: CallOutcome, billed: BilledTokens, delivered: int, at_ns: int
    ) -> None:
        self._open -= 1
        code = _OUTCOMES.index(outcome)
        sums = self._sums.get(call.indices)
        if sums is None:
            sums = self._sums[call.indices] = _Sums()
        sums.outcomes[code] += 1
        for position, tokens in enumerate((*billed, delivered)):
            sums.tokens[position] += tokens
        if self._keep_calls:
            row = _ROW.pack(
                call.ordinal, at_ns, *billed, delivered, call.indices[0], code, call.stream, call.fault_index,
                call.indices[1],
            )  # fmt: skip
            start = self._recorded % self._keep_calls * _ROW.size
            self._rows[start : start + _ROW.size] = row
            self._recorded += 1
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            waiter.set()

    def _record(self, rows: bytes, number: int) -> CallRecord:
        values = _ROW.unpack_from(rows, number * _ROW.size)
        ordinal, at_ns, prompt, completion, cached, reasoning, written, delivered, *indices = values
        model, outcome, stream, fault, dialect = indices
        return CallRecord(
            ordinal=ordinal, request_id=self.request_id(ordinal), dialect=DIALECTS[dialect], model=self._models[model],
            stream=bool(stream), prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached,
            reasoning_tokens=reasoning, cache_write_tokens=written, delivered_tokens=delivered,
            outcome=_OUTCOMES[outcome], fault=FAULT_NAMES[fault], cancelled_at_ns=at_ns or None,
        )  # fmt: skip


class OpenRecord:
    """A call in progress. Only the first `bill` counts."""

    __slots__ = ("_billed", "_log", "fault_index", "indices", "ordinal", "stream")

    def __init__(self, log: BillingLog, ordinal: int, indices: tuple[int, int], stream: bool, fault_index: int) -> None:
        self._log = log
        self._billed = False
        self.ordinal = ordinal
        self.indices = indices
        """Of the model and of the dialect."""
        self.stream = stream
        self.fault_index = fault_index

    @property
    def request_id(self) -> str:
        """As in `CallRecord.request_id`."""
        return self._log.request_id(self.ordinal)

    def bill(self, outcome: CallOutcome, billed: BilledTokens, *, delivered: int, cancelled_at_ns: int = 0) -> None:
        """End the call with its billed usage."""
        if not self._billed:
            self._billed = True
            self._log._record_call(self, outcome, billed, delivered, cancelled_at_ns)
