"""`alertmanager.yml` and its templates: routes, repetition, inhibition and receivers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mcpmeter.monitoring.options import Email, MonitoringOptions, PagerDuty, Slack, Webhook
from mcpmeter.monitoring.queries import DIMENSIONS, Queries
from mcpmeter.monitoring.render._yaml import HEADER, to_yaml

CONFIG: Final = "alertmanager/alertmanager.yml"
TEXTS: Final = "alertmanager/mcpmeter.tmpl"

NOTE: Final = """\
Secrets are separate files; their paths are relative to this file. critical pages, warning is for the day, info goes to
the webhook only. Watchdog goes to the dead man's switch, which pages if it no longer arrives."""

SUBJECT: Final = ("team", "budget", "provider", "model", "endpoint", "instance", "gen_ai_tool_name")
"""Labels that identify the subject of an alert."""

TEMPLATES: Final = """\
{{ define "mcpmeter.title" -}}
[{{ .Status | toUpper }}{{ if eq .Status "firing" }} {{ .Alerts.Firing | len }}{{ end }}] {{ .CommonLabels.alertname }}
{{- with .CommonLabels.region }} in {{ . }}{{ end }}
{{- with .CommonAnnotations.summary }}: {{ . }}{{ end }}
{{- end }}

{{ define "mcpmeter.text" -}}
{{ range .Alerts -}}
{{ .Annotations.description }}{{ if eq .Status "resolved" }} (resolved){{ end }}
Runbook: {{ .Annotations.runbook_url }}
{{ end -}}
{{ end }}
"""


def render(options: MonitoringOptions) -> Mapping[str, str]:
    """The configuration and the templates of its notifications."""
    document = {
        "route": _route(Queries(options)),
        "inhibit_rules": _inhibitions(),
        "receivers": _receivers(options),
        "templates": [TEXTS.rpartition("/")[2]],
    }
    note = "".join(f"{line}\n" for line in HEADER.splitlines()).replace("# ", "{{/* ").replace("\n", " */}}\n")
    return {CONFIG: to_yaml(document, NOTE), TEXTS: note + TEMPLATES}


def _route(q: Queries) -> dict[str, Any]:
    def times(wait: str, interval: str, repeat: str) -> dict[str, str]:
        return {
            "group_wait": q.span(wait),
            "group_interval": q.span(interval),
            "repeat_interval": q.span(repeat),
        }

    return {
        "receiver": "warning",
        "group_by": ["alertname", *DIMENSIONS, "team", "provider"],
        **times("30s", "5m", "12h"),
        "routes": [
            {"receiver": "dead-mans-switch", "matchers": ['alertname="Watchdog"'], **times("1s", "1m", "1m")},
            {"receiver": "critical", "matchers": ['severity="critical"'], **times("15s", "2m", "1h")},
            {"receiver": "info", "matchers": ['severity="info"'], **times("1m", "30m", "1d")},
        ],
    }


def _inhibitions() -> list[dict[str, Any]]:
    where = list(DIMENSIONS)
    return [
        _inhibit('alertname="MCPBudgetExhausted"', _any("MCPBudgetForecastExceeded", "MCPTokenBudgetWarning"), _BUDGET),
        _inhibit('alertname="MCPTargetDown",severity="critical"', 'area=~"slo|upstreams|quality"', where),
        _inhibit('alertname="MCPTargetDown",severity="critical"', 'alertname="MCPAbsent"', where),
        _inhibit(
            'alertname="MCPTargetDown",severity="critical"', 'alertname="MCPTargetDown",severity="warning"', where
        ),
        _inhibit('alertname="MCPHighErrorRate"', _any("MCPErrorRateSpike", "MCPErrorBudgetBurn"), where),
        _inhibit('severity="critical"', 'severity="warning"', ["alertname", *where, *SUBJECT]),
    ]


_BUDGET: Final = [*DIMENSIONS, "team", "budget"]


def _any(*names: str) -> str:
    return f'alertname=~"{"|".join(names)}"'


def _inhibit(source: str, target: str, equal: list[str]) -> dict[str, Any]:
    return {"source_matchers": source.split(","), "target_matchers": target.split(","), "equal": equal}


def _receivers(options: MonitoringOptions) -> list[dict[str, Any]]:
    to = options.receivers
    pager = {"pagerduty_configs": [_pagerduty(to.pagerduty)]} if to.pagerduty else {}
    chat = {"slack_configs": [_slack(to.slack)]} if to.slack else {}
    hook = {"webhook_configs": [_webhook(to.webhook)]} if to.webhook else {}
    mail = {"email_configs": [_email(to.email)]} if to.email else {}
    switch = {"webhook_configs": [_webhook(to.dead_mans_switch)]} if to.dead_mans_switch else {}
    return [
        {"name": "critical", **pager, **chat, **hook},
        {"name": "warning", **chat, **mail, **hook},
        {"name": "info", **hook},
        {"name": "dead-mans-switch", **switch},
    ]


def _pagerduty(to: PagerDuty) -> dict[str, Any]:
    return {
        "send_resolved": True,
        "routing_key_file": to.routing_key_file,
        **({"url": to.url} if to.url else {}),
        "severity": "{{ .CommonLabels.severity }}",
        "description": '{{ template "mcpmeter.title" . }}',
        "details": {"text": '{{ template "mcpmeter.text" . }}'},
    }


def _slack(to: Slack) -> dict[str, Any]:
    return {
        "send_resolved": True,
        "api_url_file": to.api_url_file,
        "channel": to.channel,
        "title": '{{ template "mcpmeter.title" . }}',
        "text": '{{ template "mcpmeter.text" . }}',
    }


def _webhook(to: Webhook) -> dict[str, Any]:
    # Debian 12's Alertmanager has no `url_file`, so a secret can only be in the header.
    header = {"http_config": {"authorization": {"credentials_file": to.credentials_file}}}
    return {"send_resolved": True, "url": to.url, **(header if to.credentials_file else {})}


def _email(to: Email) -> dict[str, Any]:
    login = {"auth_username": to.username, "auth_password_file": to.password_file} if to.username else {}
    return {
        "send_resolved": True,
        "to": to.to,
        "from": to.sender,
        "smarthost": to.smarthost,
        **login,
        "headers": {"Subject": '{{ template "mcpmeter.title" . }}'},
        "text": '{{ template "mcpmeter.text" . }}',
    }
