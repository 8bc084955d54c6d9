"""Alertmanager: reached, and an alert that is sent to it gets to a receiver."""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import quote

from mcpmeter.live_check.check_result import CheckResult, Live, Unreachable, failed, not_checked, ok

TEST_ALERT: Final = "MCPMeterTestAlert"
LASTS: Final = timedelta(minutes=5)
LOOKS: Final = 50
SECONDS_BETWEEN_LOOKS: Final = 0.2


async def alertmanager(live: Live) -> list[CheckResult]:
    """Whether an alert that is sent to it reaches a receiver: one is sent and seen, and ends by itself."""
    base = live.addresses.alertmanager
    if not base:
        return [not_checked("alertmanager", "say where it is: --alertmanager http://127.0.0.1:9093")]
    try:
        await live.get_json(f"{base}/api/v2/status")
        return [await _test_alert(live, base)]
    except Unreachable as fault:
        return [failed("alertmanager", f"{base} {fault}", "Is it running, and the address right?")]


async def _test_alert(live: Live, base: str) -> CheckResult:
    """It ends by itself: ended here, it would be over before its group's wait is, and reach nobody."""
    run = secrets.token_hex(4)
    before = await _requests(live, base)
    status, _ = await live.post_json(f"{base}/api/v2/alerts", [_alert(run)])
    if status != 200:
        return failed("alertmanager", f"it refuses an alert (HTTP {status})", "Look at its log.")
    receivers = await _receivers(live, base, run)
    if not receivers:
        return failed("alertmanager", "an alert was sent to it and did not come up", "Look at its log.")
    sent, refused = await _until_sent(live, base, before)
    where = ", ".join(receivers)
    if refused:
        advice = "Look at Alertmanager's log: a receiver's secret or address is wrong."
        return failed(
            "alertmanager", f"a test alert is routed to {where}, and a receiver refuses notifications", advice
        )
    if not sent:
        return ok("alertmanager", f"a test alert is routed to {where}; its group's wait is not over yet")
    return ok("alertmanager", f"a test alert is routed to {where}, and receivers take notifications")


def _alert(run: str) -> dict[str, Any]:
    return {
        "labels": {"alertname": TEST_ALERT, "severity": "info", "run": run},
        "annotations": {"summary": "A test by mcpmeter check --live; nothing is wrong."},
        "endsAt": (datetime.now(UTC) + LASTS).isoformat(),
    }


async def _receivers(live: Live, base: str, run: str) -> list[str]:
    for _ in range(LOOKS):
        found = await live.get_json(f"{base}/api/v2/alerts?filter={quote(f'run={chr(34)}{run}{chr(34)}', safe='')}")
        if found:
            return [str(receiver["name"]) for receiver in found[0]["receivers"]]
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
    return []


async def _until_sent(live: Live, base: str, before: tuple[float, float]) -> tuple[bool, bool]:
    """(sent, refused), as far as Alertmanager's own counters say it in time. It tries a receiver that fails again."""
    for _ in range(LOOKS):
        asked, refused = await _requests(live, base)
        if refused > before[1]:
            return False, True
        if asked > before[0]:
            return True, False
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
    return False, False


async def _requests(live: Live, base: str) -> tuple[float, float]:
    """Requests to receivers that have been made, and those of them that failed."""
    _, body, _ = await live.get(f"{base}/metrics")
    totals = {
        "alertmanager_notification_requests_total": 0.0,
        "alertmanager_notification_requests_failed_total": 0.0,
    }
    for line in body.decode("utf-8", "replace").splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name in totals:
            totals[name] += float(line.rpartition(" ")[2])
    asked, refused = totals.values()
    return asked, refused
