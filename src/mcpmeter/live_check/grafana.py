"""Grafana: it has every dashboard of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator

from mcpmeter.live_check.check_result import CheckResult, Live, Unreachable, failed, not_checked, ok, some
from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.monitoring.render import files


async def dashboards(live: Live) -> list[CheckResult]:
    """Whether Grafana has every dashboard of ours."""
    base = live.addresses.grafana
    if not base:
        return [not_checked("dashboards", "say where Grafana is: --grafana http://127.0.0.1:3000")]
    wanted = dict(_dashboards(live.settings.monitoring.options()))
    missing = []
    for uid, title in wanted.items():
        try:
            status, _, _ = await live.get(f"{base}/api/dashboards/uid/{uid}", token=live.addresses.grafana_token)
        except Unreachable as fault:
            return [failed("dashboards", f"{base} {fault}", "Is Grafana running, and the address right?")]
        if status in (401, 403):
            return [
                failed(
                    "dashboards",
                    f"Grafana refuses to tell (HTTP {status})",
                    "Give a token that may read: GRAFANA_TOKEN.",
                )
            ]
        if status != 200:
            missing.append(title)
    if missing:
        return [
            failed(
                "dashboards",
                f"{len(missing)} of {len(wanted)} are missing: {some(missing)}",
                "Mount DIR/grafana of: mcpmeter monitoring write DIR",
            )
        ]
    return [ok("dashboards", f"all {len(wanted)} are there")]


def _dashboards(options: MonitoringOptions) -> Iterator[tuple[str, str]]:
    for path, content in files(options).items():
        if path.startswith("grafana/") and path.endswith(".json"):
            dashboard = json.loads(content)
            yield dashboard["uid"], dashboard["title"]
