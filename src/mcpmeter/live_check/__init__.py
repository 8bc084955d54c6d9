"""`mcpmeter check --live`: the deployment checklist as a program. Each check answers for itself; none stops another."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx2

from mcpmeter.config import Settings
from mcpmeter.live_check import alertmanager, grafana, prometheus
from mcpmeter.live_check import endpoint_checks as page
from mcpmeter.live_check import self_checks as itself
from mcpmeter.live_check.check_result import Addresses, CheckResult, Live, failed

__all__ = ["Addresses", "CheckResult", "check_live"]

SECONDS_FOR_ONE_CHECK = 20.0

Check = Callable[[Live], Awaitable[list[CheckResult]]]
CHECKS: tuple[tuple[str, Check], ...] = (
    ("ledger", itself.ledger),
    ("service", page.service),
    ("metrics", page.metrics),
    ("clock", itself.clock),
    ("provider", itself.providers),
    ("prometheus", prometheus.prometheus),
    ("rules", prometheus.rules),
    ("alertmanager", alertmanager.alertmanager),
    ("dashboards", grafana.dashboards),
)


async def check_live(settings: Settings, addresses: Addresses) -> AsyncIterator[CheckResult]:
    """Run the checks one after the other; each finding comes as soon as it is there."""
    # The environment's proxies and httpx's own certificates would check another path than the relay takes.
    tls = ssl.create_default_context()
    async with httpx2.AsyncClient(timeout=httpx2.Timeout(10, connect=5), verify=tls, trust_env=False) as http:
        live = Live(settings, addresses, http)
        for name, check in CHECKS:
            for finding in await _answered(name, check(live)):
                yield finding


async def _answered(name: str, check: Awaitable[list[CheckResult]]) -> list[CheckResult]:
    try:
        return await asyncio.wait_for(check, SECONDS_FOR_ONE_CHECK)
    except TimeoutError:
        return [failed(name, f"no answer within {SECONDS_FOR_ONE_CHECK:g} s", "Look at its log and its load.")]
