"""Checks that Alertmanager is reachable and delivers an alert to a receiver."""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import quote

from mcpmeter.live_check.check_result import CheckResult, Live, Unreachable, failed, not_checked, ok

TEST_ALERT: Final = "MCPMeterTestAlert"
TEST_ALERT_DURATION: Final = timedelta(minutes=5)
MAX_POLLS: Final = 50
POLL_SECONDS: Final = 0.2


async def alertmanager(live: Live) -> list[CheckResult]:
    """Send a test alert and check that it reaches a receiver."""
    base = live.addresses.alertmanager
    if not base:
        return [not_checked("alertmanager", "give its address: --alertmanager http://127.0.0.1:9093")]
    try:
        await live.get_json(f"{base}/api/v2/status")
        return [await _test_alert(live, base)]
    except Unreachable as fault:
        return [failed("alertmanager", f"{base} {fault}", "Check that it runs and that the address is correct.")]


async def _test_alert(live: Live, base: str) -> CheckResult:
    """Send the alert without ending it: an alert resolved before its `group_wait` is over reaches no receiver."""
    run = secrets.token_hex(4)
    before = await _requests(live, base)
    status, _ = await live.post_json(f"{base}/api/v2/alerts", [_alert(run)])
    if status != 200:
        return failed("alertmanager", f"it refuses an alert (HTTP {status})", "Check its log.")
    receivers = await _receivers(live, base, run)
    if not receivers:
        return failed("alertmanager", "it accepted an alert and does not list it", "Check its log.")
    sent, refused = await _until_sent(live, base, before)
    where = ", ".join(receivers)
    if refused:
        advice = "Check Alertmanager's log: a receiver's secret or address is wrong."
        return failed(
            "alertmanager", f"a test alert is routed to {where}, and a receiver refuses notifications", advice
        )
    if not sent:
        return ok("alertmanager", f"a test alert is routed to {where}; its group_wait is not over yet")
    return ok("alertmanager", f"a test alert is routed to {where}, and receivers take notifications")


def _alert(run: str) -> dict[str, Any]:
    return {
        "labels": {"alertname": TEST_ALERT, "severity": "info", "run": run},
        "annotations": {"summary": "A test by mcpmeter check --live; nothing is wrong."},
        "endsAt": (datetime.now(UTC) + TEST_ALERT_DURATION).isoformat(),
    }


async def _receivers(live: Live, base: str, run: str) -> list[str]:
    for _ in range(MAX_POLLS):
        listed = await live.get_json(f"{base}/api/v2/alerts?filter={quote(f'run={chr(34)}{run}{chr(34)}', safe='')}")
        if listed:
            return [str(receiver["name"]) for receiver in listed[0]["receivers"]]
        await asyncio.sleep(POLL_SECONDS)
    return []


async def _until_sent(live: Live, base: str, before: tuple[float, float]) -> tuple[bool, bool]:
    """(sent, refused) by Alertmanager's counters, within the polls. Alertmanager retries a receiver that fails."""
    for _ in range(MAX_POLLS):
        sent, refused = await _requests(live, base)
        if refused > before[1]:
            return False, True
        if sent > before[0]:
            return True, False
        await asyncio.sleep(POLL_SECONDS)
    return False, False


async def _requests(live: Live, base: str) -> tuple[float, float]:
    """The numbers of requests to receivers, and of failed ones."""
    _, body, _ = await live.get(f"{base}/metrics")
    totals = {
        "alertmanager_notification_requests_total": 0.0,
        "alertmanager_notification_requests_failed_total": 0.0,
    }
    for line in body.decode("utf-8", "replace").splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name in totals:
            totals[name] += float(line.rpartition(" ")[2])
    sent, refused = totals.values()
    return sent, refused
