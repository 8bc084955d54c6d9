"""docs/metrics.md, made from the catalog: `python -m mcpmeter.catalog.reference > docs/metrics.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Final

from mcpmeter.catalog import OTHER, Label, Metric, budget, llm, mcp, money, quality, quota, service, upstream

FAMILIES: Final = (
    ("Requests and MCP operations", mcp.ROWS),
    ("Model calls", llm.ROWS),
    ("Quality of answers", quality.ROWS),
    ("Money", money.ROWS),
    ("Budgets", budget.ROWS),
    ("Upstreams", upstream.ROWS),
    ("Upstream quotas", quota.ROWS),
    ("The meter itself", service.ROWS),
)
ALLOWLISTS: Final = {
    "endpoint": "the templates of the routes that are served",
    "model": "models that configuration or a price list names",
    "team": "teams of the configuration and of the keys",
    "budget_team": "teams of the configured budgets; empty for a budget over all",
    "budget": "the configured budgets",
    "provider": "providers that are switched on, by their own name and by OpenTelemetry's",
    "credential": "the providers' keys, by provider and place in the configuration",
    "tool": "tools that the server's own list names, or none",
    "server": "servers that this process meters",
    "label": "the names of all labels",
    "build": "the running versions",
}
"""Where the values of an open-ended label come from."""

HEAD: Final = f"""\
# Metrics

<!-- Made by `python -m mcpmeter.catalog.reference`; a test holds it equal to the catalog. -->

`GET /metrics` answers Prometheus's text format, or OpenMetrics where the Accept header asks for it. OpenMetrics adds
exemplars (the trace id of a `traceparent`) to histograms and the creation time to counters. `process_*` stands beside
these families where the service runs on Linux.

- Every label has a closed set of values. A value outside it is shown as `{OTHER}` and counted in
  `mcp_label_overflow_total`, so no caller can add series without end.
- Series whose labels are known at start exist at 0 from the start.
- Money is added up in whole nano-dollars, time in whole nanoseconds. Both are divided only when they are shown.
- A histogram has the series `…_bucket`, `…_sum` and `…_count`; its buckets are listed without the last, `+Inf`.
"""


def reference() -> str:
    """The whole page, in Markdown."""
    sections = [line for title, rows in FAMILIES for line in _section(title, rows)]
    return "\n".join([HEAD, *sections]).rstrip() + "\n"


def _section(title: str, rows: Sequence[Metric]) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| metric | type | labels | unit | buckets | what |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in rows:
        names = ", ".join(f"`{name}`" for name in row.label_names) or "none"
        buckets = ", ".join(map(_number, row.buckets))
        yield f"| `{row.name}` | {row.type} | {names} | {row.unit or 'none'} | {buckets} | {row.help} |"
    yield ""
    yield "| label | of | values |"
    yield "| --- | --- | --- |"
    for label in dict.fromkeys(label for row in rows for label in row.labels):
        yield f"| `{label.name}` | {_users(label, rows)} | {_values(label)} |"
    yield ""


def _users(label: Label, rows: Sequence[Metric]) -> str:
    return ", ".join(f"`{row.name}`" for row in rows if label in row.labels)


def _values(label: Label) -> str:
    if label.values is None:
        return f"announced: {ALLOWLISTS[label.allowlist]}"
    return ", ".join(f"`{value}`" if value else "empty" for value in label.values)


def _number(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else repr(bound)


if __name__ == "__main__":
    sys.stdout.write(reference())
