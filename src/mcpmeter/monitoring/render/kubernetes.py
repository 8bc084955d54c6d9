"""Kubernetes: the service, and the objects for the Prometheus operator and Grafana's sidecar."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.monitoring.render import grafana, rules
from mcpmeter.monitoring.render._container import (
    CONFIG,
    HEALTHY,
    LEDGER_FOLDER,
    NAME,
    PORT,
    READY,
    SECONDS_TO_STOP,
    USER,
    service_config,
)
from mcpmeter.monitoring.render._yaml import to_yaml

FOLDER: Final = "kubernetes"
LABELS: Final = {"app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": NAME}
CHOSEN: Final = {"app.kubernetes.io/name": NAME}
SECRET: Final = "mcpmeter-secrets"  # noqa: S105 (its name)
CALLERS: Final = {"mcpmeter.io/caller": "true"}
MONITORING: Final = {"kubernetes.io/metadata.name": "monitoring"}
NOTE: Final = f"""\
Apply with: kubectl apply -k deploy/kubernetes
Create the secret {SECRET} first, with MCPMETER_KEY, METRICS_TOKEN and the providers' keys: see docs/deploy.md."""


def render(options: MonitoringOptions) -> Mapping[str, str]:
    """One file per object, and the kustomization that lists them."""
    made = {f"{name}.yaml": document for name, document in _objects(options)}
    listed = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": options.namespace,
        "resources": list(made),
    }
    documents = {**made, "kustomization.yaml": listed}
    return {f"{FOLDER}/{name}": to_yaml(document, NOTE) for name, document in documents.items()}


def _objects(options: MonitoringOptions) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "namespace", _namespace(options)
    yield "config", _config_map(options, "mcpmeter-config", {"mcpmeter.yaml": service_config(options)})
    yield "ledger", _ledger(options)
    yield "deployment", _deployment(options)
    yield "service", _service(options)
    yield "networkpolicy", _network_policy(options)
    yield "poddisruptionbudget", _disruption_budget(options)
    yield "servicemonitor", _service_monitor(options)
    yield "prometheusrule", _prometheus_rule(options)
    for file, text in grafana.dashboards(options).items():
        stem = file.removesuffix(".json")
        labels = {"grafana_dashboard": "1"}
        yield f"dashboard-{stem}", _config_map(options, f"mcpmeter-dashboard-{stem}", {file: text}, labels)


def _head(options: MonitoringOptions, api: str, kind: str, name: str, **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": options.namespace, "labels": {**LABELS, **labels}}
    return {"apiVersion": api, "kind": kind, "metadata": metadata}


def _namespace(options: MonitoringOptions) -> dict[str, Any]:
    labels = {**LABELS, "pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": options.namespace, "labels": labels}}


def _config_map(
    options: MonitoringOptions, name: str, data: Mapping[str, str], labels: Mapping[str, str] | None = None
) -> dict[str, Any]:
    return {**_head(options, "v1", "ConfigMap", name, **(labels or {})), "data": dict(data)}


def _ledger(options: MonitoringOptions) -> dict[str, Any]:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}}
    return {**_head(options, "v1", "PersistentVolumeClaim", "mcpmeter-ledger"), "spec": spec}


def _deployment(options: MonitoringOptions) -> dict[str, Any]:
    spec = {
        # One: the ledger is a SQLite file, which one process writes. The old one goes before the new one comes.
        "replicas": 1,
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": CHOSEN},
        "template": {"metadata": {"labels": LABELS}, "spec": _pod(options)},
    }
    return {**_head(options, "apps/v1", "Deployment", NAME), "spec": spec}


def _pod(options: MonitoringOptions) -> dict[str, Any]:
    return {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": SECONDS_TO_STOP,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(options)],
        "volumes": [
            {"name": "config", "configMap": {"name": "mcpmeter-config"}},
            {"name": "ledger", "persistentVolumeClaim": {"claimName": "mcpmeter-ledger"}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }


def _container(options: MonitoringOptions) -> dict[str, Any]:
    return {
        "name": NAME,
        "image": options.image,
        "args": ["serve", "--config", CONFIG],
        "envFrom": [{"secretRef": {"name": SECRET}}],
        "ports": [{"name": "http", "containerPort": PORT}],
        "livenessProbe": _probe(HEALTHY, failures=6),
        "readinessProbe": _probe(READY, failures=1),
        "startupProbe": _probe(HEALTHY, failures=30, period=2),
        "resources": {"requests": {"cpu": "250m", "memory": "192Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG.rpartition("/")[0], "readOnly": True},
            {"name": "ledger", "mountPath": LEDGER_FOLDER},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 (of the container)
        ],
    }


def _probe(path: str, *, failures: int, period: int = 5) -> dict[str, Any]:
    request = {"path": path, "port": "http"}
    return {"httpGet": request, "periodSeconds": period, "timeoutSeconds": 3, "failureThreshold": failures}


def _service(options: MonitoringOptions) -> dict[str, Any]:
    spec = {"selector": CHOSEN, "ports": [{"name": "http", "port": PORT, "targetPort": "http"}]}
    return {**_head(options, "v1", "Service", NAME), "spec": spec}


def _network_policy(options: MonitoringOptions) -> dict[str, Any]:
    """Ingress: namespaces with the callers' label, and Prometheus. Egress: DNS, and HTTPS to providers."""
    sources = [
        {"podSelector": {}},
        {"namespaceSelector": {"matchLabels": CALLERS}},
        {"namespaceSelector": {"matchLabels": MONITORING}},
    ]
    names = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]
    spec = {
        "podSelector": {"matchLabels": CHOSEN},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": sources, "ports": [{"protocol": "TCP", "port": "http"}]}],
        "egress": [{"ports": names}, {"ports": [{"protocol": "TCP", "port": 443}]}],
    }
    return {**_head(options, "networking.k8s.io/v1", "NetworkPolicy", NAME), "spec": spec}


def _disruption_budget(options: MonitoringOptions) -> dict[str, Any]:
    # With one replica, minAvailable would prevent every drain of its node.
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": CHOSEN}}
    return {**_head(options, "policy/v1", "PodDisruptionBudget", NAME), "spec": spec}


def _service_monitor(options: MonitoringOptions) -> dict[str, Any]:
    endpoint: dict[str, Any] = {
        "port": "http",
        "path": "/metrics",
        "interval": f"{options.service_scrape_interval_seconds}s",
        "authorization": {"credentials": {"name": SECRET, "key": "METRICS_TOKEN"}},
        "relabelings": [_label(name, value) for name, value in {"job": options.jobs[0], **options.matchers}.items()],
    }
    spec = {"selector": {"matchLabels": CHOSEN}, "endpoints": [endpoint]}
    return {**_of_the_operator(options, "ServiceMonitor"), "spec": spec}


def _label(name: str, value: str) -> dict[str, str]:
    # A dollar sign refers to a group of the regular expression.
    return {"targetLabel": name, "replacement": value.replace("$", "$$"), "action": "replace"}


def _prometheus_rule(options: MonitoringOptions) -> dict[str, Any]:
    groups = [*rules.recording_rule_groups(options), *rules.alert_rule_groups(options)]
    return {**_of_the_operator(options, "PrometheusRule"), "spec": {"groups": groups}}


def _of_the_operator(options: MonitoringOptions, kind: str) -> dict[str, Any]:
    chosen = {"release": options.release} if options.release else {}
    return _head(options, "monitoring.coreos.com/v1", kind, NAME, **chosen)
