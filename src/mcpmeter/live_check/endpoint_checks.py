"""Checks the running service and its `/metrics`."""

from __future__ import annotations

from collections import Counter
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from mcpmeter.catalog import ALL
from mcpmeter.catalog.service import LABEL_OVERFLOW
from mcpmeter.live_check.check_result import CheckResult, Live, Unreachable, failed, ok

MANY_SERIES: Final = 10_000


async def service(live: Live) -> list[CheckResult]:
    """Check that the service is ready."""
    url = f"{live.addresses.service}/-/ready"
    try:
        status, body, _ = await live.get(url)
    except Unreachable as fault:
        return [failed("service", f"{live.addresses.service} {fault}", "Start it: mcpmeter serve")]
    if status != 200:
        reason = body.decode("utf-8", "replace").strip()[:200]
        return [failed("service", reason or f"{url} responds with status {status}", "Check the service's log.")]
    return [ok("service", f"{live.addresses.service} is ready")]


async def metrics(live: Live) -> list[CheckResult]:
    """Check that the metrics are readable, from this catalog and not too many."""
    token = live.settings.metrics.bearer_token
    url = f"{live.addresses.metrics}/metrics"
    try:
        status, body, _ = await live.get(url, token=token.get_secret_value() if token else "")
    except Unreachable as fault:
        return [failed("metrics", f"{url} {fault}", "Check that the service runs and 'metrics.port' is correct.")]
    if status != 200:
        return [
            failed(
                "metrics",
                f"{url} responds with status {status}",
                "Check that the service runs with this 'metrics.bearer_token'.",
            )
        ]
    try:
        return [_counted(body.decode())]
    except ValueError:
        return [failed("metrics", f"{url} is not Prometheus text", "Check whether another program listens there.")]


def _counted(text: str) -> CheckResult:
    series: Counter[str] = Counter()
    overflow = 0.0
    for family in text_string_to_metric_families(text):
        series[family.name] += len(family.samples)
        overflow += sum(s.value for s in family.samples if s.name == LABEL_OVERFLOW.name)
    if not any(row.name.removesuffix("_total") in series for row in ALL):
        return failed("metrics", "they are not mcpmeter's", "Check whether another program listens there.")
    total = sum(series.values())
    name, count = series.most_common(1)[0]
    says = f"{total:,} series parse, most of them {name} ({count:,})"
    if total > MANY_SERIES:
        return failed("metrics", says, "Use fewer teams, models or providers per service, or a larger Prometheus.")
    if overflow:
        says += f"; {overflow:,.0f} times a label became 'other' ({LABEL_OVERFLOW.name} says which)"
    return ok("metrics", says)
