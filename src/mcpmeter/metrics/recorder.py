"""The hot path of metrics: a settlement becomes a few additions in plain dictionaries.

No locks and no prometheus_client here: an accumulator is written by one thread only (the event loop's; the ledger's
writer for its own histogram), and a reader takes a copy. Money and durations are kept as integers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence, Set
from functools import cached_property
from itertools import product
from typing import Final

from mcpmeter.catalog import ALL, OTHER, Metric, llm, mcp, money, service
from mcpmeter.catalog.spec import NANO, Label
from mcpmeter.metrics.family import Cell, Family, FamilySnapshot, HistogramCell, Labels
from mcpmeter.metrics.label_allowlist import LabelAllowlist
from mcpmeter.metrics.model_calls import ModelCalls, Names
from mcpmeter.records import Charge, LlmTarget, McpTarget, Settlement

CHILDREN_AT_START = 4096
"""The most zero children that one family is given at start; a family with more possible ones grows as they happen."""

MAX_NAMES: Final = 4096
"""Combinations of a model call's names that are kept."""


class _Requests:
    """Where requests of one endpoint, method and status are counted."""

    def __init__(self, number: Cell, durations: Family, labels: Labels) -> None:
        self.number = number
        self._family = durations
        self._labels = labels

    @cached_property
    def durations(self) -> HistogramCell:
        return self._family.histogram(self._labels)


class Recorder:
    """Accumulators of every catalog row for one meter. Two recorders in a process share nothing."""

    def __init__(self, vocabulary: LabelAllowlist | None = None, rows: Sequence[Metric] = ALL) -> None:
        self.label_allowlist = vocabulary or LabelAllowlist()
        self.known_as: Callable[[str, str], str | None] = lambda provider, model: None
        """(provider, model) -> the announced name of a dated or aliased model, or None."""
        self.families = {row.name: Family(row) for row in rows}
        label_names = {label.name for row in rows for label in row.labels}
        self.label_allowlist.register("label", label_names)
        self._sets = {label: self._set_of(label) for row in rows for label in row.labels}
        self._requests = self.families[mcp.REQUESTS.name]
        self._durations = self.families[mcp.REQUEST_DURATION.name]
        self._overflow = self.families[service.LABEL_OVERFLOW.name]
        self._kept_requests: dict[Labels, _Requests] = {}
        self._kept_calls: dict[tuple[str, ...], ModelCalls] = {}
        self._kept_version = 0
        self._cost_told: dict[str, tuple[int, int]] = {}
        """Provider -> nano-dollars (reported, listed) of the calls that have both."""
        for row in rows:
            if not row.labels:
                self.families[row.name].ensure(())
        self._active = self.families[mcp.ACTIVE_REQUESTS.name].cell(())
        for name in sorted(label_names):
            self._overflow.ensure((name,))

    def _set_of(self, label: Label) -> Set[str]:
        return self.label_allowlist.of(label.vocabulary) if label.values is None else frozenset(label.values)

    def register_children(self, row: Metric, sets: Iterable[Sequence[str]]) -> None:
        """Give a family its children at zero for the product of `sets`, one sequence a label."""
        combinations = list(product(*sets))
        if len(combinations) <= CHILDREN_AT_START:
            for labels in combinations:
                self.families[row.name].ensure(labels)

    def clamp(self, label: Label, value: str) -> str:
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
        return tuple(map(self.clamp, row.labels, labels))

    def begin_request(self) -> None:
        """A request has arrived. Pair with `end_request` on every path."""
        self._active.value += 1

    def end_request(self) -> None:
        """The last byte is out, or nobody is there to read it."""
        self._active.value -= 1

    def settle(self, settlement: Settlement, *, request_counted: bool = False) -> None:
        """Count one settlement: the request, its error, the MCP operation and the model call in it.

        A call whose row could not be settled at first is a request that was counted then.
        """
        call = settlement.call
        at = time.time() if call.trace_id else 0.0  # only exemplars need it
        if not call.parent_id and not request_counted:
            self._count_request(settlement, at)
        if call.mcp is not None:
            self._count_mcp(settlement, call.mcp)
        if call.llm is not None:
            calls = self._calls_of(settlement, call.llm)
            calls.count(settlement, at)
            charge = settlement.charge
            if charge is not None and charge.reported_nanousd is not None:
                self._count_reported(settlement, charge, charge.reported_nanousd, calls.names.provider)

    def _count_request(self, settlement: Settlement, at: float) -> None:
        call = settlement.call
        labels = call.endpoint, call.method, settlement.status
        requests = self._kept_requests.get(labels) or self._requests_of(labels)
        requests.number.value += 1
        if settlement.outcome != "recovered":  # how long such a call took is not known
            requests.durations.observe(settlement.duration_ns, call.trace_id, at)
        if settlement.error_type:
            self.add(mcp.ERRORS, (settlement.error_type, settlement.error_side))

    def _requests_of(self, said: Labels) -> _Requests:
        labels = self._close_all(mcp.REQUESTS, said)
        requests = _Requests(self._requests.cell(labels), self._durations, labels[:2])
        if OTHER not in labels:  # `other` is counted each time; all else is out of closed sets, and so bounded
            self._kept_requests[said] = requests
        return requests

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

    def _calls_of(self, settlement: Settlement, target: LlmTarget) -> ModelCalls:
        """Kept, since looking up a name costs more than counting; but never where one is `other`, which is counted."""
        if self._kept_version != self.label_allowlist.version:
            self._kept_calls.clear()
            self._kept_version = self.label_allowlist.version
        team, error_type, answered_by = settlement.call.team, settlement.otel_error_type, settlement.response_model
        key = (target.provider, target.model, answered_by, team, error_type, target.operation, target.otel_provider)
        calls = self._kept_calls.get(key)
        if calls is None:
            names = self._look_up(target, answered_by, team, error_type)
            calls = ModelCalls(self.families, self.clamp, names)
            if OTHER not in names:
                if len(self._kept_calls) >= MAX_NAMES:
                    self._kept_calls.clear()
                self._kept_calls[key] = calls
        return calls

    def _look_up(self, target: LlmTarget, answered_by: str, team: str, error_type: str) -> Names:
        provider = self.clamp(llm.TOKENS.labels[3], target.provider)
        model = self._model(target.provider, target.model)
        return Names(
            provider,
            model,
            self.clamp(llm.TOKENS.labels[2], team),
            self.clamp(llm.OPERATION_DURATION.labels[0], target.operation),
            self.clamp(llm.OPERATION_DURATION.labels[1], target.otel_provider or target.provider),
            self._model(target.provider, answered_by) if answered_by else model,
            self.clamp(llm.OPERATION_DURATION.labels[4], error_type),
        )

    def _model(self, provider: str, model: str) -> str:
        if model in self.label_allowlist.of("model"):
            return model
        return self.clamp(llm.TOKENS.labels[0], self.known_as(provider, model) or model)

    def _count_reported(self, settlement: Settlement, charge: Charge, reported_nanousd: int, provider: str) -> None:
        self.families[money.PROVIDER_REPORTED_COST.name].add((provider,), reported_nanousd)
        usage = settlement.usage
        # A list price of estimated tokens would show how we estimate, not how the provider bills.
        if charge.listed_nanousd is not None and usage is not None and usage.source == "reported":
            self._compare_cost(provider, reported_nanousd, charge.listed_nanousd)

    def _compare_cost(self, provider: str, reported_nanousd: int, listed_nanousd: int) -> None:
        reported, listed = self._cost_told.get(provider, (0, 0))
        reported, listed = reported + reported_nanousd, listed + listed_nanousd
        self._cost_told[provider] = (reported, listed)
        if listed:
            self.families[money.COST_DRIFT.name].set((provider,), reported * NANO // listed)

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
