"""Options of the generated monitoring; `config` builds them from the `monitoring:` section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class PagerDuty:
    """The receiver of pages."""

    routing_key_file: str
    url: str = ""
    """Replaces the URL of PagerDuty's events API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slack:
    """A channel for every alert of severity warning and above."""

    api_url_file: str
    channel: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Any program that accepts Alertmanager's JSON. The secret is sent in the Authorization header, not in the URL."""

    url: str
    credentials_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Email:
    """A mailbox for alerts that can wait until the morning."""

    to: str
    sender: str
    smarthost: str
    username: str = ""
    password_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receivers:
    """Receivers of notifications; None is not configured. Secrets are file paths, which Alertmanager reads."""

    pagerduty: PagerDuty | None = None
    slack: Slack | None = None
    webhook: Webhook | None = None
    email: Email | None = None
    dead_mans_switch: Webhook | None = None
    """The service that pages when Watchdog's notifications stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteWrite:
    """A remote store for long history or for several regions."""

    url: str
    username: str = ""
    password_file: str = ""
    credentials_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoringOptions:
    """All options of the renderers. The defaults apply if `mcpmeter.yaml` has no `monitoring:` section."""

    jobs: tuple[str, ...] = ("mcpmeter",)
    """Scrape jobs of mcpmeter; `prometheus.yml` defines the first."""

    matchers: Mapping[str, str] = field(default_factory=dict)
    """Further label matchers for every selector, for a Prometheus shared by several teams."""

    targets: tuple[str, ...] = ("127.0.0.1:8000",)
    scheme: str = "http"
    bearer_token_file: str = ""
    """File with the token of `metrics.bearer_token`."""

    scrape_interval_seconds: int = 15
    service_scrape_interval_seconds: int = 5
    """Scrape interval of the service itself."""

    evaluation_interval_seconds: int = 15
    region: str = ""
    cluster: str = ""
    """External labels of this Prometheus; omitted if empty."""

    alertmanagers: tuple[str, ...] = ("127.0.0.1:9093",)
    remote_write: tuple[RemoteWrite, ...] = ()
    federate: tuple[str, ...] = ()
    """Regional Prometheus servers from which a global one federates recorded series, as host:port."""

    slo_percent: Decimal = Decimal("99.9")
    """Objective: percentage of requests that do not fail on our side or upstream, over 30 days."""

    budget_soft_share: Decimal = Decimal("0.8")
    """Share of a budget at which its team is warned."""

    thresholds: Mapping[str, Mapping[str, Decimal]] = field(default_factory=dict)
    """Alert -> parameter -> value, replacing the alert's default."""

    without: frozenset[str] = frozenset()
    """Alerts that are not generated."""

    runbook_url: str = "docs/runbooks"
    """URL under which docs/runbooks/ is published; an alert links to this, "/", its name and ".md"."""

    receivers: Receivers = field(default_factory=Receivers)

    release: str = ""
    """Value of the `release` label by which a Prometheus operator selects its objects; omitted if empty."""

    namespace: str = "mcpmeter"
    allowed_hosts: tuple[str, ...] = ()
    """Names by which callers reach the deployed service, in addition to those of its container or Service."""

    image: str = "mcpmeter:latest"
    """For Kubernetes and compose."""

    speedup: int = 1
    """Divides every window and every `for` of rules and routes, so that tests see in minutes what takes hours."""
