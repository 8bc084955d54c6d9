"""The hot path of metrics: a settlement becomes a few additions to plain integers.

No locks and no prometheus_client here: one thread writes an accumulator (the event loop's; the ledger's writer for its
own histogram), and readers take a copy. Label values are clamped and looked up by name once per combination of a call's
names; the cells found are kept and later calls only add to them. A combination that holds `other` is never kept,
because each occurrence of `other` is counted as an overflow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cached_property
from itertools import product
from typing import Final

from mcpmeter.catalog import ALL, OTHER, Metric, labels, mcp, money, service
from mcpmeter.catalog.spec import NANO, Label
from mcpmeter.items import ITEMS
from mcpmeter.metrics.family import Cell, Family, FamilySnapshot, HistogramCell
from mcpmeter.metrics.label_allowlist import LabelAllowlist, printable
from mcpmeter.metrics.model_calls import CallLabels, ModelCalls
from mcpmeter.records import Charge, LlmTarget, McpTarget, Settlement, unpriced_items

MAX_CHILDREN_AT_START = 4096
"""Limit of zero children created per family at startup; a larger family's children are created as they occur."""

MAX_CALL_LABELS: Final = 4096
"""Limit of cached combinations of a model call's label values."""


MAX_INVENTED_ITEMS: Final = 64
"""Names of unpriced items that no table of ours has and that get series of their own; later ones are `other`."""


class _RequestCells:
    """The cells of one endpoint, method and status. The histogram appears with its first observation."""

    def __init__(self, requests: Cell, durations: Family, where: dict[str, str]) -> None:
        self.requests = requests
        self._family = durations
        self._where = where

    @cached_property
    def durations(self) -> HistogramCell:
        return self._family.histogram(**self._where)


class Recorder:
    """Accumulators of every catalog row for one meter. Two recorders in a process share nothing."""

    def __init__(self, allowlist: LabelAllowlist | None = None, rows: Sequence[Metric] = ALL) -> None:
        self.label_allowlist = allowlist or LabelAllowlist()
        self.known_as: Callable[[str, str], str | None] = lambda provider, model: None
        """(provider, model) -> the registered name of a dated or aliased model, or None."""
        self.families = {row.name: Family(row) for row in rows}
        self._labels = {row.name: {label.name: label for label in row.labels} for row in rows}
        label_names = {name for row_labels in self._labels.values() for name in row_labels}
        self.label_allowlist.register("label", label_names)
        self.label_allowlist.register(money.ITEM.allowlist, ITEMS)
        self._invented_items = 0
        self._sets = {label: self._set_of(label) for row in rows for label in row.labels}
        self._overflow = self.families[service.LABEL_OVERFLOW.name]
        self._request_cells: dict[tuple[str, str, str], _RequestCells] = {}
        self._operations: dict[tuple[McpTarget, str], HistogramCell] = {}
        self._model_calls: dict[tuple[str, ...], ModelCalls] = {}
        self._model_calls_version = 0
        self._compared_costs: dict[str, tuple[int, int]] = {}
        """Provider -> nano-dollars (reported, listed) of the calls that have both."""
        for row in rows:
            if not row.labels:
                self.families[row.name].ensure()
        self._active = self.families[mcp.ACTIVE_REQUESTS.name].cell()
        for name in sorted(label_names):
            self._overflow.ensure(label=name)

    def _set_of(self, label: Label) -> Set[str]:
        return self.label_allowlist.of(label.allowlist) if label.values is None else frozenset(label.values)

    def register_children(self, row: Metric, /, **values: Sequence[str]) -> None:
        """Create a family's children at zero, one per combination; a label that is left out takes its fixed values."""
        sets = {label.name: label.values or () for label in row.labels} | values
        combinations = list(product(*sets.values()))
        if len(combinations) <= MAX_CHILDREN_AT_START:
            for combination in combinations:
                self.families[row.name].ensure(**dict(zip(sets, combination, strict=True)))

    def clamp(self, label: Label, value: str) -> str:
        """Return the value if its set holds it, else `other`, which is counted as an overflow."""
        if value in self._sets[label]:
            return value
        self._overflow.cell(label=label.name).value += 1
        return OTHER

    def clamp_all(self, row: Metric, values: Mapping[str, str]) -> dict[str, str]:
        """Clamp the values of a row's labels, given by label name."""
        row_labels = self._labels[row.name]
        return {name: self.clamp(row_labels[name], value) for name, value in values.items()}

    def add(self, row: Metric, amount: int = 1, /, **values: str) -> None:
        """Add to a counter or gauge; label values by label name."""
        self.families[row.name].cell(**self.clamp_all(row, values)).value += amount

    def set(self, row: Metric, value: int, /, **values: str) -> None:
        """Set a gauge; label values by label name."""
        self.families[row.name].cell(**self.clamp_all(row, values)).value = value

    def observe(self, row: Metric, value: int, trace_id: str = "", /, **values: str) -> None:
        """Observe a value in the row's kept unit (nanoseconds for seconds); label values by label name."""
        cell = self.families[row.name].histogram(**self.clamp_all(row, values))
        cell.observe(value, trace_id, time.time() if trace_id else 0.0)

    def begin_request(self) -> None:
        """Count a request as active. Pair with `end_request` on every path."""
        self._active.value += 1

    def end_request(self) -> None:
        """Call once the last byte is sent or the client has disconnected."""
        self._active.value -= 1

    def settle(self, settlement: Settlement, *, request_counted: bool = False) -> None:
        """Count one settlement: the request, its error, the MCP operation and the model call in it.

        `request_counted`: the request was counted earlier, when its ledger row could not be settled.
        """
        call = settlement.call
        at = time.time() if call.trace_id else 0.0  # only exemplars need it
        if not call.parent_id and not request_counted:
            self._count_request(settlement, at)
        if call.mcp is not None:
            self._count_operation(settlement, call.mcp, at)
        if call.llm is not None:
            calls = self._calls_of(settlement, call.llm)
            calls.count(settlement, at)
            charge, usage = settlement.charge, settlement.usage
            if charge is not None and usage is not None:
                if charge.reported_nanousd is not None:
                    self._count_reported(settlement, charge, charge.reported_nanousd, calls.labels.provider)
                if charge.lines or usage.unknown:
                    self._count_unpriced_items(unpriced_items(usage, charge), calls.labels.provider)

    def _count_request(self, settlement: Settlement, at: float) -> None:
        call = settlement.call
        key = call.endpoint, call.method, settlement.status
        cells = self._request_cells.get(key) or self._look_up_request(*key)
        cells.requests.value += 1
        if settlement.outcome != "recovered":  # a recovered call's duration is unknown
            cells.durations.observe(settlement.duration_ns, call.trace_id, at)
        if settlement.error_type:
            self.add(mcp.ERRORS, error_type=settlement.error_type, side=settlement.error_side)

    def _look_up_request(self, endpoint: str, method: str, status: str) -> _RequestCells:
        where = self.clamp_all(mcp.REQUEST_DURATION, {"endpoint": endpoint, "method": method})
        shown_status = self.clamp(labels.STATUS, status)
        requests = self.families[mcp.REQUESTS.name].cell(**where, status=shown_status)
        cells = _RequestCells(requests, self.families[mcp.REQUEST_DURATION.name], where)
        if OTHER not in where.values() and shown_status != OTHER:  # the rest is from closed sets, and so bounded
            self._request_cells[endpoint, method, status] = cells
        return cells

    def _count_operation(self, settlement: Settlement, target: McpTarget, at: float) -> None:
        key = target, settlement.otel_error_type
        cell = self._operations.get(key) or self._look_up_operation(*key)
        cell.observe(settlement.duration_ns, settlement.call.trace_id, at)

    def _look_up_operation(self, target: McpTarget, error_type: str) -> HistogramCell:
        row = mcp.SERVER_OPERATION_DURATION if target.role == "server" else mcp.CLIENT_OPERATION_DURATION
        where = {
            "mcp_method_name": target.method,
            "gen_ai_tool_name": target.tool,
            "error_type": error_type,
            "network_transport": target.transport,
            "mcp_protocol_version": target.protocol_version,
            "server": target.server,
        }
        clamped = self.clamp_all(row, where)
        cell = self.families[row.name].histogram(**clamped)
        if OTHER not in clamped.values():
            self._operations[target, error_type] = cell
        return cell

    def _calls_of(self, settlement: Settlement, target: LlmTarget) -> ModelCalls:
        if self._model_calls_version != self.label_allowlist.version:
            # A model may be registered under another name now.
            self._model_calls.clear()
            self._model_calls_version = self.label_allowlist.version
        team, error_type, response_model = settlement.call.team, settlement.otel_error_type, settlement.response_model
        key = (target.provider, target.model, response_model, team, error_type, target.operation, target.otel_provider)
        calls = self._model_calls.get(key)
        if calls is None:
            call_labels = self._look_up_call(target, response_model, team, error_type)
            calls = ModelCalls(self.families, self.clamp, call_labels)
            if OTHER not in call_labels:
                if len(self._model_calls) >= MAX_CALL_LABELS:
                    self._model_calls.clear()
                self._model_calls[key] = calls
        return calls

    def _look_up_call(self, target: LlmTarget, response_model: str, team: str, error_type: str) -> CallLabels:
        model = self._model(target.provider, target.model)
        return CallLabels(
            provider=self.clamp(labels.PROVIDER, target.provider),
            model=model,
            team=self.clamp(labels.TEAM, team),
            operation=self.clamp(labels.OPERATION_NAME, target.operation),
            otel_provider=self.clamp(labels.PROVIDER_NAME, target.otel_provider or target.provider),
            response_model=self._model(target.provider, response_model) if response_model else model,
            error_type=self.clamp(labels.OTEL_ERROR_TYPE, error_type),
        )

    def _model(self, provider: str, model: str) -> str:
        if model in self.label_allowlist.of("model"):
            return model
        return self.clamp(labels.MODEL, self.known_as(provider, model) or model)

    def _count_reported(self, settlement: Settlement, charge: Charge, reported_nanousd: int, provider: str) -> None:
        self.families[money.PROVIDER_REPORTED_COST.name].cell(provider=provider).value += reported_nanousd
        usage = settlement.usage
        # The list price of estimated tokens would measure our estimate, not the provider's billing.
        if charge.listed_nanousd is not None and usage is not None and usage.source == "reported":
            self._compare_cost(provider, reported_nanousd, charge.listed_nanousd)

    def _count_unpriced_items(self, items: Sequence[str], provider: str) -> None:
        known = self.label_allowlist.of(money.ITEM.allowlist)
        for item in map(printable, items):
            if item not in known and self._invented_items < MAX_INVENTED_ITEMS:
                self._invented_items += 1
                self.label_allowlist.register(money.ITEM.allowlist, [item])
            cell = self.families[money.UNPRICED_ITEMS.name].cell(provider=provider, item=self.clamp(money.ITEM, item))
            cell.value += 1

    def _compare_cost(self, provider: str, reported_nanousd: int, listed_nanousd: int) -> None:
        reported, listed = self._compared_costs.get(provider, (0, 0))
        reported, listed = reported + reported_nanousd, listed + listed_nanousd
        self._compared_costs[provider] = (reported, listed)
        if listed:
            self.families[money.COST_DRIFT.name].cell(provider=provider).value = reported * NANO // listed

    def snapshot(self) -> list[FamilySnapshot]:
        """Copy everything. Called on the writing thread, so that each histogram agrees with its count."""
        # `dict.copy` is atomic; `list(dict.items())` creates tuples, which can start the garbage collector and with it
        # code that adds children in the middle of the copy.
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
