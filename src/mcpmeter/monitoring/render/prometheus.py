"""`prometheus.yml`, and `global.yml` for a Prometheus that federates the regions' recorded series."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mcpmeter.monitoring.options import MonitoringOptions, RemoteWrite
from mcpmeter.monitoring.render._yaml import to_yaml

FEDERATED: Final = '{__name__=~"job[a-z_]*:mcp_.+"}'
"""Recorded series only: with the raw series of all regions, the global server would be the largest."""

REGIONAL: Final = """\
Paths are relative to this file."""
GLOBAL: Final = """\
For several regions: each region has a Prometheus with prometheus.yml and its own `region`. This one federates their
recorded series. Alerts are evaluated in the regions, so that a lost link does not silence them."""


def render(options: MonitoringOptions) -> Mapping[str, str]:
    """The configuration, and that of the global server if there are regions to federate."""
    made = {"prometheus/prometheus.yml": to_yaml(_regional(options), REGIONAL)}
    if options.federate:
        made["prometheus/global.yml"] = to_yaml(_global(options), GLOBAL)
    return made


def _regional(options: MonitoringOptions) -> dict[str, Any]:
    return {
        "global": _intervals(options, {"region": options.region, "cluster": options.cluster}),
        "rule_files": ["rules/*.yml"],
        **_alerting(options),
        "scrape_configs": [_metered(options), _itself()],
        **_remote_write(options),
    }


def _intervals(options: MonitoringOptions, external: Mapping[str, str]) -> dict[str, Any]:
    labels = {name: value for name, value in external.items() if value}
    return {
        "scrape_interval": f"{options.scrape_interval_seconds}s",
        "evaluation_interval": f"{options.evaluation_interval_seconds}s",
        **({"external_labels": labels} if labels else {}),
    }


def _alerting(options: MonitoringOptions) -> dict[str, Any]:
    targets = list(options.alertmanagers)
    return {"alerting": {"alertmanagers": [{"static_configs": [{"targets": targets}]}]}} if targets else {}


def _metered(options: MonitoringOptions) -> dict[str, Any]:
    token = options.bearer_token_file
    return {
        "job_name": options.jobs[0],
        "scrape_interval": f"{options.service_scrape_interval_seconds}s",
        **({"scheme": options.scheme} if options.scheme != "http" else {}),
        **({"authorization": {"credentials_file": token}} if token else {}),
        "static_configs": [_static(options.targets, options.matchers)],
    }


def _static(targets: tuple[str, ...], labels: Mapping[str, str]) -> dict[str, Any]:
    return {"targets": list(targets), **({"labels": dict(labels)} if labels else {})}


def _itself() -> dict[str, Any]:
    return {"job_name": "prometheus", "static_configs": [{"targets": ["127.0.0.1:9090"]}]}


def _remote_write(options: MonitoringOptions) -> dict[str, Any]:
    return {"remote_write": list(map(_store, options.remote_write))} if options.remote_write else {}


def _store(store: RemoteWrite) -> dict[str, Any]:
    made: dict[str, Any] = {"url": store.url}
    if store.username:
        made["basic_auth"] = {"username": store.username, "password_file": store.password_file}
    elif store.credentials_file:
        made["authorization"] = {"credentials_file": store.credentials_file}
    return made


def _global(options: MonitoringOptions) -> dict[str, Any]:
    gather = {
        "job_name": "mcpmeter-regions",
        "honor_labels": True,
        "metrics_path": "/federate",
        "params": {"match[]": [FEDERATED]},
        "static_configs": [{"targets": list(options.federate)}],
    }
    return {"global": _intervals(options, {}), "scrape_configs": [gather, _itself()], **_remote_write(options)}
