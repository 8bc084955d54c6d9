"""`mcpmeter check --live`: checks a running deployment against its configuration.

Owns the checks and their results; the command that prints them is `cli/check.py`. Each check asks one running part
(the service, the providers, Prometheus, Alertmanager, Grafana) and says what to do about a failure. Invariants: no
check stops another, each has a time limit, and no result contains a secret.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx2

from mcpmeter.config import Settings
from mcpmeter.live_check import alertmanager, endpoint_checks, grafana, prometheus, self_checks
from mcpmeter.live_check.check_result import Addresses, CheckResult, Live, failed

__all__ = ["Addresses", "CheckResult", "check_live"]

CHECK_TIMEOUT_SECONDS = 20.0

Check = Callable[[Live], Awaitable[list[CheckResult]]]
CHECKS: tuple[tuple[str, Check], ...] = (
    ("ledger", self_checks.ledger),
    ("service", endpoint_checks.service),
    ("metrics", endpoint_checks.metrics),
    ("clock", self_checks.clock),
    ("provider", self_checks.providers),
    ("prometheus", prometheus.prometheus),
    ("rules", prometheus.rules),
    ("alertmanager", alertmanager.alertmanager),
    ("dashboards", grafana.dashboards),
)


async def check_live(settings: Settings, addresses: Addresses) -> AsyncIterator[CheckResult]:
    """Run the checks in order; yields each result as soon as it is known."""
    # With the environment's proxies or httpx's certificates the check would use another path than the relay.
    tls = ssl.create_default_context()
    async with httpx2.AsyncClient(timeout=httpx2.Timeout(10, connect=5), verify=tls, trust_env=False) as http:
        live = Live(settings, addresses, http)
        for name, check in CHECKS:
            for result in await _within_limit(name, check(live)):
                yield result


async def _within_limit(name: str, check: Awaitable[list[CheckResult]]) -> list[CheckResult]:
    try:
        return await asyncio.wait_for(check, CHECK_TIMEOUT_SECONDS)
    except TimeoutError:
        return [failed(name, f"no response within {CHECK_TIMEOUT_SECONDS:g} s", "Check its log and its load.")]
