"""`compose.yaml`: service, Prometheus, Alertmanager and Grafana on one machine, ports on loopback, secrets in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.monitoring.render import grafana, prometheus
from mcpmeter.monitoring.render._container import (
    CONFIG,
    LEDGER_FOLDER,
    PORT,
    SECONDS_TO_STOP,
    service_config,
)
from mcpmeter.monitoring.render._yaml import to_yaml
from mcpmeter.monitoring.render.image import ASK_HEALTH

IMAGES: Final = {
    "prometheus": "prom/prometheus:v3.5.0",
    "alertmanager": "prom/alertmanager:v0.28.1",
    "grafana": "grafana/grafana:12.2.0",
}
METRICS_TOKEN: Final = "secrets/metrics-token"  # noqa: S105 (a path)
NOTE: Final = """\
In deploy/: write the providers' keys, MCPMETER_KEY and METRICS_TOKEN to mcpmeter.env; the same token to
secrets/metrics-token, Grafana's initial password to secrets/grafana-admin-password and the files named in
alertmanager.yml to secrets/; then run: docker compose up --build --wait
All ports are on the loopback interface only. See docs/deploy.md."""


def render(options: MonitoringOptions) -> Mapping[str, str]:
    """The file, and the two configurations that differ inside the containers."""
    inside = replace(
        options,
        targets=(f"mcpmeter:{PORT}",),
        alertmanagers=("alertmanager:9093",),
        scheme="http",
        bearer_token_file=METRICS_TOKEN,
    )
    return {
        "compose.yaml": to_yaml(_document(options), NOTE),
        "compose/mcpmeter.yaml": service_config(options),
        "compose/prometheus.yml": prometheus.render(inside)["prometheus/prometheus.yml"],
    }


def _document(options: MonitoringOptions) -> dict[str, Any]:
    return {
        "services": {
            "mcpmeter": _service(options),
            "prometheus": _prometheus(),
            "alertmanager": _alertmanager(),
            "grafana": _grafana(),
        },
        "volumes": {"ledger": {}, "prometheus": {}, "alertmanager": {}, "grafana": {}},
        "secrets": {"grafana-admin-password": {"file": "./secrets/grafana-admin-password"}},
    }


def _service(options: MonitoringOptions) -> dict[str, Any]:
    return {
        "image": f"${{MCPMETER_IMAGE:-{options.image}}}",
        "build": {"context": "..", "dockerfile": "deploy/Dockerfile"},
        **_hardened(),
        "env_file": ["./mcpmeter.env"],
        "volumes": [f"./compose/mcpmeter.yaml:{CONFIG}:ro", f"ledger:{LEDGER_FOLDER}"],
        "ports": [f"127.0.0.1:{PORT}:{PORT}"],
        "stop_grace_period": f"{SECONDS_TO_STOP}s",
        "healthcheck": _health(["CMD", "python", "-c", ASK_HEALTH]),
    }


def _prometheus() -> dict[str, Any]:
    return {
        **_of("prometheus", 9090),
        "command": [
            "--config.file=/etc/prometheus/prometheus.yml",
            "--storage.tsdb.path=/prometheus",
            "--storage.tsdb.retention.time=35d",
            "--enable-feature=exemplar-storage",
        ],
        "volumes": [
            "./compose/prometheus.yml:/etc/prometheus/prometheus.yml:ro",
            "./prometheus/rules:/etc/prometheus/rules:ro",
            "./secrets:/etc/prometheus/secrets:ro",
            "prometheus:/prometheus",
        ],
        "depends_on": {"mcpmeter": {"condition": "service_healthy"}, "alertmanager": {"condition": "service_healthy"}},
        "healthcheck": _asks("http://127.0.0.1:9090/-/healthy"),
    }


def _alertmanager() -> dict[str, Any]:
    return {
        **_of("alertmanager", 9093),
        "command": ["--config.file=/etc/alertmanager/alertmanager.yml", "--storage.path=/alertmanager"],
        "volumes": [
            # Mounted file by file: secrets cannot be mounted below a read-only folder.
            "./alertmanager/alertmanager.yml:/etc/alertmanager/alertmanager.yml:ro",
            "./alertmanager/mcpmeter.tmpl:/etc/alertmanager/mcpmeter.tmpl:ro",
            "./secrets:/etc/alertmanager/secrets:ro",
            "alertmanager:/alertmanager",
        ],
        "healthcheck": _asks("http://127.0.0.1:9093/-/healthy"),
    }


def _grafana() -> dict[str, Any]:
    return {
        **_of("grafana", 3000),
        "environment": {
            "GF_SECURITY_ADMIN_PASSWORD__FILE": "/run/secrets/grafana-admin-password",
            "GF_ANALYTICS_REPORTING_ENABLED": "false",
            "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
            "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": f"{grafana.WHERE_GRAFANA_LOOKS}/overview.json",
        },
        "secrets": ["grafana-admin-password"],
        "volumes": [
            "./grafana/provisioning:/etc/grafana/provisioning:ro",
            f"./grafana/dashboards:{grafana.WHERE_GRAFANA_LOOKS}:ro",
            "grafana:/var/lib/grafana",
        ],
        "depends_on": {"prometheus": {"condition": "service_healthy"}},
        "healthcheck": _asks("http://127.0.0.1:3000/api/health"),
    }


def _of(name: str, port: int) -> dict[str, Any]:
    image = f"${{{name.upper()}_IMAGE:-{IMAGES[name]}}}"
    return {"image": image, **_hardened(), "ports": [f"127.0.0.1:{port}:{port}"]}


def _hardened() -> dict[str, Any]:
    return {
        "restart": "unless-stopped",
        "read_only": True,
        "tmpfs": ["/tmp"],  # noqa: S108 (of the container)
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }


def _asks(url: str) -> dict[str, Any]:
    return _health(["CMD", "wget", "--quiet", "--spider", url])


def _health(test: list[str]) -> dict[str, Any]:
    return {"test": test, "interval": "10s", "timeout": "5s", "retries": 6, "start_period": "20s"}
