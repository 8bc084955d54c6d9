"""Debian's Alertmanager accepts the generated configuration and routes every alert by its severity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcpmeter.monitoring import MonitoringOptions, files
from mcpmeter.monitoring.alerts import alerts
from mcpmeter.monitoring.options import Email, PagerDuty, Receivers, Slack, Webhook

DEPLOY = Path(__file__).parents[2] / "deploy" / "alertmanager"
ALL = alerts(MonitoringOptions())
HOOK = Webhook(url="https://hooks.example.com/x")


def document(receivers: Receivers) -> dict[str, Any]:
    return yaml.safe_load(files(MonitoringOptions(receivers=receivers))["alertmanager/alertmanager.yml"])


@pytest.mark.parametrize(
    "receivers",
    [
        Receivers(),
        Receivers(pagerduty=PagerDuty(routing_key_file="secrets/p", url="https://events.example.com/v2/enqueue")),
        Receivers(slack=Slack(api_url_file="secrets/s", channel="#a")),
        Receivers(webhook=HOOK, dead_mans_switch=Webhook(url="https://d.example.com", credentials_file="secrets/d")),
        Receivers(email=Email(to="a@example.com", sender="b@example.com", smarthost="smtp.example.com:25")),
    ],
    ids=["none", "pagerduty", "slack", "webhook", "e-mail"],
)
@pytest.mark.parametrize("speedup", [1, 600])
def test_amtool_accepts_every_choice_of_receivers(tool, written, receivers: Receivers, speedup: int) -> None:
    folder = written(MonitoringOptions(receivers=receivers, speedup=speedup)) / "alertmanager"
    output = tool("amtool", "check-config", folder / "alertmanager.yml")
    assert "4 receivers" in output
    assert "1 templates" in output


def test_amtool_accepts_the_committed_configuration(tool) -> None:
    assert "SUCCESS" in tool("amtool", "check-config", DEPLOY / "alertmanager.yml")


def routed(tool: Any, labels: Mapping[str, str]) -> str:
    matchers = [f"{name}={value}" for name, value in labels.items()]
    output = tool("amtool", "config", "routes", "test", "--config.file", DEPLOY / "alertmanager.yml", *matchers)
    return output.splitlines()[0]


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        ({"alertname": "MCPHighErrorRate", "severity": "critical"}, "critical"),
        ({"alertname": "MCPCostSpike", "severity": "warning", "team": "search"}, "warning"),
        ({"alertname": "MCPLabelOverflow", "severity": "info"}, "info"),
        ({"alertname": "Watchdog", "severity": "none"}, "dead-mans-switch"),
        ({"alertname": "SomebodyElses"}, "warning"),
    ],
)
def test_an_alert_is_routed_by_its_severity(tool, labels: Mapping[str, str], receiver: str) -> None:
    assert routed(tool, labels) == receiver


def test_every_severity_has_its_own_route() -> None:
    routes = yaml.safe_load((DEPLOY / "alertmanager.yml").read_text())["route"]
    matched = " ".join(matcher for route in routes["routes"] for matcher in route["matchers"])
    used = {rule.severity for alert in ALL for rule in alert.rules} - {"none", "warning"}
    assert [severity for severity in sorted(used) if f'severity="{severity}"' not in matched] == []


def test_inhibitions_name_alerts_areas_and_severities_that_exist() -> None:
    known = {alert.name for alert in ALL} | {alert.area for alert in ALL} | {r.severity for a in ALL for r in a.rules}
    named = {
        name
        for rule in document(Receivers())["inhibit_rules"]
        for matcher in (*rule["source_matchers"], *rule["target_matchers"])
        for name in matcher.partition('"')[2].strip('"').split("|")
    }
    assert named - known == set()


def test_an_exhausted_budget_inhibits_only_its_own_warnings() -> None:
    (rule,) = (r for r in document(Receivers())["inhibit_rules"] if "MCPBudgetExhausted" in r["source_matchers"][0])
    assert {"team", "budget"} <= set(rule["equal"])
    assert rule["target_matchers"] == ['alertname=~"MCPBudgetForecastExceeded|MCPTokenBudgetWarning"']


def test_pagerduty_gets_critical_and_mail_gets_warnings() -> None:
    everything = Receivers(
        pagerduty=PagerDuty(routing_key_file="p"),
        email=Email(to="a", sender="b", smarthost="c:1"),
        webhook=HOOK,
    )
    having = {receiver["name"]: set(receiver) - {"name"} for receiver in document(everything)["receivers"]}
    assert having == {
        "critical": {"pagerduty_configs", "webhook_configs"},
        "warning": {"email_configs", "webhook_configs"},
        "info": {"webhook_configs"},
        "dead-mans-switch": set(),
    }


def test_no_field_is_newer_than_debian_or_holds_a_secret() -> None:
    text = (DEPLOY / "alertmanager.yml").read_text()
    assert "url_file" not in text.replace("api_url_file", "")
    for field in ("routing_key:", "api_url:", "auth_password:", "credentials:", "bearer_token:"):
        assert field not in text
