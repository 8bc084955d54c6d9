"""Prometheus's rule files: recording rules and alerts, one file per group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from mcpmeter.monitoring.alert import Alert, Rule
from mcpmeter.monitoring.alerts import alerts
from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.monitoring.queries import Queries
from mcpmeter.monitoring.recording import recording_groups
from mcpmeter.monitoring.render._yaml import to_yaml

FOLDER: Final = "prometheus/rules"


def render(options: MonitoringOptions) -> Mapping[str, str]:
    """One file per group."""
    groups = [*recording_rule_groups(options), *alert_rule_groups(options)]
    return {f"{FOLDER}/{file_of(group['name'])}": to_yaml({"groups": [group]}) for group in groups}


def file_of(group: str) -> str:
    """The name of a group's file. One file per group lets a unit test evaluate only the groups it needs."""
    return f"{group.replace('.', '-')}.yml"


def recording_rule_groups(options: MonitoringOptions) -> list[dict[str, Any]]:
    """Recording rule groups in the format of Prometheus and of PrometheusRule."""
    return [
        {"name": group.name, "rules": [{"record": rule.record, "expr": rule.expr} for rule in group.rules]}
        for group in recording_groups(options)
    ]


def alert_rule_groups(options: MonitoringOptions) -> list[dict[str, Any]]:
    """Alert groups in the format of Prometheus and of PrometheusRule, one per area."""
    q, groups = Queries(options), dict[str, list[dict[str, Any]]]()
    for alert in alerts(options):
        groups.setdefault(alert.area, []).extend(_rules(q, alert))
    return [{"name": alert_group(area), "rules": rules} for area, rules in sorted(groups.items())]


def alert_group(area: str) -> str:
    """The group name of an area."""
    return f"mcpmeter.alerts.{area}"


def _rules(q: Queries, alert: Alert) -> Iterator[dict[str, Any]]:
    for rule in alert.rules:
        yield {
            "alert": alert.name,
            "expr": rule.expr,
            **({"for": q.span(rule.hold)} if rule.hold else {}),
            "labels": rule_labels(alert, rule),
            "annotations": texts(q.options, alert, rule),
        }


def rule_labels(alert: Alert, rule: Rule) -> dict[str, str]:
    """Labels for routing, added to the labels of the series."""
    return {"severity": rule.severity, "area": alert.area, **rule.labels}


def texts(options: MonitoringOptions, alert: Alert, rule: Rule) -> dict[str, str]:
    """Texts for people. Prometheus's `$labels` lacks the rule's own labels, so they are inserted here."""
    made = {
        "summary": alert.summary,
        "description": alert.description,
        "runbook_url": f"{options.runbook_url.rstrip('/')}/{alert.name}.md",
    }
    for label, value in rule.labels.items():
        made = {name: text.replace(f"{{{{ $labels.{label} }}}}", value) for name, text in made.items()}
    return made
