"""Grafana: the dashboards with the options applied, and the provisioning files for dashboards and data source."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from mcpmeter.monitoring.dashboards import made, pages
from mcpmeter.monitoring.dashboards.promql import SCOPE
from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.monitoring.render._yaml import to_yaml

FOLDER: Final = "grafana/dashboards"
WHERE_GRAFANA_LOOKS: Final = "/etc/grafana/dashboards"
PROMETHEUS_FOR_GRAFANA: Final = "http://prometheus:9090"
UID: Final = "mcpmeter-prometheus"


def render(options: MonitoringOptions) -> Mapping[str, str]:
    """The dashboards and both provisioning files."""
    return {
        **{f"{FOLDER}/{name}": text for name, text in dashboards(options).items()},
        "grafana/provisioning/datasources/mcpmeter.yaml": to_yaml(_source(options)),
        "grafana/provisioning/dashboards/mcpmeter.yaml": to_yaml(_provider()),
    }


def dashboards(options: MonitoringOptions) -> Mapping[str, str]:
    """File name -> JSON, with the jobs selected and the matchers in every selector."""
    return {f"{name.replace('_', '-')}.json": _with_options(made(name), options) for name in pages()}


def _with_options(text: str, options: MonitoringOptions) -> str:
    document = _narrowed(json.loads(text), options)
    (job,) = (variable for variable in document["templating"]["list"] if variable["name"] == "job")
    job["current"] = {"text": list(options.jobs), "value": list(options.jobs), "selected": True}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _narrowed(part: Any, options: MonitoringOptions) -> Any:
    """Append the matchers to `SCOPE`, which every selector contains verbatim."""
    if isinstance(part, str):
        return part.replace(SCOPE, ", ".join([SCOPE, *_matchers(options)]))
    if isinstance(part, dict):
        return {key: _narrowed(value, options) for key, value in part.items()}
    return [_narrowed(item, options) for item in part] if isinstance(part, list) else part


def _matchers(options: MonitoringOptions) -> Iterator[str]:
    for label, value in options.matchers.items():
        # JSON and PromQL escape strings alike.
        yield f"{label}={json.dumps(value, ensure_ascii=False)}"


def _source(options: MonitoringOptions) -> dict[str, Any]:
    source = {
        "name": "Prometheus",
        "uid": UID,
        "type": "prometheus",
        "access": "proxy",
        "url": PROMETHEUS_FOR_GRAFANA,
        "isDefault": True,
        "editable": False,
        "jsonData": {
            "httpMethod": "POST",
            # Grafana derives $__rate_interval from it: at least four scrapes.
            "timeInterval": f"{options.service_scrape_interval_seconds}s",
        },
    }
    return {"apiVersion": 1, "datasources": [source]}


def _provider() -> dict[str, Any]:
    provider = {
        "name": "mcpmeter",
        "folder": "mcpmeter",
        "folderUid": "mcpmeter",
        "type": "file",
        "disableDeletion": True,
        "allowUiUpdates": False,
        "updateIntervalSeconds": 30,
        "options": {"path": WHERE_GRAFANA_LOOKS},
    }
    return {"apiVersion": 1, "providers": [provider]}
