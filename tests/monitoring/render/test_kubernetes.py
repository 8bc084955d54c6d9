"""The manifests are valid by the schemas of Kubernetes and of the Prometheus operator."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from mcpmeter.config import load, refuse_open_bind
from mcpmeter.monitoring import MonitoringOptions, files
from mcpmeter.monitoring.render import kubernetes

KUBERNETES = "1.37"
OF_THE_OPERATOR = ("ServiceMonitor", "PrometheusRule")


def manifests(options: MonitoringOptions) -> dict[str, dict[str, Any]]:
    made = {path.rpartition("/")[2]: yaml.safe_load(text) for path, text in kubernetes.render(options).items()}
    return {name: document for name, document in made.items() if name != "kustomization.yaml"}


def of_kind(kind: str, options: MonitoringOptions = MonitoringOptions()) -> list[dict[str, Any]]:  # noqa: B008
    return [document for document in manifests(options).values() if document["kind"] == kind]


OPTIONS = (
    MonitoringOptions(),
    MonitoringOptions(
        jobs=("relay",),
        matchers={"cluster": "eu$1"},
        release="kube-prometheus-stack",
        namespace="meters",
        allowed_hosts=("meter.example.com",),
        image="registry.example.com/mcpmeter:1.2.3",
        service_scrape_interval_seconds=7,
    ),
)
BOTH = pytest.mark.parametrize("options", OPTIONS, ids=["default", "all set"])


@BOTH
def test_kubernetes_accepts_every_object_strictly(options: MonitoringOptions) -> None:
    plain = [document for document in manifests(options).values() if document["kind"] not in OF_THE_OPERATOR]
    assert len(plain) == 12
    for document in plain:
        assert kubernetes_validate.validate(document, KUBERNETES, strict=True) == KUBERNETES


def test_the_schemas_refuse_a_misspelt_field() -> None:
    (deployment,) = of_kind("Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["envFromm"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="envFromm"):
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)


def schema_errors(schemas, documents: list[dict[str, Any]]) -> list[str]:
    script = Path(__file__).parents[1] / "node" / "operator.mjs"
    done = schemas.node(script, schemas.packages, input=json.dumps(documents))
    assert done.stderr == ""
    return json.loads(done.stdout)


@BOTH
def test_the_operator_crds_accept_its_objects(schemas, options: MonitoringOptions) -> None:
    documents = [document for kind in OF_THE_OPERATOR for document in of_kind(kind, options)]
    assert len(documents) == 2
    assert schema_errors(schemas, documents) == []


def test_the_crds_refuse_a_wrong_type_and_a_missing_field(schemas) -> None:
    (monitor,), (rule,) = (of_kind(kind) for kind in OF_THE_OPERATOR)
    monitor["spec"]["endpoints"][0]["interval"] = 5
    del monitor["spec"]["selector"]
    rule["spec"]["groups"][0]["rules"][0]["expr"] = []
    errors = schema_errors(schemas, [monitor, rule])
    assert len(errors) == 2
    assert "selector" in errors[0]


def test_operator_objects_have_the_release_label() -> None:
    for kind in OF_THE_OPERATOR:
        (chosen,) = of_kind(kind, OPTIONS[1])
        assert chosen["metadata"]["labels"]["release"] == "kube-prometheus-stack"
        (plain,) = of_kind(kind)
        assert "release" not in plain["metadata"]["labels"]


def test_the_rules_equal_those_of_the_rule_files() -> None:
    (rule,) = of_kind("PrometheusRule")
    made = files(MonitoringOptions())
    written = [yaml.safe_load(text)["groups"] for path, text in made.items() if path.startswith("prometheus/rules/")]
    groups = [group for file in written for group in file]
    assert len(groups) == len({group["name"] for group in groups}) > 5
    by_name = {group["name"]: group for group in groups}
    assert {group["name"]: group for group in rule["spec"]["groups"]} == by_name


def test_a_scrape_has_the_job_and_labels_that_rules_select() -> None:
    (monitor,) = of_kind("ServiceMonitor", OPTIONS[1])
    (endpoint,) = monitor["spec"]["endpoints"]
    assert {r["targetLabel"]: r["replacement"] for r in endpoint["relabelings"]} == {"job": "relay", "cluster": "eu$$1"}
    assert endpoint["interval"] == "7s"
    assert endpoint["authorization"]["credentials"]["key"] == "METRICS_TOKEN"


def test_grafanas_sidecar_finds_every_dashboard() -> None:
    maps = [m for m in of_kind("ConfigMap") if m["metadata"]["labels"].get("grafana_dashboard") == "1"]
    made = files(MonitoringOptions())
    shown = {name: text for found in maps for name, text in found["data"].items()}
    assert shown == {
        path.rpartition("/")[2]: text for path, text in made.items() if path.startswith("grafana/dashboards/")
    }


def test_selectors_match_the_pods_which_run_without_root() -> None:
    (deployment,) = of_kind("Deployment")
    pod = deployment["spec"]["template"]
    for kind, path in (("Service", ()), ("PodDisruptionBudget", ("matchLabels",))):
        (document,) = of_kind(kind)
        selector = document["spec"]["selector"]
        for name in path:
            selector = selector[name]
        assert selector.items() <= pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}


@BOTH
def test_every_object_is_in_namespace_and_kustomization(options: MonitoringOptions) -> None:
    made = kubernetes.render(options)
    listed = yaml.safe_load(made["kubernetes/kustomization.yaml"])
    assert sorted(listed["resources"]) == sorted(manifests(options))
    for document in manifests(options).values():
        named = document["metadata"]
        assert named["name" if document["kind"] == "Namespace" else "namespace"] == options.namespace


def test_the_service_accepts_its_configuration(tmp_path: Path) -> None:
    for options in OPTIONS:
        (config,) = (m for m in of_kind("ConfigMap", options) if "mcpmeter.yaml" in m["data"])
        path = tmp_path / "mcpmeter.yaml"
        path.write_text(config["data"]["mcpmeter.yaml"])
        settings = load(
            path,
            {"MCPMETER_KEY": secrets.token_hex(32), "METRICS_TOKEN": secrets.token_hex(32), "OPENAI_API_KEY": "sk-x"},
        )
        refuse_open_bind(settings, have_keys=bool(settings.keys))
        service = f"mcpmeter.{options.namespace}"
        names = ("mcpmeter", service, f"{service}.svc", f"{service}.svc.cluster.local", *options.allowed_hosts)
        assert settings.server.allowed_hosts == names
        assert settings.ledger.path == Path("/var/lib/mcpmeter/ledger.db")
        assert settings.ledger.pending_path == Path("/var/lib/mcpmeter")
        assert [upstream.provider.name for upstream in settings.upstreams()] == ["openai"]
