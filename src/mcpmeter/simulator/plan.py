"""The simulator's defaults for every call; replaceable while it runs. A request's own fault takes precedence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import msgspec

from mcpmeter.errors import ConfigInvalid
from mcpmeter.simulator.faults import Fault, check_sum
from mcpmeter.simulator.latency import Latency, Spread


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Faults with their probabilities, pace and size of responses. Raises `ConfigInvalid` if probabilities exceed 1."""

    faults: tuple[Fault, ...] = ()
    first_byte: Latency = Latency()
    between_chunks: Latency = Latency()
    completion_tokens: Spread = Spread.lognormal(60, 0.6)
    tool_calls: bool = False
    """Call the first of the request's `tools` instead of writing text."""
    dated_models: bool = False
    """Name a dated snapshot of the model in responses."""

    def __post_init__(self) -> None:
        check_sum(self.faults)


class PlanText(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A plan as JSON: the body of `PUT /simulator/plan`. Omitted fields get the simulator's defaults."""

    faults: Sequence[str | dict[str, Any]] = ()
    latency_ms: str = "0"
    chunks_per_second: str = ""
    completion_tokens: str = "lognormal:60,0.6"
    tool_calls: bool = False
    dated_models: bool = False

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """Parse a plan. Raises `ConfigInvalid`."""
        try:
            return msgspec.json.decode(body, type=cls)
        except (ValueError, RecursionError) as error:
            raise ConfigInvalid(
                f"The plan cannot be read: {str(error)[:200]}", hint="docs/simulator.md shows one."
            ) from None

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """The JSON form of a plan."""
        gaps = plan.between_chunks
        return cls(
            faults=[msgspec.to_builtins(fault) for fault in plan.faults],
            latency_ms=str(plan.first_byte),
            chunks_per_second="" if gaps.is_zero else gaps.as_rate(),
            completion_tokens=str(plan.completion_tokens),
            tool_calls=plan.tool_calls,
            dated_models=plan.dated_models,
        )

    def plan(self) -> Plan:
        """The plan. Raises `ConfigInvalid`."""
        return Plan(
            faults=tuple(_fault(fault) for fault in self.faults),
            first_byte=Latency.parse(self.latency_ms),
            between_chunks=Latency.from_rate(self.chunks_per_second) if self.chunks_per_second else Latency(),
            completion_tokens=Spread.parse(self.completion_tokens),
            tool_calls=self.tool_calls,
            dated_models=self.dated_models,
        )


def _fault(given: str | dict[str, Any]) -> Fault:
    if isinstance(given, str):
        return Fault.parse(given)
    try:
        return msgspec.convert(given, Fault)
    except msgspec.ValidationError as error:
        raise ConfigInvalid(
            f"This is not a fault: {str(error)[:200]}", hint="docs/simulator.md lists them all."
        ) from None
