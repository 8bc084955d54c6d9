"""The hot path of metrics: a settlement becomes a few additions in plain dictionaries.

No locks and no prometheus_client here: an accumulator is written by one thread only (the event loop's; the ledger's
writer for its own histogram), and a reader takes a copy. Money and durations are kept as integers.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import product
from typing import Final, NamedTuple

from mcpmeter.catalog import ALL, OTHER, Metric, budget, llm, mcp, money, quality, service
from mcpmeter.catalog.spec import NANO, Label
from mcpmeter.metrics.vocabulary import Vocabulary
from mcpmeter.records import Charge, LlmTarget, McpTarget, Settlement, Usage

Labels = tuple[str, ...]

CHILDREN_AT_START = 4096
"""The most zero children that one family is given at start; a family with more possible ones grows as they happen."""


MOST_NAMES: Final = 4096
"""Combinations of a model call's names that are kept."""


class _Names(NamedTuple):
    """A model call's label values, each out of its closed set."""

    provider: str
    model: str
    team: str
    operation: str
    otel_provider: str
    response_model: str
    error_type: str


class Cell:
    """A counter's or gauge's child."""

    __slots__ = ("created", "value")

    def __init__(self, created: float) -> None:
        self.value = 0
        self.created = created


class HistogramCell:
    """A histogram's child: one count a bucket (not cumulated), the sum, and the last exemplar of each bucket."""

    __slots__ = ("counts", "exemplars", "sum")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * (buckets + 1)
        self.sum = 0
        self.exemplars: dict[int, tuple[str, int, float]] = {}


class Family:
    """All children of one catalog row."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.bounds = [round(bound * metric.scale) for bound in metric.buckets]
        self.cells: dict[Labels, Cell] = {}
        self.histograms: dict[Labels, HistogramCell] = {}

    def add(self, labels: Labels, amount: int = 1) -> None:
        cell = self.cells.get(labels)
        if cell is None:
            cell = self.cells[labels] = Cell(time.time())
        cell.value += amount

    def set(self, labels: Labels, value: int) -> None:
        self.add(labels, 0)
        self.cells[labels].value = value

    def observe(self, labels: Labels, value: int, trace_id: str = "") -> None:
        cell = self.histograms.get(labels)
        if cell is None:
            cell = self.histograms[labels] = HistogramCell(len(self.bounds))
        bucket = bisect_left(self.bounds, value)
        cell.counts[bucket] += 1
        cell.sum += value
        if trace_id:
            cell.exemplars[bucket] = (trace_id, value, time.time())

    def ensure(self, labels: Labels) -> None:
        """Make the child exist, so that its first real value is an increase and not an appearance."""
        if self.metric.type == "histogram":
            self.histograms.setdefault(labels, HistogramCell(len(self.bounds)))
        else:
            self.add(labels, 0)


@dataclass(frozen=True, slots=True)
class FamilySnapshot:
    """A copy of one family: `values` of counters and gauges, `histograms` of the others."""

    metric: Metric
    values: list[tuple[Labels, int, float]]
    histograms: list[tuple[Labels, list[int], int, dict[int, tuple[str, int, float]]]]


class Recorder:
    """Accumulators of every catalog row for one meter. Two recorders in a process share nothing."""

    def __init__(self, vocabulary: Vocabulary | None = None, rows: Sequence[Metric] = ALL) -> None:
        self.vocabulary = vocabulary or Vocabulary()
        self.known_as: Callable[[str, str], str | None] = lambda provider, model: None
        """(provider, model) -> the announced name of a dated or aliased model, or None."""
        self.families = {row.name: Family(row) for row in rows}
        label_names = {label.name for row in rows for label in row.labels}
        self.vocabulary.announce("label", label_names)
        self._sets = {label: self._set_of(label) for row in rows for label in row.labels}
        self._requests = self.families[mcp.REQUESTS.name]
        self._durations = self.families[mcp.REQUEST_DURATION.name]
        self._overflow = self.families[service.LABEL_OVERFLOW.name]
        self._active = self.families[mcp.ACTIVE_REQUESTS.name]
        self._names: dict[tuple[str, ...], _Names] = {}
        self._names_version = 0
        self._cost_told: dict[str, tuple[int, int]] = {}
        """Provider -> nano-dollars (reported, listed) of the calls that have both."""
        for row in rows:
            if not row.labels:
                self.families[row.name].ensure(())
        for name in sorted(label_names):
            self._overflow.ensure((name,))

    def _set_of(self, label: Label) -> Set[str]:
        return self.vocabulary.of(label.vocabulary) if label.values is None else frozenset(label.values)

    def announce_children(self, row: Metric, sets: Iterable[Sequence[str]]) -> None:
        """Give a family its children at zero for the product of `sets`, one sequence a label."""
        combinations = list(product(*sets))
        if len(combinations) <= CHILDREN_AT_START:
            for labels in combinations:
                self.families[row.name].ensure(labels)

    def closed(self, label: Label, value: str) -> str:
        """The value if its set holds it, else `other`, counted."""
        if value in self._sets[label]:
            return value
        self._overflow.add((label.name,))
        return OTHER

    def add(self, row: Metric, labels: Sequence[str] = (), amount: int = 1) -> None:
        """Add to a counter or gauge."""
        self.families[row.name].add(self._close_all(row, labels), amount)

    def set(self, row: Metric, labels: Sequence[str], value: int) -> None:
        """Set a gauge."""
        self.families[row.name].set(self._close_all(row, labels), value)

    def observe(self, row: Metric, labels: Sequence[str], value: int, trace_id: str = "") -> None:
        """Observe in a histogram; `value` is in the row's kept unit (nanoseconds for seconds)."""
        self.families[row.name].observe(self._close_all(row, labels), value, trace_id)

    def _close_all(self, row: Metric, labels: Sequence[str]) -> Labels:
        return tuple(map(self.closed, row.labels, labels))

    def begin_request(self) -> None:
        """A request has arrived. Pair with `end_request` on every path."""
        self._active.add(())

    def end_request(self) -> None:
        """The last byte is out, or nobody is there to read it."""
        self._active.add((), -1)

    def settle(self, settlement: Settlement) -> None:
        """Count one settlement: the request, its error, the MCP operation and the model call in it."""
        call = settlement.call
        if not call.parent_id:
            self._count_request(settlement)
        if call.mcp is not None:
            self._count_mcp(settlement, call.mcp)
        if call.llm is not None:
            self._count_llm(settlement, call.llm)

    def _count_request(self, settlement: Settlement) -> None:
        call = settlement.call
        labels = call.endpoint, call.method, settlement.status
        if labels not in self._requests.cells or OTHER in labels:  # else all are closed already
            labels = (
                self.closed(mcp.REQUESTS.labels[0], call.endpoint),
                self.closed(mcp.REQUESTS.labels[1], call.method),
                self.closed(mcp.REQUESTS.labels[2], settlement.status),
            )
        self._requests.add(labels)
        if settlement.outcome != "recovered":  # how long such a call took is not known
            self._durations.observe(labels[:2], settlement.duration_ns, call.trace_id)
        if settlement.error_type:
            self.add(mcp.ERRORS, (settlement.error_type, settlement.error_side))

    def _count_mcp(self, settlement: Settlement, target: McpTarget) -> None:
        row = mcp.SERVER_OPERATION_DURATION if target.role == "server" else mcp.CLIENT_OPERATION_DURATION
        labels = (
            target.method,
            target.tool,
            settlement.otel_error_type,
            target.transport,
            target.protocol_version,
            target.server,
        )
        self.observe(row, labels, settlement.duration_ns, settlement.call.trace_id)

    def _count_llm(self, settlement: Settlement, target: LlmTarget) -> None:
        names = self._names_of(settlement, target)
        provider, model, team = names.provider, names.model, names.team
        if settlement.outcome != "recovered":
            self._count_duration(settlement, names)
        if settlement.usage is not None:
            self._count_tokens(settlement.usage, model, team, provider)
            if settlement.missing_reason:
                reason = self.closed(llm.USAGE_MISSING.labels[1], settlement.missing_reason)
                self.families[llm.USAGE_MISSING.name].add((provider, reason))
        self._count_quality(settlement, model, provider)
        if settlement.charge is not None:
            self._count_cost(settlement, settlement.charge, model, team, provider)

    def _names_of(self, settlement: Settlement, target: LlmTarget) -> _Names:
        """Kept, since looking up a name costs more than counting; but never where one is `other`, which is counted."""
        if self._names_version != self.vocabulary.version or len(self._names) >= MOST_NAMES:
            self._names.clear()
            self._names_version = self.vocabulary.version
        team, error_type, answered_by = settlement.call.team, settlement.otel_error_type, settlement.response_model
        key = (target.provider, target.model, answered_by, team, error_type, target.operation, target.otel_provider)
        names = self._names.get(key)
        if names is None:
            names = self._look_up(target, answered_by, team, error_type)
            if OTHER not in names:
                self._names[key] = names
        return names

    def _look_up(self, target: LlmTarget, answered_by: str, team: str, error_type: str) -> _Names:
        provider = self.closed(llm.TOKENS.labels[3], target.provider)
        model = self._model(target.provider, target.model)
        return _Names(
            provider,
            model,
            self.closed(llm.TOKENS.labels[2], team),
            self.closed(llm.OPERATION_DURATION.labels[0], target.operation),
            self.closed(llm.OPERATION_DURATION.labels[1], target.otel_provider or target.provider),
            self._model(target.provider, answered_by) if answered_by else model,
            self.closed(llm.OPERATION_DURATION.labels[4], error_type),
        )

    def _model(self, provider: str, model: str) -> str:
        if model in self.vocabulary.of("model"):
            return model
        return self.closed(llm.TOKENS.labels[0], self.known_as(provider, model) or model)

    def _count_tokens(self, usage: Usage, model: str, team: str, provider: str) -> None:
        if usage.source == "missing":
            return
        source = self.closed(llm.TOKENS.labels[4], usage.source)
        tokens = self.families[llm.TOKENS.name]
        tokens.add((model, "prompt", team, provider, source), usage.prompt_tokens)
        tokens.add((model, "completion", team, provider, source), usage.completion_tokens)
        details = self.families[llm.TOKEN_DETAILS.name]
        for detail, amount in (
            ("cached_read", usage.cached_read_tokens),
            ("cache_write", usage.cache_write_tokens),
            ("reasoning", usage.reasoning_tokens),
            ("audio", usage.audio_tokens),
        ):
            if amount:
                details.add((model, detail, team, provider, source), amount)

    def _count_cost(self, settlement: Settlement, charge: Charge, model: str, team: str, provider: str) -> None:
        if charge.source == "unpriced":
            reason = self.closed(money.UNPRICED.labels[1], charge.unpriced_reason or "unknown_model")
            self.families[money.UNPRICED.name].add((provider, reason))
            if charge.fallback_nanousd:
                self.families[budget.FALLBACK_PRICED.name].add((provider,))
        else:
            source = self.closed(money.COST.labels[3], charge.source)
            self.families[money.COST.name].add((model, team, provider, source), charge.nanousd)
        if charge.reported_nanousd is not None:
            self.families[money.PROVIDER_REPORTED_COST.name].add((provider,), charge.reported_nanousd)
            usage = settlement.usage
            # A list price of estimated tokens would show how we estimate, not how the provider bills.
            if charge.listed_nanousd is not None and usage is not None and usage.source == "reported":
                self._compare_cost(provider, charge.reported_nanousd, charge.listed_nanousd)

    def _compare_cost(self, provider: str, reported_nanousd: int, listed_nanousd: int) -> None:
        reported, listed = self._cost_told.get(provider, (0, 0))
        reported, listed = reported + reported_nanousd, listed + listed_nanousd
        self._cost_told[provider] = (reported, listed)
        if listed:
            self.families[money.COST_DRIFT.name].set((provider,), reported * NANO // listed)

    def _count_quality(self, settlement: Settlement, model: str, provider: str) -> None:
        if settlement.finish_reason:
            reason = self.closed(quality.FINISH_REASONS.labels[1], settlement.finish_reason)
            self.families[quality.FINISH_REASONS.name].add((model, reason))
            if reason in quality.TRUNCATED:
                self.families[quality.TRUNCATIONS.name].add((model, provider))
        if settlement.is_empty:
            self.families[quality.EMPTY.name].add((model,))
        if settlement.is_refusal:
            self.families[quality.REFUSALS.name].add((model, provider))
        usage = settlement.usage
        if settlement.outcome == "ok" and usage is not None and usage.source == "reported":
            self._observe_rate(settlement, usage.completion_tokens, model, provider)

    def _observe_rate(self, settlement: Settlement, tokens: int, model: str, provider: str) -> None:
        if tokens and settlement.duration_ns > 0:
            # Kept in billionths of a token a second, so that a slow model's rate is not rounded away.
            rate = tokens * NANO * NANO // settlement.duration_ns
            self.families[quality.OUTPUT_RATE.name].observe((model, provider), rate, settlement.call.trace_id)

    def _count_duration(self, settlement: Settlement, known: _Names) -> None:
        names = (known.operation, known.otel_provider, known.model, known.response_model)
        trace_id = settlement.call.trace_id
        durations = self.families[llm.OPERATION_DURATION.name]
        durations.observe((*names, known.error_type), settlement.duration_ns, trace_id)
        if settlement.chunks:
            first_ns = settlement.time_to_first_chunk_ns
            self.families[llm.TIME_TO_FIRST_CHUNK.name].observe(names, first_ns, trace_id)
            if settlement.chunks > 1:
                rest_ns = settlement.duration_ns - first_ns
                per_chunk_ns = rest_ns // (settlement.chunks - 1)
                self.families[llm.TIME_PER_OUTPUT_CHUNK.name].observe(names, per_chunk_ns, trace_id)
        usage = settlement.usage
        if usage is not None and usage.source != "missing":
            per_call = self.families[llm.TOKEN_USAGE.name]
            per_call.observe((*names, "input"), usage.prompt_tokens, trace_id)
            per_call.observe((*names, "output"), usage.completion_tokens, trace_id)

    def snapshot(self) -> list[FamilySnapshot]:
        """Copy everything. Called on the thread that writes, so that each histogram agrees with its own count."""
        # Another thread may call too. `dict.copy` is one step; `list(dict.items())` makes tuples, which may run the
        # garbage collector and with it other threads, in the middle.
        return [
            FamilySnapshot(
                family.metric,
                [(labels, cell.value, cell.created) for labels, cell in family.cells.copy().items()],
                [
                    (labels, cell.counts.copy(), cell.sum, cell.exemplars.copy())
                    for labels, cell in family.histograms.copy().items()
                ],
            )
            for family in self.families.values()
        ]
