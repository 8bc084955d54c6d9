"""Shared by compose and Kubernetes: how the service runs in a container."""

from __future__ import annotations

from typing import Any, Final

from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.monitoring.render._yaml import to_yaml

NAME: Final = "mcpmeter"
PORT: Final = 8000
USER: Final = 10001
CONFIG: Final = "/etc/mcpmeter/mcpmeter.yaml"
LEDGER_FOLDER: Final = "/var/lib/mcpmeter"
HEALTHY: Final = "/-/healthy"
READY: Final = "/-/ready"
DRAIN_SECONDS: Final = 30
SECONDS_TO_STOP: Final = DRAIN_SECONDS + 15
"""Time to stop: streams drain, then the ledger is closed."""

NOTE: Final = """\
The service in a container. A provider is enabled if its key is in the environment (OPENAI_API_KEY,
ANTHROPIC_API_KEY …). MCPMETER_KEY is the key of the first caller, METRICS_TOKEN the token of scrapes; create each with:
openssl rand -hex 32. See docs/deploy.md."""


def service_config(options: MonitoringOptions) -> str:
    """`mcpmeter.yaml` for the container. Secrets are references to environment variables."""
    service = f"{NAME}.{options.namespace}"
    inside = [NAME, service, f"{service}.svc", f"{service}.svc.cluster.local"]
    document: dict[str, Any] = {
        "server": {
            "host": "0.0.0.0",  # noqa: S104 (asks for keys)
            "port": PORT,
            "allowed_hosts": [*inside, *options.allowed_hosts],
            "drain_seconds": DRAIN_SECONDS,
        },
        # Not public: Prometheus calls a pod by its address, which only a scrape with the token may.
        "metrics": {"bearer_token": "${METRICS_TOKEN}"},
        # The pending file is beside the ledger anyway; the line is for those that change `path` to `url`.
        "ledger": {"path": f"{LEDGER_FOLDER}/ledger.db", "pending_path": LEDGER_FOLDER},
        "keys": [{"name": "first", "team": "default", "secret": "${MCPMETER_KEY}"}],
    }
    return to_yaml(document, NOTE)
