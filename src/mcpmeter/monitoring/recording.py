"""Recording rules, named level:metric:operations, shared by alerts and dashboards so that both show the same values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mcpmeter.catalog import llm, mcp, money
from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.monitoring.queries import WATCHING, Queries

SLO_WINDOWS: Final = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
QUANTILES: Final = {"p50": "0.5", "p95": "0.95", "p99": "0.99"}
OURS: Final = 'side!="client"'
"""Errors of callers do not count against the error budget."""

LISTENING: Final = 'method!="subscriptions/listen"'
"""Excludes subscriptions, which last for hours by design."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording rule."""

    record: str
    expr: str


@dataclass(frozen=True, slots=True)
class RecordingGroup:
    """Rules evaluated in order."""

    name: str
    rules: tuple[Recording, ...]


def recording_groups(options: MonitoringOptions) -> tuple[RecordingGroup, ...]:
    """All recording rules. A rule that uses another rule follows it in the same group."""
    q = Queries(options)
    return (
        RecordingGroup("mcpmeter.guide", tuple(_guide(q))),
        RecordingGroup("mcpmeter.slo", tuple(_slo(q))),
        RecordingGroup("mcpmeter.latency", tuple(_latency(q))),
        RecordingGroup("mcpmeter.usage", tuple(_usage(q))),
    )


def _guide(q: Queries) -> Iterator[Recording]:
    # The published guide queries this name; client libraries append _total, so that no such series would exist.
    yield Recording(money.COST.name.removesuffix("_total"), q.of(money.COST))


def _slo(q: Queries) -> Iterator[Recording]:
    for window in SLO_WINDOWS:
        requests, failures = f"job:mcp_requests:rate{window}", f"job:mcp_failures:rate{window}"
        yield Recording(requests, q.rate(mcp.REQUESTS, window, where=(WATCHING,)))
        yield Recording(failures, f"{q.rate(mcp.ERRORS, window, where=(OURS,))} or 0 * {q.recorded(requests)}")
        # Without requests the ratio is 0/0; the filter omits the value.
        ratio = f"{q.recorded(failures)} / ({q.recorded(requests)} > 0)"
        yield Recording(f"job:mcp_failures:ratio_rate{window}", ratio)


def _latency(q: Queries) -> Iterator[Recording]:
    for name, share in QUANTILES.items():
        record = f"job_endpoint:{mcp.REQUEST_DURATION.name}:{name}_rate5m"
        where = (WATCHING, LISTENING)
        yield Recording(record, q.quantile(share, mcp.REQUEST_DURATION, "5m", "endpoint", where=where))
    yield Recording("job:mcp_active_requests:sum", f"sum {q.by()} ({q.of(mcp.ACTIVE_REQUESTS)})")


def _usage(q: Queries) -> Iterator[Recording]:
    yield Recording("job_team:mcp_cost_usd:increase1h", q.increase(money.COST, "1h", "team"))
    yield Recording("job_model:mcp_cost_usd:rate5m", q.rate(money.COST, "5m", "model", "provider"))
    yield Recording("job_model:mcp_tokens:rate5m", q.rate(llm.TOKENS, "5m", "model", "provider", "token_type"))
