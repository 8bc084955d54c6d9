"""Cells of model calls that share their label values: looked up once, then only added to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NamedTuple, TypeVar

from mcpmeter.catalog import OTHER, budget, labels, llm, money, quality
from mcpmeter.catalog.spec import NANO, Label, Metric
from mcpmeter.items import Component, component_of
from mcpmeter.metrics.family import Cell, Family, HistogramCell
from mcpmeter.records import Charge, Settlement, Usage, lines_that_add_up

_Cells = TypeVar("_Cells")


class CallLabels(NamedTuple):
    """A model call's label values, each from its closed set."""

    provider: str
    model: str
    team: str
    operation: str
    otel_provider: str
    response_model: str
    error_type: str


class TokenCells(NamedTuple):
    """The counters of tokens of one source."""

    source: str
    prompt: Cell
    completion: Cell


class ModelCalls:
    """Counts model calls of one `CallLabels`. `clamp` returns a label value its set holds, or `other` and counts that.

    Kept cells stay valid: a counter's child is never removed, and an allowlist never loses a value.
    """

    def __init__(
        self, families: Mapping[str, Family], clamp: Callable[[Label, str], str], call_labels: CallLabels
    ) -> None:
        self.labels = call_labels
        self._families = families
        self._clamp = clamp
        self._model_and_provider = {"model": call_labels.model, "provider": call_labels.provider}
        self._gen_ai = {
            "gen_ai_operation_name": call_labels.operation,
            "gen_ai_provider_name": call_labels.otel_provider,
            "gen_ai_request_model": call_labels.model,
            "gen_ai_response_model": call_labels.response_model,
        }
        self._tokens: dict[str, TokenCells] = {}
        self._costs: dict[str, Cell] = {}
        self._finishes: dict[str, tuple[Cell, ...]] = {}

    def count(self, settlement: Settlement, at: float) -> None:
        """Count one call; `at` is the Unix second of its exemplars."""
        usage, charge, reason = settlement.usage, settlement.charge, settlement.finish_reason
        if settlement.outcome != "recovered":  # a recovered call's duration is unknown
            self._observe(settlement, usage, at)
        if usage is not None:
            if usage.source != "missing":
                self._count_tokens(usage)
            if settlement.missing_reason:
                missing = self._clamp(llm.MISSING_REASON, settlement.missing_reason)
                self._cell(llm.USAGE_MISSING, provider=self.labels.provider, reason=missing).value += 1
        if reason:
            for cell in self._finishes.get(reason) or self._finish_cells(reason):
                cell.value += 1
        if settlement.is_empty:
            self._cell(quality.EMPTY, model=self.labels.model).value += 1
        if settlement.is_refusal:
            self._cell(quality.REFUSALS, **self._model_and_provider).value += 1
        if charge is not None:
            if charge.source == "unpriced":
                self._count_unpriced(charge)
            else:
                self._count_cost(charge)

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
            self._input_tokens.observe(usage.prompt_tokens, trace_id, at)
            self._output_tokens.observe(tokens, trace_id, at)
            if usage.source == "reported" and settlement.outcome == "ok" and tokens and duration_ns > 0:
                # In billionths of a token per second, so that a slow model's rate is not rounded to 0.
                self._rates.observe(tokens * NANO * NANO // duration_ns, trace_id, at)

    @cached_property
    def _durations(self) -> HistogramCell:
        return self._histogram(llm.OPERATION_DURATION, **self._gen_ai, error_type=self.labels.error_type)

    @cached_property
    def _first_chunks(self) -> HistogramCell:
        return self._histogram(llm.TIME_TO_FIRST_CHUNK, **self._gen_ai)

    @cached_property
    def _later_chunks(self) -> HistogramCell:
        return self._histogram(llm.TIME_PER_OUTPUT_CHUNK, **self._gen_ai)

    @cached_property
    def _input_tokens(self) -> HistogramCell:
        return self._token_usage("input")

    @cached_property
    def _output_tokens(self) -> HistogramCell:
        return self._token_usage("output")

    def _token_usage(self, kind: str) -> HistogramCell:
        return self._histogram(llm.TOKEN_USAGE, **self._gen_ai, gen_ai_token_type=kind)

    @cached_property
    def _rates(self) -> HistogramCell:
        return self._histogram(quality.OUTPUT_RATE, **self._model_and_provider)

    def _count_tokens(self, usage: Usage) -> None:
        tokens = self._tokens.get(usage.source) or self._token_cells(usage.source)
        tokens.prompt.value += usage.prompt_tokens
        tokens.completion.value += usage.completion_tokens
        if usage.cached_read_tokens or usage.cache_write_tokens or usage.reasoning_tokens or usage.audio_tokens:
            self._count_details(usage, tokens.source)

    def _token_cells(self, reported: str) -> TokenCells:
        source = self._clamp(labels.TOKEN_SOURCE, reported)
        shared = {**self._model_and_provider, "team": self.labels.team, "source": source}
        prompt, completion = (self._cell(llm.TOKENS, **shared, token_type=kind) for kind in ("prompt", "completion"))
        return _keep(self._tokens, reported, TokenCells(source, prompt, completion), source)

    def _count_details(self, usage: Usage, source: str) -> None:
        shared = {**self._model_and_provider, "team": self.labels.team, "source": source}
        for detail, amount in (
            ("cached_read", usage.cached_read_tokens),
            ("cache_write", usage.cache_write_tokens),
            ("reasoning", usage.reasoning_tokens),
            ("audio", usage.audio_tokens),
        ):
            if amount:
                self._cell(llm.TOKEN_DETAILS, **shared, detail=detail).value += amount

    def _finish_cells(self, reported: str) -> tuple[Cell, ...]:
        reason = self._clamp(quality.FINISH_REASON, reported)
        cells: tuple[Cell, ...] = (self._cell(quality.FINISH_REASONS, model=self.labels.model, reason=reason),)
        if reason in quality.TRUNCATED:
            cells += (self._cell(quality.TRUNCATIONS, **self._model_and_provider),)
        return _keep(self._finishes, reported, cells, reason)

    def _cost_cell(self, reported: str) -> Cell:
        source = self._clamp(labels.COST_SOURCE, reported)
        cell = self._cell(money.COST, **self._model_and_provider, team=self.labels.team, source=source)
        return _keep(self._costs, reported, cell, source)

    def _count_cost(self, charge: Charge) -> None:
        cost = self._costs.get(charge.source) or self._cost_cell(charge.source)
        cost.value += charge.nanousd
        if charge.lines or charge.source != "listed":
            self._count_components(charge)
        else:
            prompt, completion = self._prompt_and_completion
            prompt.value += charge.nanousd - charge.completion_nanousd
            completion.value += charge.completion_nanousd

    @cached_property
    def _prompt_and_completion(self) -> tuple[Cell, Cell]:
        return self._component_cell("prompt"), self._component_cell("completion")

    def _count_components(self, charge: Charge) -> None:
        if not charge.lines:
            self._component_cell("other").value += charge.nanousd
        for line in lines_that_add_up(charge):
            self._component_cell(component_of(line.item)).value += line.nanousd or 0

    def _component_cell(self, component: Component) -> Cell:
        return self._cell(money.COMPONENT_COST, **self._model_and_provider, component=component)

    def _count_unpriced(self, charge: Charge) -> None:
        reason = self._clamp(money.UNPRICED_REASON, charge.unpriced_reason or "unknown_model")
        self._cell(money.UNPRICED, provider=self.labels.provider, reason=reason).value += 1
        if charge.fallback_nanousd:
            self._cell(budget.FALLBACK_PRICED, provider=self.labels.provider).value += 1

    def _cell(self, row: Metric, **values: str) -> Cell:
        return self._families[row.name].cell(**values)

    def _histogram(self, row: Metric, **values: str) -> HistogramCell:
        return self._families[row.name].histogram(**values)


def _keep(cache: dict[str, _Cells], reported: str, cells: _Cells, label_value: str) -> _Cells:
    """Cache the cells of a reported value, except for `other`, whose every occurrence is counted as an overflow."""
    if label_value != OTHER:
        cache[reported] = cells
    return cells
