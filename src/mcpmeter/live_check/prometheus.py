"""Prometheus: reached, scraping the service, sending alerts, and running the rules of `mcpmeter monitoring write`."""

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
    """Whether it scrapes the service, and sends its alerts somewhere."""
    base = live.addresses.prometheus
    if not base:
        return [not_checked("prometheus", "say where it is: --prometheus http://127.0.0.1:9090")]
    try:
        targets = (await live.get_json(f"{base}/api/v1/targets?state=active"))["data"]["activeTargets"]
        managers = (await live.get_json(f"{base}/api/v1/alertmanagers"))["data"]["activeAlertmanagers"]
    except Unreachable as fault:
        return [failed("prometheus", f"{base} {fault}", "Is it running, and the address right?")]
    except (KeyError, TypeError):
        return [failed("prometheus", f"{base} is no Prometheus", "Give its address: --prometheus URL")]
    return [_target(live, targets), _alertmanagers(managers)]


def _target(live: Live, targets: list[Mapping[str, Any]]) -> CheckResult:
    jobs = live.settings.monitoring.jobs
    ours = [target for target in targets if target["labels"].get("job") in jobs]
    if not ours:
        return failed(
            "prometheus target",
            f"none of its jobs is {' or '.join(jobs)}",
            "Add the scrape job, or name it in 'monitoring.jobs'.",
        )
    down = [target for target in ours if target["health"] != "up"]
    if down:
        why = str(down[0].get("lastError", ""))[:160] or "no scrape yet"
        return failed(
            "prometheus target",
            f"{len(down)} of {len(ours)} targets are not up ({why})",
            "Look at /targets in Prometheus.",
        )
    return ok("prometheus target", f"{len(ours)} up")


def _alertmanagers(managers: list[Mapping[str, Any]]) -> CheckResult:
    if not managers:
        return failed(
            "prometheus alerting",
            "it sends its alerts to no Alertmanager",
            "Add 'alerting:' as deploy/prometheus/prometheus.yml has it.",
        )
    return ok("prometheus alerting", f"to {', '.join(str(manager['url']) for manager in managers[:3])}")


async def rules(live: Live) -> list[CheckResult]:
    """Whether the rules that Prometheus has loaded are ours."""
    base = live.addresses.prometheus
    if not base:
        return [not_checked("rules", "they are Prometheus's to say")]
    try:
        groups = (await live.get_json(f"{base}/api/v1/rules"))["data"]["groups"]
        loaded = {_key(rule): rule["query"] for group in groups for rule in group["rules"]}
        wanted = dict(_rules(live.settings.monitoring.options()))
        different = [
            name
            for (name, _), expr in wanted.items()
            if (name, _) in loaded and not await _same(live, expr, loaded[name, _])
        ]
    except Unreachable as fault:
        return [failed("rules", f"{base} {fault}", "Is it running, and the address right?")]
    missing = sorted({name for name, severity in wanted if (name, severity) not in loaded})
    if missing:
        return [failed("rules", f"{len(missing)} of {len(wanted)} are not loaded: {some(missing)}", _WRITE)]
    if different:
        return [
            failed(
                "rules", f"{len(different)} are loaded with another expression: {some(sorted(set(different)))}", _WRITE
            )
        ]
    return [ok("rules", f"all {len(wanted)} are loaded and ours")]


def _rules(options: MonitoringOptions) -> Iterator[tuple[tuple[str, str], str]]:
    for path, content in files(options).items():
        if not path.startswith("prometheus/rules/"):
            continue
        for group in yaml.safe_load(content)["groups"]:
            for rule in group["rules"]:
                yield (rule.get("alert") or rule["record"], _windows(rule.get("labels", {}))), rule["expr"]


def _key(rule: Mapping[str, Any]) -> tuple[str, str]:
    return str(rule["name"]), _windows(rule.get("labels") or {})


def _windows(labels: Mapping[str, str]) -> str:
    """Several rules of one alert differ in their labels."""
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))


async def _same(live: Live, ours: str, loaded: str) -> bool:
    """Prometheus prints expressions in its own way: both are printed by it."""
    if ours == loaded:
        return True
    printed = [await _printed(live, expr) for expr in (ours, loaded)]
    return printed[0] == printed[1]


async def _printed(live: Live, expr: str) -> str:
    answer = await live.get_json(f"{live.addresses.prometheus}/api/v1/format_query?query={quote(expr, safe='')}")
    return str(answer["data"])
