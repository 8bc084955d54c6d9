"""Prometheus accepts the generated configuration in every variant."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mcpmeter.monitoring import MonitoringOptions, files
from mcpmeter.monitoring.options import RemoteWrite

DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"


def test_promtool_accepts_the_committed_configurations(tool) -> None:
    output = tool("promtool", "check", "config", "--syntax-only", DEPLOY / "prometheus.yml")
    assert "SUCCESS" in output
    assert "SUCCESS" in tool("promtool", "check", "config", "--syntax-only", DEPLOY / "global.yml")


def test_promtool_accepts_every_rule_file(tool) -> None:
    rules = sorted((DEPLOY / "rules").glob("*.yml"))
    assert len(rules) >= 8
    assert tool("promtool", "check", "rules", *rules).count("SUCCESS") == len(rules)


@pytest.mark.parametrize(
    "options",
    [
        MonitoringOptions(),
        MonitoringOptions(targets=("a:1", "b:2"), scheme="https", region="eu", cluster="one"),
        MonitoringOptions(alertmanagers=(), matchers={"namespace": "ai"}),
        MonitoringOptions(remote_write=(RemoteWrite(url="https://a/w"), RemoteWrite(url="https://b/w"))),
        MonitoringOptions(federate=("eu:9090", "us:9090")),
        MonitoringOptions(speedup=600),
    ],
    ids=["defaults", "regional", "alone", "stores", "global", "fast"],
)
def test_promtool_accepts_every_variant_with_its_rules(tool, written, options: MonitoringOptions) -> None:
    folder = written(options) / "prometheus"
    output = tool("promtool", "check", "config", folder / "prometheus.yml")
    assert f"{len(list((folder / 'rules').iterdir()))} rule files found" in output


def test_secrets_are_files_and_region_labels_are_external() -> None:
    options = MonitoringOptions(
        region="eu",
        bearer_token_file="secrets/metrics",
        remote_write=(
            RemoteWrite(url="https://a/w", username="u", password_file="secrets/p"),
            RemoteWrite(url="https://b/w", credentials_file="secrets/t"),
        ),
    )
    made = yaml.safe_load(files(options)["prometheus/prometheus.yml"])
    assert made["global"]["external_labels"] == {"region": "eu"}
    assert made["scrape_configs"][0]["authorization"] == {"credentials_file": "secrets/metrics"}
    assert [store.get("basic_auth", store.get("authorization")) for store in made["remote_write"]] == [
        {"username": "u", "password_file": "secrets/p"},
        {"credentials_file": "secrets/t"},
    ]


def test_the_global_server_federates_and_evaluates_no_alert() -> None:
    made = yaml.safe_load(files(MonitoringOptions(federate=("eu:9090",)))["prometheus/global.yml"])
    gathering = made["scrape_configs"][0]
    assert (gathering["metrics_path"], gathering["honor_labels"]) == ("/federate", True)
    assert "rule_files" not in made
