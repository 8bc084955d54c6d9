"""Checks that Grafana has every generated dashboard."""

from __future__ import annotations

import json
from collections.abc import Iterator

from mcpmeter.live_check.check_result import CheckResult, Live, Unreachable, failed, not_checked, ok, some
from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.monitoring.render import files


async def dashboards(live: Live) -> list[CheckResult]:
    """Check that Grafana has every generated dashboard."""
    base = live.addresses.grafana
    if not base:
        return [not_checked("dashboards", "give its address: --grafana http://127.0.0.1:3000")]
    expected = dict(_dashboards(live.settings.monitoring.options()))
    missing = []
    for uid, title in expected.items():
        try:
            status, _, _ = await live.get(f"{base}/api/dashboards/uid/{uid}", token=live.addresses.grafana_token)
        except Unreachable as fault:
            return [failed("dashboards", f"{base} {fault}", "Check that Grafana runs and that the address is correct.")]
        if status in (401, 403):
            return [
                failed(
                    "dashboards",
                    f"Grafana refuses access (HTTP {status})",
                    "Set a token with read access: GRAFANA_TOKEN.",
                )
            ]
        if status != 200:
            missing.append(title)
    if missing:
        return [
            failed(
                "dashboards",
                f"{len(missing)} of {len(expected)} are missing: {some(missing)}",
                "Mount DIR/grafana of: mcpmeter monitoring write DIR",
            )
        ]
    return [ok("dashboards", f"all {len(expected)} are there")]


def _dashboards(options: MonitoringOptions) -> Iterator[tuple[str, str]]:
    for path, content in files(options).items():
        if path.startswith("grafana/") and path.endswith(".json"):
            dashboard = json.loads(content)
            yield dashboard["uid"], dashboard["title"]
