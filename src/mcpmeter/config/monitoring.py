"""The `monitoring:` section: the input of `mcpmeter monitoring write`."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from mcpmeter.config.faults import nearest
from mcpmeter.config.fields import AllowedHost, BaseUrl, Section, Share, Whole, decimal, matching, must, setting
from mcpmeter.monitoring import MonitoringOptions
from mcpmeter.monitoring.alerts import parameters
from mcpmeter.monitoring.options import Email, PagerDuty, Receivers, RemoteWrite, Slack, Webhook

Plain = Annotated[str, AfterValidator(matching(r"[!-~]([ -~]{0,198}[!-~])?", "must be 1 to 200 printable characters"))]
File = Annotated[
    str, AfterValidator(matching(r"[!-~]{1,200}", "must be a path on Prometheus's machine, without blanks"))
]
Address = Annotated[
    str,
    AfterValidator(matching(r"[A-Za-z0-9._-]{1,253}:[0-9]{1,5}|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}", "must be host:port")),
]
LabelName = Annotated[str, AfterValidator(matching(r"[a-zA-Z_][a-zA-Z0-9_]*", "must be a label's name"))]
LabelValue = Annotated[
    str,
    AfterValidator(matching(r'[^"\\\n{}]{1,200}', "must be 1 to 200 characters, no quote, backslash or brace")),
]
Job = Annotated[
    str, AfterValidator(matching(r"[A-Za-z0-9_./-]{1,128}", "must be 1 to 128 letters, digits or any of '_./-'"))
]
Interval = Annotated[Whole, Field(ge=1, le=300)]
Objective = Annotated[Decimal, BeforeValidator(decimal), Field(ge=50, le=Decimal("99.999"), allow_inf_nan=False)]
Number = Annotated[Decimal, BeforeValidator(decimal), Field(ge=0, le=10**9, allow_inf_nan=False)]


def _known(alert: str) -> str:
    if alert not in parameters():
        raise must(f"names no alert{nearest(alert, parameters())}")
    return alert


def _settable(thresholds: Mapping[str, Mapping[str, Decimal]]) -> Mapping[str, Mapping[str, Decimal]]:
    for alert, values in thresholds.items():
        known = {parameter.name: parameter for parameter in parameters()[_known(alert)]}
        for name, value in values.items():
            if name not in known:
                raise must(f"of {alert} has no '{name}'{nearest(name, known)}")
            if value > Decimal(known[name].most):
                raise must(f"of {alert}: '{name}' is at most {known[name].most}; a higher one is never reached")
    return thresholds


AlertName = Annotated[str, AfterValidator(_known)]
Thresholds = Annotated[Mapping[str, Mapping[str, Number]], AfterValidator(_settable)]


class PagerDutySettings(Section):
    """Pages for critical alerts."""

    routing_key_file: File = setting(
        help="File with the integration's routing key.", example="/etc/alertmanager/secrets/pagerduty"
    )
    url: BaseUrl | None = setting(
        None, help="Events API; default: PagerDuty's own.", example="https://events.eu.pagerduty.com/v2/enqueue"
    )


class SlackSettings(Section):
    """A channel for critical alerts and warnings."""

    api_url_file: File = setting(
        help="File with the incoming webhook's address.", example="/etc/alertmanager/secrets/slack"
    )
    channel: Plain = setting("#alerts", help="The channel.", example="#llm-alerts")


class WebhookSettings(Section):
    """A program that accepts Alertmanager's JSON."""

    url: BaseUrl = setting(help="Its address, without a secret in it.", example="https://hooks.example.com/alerts")
    credentials_file: File = setting(
        "", help="File with the bearer token it requires; default: none is sent.", example="/etc/alertmanager/token"
    )

    def options(self) -> Webhook:
        """As the renderers take it."""
        return Webhook(**self.model_dump())


class EmailSettings(Section):
    """A mailbox for alerts that can wait until the next working day."""

    to: Plain = setting(help="Recipient.", example="oncall@example.com")
    sender: Plain = setting(help="Sender.", example="alertmanager@example.com")
    smarthost: Address = setting(help="The mail server.", example="smtp.example.com:587")
    username: Plain = setting("", help="User, if the server requires one.", example="alertmanager")
    password_file: File = setting("", help="File with the password.", example="/etc/alertmanager/secrets/smtp")


class ReceiverSettings(Section):
    """Where alerts are sent. Secrets are files on Alertmanager's machine; none is read here."""

    pagerduty: PagerDutySettings | None = setting(
        None, help="Pages for critical alerts.", example={"routing_key_file": "/etc/alertmanager/secrets/pagerduty"}
    )
    slack: SlackSettings | None = setting(
        None, help="A Slack channel.", example={"api_url_file": "/etc/alertmanager/secrets/slack"}
    )
    webhook: WebhookSettings | None = setting(
        None, help="Any program; it receives every alert.", example={"url": "https://hooks.example.com/alerts"}
    )
    email: EmailSettings | None = setting(
        None,
        help="A mailbox.",
        example={"to": "a@example.com", "sender": "b@example.com", "smarthost": "smtp.example.com:587"},
    )
    dead_mans_switch: WebhookSettings | None = setting(
        None,
        help="A service that pages when Watchdog stops arriving.",
        example={"url": "https://deadmansswitch.example.com/mcpmeter"},
    )

    def options(self) -> Receivers:
        """As the renderers take them."""
        return Receivers(
            pagerduty=PagerDuty(**self.pagerduty.model_dump(exclude_none=True)) if self.pagerduty else None,
            slack=Slack(**self.slack.model_dump()) if self.slack else None,
            webhook=self.webhook.options() if self.webhook else None,
            email=Email(**self.email.model_dump()) if self.email else None,
            dead_mans_switch=self.dead_mans_switch.options() if self.dead_mans_switch else None,
        )


class RemoteWriteSettings(Section):
    """A remote store for this Prometheus's series."""

    url: BaseUrl = setting(help="Its address.", example="https://metrics.example.com/api/v1/write")
    username: Plain = setting("", help="User, if the store requires one.", example="123456")
    password_file: File = setting("", help="File with the password.", example="/etc/prometheus/secrets/remote")
    credentials_file: File = setting("", help="Or a file with a bearer token.", example="/etc/prometheus/secrets/token")


class MonitoringSettings(Section):
    """Input of `mcpmeter monitoring write`: rules, routes and dashboards. The service does not read it."""

    jobs: Annotated[tuple[Job, ...], Field(min_length=1)] = setting(
        ("mcpmeter",),
        help="Scrape jobs of metered services; `prometheus.yml` defines the first.",
        example=["mcpmeter", "mcp-servers"],
    )
    matchers: Mapping[LabelName, LabelValue] = setting(
        {}, help="Labels that every query selects by, in a shared Prometheus.", example={"namespace": "ai"}
    )
    targets: tuple[Address, ...] = setting(
        ("127.0.0.1:8000",), help="The replicas to scrape.", example=["meter-1:8000", "meter-2:8000"]
    )
    scheme: Literal["http", "https"] = setting("http", help="Scheme of the scrapes.", example="https")
    bearer_token_file: File = setting(
        "", help="File with the token of `metrics.bearer_token`.", example="/etc/prometheus/secrets/mcpmeter"
    )
    scrape_interval_seconds: Interval = setting(15, help="Scrape interval, in seconds.", example=30)
    service_scrape_interval_seconds: Interval = setting(
        5, help="Scrape interval of the service, in seconds.", example=15
    )
    evaluation_interval_seconds: Interval = setting(
        15, help="Evaluation interval of the rules, in seconds.", example=30
    )
    region: LabelValue = setting("", help="External label of this Prometheus.", example="eu-west-1")
    cluster: LabelValue = setting("", help="External label of this Prometheus.", example="prod")
    alertmanagers: tuple[Address, ...] = setting(
        ("127.0.0.1:9093",), help="The Alertmanagers.", example=["alertmanager:9093"]
    )
    remote_write: tuple[RemoteWriteSettings, ...] = setting(
        (), help="Remote stores for long history.", example=[{"url": "https://metrics.example.com/api/v1/write"}]
    )
    federate: tuple[Address, ...] = setting(
        (),
        help="Regional Prometheus servers. If given, `global.yml` is written, which federates their recorded series.",
        example=["prometheus.eu:9090", "prometheus.us:9090"],
    )
    slo_percent: Objective = setting(
        Decimal("99.9"),
        help="Objective over 30 days: percent of requests that do not fail in the service or upstream.",
        example=99.5,
    )
    budget_soft_share: Share = setting(
        Decimal("0.8"), help="Share of a budget at which its team is warned.", example=Decimal("0.7")
    )
    thresholds: Thresholds = setting(
        {},
        help="Thresholds, by alert and name; each alert's page in docs/runbooks/ lists its own.",
        example={"MCPHighErrorRate": {"ratio": 0.1}},
    )
    without: tuple[AlertName, ...] = setting((), help="Alerts to leave out.", example=["MCPHighErrorRate"])
    runbook_url: Plain = setting(
        "docs/runbooks", help="Where you publish docs/runbooks/.", example="https://wiki.example.com/runbooks"
    )
    receivers: ReceiverSettings = setting(
        ReceiverSettings(),
        help="Where alerts are sent.",
        example={"webhook": {"url": "https://hooks.example.com/alerts"}},
    )
    release: LabelValue = setting(
        "", help="`release` label by which a Prometheus operator finds its objects.", example="kube-prometheus-stack"
    )
    namespace: LabelValue = setting("mcpmeter", help="Kubernetes namespace.", example="ai")
    allowed_hosts: tuple[AllowedHost, ...] = setting(
        (),
        help="Names of the deployed service, for example of its ingress, beside those of its container or Service.",
        example=["meter.example.com"],
    )
    image: Plain = setting("mcpmeter:latest", help="Image of the service.", example="registry.example.com/mcpmeter:1")

    def options(self) -> MonitoringOptions:
        """As the renderers take them."""
        own = {name: getattr(self, name) for name in type(self).model_fields}
        own["remote_write"] = tuple(RemoteWrite(**store.model_dump()) for store in self.remote_write)
        own["without"] = frozenset(self.without)
        own["receivers"] = self.receivers.options()
        return MonitoringOptions(**own)
