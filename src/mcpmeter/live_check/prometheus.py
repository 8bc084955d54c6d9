"""Checks that Prometheus scrapes the service, sends alerts and runs the rules of `mcpmeter monitoring write`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote

import yaml

from mcpmeter.live_check.check_result import CheckResult, Live, Unreachable, failed, not_checked, ok, some
from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.monitoring.render import files

_WRITE: Final = "Run: mcpmeter monitoring write DIR, and let Prometheus load DIR/prometheus/rules."


async def prometheus(live: Live) -> list[CheckResult]:
    """Check that Prometheus scrapes the service and has an Alertmanager."""
    base = live.addresses.prometheus
    if not base:
        return [not_checked("prometheus", "give its address: --prometheus http://127.0.0.1:9090")]
    try:
        targets = (await live.get_json(f"{base}/api/v1/targets?state=active"))["data"]["activeTargets"]
        managers = (await live.get_json(f"{base}/api/v1/alertmanagers"))["data"]["activeAlertmanagers"]
    except Unreachable as fault:
        return [failed("prometheus", f"{base} {fault}", "Check that it runs and that the address is correct.")]
    except (KeyError, TypeError):
        return [failed("prometheus", f"{base} is not a Prometheus", "Give its address: --prometheus URL")]
    return [_target(live, targets), _alertmanagers(managers)]


def _target(live: Live, targets: list[Mapping[str, Any]]) -> CheckResult:
    jobs = live.settings.monitoring.jobs
    own = [target for target in targets if target["labels"].get("job") in jobs]
    if not own:
        return failed(
            "prometheus target",
            f"none of its jobs is {' or '.join(jobs)}",
            "Add the scrape job, or name it in 'monitoring.jobs'.",
        )
    down = [target for target in own if target["health"] != "up"]
    if down:
        error = str(down[0].get("lastError", ""))[:160] or "no scrape yet"
        return failed(
            "prometheus target",
            f"{len(down)} of {len(own)} targets are not up ({error})",
            "Check /targets in Prometheus.",
        )
    return ok("prometheus target", f"{len(own)} up")


def _alertmanagers(managers: list[Mapping[str, Any]]) -> CheckResult:
    if not managers:
        return failed(
            "prometheus alerting",
            "it sends alerts to no Alertmanager",
            "Add 'alerting:' as deploy/prometheus/prometheus.yml has it.",
        )
    return ok("prometheus alerting", f"to {', '.join(str(manager['url']) for manager in managers[:3])}")


async def rules(live: Live) -> list[CheckResult]:
    """Check that Prometheus has loaded the generated rules."""
    base = live.addresses.prometheus
    if not base:
        return [not_checked("rules", "Prometheus has no address to read them from")]
    try:
        groups = (await live.get_json(f"{base}/api/v1/rules"))["data"]["groups"]
        loaded = {_key(rule): rule["query"] for group in groups for rule in group["rules"]}
        expected = dict(_rules(live.settings.monitoring.options()))
        different = {
            key[0] for key, expr in expected.items() if key in loaded and not await _is_same(live, expr, loaded[key])
        }
    except Unreachable as fault:
        return [failed("rules", f"{base} {fault}", "Check that it runs and that the address is correct.")]
    missing = sorted({name for name, severity in expected if (name, severity) not in loaded})
    if missing:
        return [failed("rules", f"{len(missing)} of {len(expected)} are not loaded: {some(missing)}", _WRITE)]
    if different:
        return [
            failed("rules", f"{len(different)} are loaded with another expression: {some(sorted(different))}", _WRITE)
        ]
    return [ok("rules", f"all {len(expected)} are loaded and unchanged")]


def _rules(options: MonitoringOptions) -> Iterator[tuple[tuple[str, str], str]]:
    for path, content in files(options).items():
        if not path.startswith("prometheus/rules/"):
            continue
        for group in yaml.safe_load(content)["groups"]:
            for rule in group["rules"]:
                yield (rule.get("alert") or rule["record"], _labels(rule.get("labels", {}))), rule["expr"]


def _key(rule: Mapping[str, Any]) -> tuple[str, str]:
    return str(rule["name"]), _labels(rule.get("labels") or {})


def _labels(labels: Mapping[str, str]) -> str:
    """Distinguishes the rules of one alert that differ in severity or window."""
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))


async def _is_same(live: Live, expected: str, loaded: str) -> bool:
    """Compare two expressions as Prometheus formats them."""
    if expected == loaded:
        return True
    return await _formatted(live, expected) == await _formatted(live, loaded)


async def _formatted(live: Live, expr: str) -> str:
    response = await live.get_json(f"{live.addresses.prometheus}/api/v1/format_query?query={quote(expr, safe='')}")
    return str(response["data"])
