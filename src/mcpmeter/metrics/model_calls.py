"""Model calls of one set of names: every child is looked up at the first call that it concerns, then only added to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NamedTuple, TypeVar

from mcpmeter.catalog import OTHER, budget, llm, money, quality
from mcpmeter.catalog.spec import NANO, Label
from mcpmeter.metrics.family import Cell, Family, HistogramCell
from mcpmeter.records import Charge, Settlement, Usage

_Found = TypeVar("_Found")


class Names(NamedTuple):
    """A model call's label values, each out of its closed set."""

    provider: str
    model: str
    team: str
    operation: str
    otel_provider: str
    response_model: str
    error_type: str


class Tokens(NamedTuple):
    """Where tokens of one source are counted."""

    source: str
    prompt: Cell
    completion: Cell


class ModelCalls:
    """Counts model calls. `close` gives a label's value if its set holds it, else `other`, and counts that.

    What it keeps stays right: a child is never taken back, and a set that holds a value goes on holding it.
    """

    def __init__(self, families: Mapping[str, Family], close: Callable[[Label, str], str], names: Names) -> None:
        self.names = names
        self._families = families
        self._close = close
        self._in_call = (names.operation, names.otel_provider, names.model, names.response_model)
        self._tokens: dict[str, Tokens] = {}
        self._costs: dict[str, Cell] = {}
        self._ends: dict[str, tuple[Cell, ...]] = {}

    def count(self, settlement: Settlement, at: float) -> None:
        """Count one call; `at` is the Unix second of its exemplars."""
        usage, charge, reason = settlement.usage, settlement.charge, settlement.finish_reason
        if settlement.outcome != "recovered":  # how long such a call took is not known
            self._observe(settlement, usage, at)
        if usage is not None:
            if usage.source != "missing":
                self._count_tokens(usage)
            if settlement.missing_reason:
                missing = self._close(llm.USAGE_MISSING.labels[1], settlement.missing_reason)
                self._families[llm.USAGE_MISSING.name].add((self.names.provider, missing))
        if reason:
            for end in self._ends.get(reason) or self._ends_of(reason):
                end.value += 1
        if settlement.is_empty:
            self._families[quality.EMPTY.name].add((self.names.model,))
        if settlement.is_refusal:
            self._families[quality.REFUSALS.name].add((self.names.model, self.names.provider))
        if charge is not None:
            if charge.source == "unpriced":
                self._count_unpriced(charge)
            else:
                cost = self._costs.get(charge.source) or self._cost_of(charge.source)
                cost.value += charge.nanousd

    def _observe(self, settlement: Settlement, usage: Usage | None, at: float) -> None:
        duration_ns, trace_id = settlement.duration_ns, settlement.call.trace_id
        self._durations.observe(duration_ns, trace_id, at)
        if settlement.chunks:
            first_ns = settlement.time_to_first_chunk_ns
            self._first_chunks.observe(first_ns, trace_id, at)
            if settlement.chunks > 1:
                self._later_chunks.observe((duration_ns - first_ns) // (settlement.chunks - 1), trace_id, at)
        if usage is not None and usage.source != "missing":
            tokens = usage.completion_tokens
            self._input.observe(usage.prompt_tokens, trace_id, at)
            self._output.observe(tokens, trace_id, at)
            if usage.source == "reported" and settlement.outcome == "ok" and tokens and duration_ns > 0:
                # Kept in billionths of a token a second, so that a slow model's rate is not rounded away.
                self._rates.observe(tokens * NANO * NANO // duration_ns, trace_id, at)

    @cached_property
    def _durations(self) -> HistogramCell:
        return self._families[llm.OPERATION_DURATION.name].histogram((*self._in_call, self.names.error_type))

    @cached_property
    def _first_chunks(self) -> HistogramCell:
        return self._families[llm.TIME_TO_FIRST_CHUNK.name].histogram(self._in_call)

    @cached_property
    def _later_chunks(self) -> HistogramCell:
        return self._families[llm.TIME_PER_OUTPUT_CHUNK.name].histogram(self._in_call)

    @cached_property
    def _input(self) -> HistogramCell:
        return self._families[llm.TOKEN_USAGE.name].histogram((*self._in_call, "input"))

    @cached_property
    def _output(self) -> HistogramCell:
        return self._families[llm.TOKEN_USAGE.name].histogram((*self._in_call, "output"))

    @cached_property
    def _rates(self) -> HistogramCell:
        return self._families[quality.OUTPUT_RATE.name].histogram((self.names.model, self.names.provider))

    def _count_tokens(self, usage: Usage) -> None:
        tokens = self._tokens.get(usage.source) or self._tokens_of(usage.source)
        tokens.prompt.value += usage.prompt_tokens
        tokens.completion.value += usage.completion_tokens
        if usage.cached_read_tokens or usage.cache_write_tokens or usage.reasoning_tokens or usage.audio_tokens:
            self._count_details(usage, tokens.source)

    def _tokens_of(self, said: str) -> Tokens:
        model, team, provider = self.names.model, self.names.team, self.names.provider
        source = self._close(llm.TOKENS.labels[4], said)
        prompt, completion = (
            self._families[llm.TOKENS.name].cell((model, kind, team, provider, source))
            for kind in ("prompt", "completion")
        )
        return _kept(self._tokens, said, Tokens(source, prompt, completion), source)

    def _count_details(self, usage: Usage, source: str) -> None:
        details = self._families[llm.TOKEN_DETAILS.name]
        for detail, amount in (
            ("cached_read", usage.cached_read_tokens),
            ("cache_write", usage.cache_write_tokens),
            ("reasoning", usage.reasoning_tokens),
            ("audio", usage.audio_tokens),
        ):
            if amount:
                details.add((self.names.model, detail, self.names.team, self.names.provider, source), amount)

    def _ends_of(self, said: str) -> tuple[Cell, ...]:
        reason = self._close(quality.FINISH_REASONS.labels[1], said)
        ends: tuple[Cell, ...] = (self._families[quality.FINISH_REASONS.name].cell((self.names.model, reason)),)
        if reason in quality.TRUNCATED:
            ends += (self._families[quality.TRUNCATIONS.name].cell((self.names.model, self.names.provider)),)
        return _kept(self._ends, said, ends, reason)

    def _cost_of(self, said: str) -> Cell:
        source = self._close(money.COST.labels[3], said)
        labels = (self.names.model, self.names.team, self.names.provider, source)
        return _kept(self._costs, said, self._families[money.COST.name].cell(labels), source)

    def _count_unpriced(self, charge: Charge) -> None:
        reason = self._close(money.UNPRICED.labels[1], charge.unpriced_reason or "unknown_model")
        self._families[money.UNPRICED.name].add((self.names.provider, reason))
        if charge.fallback_nanousd:
            self._families[budget.FALLBACK_PRICED.name].add((self.names.provider,))


def _kept(kept: dict[str, _Found], said: str, found: _Found, label: str) -> _Found:
    """Keep what was found, but never for `other`, which is counted each time."""
    if label != OTHER:
        kept[said] = found
    return found
