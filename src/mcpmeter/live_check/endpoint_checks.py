"""The running service and its `/metrics`."""

from __future__ import annotations

from collections import Counter
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from mcpmeter.catalog import ALL
from mcpmeter.catalog.service import LABEL_OVERFLOW
from mcpmeter.live_check.check_result import CheckResult, Live, Unreachable, failed, ok

MANY_SERIES: Final = 10_000


async def service(live: Live) -> list[CheckResult]:
    """Whether it runs and is ready."""
    url = f"{live.addresses.service}/-/ready"
    try:
        status, body, _ = await live.get(url)
    except Unreachable as fault:
        return [failed("service", f"{live.addresses.service} {fault}", "Start it: mcpmeter serve")]
    if status != 200:
        reason = body.decode("utf-8", "replace").strip()[:200]
        return [failed("service", reason or f"{url} answers {status}", "Look at the service's log.")]
    return [ok("service", f"{live.addresses.service} is ready")]


async def metrics(live: Live) -> list[CheckResult]:
    """Whether they can be read, are the catalog's, and are not too many."""
    token = live.settings.metrics.bearer_token
    url = f"{live.addresses.metrics}/metrics"
    try:
        status, body, _ = await live.get(url, token=token.get_secret_value() if token else "")
    except Unreachable as fault:
        return [failed("metrics", f"{url} {fault}", "Is the service running, and 'metrics.port' right?")]
    if status != 200:
        return [failed("metrics", f"{url} answers {status}", "Is 'metrics.bearer_token' the one it runs with?")]
    try:
        return [_counted(body.decode())]
    except ValueError:
        return [failed("metrics", f"{url} is no Prometheus text", "Does another program listen there?")]


def _counted(text: str) -> CheckResult:
    series: Counter[str] = Counter()
    overflow = 0.0
    for family in text_string_to_metric_families(text):
        series[family.name] += len(family.samples)
        overflow += sum(s.value for s in family.samples if s.name == LABEL_OVERFLOW.name)
    if not any(row.name.removesuffix("_total") in series for row in ALL):
        return failed("metrics", "they are not mcpmeter's", "Does another program listen there?")
    total = sum(series.values())
    name, most = series.most_common(1)[0]
    says = f"{total:,} series parse, most of them {name} ({most:,})"
    if total > MANY_SERIES:
        return failed("metrics", says, "Fewer teams, models or providers in one service, or a larger Prometheus.")
    if overflow:
        says += f"; {overflow:,.0f} times a label became 'other' ({LABEL_OVERFLOW.name} says which)"
    return ok("metrics", says)
