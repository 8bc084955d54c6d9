"""Unit tests of the alerts for `promtool test rules`: one file per alert, from its cases.

An alert with changed thresholds has no file, since its cases are written for the defaults.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from mcpmeter.monitoring.alert import Alert, Case, Firing, Rule
from mcpmeter.monitoring.alerts import alerts
from mcpmeter.monitoring.options import MonitoringOptions
from mcpmeter.monitoring.recording import recording_groups
from mcpmeter.monitoring.render import rules
from mcpmeter.monitoring.render._yaml import to_yaml

FOLDER: Final = "prometheus/tests"
LABEL: Final = re.compile(r"\{\{ \$labels\.(\w+) \}\}")
WITH: Final = re.compile(r"\{\{ with \$labels\.(\w+) \}\}(.*?)\{\{ end \}\}")
VALUE: Final = re.compile(r"\{\{ \$value[^}]*\}\}")
DEFAULTS: Final = MonitoringOptions()


def render(options: MonitoringOptions) -> Mapping[str, str]:
    """One file for each alert with default thresholds."""
    if _is_tuned(options):
        return {}
    return {
        f"{FOLDER}/{alert.name}.test.yml": to_yaml(_document(options, alert))
        for alert in alerts(options)
        if alert.name not in options.thresholds
    }


def _is_tuned(options: MonitoringOptions) -> bool:
    names = ("speedup", "slo_percent", "budget_soft_share")
    return any(getattr(options, name) != getattr(DEFAULTS, name) for name in names)


def _document(options: MonitoringOptions, alert: Alert) -> dict[str, Any]:
    return {
        "rule_files": [f"../rules/{rules.file_of(name)}" for name in _groups(options, alert)],
        "evaluation_interval": alert.step,
        "tests": [_test(options, alert, case) for case in alert.cases],
    }


def _groups(options: MonitoringOptions, alert: Alert) -> Iterator[str]:
    """The recording groups that the alert uses, and its own group."""
    exprs = " ".join(rule.expr for rule in alert.rules)
    for group in recording_groups(options):
        if any(f"{rule.record}{{" in exprs for rule in group.rules):
            yield group.name
    yield rules.alert_group(alert.area)


def _test(options: MonitoringOptions, alert: Alert, case: Case) -> dict[str, Any]:
    series = [{"series": _placed(options, text), "values": values} for text, values in case.series.items()]
    expected = [_expected(options, alert, firing) for firing in case.firing]
    return {
        "name": case.title,
        "interval": alert.step,
        **({"input_series": series} if series else {}),
        "alert_rule_test": [{"eval_time": case.at, "alertname": alert.name, "exp_alerts": expected}],
    }


def _placed(options: MonitoringOptions, series: str) -> str:
    """The series with the labels that Prometheus adds at a scrape, unless the case sets them."""
    name, _, rest = series.partition("{")
    usual = {**_common(options), "instance": "one:8000"}
    given = rest.removesuffix("}")
    added = [f'{label}="{value}"' for label, value in usual.items() if not re.search(rf'\b{label}="', given)]
    return f"{name}{{{','.join([*added, *([given] if given else [])])}}}"


def _common(options: MonitoringOptions) -> dict[str, str]:
    return {"job": options.jobs[0], **options.matchers}


def _expected(options: MonitoringOptions, alert: Alert, firing: Firing) -> dict[str, Any]:
    rule = _rule_of(alert, firing)
    own = {} if rule.expr.startswith("vector(") else _common(options)
    labels = {**own, **rules.rule_labels(alert, rule), **firing.labels}
    annotations = {
        name: _filled_in(text, labels, firing.shown) for name, text in rules.texts(options, alert, rule).items()
    }
    return {"exp_labels": labels, "exp_annotations": annotations}


def _rule_of(alert: Alert, firing: Firing) -> Rule:
    """The rule whose labels match those of the firing alert."""
    return next(
        rule
        for rule in alert.rules
        if firing.labels.get("severity", rule.severity) == rule.severity
        and rule.labels.items() <= {**rule.labels, **firing.labels}.items()
    )


def _filled_in(text: str, labels: Mapping[str, str], shown: str) -> str:
    text = WITH.sub(lambda found: found[2].replace("{{ . }}", labels[found[1]]) if found[1] in labels else "", text)
    return VALUE.sub(shown, LABEL.sub(lambda found: labels.get(found[1], ""), text))
